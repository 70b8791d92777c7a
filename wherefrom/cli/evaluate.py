"""``wherefrom evaluate``: is the answer true?"""

from __future__ import annotations

import click

from wherefrom.cli.main import LazyGroup

__all__ = ["EVALUATIONS", "evaluate"]

EVALUATIONS = {
    "fidelity": "wherefrom.cli.evaluate_scores:fidelity",
    "lds": "wherefrom.cli.evaluate_retraining:lds",
    "loo": "wherefrom.cli.evaluate_retraining:loo",
    "counterfactual": "wherefrom.cli.evaluate_retraining:counterfactual",
    "pbrf": "wherefrom.cli.evaluate_pbrf:pbrf",
    "mislabeled": "wherefrom.cli.evaluate_scores:mislabeled",
    "selftest": "wherefrom.cli.evaluate_scores:selftest",
}
"""Where each evaluation is, in the order of the help page."""


@click.group(
    cls=LazyGroup,
    homes=EVALUATIONS,
    short_help="Check scores against retraining and simpler rankings.",
)
def evaluate() -> None:
    """Check influence scores: against retraining, uncompressed scores and simpler rankings.

    A score foretells what training with or without a document does. These commands measure how
    well it does, with 95 % intervals; `docs/evaluation.md` says what each figure means.

    lds, loo and counterfactual train the model again and again. Give --train FILE.py:FUNCTION, a
    function train(members, seed) that returns the trained module, or --base-model DIR to fine-tune
    the model in that folder. Finished trainings are kept: an interrupted command goes on.
    """
