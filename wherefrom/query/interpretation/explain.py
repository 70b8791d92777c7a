"""What a score is made of: its parts by layer, and by token of the document and of the question.

With ``P = (G + lambda)^-1 grad f`` and ``R = (G + lambda)^-1 grad log p(z)``, the score is

    (1/N) sum_l <P_l, grad_l log p(z)>  =  (1/N) sum_l <grad_l f, R_l>.

* A **layer**'s share is its term of the sum.
* A log-likelihood is a sum over predictions, so the share of a *prediction* of the document is
  ``(1/N) <P, grad log p(token)>``: the derivative of that token's log-likelihood along P. One pass
  in forward mode gives it for all tokens at once, and nothing of one prediction is counted with
  another, as it is where gradients are split by the position at which a layer acts (Grosse et al.
  2023, on attribution to layers and tokens). The question's tokens have theirs along R.
* A text with a single prediction, its label, has nothing to split so. There a token's share is of
  what layers did at its *position*: ``delta_t^T P_l a_t`` summed over layers. Layers that see no
  tokens, as a classifier's head, are counted as ``elsewhere``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wherefrom.curvature.bases import gradients_of
from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.forward_mode import output_tangent, untapped
from wherefrom.gradients.objectives import TextObjective
from wherefrom.query.asker import Asker
from wherefrom.query.interpretation.explanation import (
    By,
    Explanation,
    HitShares,
    LayerName,
    QuestionShares,
    TokensAre,
    TokenShare,
)
from wherefrom.query.questions import Question
from wherefrom.query.solution import Solution, alone
from wherefrom.records import Document, Query, QuerySet
from wherefrom.store import StoredRows

__all__ = ["Explainer", "layer_names"]

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
_NO_FORWARD_MODE = 'ask for shares of layers only: by="layer"'


def layer_names(names: Sequence[str]) -> tuple[LayerName, ...]:
    """Where layers stand: the first number in a name is that of the block, what follows the module.

    Args:
        names: Of modules, as ``model.layers.3.mlp.down_proj``.
    """
    placed = []
    for name in names:
        found = _NUMBER.search(name)
        module = "" if found is None else name[found.end() :]
        depth = None if found is None else int(found[1])
        placed.append(LayerName(name, depth, module or name))
    return tuple(placed)


class _Text(NamedTuple):
    """A text of the question, as it is shown."""

    weight: float
    document: Document
    batch: Batch


class _Shares(NamedTuple):
    """Shares of input positions, float64, and what no position carries."""

    positions: np.ndarray
    elsewhere: float


@dataclass(frozen=True, slots=True)
class Explainer:
    """Explains scores of one question.

    Attributes:
        asker: Model and encoder.
        question: What was asked.
        solution: Of it.
        curvature: Under the damping that it was asked with; ``None`` where the solution is another
            one than the curvature's (it was refined), so that documents cannot be solved for.
        scale: 1/N.
    """

    asker: Asker
    question: Question
    solution: Solution
    curvature: FittedCurvature | None
    scale: float

    def explain(self, documents: Sequence[StoredRows], by: By | None) -> Explanation:
        """Shares of documents' scores.

        Args:
            documents: One row each.
            by: What to split by; layers and tokens if ``None``.

        Raises:
            ModelError: The model cannot be run in forward mode.
        """
        extractor = self.asker.extractor
        tokens_are = self._tokens_are() if by != "layer" else None
        texts = self._texts() if tokens_are is not None and self.curvature is not None else []
        hits = tuple(self._hit(rows, tokens_are, texts) for rows in documents)
        names = layer_names([layer.name for layer in extractor.layers])
        return Explanation(names, tokens_are, hits)

    def _hit(
        self, rows: StoredRows, tokens_are: TokensAre | None, texts: Sequence[_Text]
    ) -> HitShares:
        batch = alone(self.asker, rows)
        score, layers, solved = self._layers(batch, solve=bool(texts))
        own = None if tokens_are is None else self._positions(batch, self._directions(), tokens_are)
        (document,) = rows.documents()
        asked = [self._positions(text.batch, solved, tokens_are) for text in texts if tokens_are]
        return HitShares(
            doc_id=document.doc_id,
            score=score,
            layers=tuple(layers),
            tokens=None if own is None else self._tokens(document, own, 1.0, tokens_are),
            elsewhere=0.0 if own is None else own.elsewhere * self.scale,
            question=tuple(
                QuestionShares(
                    text.weight,
                    text.document.text,
                    self._tokens(text.document, shares, text.weight, tokens_are),
                )
                for text, shares in zip(texts, asked, strict=True)
            )
            or None,
            question_elsewhere=math.fsum(
                text.weight * shares.elsewhere * self.scale
                for text, shares in zip(texts, asked, strict=True)
            ),
        )

    def _layers(self, batch: Batch, *, solve: bool) -> tuple[float, list[float], list[Tensor]]:
        """The score, shares of the layers, and the document's own solution, as the weights are.

        The score is added up as :func:`~wherefrom.query.exact.exact_products` does, to the same
        bits.
        """
        extractor, curvature = self.asker.extractor, self.curvature
        shares = [0.0] * len(extractor.layers)
        solved = [torch.empty(0)] * len(extractor.layers)
        coordinates = None if curvature is None else curvature.coordinates()
        product = 0.0

        def add(pair: LayerPair) -> None:
            nonlocal product
            gradient = gradients_of(pair).double().flatten(1)
            part = float(self.solution.raw[pair.layer] @ gradient.T)
            product += part
            shares[pair.layer] = part * self.scale
            if solve and curvature is not None and coordinates is not None:
                inverse = curvature.solve(pair.layer, coordinates(pair))
                solved[pair.layer] = curvature.raw(pair.layer, inverse)[0]

        with extractor.session():
            true_gradients(extractor, batch, add)
        for layer, part in enumerate(solved):
            if not part.numel():  # a layer that took no part in this document
                solved[layer] = torch.zeros(extractor.layers[layer].shape, dtype=torch.float64)
        return product * self.scale, shares, solved

    def _directions(self) -> list[Tensor]:
        layers = self.asker.extractor.layers
        return [
            part.reshape(layer.shape) for layer, part in zip(layers, self.solution.raw, strict=True)
        ]

    def _tokens_are(self) -> TokensAre | None:
        """Predictions where the outputs have a row for each token that is read."""
        extractor = self.asker.extractor
        if not isinstance(extractor.objective, TextObjective):
            return None
        _, batch = self.question.terms[0]
        bare = untapped(extractor)
        with bare.session(), torch.no_grad():
            outputs = extractor.objective.outputs(extractor.model, batch.to(extractor.device))
        many = outputs.ndim > 2 and outputs.shape[:2] == batch.inputs.shape[:2]
        return "predictions" if many else "positions"

    def _positions(self, batch: Batch, vectors: Sequence[Tensor], tokens_are: TokensAre) -> _Shares:
        extractor = self.asker.extractor
        if tokens_are == "predictions":
            return _of_predictions(extractor, batch, vectors)
        return _of_positions(extractor, batch, vectors)

    def _tokens(
        self, document: Document, shares: _Shares, weight: float, tokens_are: TokensAre | None
    ) -> tuple[TokenShare, ...]:
        """Shares on the tokens that they belong to; special tokens, which stand for no text, too.

        Tokens that are read but not predicted, and the first one, have none.
        """
        objective = self.asker.extractor.objective
        if not isinstance(objective, TextObjective):
            return ()
        shift = objective.predicts if tokens_are == "predictions" else 0
        spans = objective.token_spans(document)
        values = shares.positions * (weight * self.scale)
        placed: list[TokenShare] = []
        end = 0
        for token, span in enumerate(spans):
            position = token - shift
            counts = 0 <= position < len(values) and not math.isnan(values[position])
            start, end = (end, end) if span is None else span
            share = float(values[position]) if counts else None
            placed.append(TokenShare(document.text[start:end], start, end, share))
        return tuple(placed)

    def _texts(self) -> list[_Text]:
        objective, asked = self.asker.extractor.objective, self.question.asked
        if not isinstance(objective, TextObjective) or asked is None:
            return []
        queries = [query for query in _singles(asked)]
        return [
            _Text(weight, objective.question(query), batch)
            for (weight, batch), query in zip(self.question.terms, queries, strict=True)
        ]


def _singles(asked: Query | QuerySet) -> Iterator[Query]:
    """The texts of a question, in the order of its terms: a contrast after what it is against."""
    for query in asked.queries if isinstance(asked, QuerySet) else (asked,):
        yield query
        if query.contrast is not None:
            yield Query(query.prompt, query.contrast)


def _of_predictions(
    extractor: GradientExtractor, batch: Batch, vectors: Sequence[Tensor]
) -> _Shares:
    """Derivative of each prediction's log-likelihood along ``vectors``; NaN where none is scored.

    The log-likelihood is a sum over predictions, each a function of its own row of the outputs, so
    the gradient with respect to that row times the row's motion is the prediction's part.
    """
    bare = untapped(extractor)
    batch = batch.to(extractor.device)
    with bare.session():
        outputs, moved = output_tangent(
            bare, extractor.layers, batch, vectors, remedy=_NO_FORWARD_MODE
        )
        _, gradient = extractor.objective.differentiate(outputs, batch.targets, batch)
    shares = (gradient.double() * moved.double()).flatten(2).sum(2)[0]
    if batch.scored is not None:
        shares = torch.where(batch.scored[0], shares, math.nan)
    return _Shares(shares.cpu().numpy(), 0.0)


def _of_positions(extractor: GradientExtractor, batch: Batch, vectors: Sequence[Tensor]) -> _Shares:
    """``delta_t^T V a_t`` of each token that is read, over all layers; NaN nowhere."""
    count = batch.inputs.shape[1]
    shares = torch.zeros(count, dtype=torch.float64, device=extractor.device)
    elsewhere = 0.0

    def add(pair: LayerPair) -> None:
        nonlocal elsewhere
        moved = pair.activations[0].double() @ vectors[pair.layer].double().T
        parts = (moved * pair.deltas[0].double()).sum(1)
        if len(parts) == count > 1:
            shares.add_(parts)
        else:
            elsewhere += float(parts.sum())

    with extractor.session():
        true_gradients(extractor, batch, add)
    return _Shares(shares.cpu().numpy(), elsewhere)
