"""The figures that wherefrom promises, measured; see ``benchmarks/README.md``."""
