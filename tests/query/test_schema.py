"""The published JSON Schema: that of the records, and what every answer keeps to."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from click.testing import CliRunner

import wherefrom as wf
from answers import annotated, answer, every_answer
from small_models import mlp
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.audit.entries import Entry
from wherefrom.audit.gate import Finding
from wherefrom.cli.schema import schema as schema_command
from wherefrom.query.answer import ANSWER_SCHEMA, Answer
from wherefrom.query.export.json_text import json_text
from wherefrom.query.export.schema import answer_schema, generated_schema

SCHEMA = json.loads(answer_schema())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
ANSWERS = every_answer()


def faults(one: Any) -> list[str]:
    return [f"{list(error.path)}: {error.message}" for error in VALIDATOR.iter_errors(one)]


def test_published_schema_is_that_of_the_records() -> None:
    """If this fails, a record changed: raise ``ANSWER_SCHEMA``'s number if others would break, and
    write ``json.dumps(generated_schema(), indent=2, ensure_ascii=False)`` and a newline.
    """
    written = json.dumps(generated_schema(), indent=2, ensure_ascii=False) + "\n"
    assert answer_schema() == written


def test_schema_is_a_schema_and_tells_its_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["title"] == ANSWER_SCHEMA
    assert SCHEMA["properties"]["schema"]["const"] == ANSWER_SCHEMA
    number = ANSWER_SCHEMA.rpartition("/")[2]
    assert SCHEMA["$id"].endswith(f":{number}")


def test_every_field_is_described_and_none_is_optional_or_extra() -> None:
    for name, record in {"Answer": SCHEMA, **SCHEMA["$defs"]}.items():
        optional = ["id", "tags", "fail_if", "gate"] if name == "Answer" else []
        assert record["required"] + optional == list(record["properties"]), name
        assert record["additionalProperties"] is False, name
        for field, told in record["properties"].items():
            described = told["description"]
            assert described, f"{name}.{field}"
            assert "`" not in described, f"{name}.{field}"
            assert "None" not in described, f"{name}.{field}"


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_keep_to_the_schema(name: str) -> None:
    assert faults(json.loads(ANSWERS[name].to_json())) == []


def remove(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(one: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = one
        for step in parents:
            place = place[step]
        del place[last]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(one: dict[str, Any]) -> None:
        *parents, last = path
        place: Any = one
        for step in parents:
            place = place[step]
        place[last] = value

    return change


MUTATIONS = {
    "another version": put("wherefrom-answer/1", "schema"),
    "no contract": remove("contract"),
    "an unknown field": put(1, "verdict"),
    "a sign that is none": put("all", "sign"),
    "a score in words": put("0.5", "proponents", 0, "score"),
    "a rank of 0": put(0, "proponents", 0, "rank"),
    "a hit without its document": remove("opponents", 0, "doc_id"),
    "a percentile above 100": put(100.5, "proponents", 0, "percentile"),
    "nested metadata": put({"a": 1}, "proponents", 0, "metadata", "year"),
    "a tier that is none": put("approximate", "certificate", "tier"),
    "no certificate": put(None, "certificate"),
    "a digest that is none": put("ab", "index", "manifest_sha256"),
    "an index without its weights": remove("index", "weights_sha256"),
    "a query without completion": remove("query", "completion"),
    "half a token": remove("explanation", "hits", 0, "tokens", 1, "share"),
    "a token with a flag": put(1, "explanation", "hits", 0, "tokens", 1, "flag"),
    "a layer without depth": remove("explanation", "layers", 0, "depth"),
    "a flag of another wording": put("similar", "similarity", "hits", 1, "flag"),
    "a BM25 rank of 0": put(0, "similarity", "most_similar", 0, "bm25_rank"),
    "a certainty above 1": put(1.5, "groups", 0, "confidence"),
    "a group without interval": remove("groups", 1, "groups", 0, "low"),
    "groups that are none": put(None, "groups"),
    "an id that is none": put(1, "id"),
    "a gate without its verdict": put([{"condition": "score > 1"}], "gate"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_changed_answers_do_not(name: str) -> None:
    whole = annotated(answer()).to_dict()
    changed = copy.deepcopy(whole)
    MUTATIONS[name](changed)
    assert faults(json.loads(json.dumps(whole))) == []
    assert faults(json.loads(json.dumps(changed))) != []


def test_answers_of_files_and_gates_keep_to_the_schema() -> None:
    findings = (
        Finding("score > 1", "fired", "proponent", "speech 1", 1),
        Finding("answer.certified == false", "undecidable"),
    )
    entry = Entry.of(answer(), "q1", fail_if=("score > 1",), gate=findings, tags={"run": [1]})
    assert faults(json.loads(json_text(entry.to_dict()))) == []
    assert faults(json.loads(json_text(entry.judged()))) == []


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> wf.Index:
    folder = tmp_path_factory.mktemp("schema")
    return wf.build(
        str(save_tiny_lm(folder / "model")), text_documents(), folder / "index", context=32
    )


def test_real_answers_keep_to_the_schema(index: wf.Index) -> None:
    where = {"year": [(">=", 1790), ("<", 1960)], "party": ("in", ["Whig", "Democratic"])}
    asked: list[Answer] = [
        index.query(prompt="the union of states", completion=" shall be preserved"),
        index.query(completion="war or peace", where=where, rerank="recompute", candidates=3, k=2),
        index.query(queries=[wf.Query("gold", " silver"), wf.Query("", "war or peace")]),
        index.query(prompt="gold", completion=" silver", contrast=" ships", refine=1),
    ]
    for one in asked:
        assert faults(json.loads(one.to_json())) == []


def test_real_annotated_answers_keep_to_the_schema(index: wf.Index) -> None:
    plain = index.query(prompt="the union of states", completion=" shall be preserved", k=3)
    whole = index.annotate(plain, group_by=("party", "year"))
    assert whole.explanation
    assert whole.similarity
    assert len(whole.groups) == 2
    assert faults(json.loads(whole.to_json())) == []


def test_answers_of_tensors_keep_to_the_schema(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(12, 5).double(), torch.randint(0, 3, (12,))
    index = wf.build(mlp(), (inputs, targets), tmp_path / "index", objective=wf.Classification())
    one = index.query(inputs=inputs[0], target=targets[0], k=3)
    assert faults(json.loads(one.to_json())) == []


def test_command_prints_the_schema_and_never_loads_torch() -> None:
    printed = CliRunner().invoke(schema_command)
    assert printed.exit_code == 0
    assert printed.output == answer_schema()
    run = (
        "import sys; from wherefrom.cli.schema import schema; schema(standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", run],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LC_ALL": "C"},
    )
    assert json.loads(shown.stdout) == SCHEMA
