"""Which training documents made this model say that? A search index over training data."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wherefrom.api import build, estimate, open
    from wherefrom.errors import WherefromError
    from wherefrom.gradients.objectives import (
        Categorical,
        CausalLM,
        Classification,
        Diffusion,
        MaskedLM,
        Objective,
        Probabilistic,
        Regression,
        SequenceClassification,
        TextObjective,
    )
    from wherefrom.indexer.estimate import Estimate
    from wherefrom.maintenance.changes import Change
    from wherefrom.maintenance.drift import Drift
    from wherefrom.maintenance.fetch import fetch
    from wherefrom.maintenance.index import Index
    from wherefrom.maintenance.publish import Publication, publish
    from wherefrom.maintenance.verification import Verification, verify
    from wherefrom.query.answer import Answer
    from wherefrom.records import Certificate, Document, Hit, Message, Query, QuerySet

__version__ = "0.1.0"

_HOMES = {
    "Answer": "wherefrom.query.answer",
    "Categorical": "wherefrom.gradients.objectives",
    "CausalLM": "wherefrom.gradients.objectives",
    "Certificate": "wherefrom.records",
    "Change": "wherefrom.maintenance.changes",
    "Classification": "wherefrom.gradients.objectives",
    "Diffusion": "wherefrom.gradients.objectives",
    "Document": "wherefrom.records",
    "Drift": "wherefrom.maintenance.drift",
    "Estimate": "wherefrom.indexer.estimate",
    "Hit": "wherefrom.records",
    "Index": "wherefrom.maintenance.index",
    "MaskedLM": "wherefrom.gradients.objectives",
    "Message": "wherefrom.records",
    "Objective": "wherefrom.gradients.objectives",
    "Probabilistic": "wherefrom.gradients.objectives",
    "Publication": "wherefrom.maintenance.publish",
    "Query": "wherefrom.records",
    "QuerySet": "wherefrom.records",
    "Regression": "wherefrom.gradients.objectives",
    "SequenceClassification": "wherefrom.gradients.objectives",
    "TextObjective": "wherefrom.gradients.objectives",
    "Verification": "wherefrom.maintenance.verification",
    "WherefromError": "wherefrom.errors",
    "build": "wherefrom.api",
    "estimate": "wherefrom.api",
    "fetch": "wherefrom.maintenance.fetch",
    "open": "wherefrom.api",
    "publish": "wherefrom.maintenance.publish",
    "verify": "wherefrom.maintenance.verification",
}

__all__ = [
    "Answer",
    "Categorical",
    "CausalLM",
    "Certificate",
    "Change",
    "Classification",
    "Diffusion",
    "Document",
    "Drift",
    "Estimate",
    "Hit",
    "Index",
    "MaskedLM",
    "Message",
    "Objective",
    "Probabilistic",
    "Publication",
    "Query",
    "QuerySet",
    "Regression",
    "SequenceClassification",
    "TextObjective",
    "Verification",
    "WherefromError",
    "build",
    "estimate",
    "fetch",
    "open",
    "publish",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import wherefrom`` loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'wherefrom' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
