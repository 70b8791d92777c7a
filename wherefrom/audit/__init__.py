"""Audit use: many questions from a file, gates on their answers, and evidence that can be checked.

Nothing here loads torch until a question is asked: files, conditions and bundles are checked first.
"""
