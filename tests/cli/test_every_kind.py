"""Every kind of question, curvature, model and objective, through the commands."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import transformers
from click.testing import CliRunner, Result
from peft import LoraConfig, get_peft_model

import wherefrom as wf
from tiny_bert import bert_classifier, bert_tokenizer, labelled_documents, masked_bert
from tiny_lm import save_tiny_lm, text_documents, tiny_llama
from wherefrom.cli.main import commands
from wherefrom.query.sweep import FACTORS
from wherefrom.store import Manifest

PROMPT, COMPLETION, CONTRAST = "the union of states", " shall be preserved", " will end"
ASKED = ["--prompt", PROMPT, "--completion", COMPLETION]
CLASSIFIED = ["--prompt", "gold silver trade", "--completion", "angry"]


def run(*arguments: str | os.PathLike[str], stdin: str | None = None) -> Result:
    return CliRunner().invoke(
        commands, [os.fspath(argument) for argument in arguments], input=stdin
    )


def done(*arguments: str | os.PathLike[str], stdin: str | None = None, warned: bool = False) -> str:
    """What a command printed that went well, and that warned of nothing or in one line."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    warnings = result.stderr.splitlines()
    assert len(warnings) == warned, warnings
    assert all(line.startswith("wherefrom: warning: ") for line in warnings)
    return result.stdout


def asked(*arguments: str | os.PathLike[str], stdin: str | None = None) -> dict:
    fields = json.loads(done("query", *arguments, "--json", stdin=stdin))
    return {name: value for name, value in fields.items() if name != "seconds"}


def plain(answer: wf.Answer) -> dict:
    return {name: value for name, value in answer.to_dict().items() if name != "seconds"} | {
        "query": json.loads(answer.to_json())["query"]
    }


def scores(told: dict) -> dict[str, float]:
    return {hit["doc_id"]: hit["score"] for hit in [*told["proponents"], *told["opponents"]]}


def words(text: str) -> str:
    return " ".join(text.split())


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: error: ")
    return line


def write_rows(path: Path, documents: Iterable[wf.Document]) -> Path:
    rows = [
        {"doc_id": document.doc_id, "text": document.text, **document.metadata}
        for document in documents
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``model``, twelve documents and their ``my.index``."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_lm(folder / "model")
    transformers.utils.logging.disable_progress_bar()
    write_rows(folder / "docs.jsonl", text_documents(12))
    built(folder, "my.index")
    return folder


def built(
    home: Path, index: str, *options: str, model: str = "model", warned: bool = False
) -> Path:
    named = ["--model", str(home / model), "--index", str(home / index), "--quiet"]
    assert done("build", home / "docs.jsonl", *named, *options, warned=warned) == ""
    return home / index


def replayed(index: Path) -> Manifest:
    """The manifest after the recorded command was run again."""
    before = Manifest.read(index)
    name, *arguments = shlex.split(before.replay)
    assert name == "wherefrom"
    assert done(*arguments, "--overwrite", "--quiet", warned=bool(before.warnings)) == ""
    return Manifest.read(index)


def test_contrasts(home: Path, tmp_path: Path) -> None:
    index = home / "my.index"
    told = asked(index, *ASKED, "--contrast", CONTRAST, "-k", "12")
    opened = wf.open(index)
    answer = opened.query(prompt=PROMPT, completion=COMPLETION, contrast=CONTRAST, k=12)
    assert told == plain(answer)
    first, second = (
        scores(asked(index, "--prompt", PROMPT, "--completion", text, "-k", "12"))
        for text in (COMPLETION, CONTRAST)
    )
    differences = {name: first[name] - second[name] for name in first}
    assert scores(told) == pytest.approx(differences, rel=1e-3, abs=1e-5)
    report = tmp_path / "report.html"
    result = run("query", index, *ASKED, "--contrast", CONTRAST, "--html", report, "--width", "120")
    shown = words(result.stdout)
    assert f"rather than {CONTRAST.strip()}" in shown
    assert "they favour the completion over the contrast" in shown
    assert f'<mark class="contrast">{CONTRAST}</mark>' in report.read_text("utf-8")


def test_damping_of_a_question(home: Path) -> None:
    index = home / "my.index"
    told = asked(index, *ASKED, "--damping", "0.5")
    assert told["damping"] == 0.5
    answer = wf.open(index).query(prompt=PROMPT, completion=COMPLETION, damping=0.5)
    assert told == plain(answer)
    assert told["proponents"] != asked(index, *ASKED)["proponents"]
    shown = words(done("query", index, *ASKED, "--damping", "0.5"))
    assert "damping 0.5 for this answer; the index was built with 0.1" in shown
    assert "damping" not in done("query", index, *ASKED, "--damping", "0.1")


def test_sweeps_over_dampings(home: Path) -> None:
    index = home / "my.index"
    told = asked(index, *ASKED, "--sweep-damping", "-k", "3")
    opened = wf.open(index)
    expected = opened.sweep_damping(prompt=PROMPT, completion=COMPLETION, k=3)
    assert told == json.loads(expected.to_json())
    assert [row["damping"] for row in told["rows"]] == pytest.approx([0.1 * f for f in FACTORS])
    shown = done("query", index, *ASKED, "--dampings", "0.1,2.5", "-k", "3")
    (own,) = (line for line in shown.splitlines() if line.strip().startswith("0.1 "))
    assert own.split()[:3] == ["0.1", "100%", "+1.000"]
    answer = opened.query(prompt=PROMPT, completion=COMPLETION, k=3)
    assert ", ".join(hit.doc_id for hit in answer.proponents) in words(own)
    assert "2.5 " in shown
    assert words(shown).endswith(told["contract"])


def test_sets_of_questions(home: Path, tmp_path: Path) -> None:
    index = home / "my.index"
    queries = [wf.Query(PROMPT, COMPLETION), wf.Query("", "gold and silver", " gold and war")]
    lines = "".join(
        json.dumps({"prompt": q.prompt, "completion": q.completion, "contrast": q.contrast}) + "\n"
        for q in queries
    )
    (tmp_path / "queries.jsonl").write_text(lines)
    opened = wf.open(index)
    mean = asked(index, "--queries", tmp_path / "queries.jsonl")
    assert mean == plain(opened.query(queries=queries))
    summed = asked(index, "--queries", "-", "--reduce", "sum", stdin=lines)
    assert summed == plain(opened.query(queries=queries, reduce="sum"))
    assert summed["log_likelihood"] == pytest.approx(2 * mean["log_likelihood"])
    assert [hit["doc_id"] for hit in summed["proponents"]] == [
        hit["doc_id"] for hit in mean["proponents"]
    ]
    shown = words(done("query", index, "--queries", "-", stdin=lines))
    assert "asked as one the mean over 2 questions" in shown
    assert "they raise the mean difference" in shown
    swept = asked(index, "--queries", "-", "--sweep-damping", stdin=lines)
    assert swept["query"]["reduce"] == "mean"


def test_mistakes_in_questions(home: Path, tmp_path: Path) -> None:
    index = home / "my.index"
    assert "absent" in error_line(run("query", index, "--queries", tmp_path / "absent"))
    assert "line 1" in error_line(run("query", index, "--queries", "-", stdin="no"))
    assert "holds no query" in error_line(run("query", index, "--queries", "-", stdin=""))
    assert "empty" in error_line(run("query", index, *ASKED, "--contrast", ""))


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("datainf", ["--damping", "0.01"], "datainf, damping 0.01, empirical Fisher, fitted on 12"),
        ("diagonal", ["--fisher", "empirical"], "curvature diagonal, damping 0.1, empirical"),
        ("identity", [], "curvature identity, damping 0 scale"),
        ("lissa", [], "residual"),
        ("exact", [], "residual"),
    ],
)
def test_curvatures(home: Path, kind: str, options: list[str], told: str) -> None:
    layer = ["--layers", "*layers.0.mlp.up_proj"]
    # Documents this different leave DataInf next to the gradient dot product at any damping.
    near_identity = kind == "datainf"
    options = ["--curvature", kind, *layer, *options]
    index = built(home, f"{kind}.index", *options, warned=near_identity)
    assert told in words(done("info", index))
    assert "None" not in done("info", index)
    answer = asked(index, *ASKED)
    assert answer == plain(wf.open(index).query(prompt=PROMPT, completion=COMPLETION))
    assert (answer["index"]["curvature"], answer["proponents"] != []) == (kind, True)
    assert (answer["residual"] is not None) == (kind == "lissa")
    assert ("left unsolved" in done("query", index, *ASKED)) == (kind == "lissa")
    if kind == "identity":
        assert "damping is 0" in error_line(run("query", index, *ASKED, "--sweep-damping"))
    if kind == "datainf":
        for option in ("--damping", "--dampings"):
            assert "damping" in error_line(run("query", index, *ASKED, option, "0"))
        vectors = wf.open(index).vectors()
        assert replayed(index).curvature.kind == "datainf"
        np.testing.assert_array_equal(wf.open(index).vectors(), vectors)


def test_what_a_curvature_cannot_use(home: Path) -> None:
    named = ["--model", str(home / "model"), "--index", str(home / "new")]
    options = ["--curvature", "datainf", "--fisher", "sampled"]
    assert "fisher" in error_line(run("build", home / "docs.jsonl", *named, *options))
    assert not (home / "new").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_adapters(home: Path, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama().float(), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    model.peft_config["default"].base_model_name_or_path = "somewhere/else"
    model.save_pretrained(home / "adapter", save_embedding_layers=False)
    base = ["--base-model", str(home / "model")]
    index = built(home, "adapter.index", *base, "--damping", "1", model="adapter")
    told = words(done("info", index))
    assert f"adapter {home / 'adapter'}" in told
    assert str(home / "model") in told
    assert all(".lora_" in layer.name for layer in Manifest.read(index).layers)
    assert asked(index, *ASKED) == asked(index, *ASKED, *base)
    assert "base" in error_line(run("query", index, *ASKED, "--base-model", tmp_path / "absent"))
    before = Manifest.read(index)
    assert replayed(index).model == before.model


@pytest.fixture(scope="module")
def berts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sequence classifier, a masked language model and labelled documents."""
    folder = tmp_path_factory.mktemp("berts")
    labels = {0: "calm", 1: "angry", 2: "merry"}
    documents = [
        wf.Document(d.doc_id, d.text, {"mood": labels.get(d.metadata["mood"], d.metadata["mood"])})
        for d in labelled_documents()
    ]
    write_rows(folder / "docs.jsonl", documents)
    for name, model in {"classifier": bert_classifier(), "masked": masked_bert()}.items():
        model.float().save_pretrained(folder / name)
        bert_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("named", [[], ["--objective", "sequence-classification"]])
def test_sequence_classifiers(berts: Path, named: list[str]) -> None:
    options = ["--label", "mood", "--layers", "linear", *named]
    index = built(berts, f"{len(named)}.index", *options, model="classifier")
    assert Manifest.read(index).objective.kind == "sequence_classification"
    told = words(done("info", index))
    assert "objective sequence_classification" in told
    assert "label mood" in told
    answer = asked(index, *CLASSIFIED, "--contrast", "calm")
    opened = wf.open(index)
    expected = opened.query(prompt="gold silver trade", completion="angry", contrast="calm")
    assert answer == plain(expected)
    shown = words(done("query", index, *CLASSIFIED))
    assert "text gold silver trade label angry" in shown
    assert "they make the label more likely" in shown
    assert "sleepy" in error_line(run("query", index, "--prompt", "gold", "--completion", "sleepy"))
    if named:
        assert replayed(index).objective == opened.manifest.objective


def test_a_classifier_s_label_column_is_needed(berts: Path) -> None:
    named = ["--model", str(berts / "classifier"), "--index", str(berts / "new")]
    line = error_line(run("build", berts / "docs.jsonl", *named))
    assert "label" in line


@pytest.mark.parametrize("named", [[], ["--objective", "masked-lm", "--context", "16"]])
def test_masked_language_models(berts: Path, named: list[str]) -> None:
    index = built(berts, f"masked{len(named)}.index", "--seed", "3", *named, model="masked")
    told = words(done("info", index))
    assert "objective masked_lm" in told
    assert ("context 16" in told) == bool(named)
    answer = asked(index, "--prompt", "gold silver ", "--completion", "trade")
    assert answer["scored_tokens"] == 1
    assert len(answer["proponents"]) + len(answer["opponents"]) > 4


def test_precision(home: Path) -> None:
    index = built(home, "double.index", "--dtype", "float64")
    assert "LlamaForCausalLM, causal_lm, float64" in words(done("info", index))
    single = scores(asked(home / "my.index", *ASKED, "-k", "12"))
    assert scores(asked(index, *ASKED, "-k", "12")) == pytest.approx(single, rel=1e-3, abs=1e-5)
