"""From what an index recorded of its objective back to the objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from wherefrom.errors import ModelError
from wherefrom.gradients.objectives.base import JSON, Objective
from wherefrom.gradients.objectives.categorical import Classification
from wherefrom.gradients.objectives.diffusion import Diffusion
from wherefrom.gradients.objectives.gaussian import Regression
from wherefrom.gradients.objectives.language import CausalLM, MaskedLM
from wherefrom.gradients.objectives.sequence import SequenceClassification
from wherefrom.gradients.objectives.text import TextObjective

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["objective_from"]

_OVER_TEXT: Mapping[str, type[TextObjective]] = {
    kind.kind: kind for kind in (CausalLM, MaskedLM, SequenceClassification)
}
_OVER_TENSORS: Mapping[str, Callable[..., Objective]] = {
    Classification.kind: Classification,
    Regression.kind: Regression,
    Diffusion.kind: Diffusion.from_options,
}


def objective_from(
    kind: str, options: Mapping[str, JSON], tokenizer: PreTrainedTokenizerBase | None = None
) -> Objective:
    """Make an objective again from its ``kind`` and ``options()``.

    Args:
        kind: Its name.
        options: As it gave them.
        tokenizer: For a text objective; ``None`` leaves it to the model, see
            :meth:`wherefrom.gradients.objectives.Objective.bind`.

    Raises:
        ModelError: The kind is a user's own, or takes no such options.
        MissingExtraError: It needs a library that is not installed.
    """
    arguments: dict[str, Any] = dict(options)
    try:
        if kind in _OVER_TEXT:
            return _OVER_TEXT[kind](tokenizer, **arguments)
        if kind in _OVER_TENSORS:
            return _OVER_TENSORS[kind](**arguments)
    except TypeError as error:
        raise ModelError(
            f"objective {kind!r} cannot be made from what the index records ({error}); open it "
            "with objective=..."
        ) from error
    raise ModelError(
        f"the index was built with an objective of your own, {kind!r}; open it with objective=..."
    )
