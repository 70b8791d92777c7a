"""Fitted encoders: a document's whitened gradient -> the vector that is stored and searched."""
