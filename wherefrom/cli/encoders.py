"""Encoders on a terminal: how well one keeps the scores, and what else was tried."""

from __future__ import annotations

from wherefrom.store import EncoderRecord, FidelityRecord, TriedRecord

__all__ = ["encoder_facts", "fidelity_in_words"]


def fidelity_in_words(fidelity: FidelityRecord | None) -> str:
    """What was measured of an encoder; ``None`` for one that keeps everything."""
    if fidelity is None:
        return "all coordinates are kept: scores are the uncompressed ones, up to rounding"
    sums = (
        f"sums of scores over random subsets correlate at {fidelity.correlation:.3f} with "
        f"uncompressed ones ({fidelity.documents:,} sampled documents, {fidelity.queries:,} "
        "held-out queries)"
    )
    if fidelity.documents <= fidelity.among:
        return sums  # Any encoder has the true top 10 among so few.
    return f"{fidelity.recall:.1%} of the true top 10 are among its best {fidelity.among}; {sums}"


def encoder_facts(encoder: EncoderRecord) -> list[tuple[str, object]]:
    """An encoder as labels and values: its stages, its fidelity, and what it was chosen among."""
    facts: list[tuple[str, object]] = [
        (
            "encoder",
            f"{encoder.name}: {encoder.bytes_per_document:,.0f} bytes per document, "
            f"seed {encoder.seed}",
        ),
        ("fidelity", fidelity_in_words(encoder.fidelity)),
    ]
    choice = encoder.choice
    if choice is not None:
        asked = []
        if choice.bytes_per_document is not None:
            asked.append(f"at most {choice.bytes_per_document:,} bytes per document")
        if choice.fidelity is not None:
            asked.append(f"fidelity {choice.fidelity:g}")
        facts.append(("asked for", " and ".join(asked) or "neither a budget nor a fidelity"))
        facts += (("tried", _tried(one)) for one in choice.tried)
    return facts


def _tried(one: TriedRecord) -> str:
    return (
        f"{one.encoder}: {one.bytes_per_document:,.0f} bytes, recall {one.recall:.3f}, "
        f"correlation {one.correlation:.3f}, noise {one.noise:.3g}"
        + (" (chosen)" if one.chosen else "")
    )
