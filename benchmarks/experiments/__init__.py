"""The experiments of the field, one module each; ``python -m benchmarks.experiments`` runs them.

A module of this folder with ``BUDGET_MINUTES`` and ``run(work, *, quick)`` is an experiment.
"""
