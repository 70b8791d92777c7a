"""Open -> query vector -> scan -> rerank -> answer. Nothing is fitted here."""
