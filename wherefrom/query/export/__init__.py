"""Answers as JSON, tables and files that other programs read."""
