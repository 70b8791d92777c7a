"""The commands: parse, call one function, print. ``--help`` and ``info`` never load torch."""
