"""Objectives: what a model's outputs mean, as log-likelihoods of targets.

An :class:`Objective` says how to run the model on a batch and how likely a target is under its
outputs. That is enough for influence with the empirical Fisher; a :class:`Probabilistic` objective
also knows the model's own distribution, from which the true Fisher's pseudo-gradients are drawn. A
:class:`TextObjective` also knows the way from documents of text to batches.
"""

from wherefrom.gradients.objectives.base import Objective, Probabilistic, require_finite
from wherefrom.gradients.objectives.categorical import Categorical, Classification
from wherefrom.gradients.objectives.diffusion import Diffusion
from wherefrom.gradients.objectives.gaussian import Gaussian, Regression
from wherefrom.gradients.objectives.language import CausalLM, MaskedLM
from wherefrom.gradients.objectives.registry import objective_from
from wherefrom.gradients.objectives.sequence import SequenceClassification
from wherefrom.gradients.objectives.text import TextObjective

__all__ = [
    "Categorical",
    "CausalLM",
    "Classification",
    "Diffusion",
    "Gaussian",
    "MaskedLM",
    "Objective",
    "Probabilistic",
    "Regression",
    "SequenceClassification",
    "TextObjective",
    "objective_from",
    "require_finite",
]
