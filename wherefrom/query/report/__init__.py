"""Answers as one HTML file, and what its pictures are made of: colours, maps, bars."""
