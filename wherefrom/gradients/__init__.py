"""Gradients: a model and a batch in, per-example and per-layer gradient factors out."""
