"""Is the answer true? Influence scores set against retraining, and against simpler rankings."""
