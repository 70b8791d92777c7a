"""The demo: a small language model of State of the Union addresses, and its index."""
