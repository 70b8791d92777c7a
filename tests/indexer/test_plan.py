"""The plan of a build: sums in one order, shards that cover everything once, differences told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherefrom.indexer.executors import Task
from wherefrom.indexer.plan import Tree, blocks, difference, encode_shard_size, fit_shard_size


def summed(tree: Tree, task: Task) -> str:
    """The order in which the statistics of shards come into a node's, as brackets."""
    if task.phase == "fit":
        return str(task.index)
    first, second = tree.children(task)
    return f"({summed(tree, first)}+{summed(tree, second)})"


@pytest.mark.parametrize(
    ("shards", "order"),
    [
        (1, "0"),
        (2, "(0+1)"),
        (3, "((0+1)+2)"),
        (5, "(((0+1)+(2+3))+4)"),
        (6, "(((0+1)+(2+3))+(4+5))"),
        (7, "(((0+1)+(2+3))+((4+5)+6))"),
    ],
)
def test_shards_are_added_up_in_one_order(shards: int, order: str) -> None:
    tree = Tree(shards, 0)
    assert summed(tree, tree.top) == order


@given(st.integers(1, 200), st.integers(0, 3))
def test_every_merge_is_needed_once_and_after_its_children(shards: int, step: int) -> None:
    tree = Tree(shards, step)
    done = set(tree.shards())
    assert len(done) == shards
    used: list[Task] = []
    for level in tree.levels():
        for merge in level:
            assert merge.step == step
            children = tree.children(merge)
            assert done.issuperset(children)
            used += children
            below = [t for child in children for t in tree.shards_under(child)]
            assert below == list(tree.shards_under(merge))
        done.update(level)
    assert len(used) == len(set(used)) == len(done) - 1
    assert done - set(used) == {tree.top}
    assert list(tree.shards_under(tree.top)) == list(tree.shards())


@given(st.integers(1, 10**9))
def test_a_fit_has_few_shards(documents: int) -> None:
    size = fit_shard_size(documents)
    assert 1 <= -(-documents // size) <= 64
    assert size >= 1024


@given(st.integers(1, 10**8))
def test_the_vectors_of_a_shard_fit_in_memory(dimension: int) -> None:
    size = encode_shard_size(dimension)
    assert 16 <= size <= 1024
    assert size == 16 or 4 * dimension * size <= 1 << 26


@given(st.integers(0, 5000))
def test_blocks_are_all_positions_in_order(count: int) -> None:
    parts = list(blocks(np.arange(count)))
    assert all(0 < len(part) <= 1024 for part in parts)
    assert np.array_equal(np.concatenate([np.arange(0), *parts]), np.arange(count))


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"a": 1}, {"a": 2}, "a was 1 and is 2 now"),
        ({"a": 1}, {}, "a was 1 and is null now"),
        ({"m": {"x": [1], "y": 2}}, {"m": {"x": [1], "y": 3}}, "m: y was 2 and is 3 now"),
        ({"m": {"x": 1}}, {"m": None}, 'm was {"x": 1} and is null now'),
    ],
)
def test_what_differs_is_told(was: dict[str, Any], now: dict[str, Any], told: str | None) -> None:
    assert difference(was, now) == told


def test_long_values_are_cut() -> None:
    told = difference({"a": "x" * 1000}, {"a": "y" * 1000})
    assert told is not None
    assert len(told) < 160
