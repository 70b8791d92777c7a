"""Many questions, gates and evidence through the commands."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet
import pytest
import transformers
from click.testing import CliRunner, Result

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.cli.main import commands
from wherefrom.maintenance.index import Index

ROWS = [
    {"id": "union", "prompt": "the union", "completion": " shall be preserved", "topic": ["law"]},
    {"prompt": "the war", "completion": " will end", "contrast": " will not end"},
    {"id": 7, "completion": " gold and silver"},
]
IDS = ["union", "2", "7"]
ASKED = ["--prompt", "the union", "--completion", " shall be preserved"]
WHIG = "proponent.party == 'Whig'"
NEVER = "proponent.party == 'Whig' and score < -1"


def run(*arguments: str | os.PathLike[str], stdin: str | None = None) -> Result:
    return CliRunner().invoke(commands, [os.fspath(one) for one in arguments], input=stdin)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index and a file of questions."""
    folder = tmp_path_factory.mktemp("home")
    save_tiny_lm(folder / "model")
    transformers.utils.logging.disable_progress_bar()
    wf.build(str(folder / "model"), text_documents(20), folder / "my.index", seed=3)
    write(folder / "queries.jsonl", ROWS)
    return folder


@pytest.fixture(scope="module")
def answered(home: Path) -> Path:
    """What one batch gives, as a file of answers."""
    path = home / "answered.jsonl"
    result = ask(home, "--batch", home / "queries.jsonl", "--jsonl", path, "--fail-if", NEVER)
    assert result.exit_code == 0, result.output
    return path


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(home: Path, *options: str | os.PathLike[str], stdin: str | None = None) -> Result:
    return run("query", home / "my.index", "-k", "3", *options, stdin=stdin)


def lines(text: str) -> list[dict]:
    assert text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def plain(fields: dict) -> dict:
    own = ("id", "tags", "fail_if", "gate", "seconds")
    return {key: value for key, value in fields.items() if key not in own}


def error_line(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: error: ")
    return line


def test_answers_are_those_of_the_library(home: Path, answered: Path) -> None:
    found = lines(answered.read_text())
    assert [line["id"] for line in found] == IDS
    assert [line["tags"] for line in found] == [{"topic": ["law"]}, {}, {}]
    index = wf.open(home / "my.index")
    for row, line in zip(ROWS, found, strict=True):
        question = {key: row.get(key) for key in ("prompt", "completion", "contrast")}
        expected = index.query(**{**question, "prompt": row.get("prompt", "")}, k=3)
        assert plain(line) == plain(json.loads(expected.to_json()))
        assert line["seconds"] > 0
        assert line["fail_if"] == [NEVER]
        assert line["gate"] == []


def test_all_outputs_of_a_batch(home: Path, tmp_path: Path) -> None:
    report, table, parquet = (tmp_path / name for name in ("r.html", "h.csv", "h.parquet"))
    result = ask(
        home,
        *("--batch", "-", "--jsonl", tmp_path / "out.jsonl", "--json"),
        *("--html", report, "--csv", table, "--parquet", parquet),
        stdin=(home / "queries.jsonl").read_text(),
    )
    assert result.exit_code == 0, result.output
    summary = {"schema": "wherefrom-batch/1", "answers": 3, "failed": [], "gate": []}
    assert json.loads(result.stdout) == summary
    assert result.stderr.splitlines() == [
        f"Report: {report}",
        f"Hits: {table}",
        f"Hits: {parquet}",
    ]
    hits = [
        hit["doc_id"]
        for line in lines((tmp_path / "out.jsonl").read_text())
        for hit in (*line["proponents"], *line["opponents"])
    ]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["doc_id"] for row in rows] == hits
    assert list(dict.fromkeys(row["question_id"] for row in rows)) == IDS
    assert pyarrow.parquet.read_table(parquet)["doc_id"].to_pylist() == hits
    assert "will not end" in report.read_text()


def test_what_fails_is_a_line_as_well(home: Path, tmp_path: Path) -> None:
    rows = [
        ROWS[0],
        {"id": "\x1b[31mempty", "completion": ""},
        {"completion": " the" * 99},
        ROWS[2],
    ]
    batch = write(tmp_path / "q.jsonl", rows)
    result = ask(home, "--batch", batch, "--jsonl", "-", "--fail-if", NEVER)
    assert result.exit_code == 1
    first, empty, long, last = lines(result.stdout)
    assert first["proponents"]
    assert last["proponents"]
    assert (empty["id"], empty["error"]) == ("\x1b[31mempty", "QueryError")
    assert empty["query"] == {"prompt": "", "completion": "", "contrast": None}
    assert "context" in long["detail"]
    assert "proponents" not in long
    told = result.stderr.splitlines()
    assert told[0].startswith("wherefrom: unanswered: empty: the completion is empty")
    assert told[1].startswith("wherefrom: unanswered: 3: ")
    assert told[2] == "wherefrom: error: 2 of 4 questions could not be answered"
    assert len(told) == 3


def test_lines_are_there_as_soon_as_they_can_be(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered before Ctrl-C, or a crash, is kept."""
    asked = []

    def answers(self: Index, queries: list, **options: object) -> list:
        if asked:
            raise KeyboardInterrupt
        asked.append(queries)
        return [self.query(prompt=one.prompt, completion=one.completion) for one in queries]

    monkeypatch.setattr(Index, "answers", answers)
    monkeypatch.setattr("wherefrom.audit.asking._TOGETHER", 2)
    batch = write(tmp_path / "q.jsonl", [{"completion": " gold and silver"}] * 3)
    result = ask(home, "--batch", batch, "--jsonl", tmp_path / "out.jsonl")
    assert result.exit_code == 130
    assert "2 of 3 questions were asked" in result.stderr
    assert len(lines((tmp_path / "out.jsonl").read_text())) == 2


def test_mistakes_show_before_the_model_is_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("wherefrom.api.open", refuse)
    out = ["--jsonl", tmp_path / "out.jsonl"]
    good = ["--batch", home / "queries.jsonl"]
    bad = write(tmp_path / "bad.jsonl", [ROWS[0], {"prompt": "x"}])
    assert "line 2 has no completion" in error_line(ask(home, "--batch", bad, *out))
    slip = write(tmp_path / "slip.jsonl", [{"completion": "x", "contrst": "y"}])
    assert "nearly 'contrast'" in error_line(ask(home, "--batch", slip, *out))
    twice = write(tmp_path / "twice.jsonl", [{**ROWS[0], "id": 2}, ROWS[1]])
    assert "id '2' of" in error_line(ask(home, "--batch", twice, *out))
    named = write(tmp_path / "named.jsonl", [{**ROWS[0], "id": None}])
    assert "id is null" in error_line(ask(home, "--batch", named, *out))
    (tmp_path / "taken.jsonl").touch()
    taken = ["--jsonl", tmp_path / "taken.jsonl"]
    assert "exists already" in error_line(ask(home, *good, *taken))
    assert "does not exist" in error_line(ask(home, *good, "--jsonl", tmp_path / "no" / "out"))
    for option, value, told in (
        ("--fail-if", "proponent.pary == 'Whig'", "no field or metadata column 'pary'"),
        ("--fail-if", "year == 'x'", "the column holds int64"),
        ("--group-by", "president", "no metadata column 'president' to group by"),
        ("--where", "president=Lincoln", "cannot read the filter"),
    ):
        assert told in error_line(ask(home, *good, *out, option, value))
        assert told in error_line(ask(home, *ASKED, option, value))
    one_sided = ["--sign", "opponents", "--fail-if", WHIG]
    assert "only opponents are asked for" in error_line(ask(home, *good, *out, *one_sided))
    assert "is no file" in error_line(ask(home, "--inspect-log", tmp_path / "no.eval", *out))
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--batch", "q"],
        ["--inspect-log", "q"],
        ["--batch", "q", "--jsonl", "-", "--json"],
        ["--batch", "q", "--jsonl", "o", "--width", "80"],
        ["--batch", "q", "--jsonl", "o", "--completion", "x"],
        ["--batch", "q", "--jsonl", "o", "--queries", "q"],
        ["--batch", "q", "--jsonl", "o", "--reduce", "sum"],
        ["--batch", "q", "--jsonl", "o", "--inspect-log", "q"],
        ["--batch", "q", "--jsonl", "o", "--incorrect"],
        ["--inspect-log", "q", "--jsonl", "o", "--scorer", "s"],
        ["--completion", "x", "--overwrite"],
        ["--completion", "x", "--sweep-damping", "--fail-if", "rank == 1"],
        ["--completion", "x", "--sweep-damping", "--explain"],
        ["--completion", "x", "--sweep-damping", "--jsonl", "o"],
    ],
)
def test_wrong_usage(options: list[str]) -> None:
    result = run("query", "x", *options)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_a_file_of_answers_is_replaced_when_told_to(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("old")
    result = ask(home, *ASKED, "--jsonl", out, "--overwrite")
    assert result.exit_code == 0, result.output
    (line,) = lines(out.read_text())
    assert line["id"] == "1"


def test_a_gate_of_one_question(home: Path) -> None:
    let_pass = ask(home, *ASKED, "--json", "--fail-if", NEVER)
    assert let_pass.exit_code == 0, let_pass.output
    told = json.loads(let_pass.stdout)
    assert (told["fail_if"], told["gate"]) == ([NEVER], [])
    (note,) = let_pass.stderr.splitlines()
    assert note.startswith("wherefrom: note: the gate saw the 3 strongest hits of a sign, at most")
    assert "of 20 documents" in note
    for unlimited in (["-k", "20", "--fail-if", NEVER], ["--fail-if", "answer.recall < 0.5"]):
        assert ask(home, *ASKED, "--json", *unlimited).stderr == ""
    bare = json.loads(ask(home, *ASKED, "--json").stdout)
    assert "gate" not in bare
    assert plain(told) == plain(bare)

    stopped = ask(home, *ASKED, "--json", "--fail-if", NEVER, "--fail-if", "proponent.rank == 2")
    assert stopped.exit_code == 3
    (finding,) = json.loads(stopped.stdout)["gate"]
    second = bare["proponents"][1]["doc_id"]
    assert finding == {
        "condition": "proponent.rank == 2",
        "verdict": "fired",
        "hit": "proponent",
        "doc_id": second,
        "rank": 2,
    }
    assert stopped.stderr == f"wherefrom: gate: proponent 2 ({second}): proponent.rank == 2\n"
    shown = ask(home, *ASKED, "--fail-if", "answer.certified == true", "--width", "80")
    assert shown.exit_code == 3
    assert "Proponents" in shown.stdout
    assert shown.stderr == "wherefrom: gate: the answer: answer.certified == true\n"


def test_a_gate_that_cannot_be_decided_fails_closed(home: Path) -> None:
    """Percentiles refer to the damping of the index; under another one there are none."""
    options = ["--damping", "0.5", "--fail-if", "proponent.percentile > 101 and rank == 1"]
    result = ask(home, *ASKED, *options, "--width", "80")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: gate: undecidable of proponent 1 (speech ")
    assert ask(home, *ASKED, *options[2:], "--width", "80").exit_code == 0


def test_a_gate_over_nothing_searched_is_undecidable(home: Path) -> None:
    result = ask(home, *ASKED, "--where", "year>3000", "--fail-if", WHIG, "--json")
    assert result.exit_code == 3
    assert [one["verdict"] for one in json.loads(result.stdout)["gate"]] == ["undecidable"]
    of_answer = ["--fail-if", "answer.documents > 30"]
    assert ask(home, *ASKED, "--where", "year>3000", *of_answer, "--json").exit_code == 0


@pytest.mark.parametrize("condition", ["party == 'Whigg'", "party in ['Whig', 'Whigg']"])
def test_a_value_that_no_document_has_is_warned_of(home: Path, condition: str) -> None:
    result = ask(home, *ASKED, "-k", "20", "--fail-if", f"opponent.{condition} and rank == 99")
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: warning: no document of the index has party 'Whigg'")
    assert "it has 'Whig'" in line


@pytest.mark.parametrize("option", ["--html", "--csv", "--parquet"])
def test_a_file_that_cannot_be_written_shows_before_the_model_is_loaded(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr("wherefrom.api.open", None)
    result = ask(home, *ASKED, option, tmp_path / "nowhere" / "file")
    assert "its folder does not exist" in error_line(result)


def test_a_gate_weighs_more_than_a_question_without_answer(home: Path, tmp_path: Path) -> None:
    batch = write(tmp_path / "q.jsonl", [ROWS[0], {"completion": ""}])
    gate = ["--fail-if", "proponent.rank == 1"]
    result = ask(home, "--batch", batch, "--jsonl", tmp_path / "out", "--json", *gate)
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert [one["id"] for one in summary["gate"]] == ["union"]
    assert [one["id"] for one in summary["failed"]] == ["2"]
    told = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in told] == ["unanswered", "gate"]


def test_what_else_is_wanted_of_an_answer(home: Path) -> None:
    options = ["--explain", "--similar", "--group-by", "party", "--group-by", "year:3"]
    told = json.loads(ask(home, *ASKED, "--json", *options).stdout)
    assert [one["doc_id"] for one in told["explanation"]["hits"]] == [
        hit["doc_id"] for hit in (*told["proponents"], *told["opponents"])
    ]
    assert len(told["similarity"]["hits"]) == 6
    assert [grouping["column"] for grouping in told["groups"]] == ["party", "year"]
    assert [grouping["bins"] for grouping in told["groups"]] == [None, 3]


def bundle(home: Path, out: Path, *options: str | os.PathLike[str]) -> Result:
    return run("bundle", home / "my.index", "--out", out, *options)


def test_bundles_are_made_and_verified(home: Path, answered: Path, tmp_path: Path) -> None:
    asking = ["--batch", home / "queries.jsonl", "-k", "3", "--fail-if", NEVER]
    made = bundle(home, tmp_path / "asked", *asking, "--json")
    assert made.exit_code == 0, made.output
    told = json.loads(made.stdout)
    assert (told["schema"], told["answers"], told["failed"]) == ("wherefrom-bundle/1", 3, [])
    statement = json.loads((tmp_path / "asked" / "statement.json").read_bytes())
    assert statement["predicate"]["command"] == [
        *("wherefrom", "bundle", "my.index", "--batch", "queries.jsonl"),
        *("-k", "3", "--fail-if", NEVER),
    ]
    taken = bundle(home, tmp_path / "taken.zip", "--answers", answered)
    assert taken.exit_code == 0, taken.output
    assert "3 questions and their answers" in taken.stdout
    assert "statement SHA-256" in taken.stdout

    digests = run("verify", tmp_path / "taken.zip")
    assert digests.exit_code == 0, digests.output
    assert "none was asked again" in digests.stdout
    again = run("verify", tmp_path / "asked", "--index", home / "my.index")
    assert again.exit_code == 0, again.output
    assert "3 questions asked again, all with the same answers to the last bit" in again.stdout
    told = json.loads(run("verify", tmp_path / "asked", "--json").stdout)
    assert told["schema"] == "wherefrom-verify/1"
    assert (told["ok"], told["problems"], told["questions"]) == (True, [], 3)
    assert told["asked_again"] is None
    assert "exists already" in error_line(bundle(home, tmp_path / "asked", *asking))


def test_bundles_that_do_not_fit(home: Path, answered: Path, tmp_path: Path) -> None:
    lines_ = lines(answered.read_text())
    lines_[0]["proponents"][0]["score"] *= 2
    forged = write(tmp_path / "forged.jsonl", lines_)
    assert bundle(home, tmp_path / "forged", "--answers", forged).exit_code == 0
    assert run("verify", tmp_path / "forged").exit_code == 0
    asked = ["verify", tmp_path / "forged", "--index", home / "my.index"]
    again = run(*asked, "--json", "--tolerance", "1e-6")
    assert again.exit_code == 1
    told = json.loads(again.stdout)
    assert told["ok"] is False
    assert [problem["where"] for problem in told["problems"]] == ["answer union"]
    assert told["asked_again"]["identical"] == 2
    assert told["asked_again"]["largest_difference"] > 0.1

    (tmp_path / "forged" / "report.html").write_text("<p>all is well</p>")
    shown = run(*asked)
    assert shown.exit_code == 1
    assert shown.stdout.endswith(
        "is not what it says: 2 things do not fit; nothing was asked again.\n"
    )
    assert [line.split(": ")[:3] for line in shown.stderr.splitlines()] == [
        ["wherefrom", "verify", "digest"],
        ["wherefrom", "verify", "report"],
    ]


def test_what_is_known_of_a_bundle(home: Path, answered: Path, tmp_path: Path) -> None:
    """A bundle from which a question, or the gate, was left out is sound in itself."""
    whole = bundle(home, tmp_path / "whole", "--answers", answered, "--json")
    told = json.loads(whole.stdout)["statement_sha256"]
    known = ["--statement-sha256", told, "--batch", home / "queries.jsonl", "--fail-if", NEVER]
    assert run("verify", tmp_path / "whole", *known).exit_code == 0

    first, second, third = lines(answered.read_text())
    del first["fail_if"], first["gate"]
    second["id"] = "two"
    third["query"]["prompt"] = "the"
    write(tmp_path / "less.jsonl", [first, second, third])
    assert bundle(home, tmp_path / "b", "--answers", tmp_path / "less.jsonl").exit_code == 0
    assert run("verify", tmp_path / "b").exit_code == 0
    result = run("verify", tmp_path / "b", *known, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert [(one["where"], one["detail"]) for one in found["problems"]] == [
        ("statement.json", f"has SHA-256 {found['statement_sha256']}, not {told}"),
        ("answer 2", "is missing"),
        ("answer two", "is to no question of the file"),
        ("answer 7", "is to another question"),
        ("answer union", "was held against another gate"),
    ]


def test_a_report_of_another_version_passes_when_told_to(
    home: Path, answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle(home, tmp_path / "b", "--answers", answered).exit_code == 0
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    refused = run("verify", tmp_path / "b")
    assert refused.exit_code == 1
    assert "wherefrom: verify: report: report.html cannot be made again" in refused.stderr
    passed = run("verify", tmp_path / "b", "--other-version")
    assert passed.exit_code == 0
    assert "report.html was not compared" in passed.stderr


def test_another_index_is_named(home: Path, answered: Path, tmp_path: Path) -> None:
    assert bundle(home, tmp_path / "b", "--answers", answered).exit_code == 0
    wf.build(str(home / "model"), text_documents(19), tmp_path / "other.index", seed=3)
    result = run("verify", tmp_path / "b", "--index", tmp_path / "other.index", "--digests-only")
    assert result.exit_code == 1
    assert "is not the index that was asked" in result.stderr
    same = run("verify", tmp_path / "b", "--index", home / "my.index", "--digests-only")
    assert same.exit_code == 0
    taken = bundle(home, tmp_path / "c", "--answers", answered)
    assert taken.exit_code == 0
    shutil.rmtree(tmp_path / "c")
    made = run("bundle", tmp_path / "other.index", "--answers", answered, "--out", tmp_path / "c")
    assert "give the index that was asked" in error_line(made)
    assert not (tmp_path / "c").exists()


def test_what_is_no_bundle(home: Path, tmp_path: Path) -> None:
    assert "does not exist" in error_line(run("verify", tmp_path / "absent"))
    (tmp_path / "empty.jsonl").touch()
    out = tmp_path / "out"
    assert "holds no answer" in error_line(bundle(home, out, "--answers", tmp_path / "empty.jsonl"))
    assert "cannot read" in error_line(bundle(home, out, "--answers", tmp_path / "absent"))
    queries = bundle(home, out, "--answers", home / "queries.jsonl")
    assert "line 1 is no answer of ours" in error_line(queries)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bundle", "x"],
        ["bundle", "x", "--out", "o"],
        ["bundle", "x", "--out", "o", "--batch", "q", "--answers", "a"],
        ["bundle", "x", "--out", "o", "--answers", "a", "-k", "3"],
        ["bundle", "x", "--out", "o", "--answers", "a", "--model", "m"],
        ["bundle", "x", "--out", "o", "--batch", "q", "--refine-damping", "1"],
        ["verify", "x", "--tolerance", "1e-6"],
        ["verify", "x", "--digests-only"],
        ["verify", "x", "--index", "i", "--digests-only", "--tolerance", "1e-6"],
        ["verify", "x", "--index", "i", "--tolerance", "2"],
    ],
)
def test_wrong_usage_of_bundles(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_questions_from_a_log_of_inspect(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai")
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalSample,
        EvalSpec,
        write_eval_log,
    )
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    said = {" shall be preserved": "C", " will end": "I"}
    samples = [
        EvalSample(
            id=number,
            epoch=1,
            input="the union of states",
            target="x",
            output=ModelOutput.from_content("mockllm/model", completion),
            scores={"includes": Score(value=value)},
        )
        for number, (completion, value) in enumerate(said.items(), start=1)
    ]
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="unions",
        dataset=EvalDataset(),
        model="mockllm/model",
        config=EvalConfig(),
    )
    samples.append(EvalSample(id=3, epoch=1, input="x", target="x", output=ModelOutput(model="m")))
    write_eval_log(EvalLog(eval=spec, samples=samples), str(tmp_path / "log.eval"))
    log = ["--inspect-log", tmp_path / "log.eval", "--jsonl", "-"]
    result = ask(home, *log, "--fail-if", "answer.certified == false")
    assert result.exit_code == 1
    right, wrong, untraced = lines(result.stdout)
    assert right["query"]["completion"] == " shall be preserved"
    assert right["tags"]["inspect"]["task"] == "unions"
    assert right["proponents"]
    assert untraced["query"] is None
    assert untraced["detail"] == "cannot be traced: no output"
    assert untraced["tags"]["inspect"]["sample_id"] == "3"
    assert result.stderr.splitlines() == [
        "wherefrom: unanswered: 3, epoch 1: cannot be traced: no output",
        "wherefrom: error: 1 of 3 questions could not be answered",
    ]
    (only,) = lines(ask(home, *log, "--incorrect", "--scorer", "includes").stdout)
    assert (only["id"], only["query"]) == (wrong["id"], wrong["query"])

    made = bundle(home, tmp_path / "b", *log[:2])
    assert made.exit_code == 1
    checked = run("verify", tmp_path / "b", "--index", home / "my.index")
    assert checked.exit_code == 0, checked.output
    assert "2 questions asked again, all with the same answers" in checked.stdout
    assert "1 on record could not be asked in the first place" in checked.stderr
    assert "cannot be traced: no output" in (tmp_path / "b" / "report.html").read_text()
