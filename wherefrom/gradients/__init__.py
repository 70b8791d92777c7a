"""Model + batch -> each document's per-layer (activation, output gradient) pairs."""
