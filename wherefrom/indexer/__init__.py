"""Corpus in, index out: read -> fit -> encode -> write, by shards, the manifest last."""
