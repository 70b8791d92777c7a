"""What stands behind an answer: shares of layers and tokens, likeness, sums by a column."""
