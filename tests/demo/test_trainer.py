from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from tiny_lm import text_documents
from wherefrom.demo.model import Recipe, train_model, train_tokenizer
from wherefrom.demo.trainer import DemoTrainer
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.trainers import Run

RECIPE = Recipe(
    vocabulary=300, context=48, width=16, feed_forward=24, layers=1, heads=2, epochs=2, batch_size=4
)
DOCUMENTS = text_documents(12)


def trainer() -> DemoTrainer:
    return DemoTrainer(DOCUMENTS, train_tokenizer(DOCUMENTS, RECIPE), RECIPE)


def weights(module: torch.nn.Module) -> np.ndarray:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


def trained(members: np.ndarray, seed: int = 0) -> np.ndarray:
    (module,) = trainer().train([Run(members, seed)])
    return weights(module)


def test_all_members_give_the_demo_own_model() -> None:
    own = train_model(
        DOCUMENTS,
        train_tokenizer(DOCUMENTS, RECIPE),
        seed=3,
        progress=lambda phase, done, total: None,
        recipe=RECIPE,
    )
    assert np.array_equal(trained(np.ones(12, np.bool_), 3), weights(own))


def test_a_document_that_is_left_out_is_not_seen() -> None:
    members = np.arange(12) != 5
    hidden = list(DOCUMENTS)
    hidden[5] = text_documents(13, seed=9)[12]
    tokenizer = train_tokenizer(DOCUMENTS, RECIPE)
    (module,) = DemoTrainer(hidden, tokenizer, RECIPE).train([Run(members, 0)])
    assert np.array_equal(trained(members), weights(module))
    assert not np.array_equal(trained(members), trained(np.ones(12, np.bool_)))


def test_the_seed_decides_and_workers_can_have_it() -> None:
    members = np.ones(12, np.bool_)
    assert not np.array_equal(trained(members, 0), trained(members, 1))
    (module,) = pickle.loads(pickle.dumps(trainer())).train([Run(members, 0)])
    assert np.array_equal(trained(members, 0), weights(module))


@pytest.mark.parametrize("members", [np.zeros(12, np.bool_), np.ones(11, np.bool_)])
def test_no_members_and_other_documents_are_refused(members: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match="give at least one of 12"):
        trained(members)
