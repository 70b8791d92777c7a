"""``wherefrom evaluate``: what it prints and writes is the library's evidence; and its mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.cli import evaluate_options
from wherefrom.cli.evaluate import EVALUATIONS
from wherefrom.cli.evaluate import evaluate as evaluate_group
from wherefrom.cli.evaluate_options import Compared, Opened, Retrained, Shown
from wherefrom.cli.evaluate_report import evaluating
from wherefrom.cli.evaluate_subject import chosen_documents, opened_index
from wherefrom.cli.evaluate_training import trainer_of
from wherefrom.cli.main import commands
from wherefrom.curvature.kinds import CURVATURE_KINDS
from wherefrom.demo.model import MARKER, Recipe, load_or_train, read_marker
from wherefrom.errors import EvaluationError, MissingExtraError, ModelError
from wherefrom.evaluation.baselines import BASELINES
from wherefrom.evaluation.evidence import SCHEMA, Evidence, Figure
from wherefrom.evaluation.lds import linear_datamodelling
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.retraining import Retrainer, random_halves
from wherefrom.evaluation.statistics import Scores
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import FunctionTrainer, Trainer
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")

CODE = """
import os
from pathlib import Path

import numpy as np
import torch

HOME = Path(__file__).parent
DATA = np.load(HOME / "data.npz")
X, Y = torch.from_numpy(DATA["inputs"]), torch.from_numpy(DATA["targets"])


def train(members, seed):
    with (HOME / "trainings.txt").open("a") as log:
        log.write("x")
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(25):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X[members]), Y[members]).backward()
        optimizer.step()
    return model


def model():
    return train(np.arange(len(X)), 0)


def model_and_objective():
    import wherefrom as wf

    return model(), wf.Classification()


def interrupted(members, seed):
    if len((HOME / "trainings.txt").read_text()) >= int((HOME / "most.txt").read_text()):
        raise KeyboardInterrupt
    return train(members, seed)


def chance(members, seed):
    torch.seed()
    return torch.nn.Linear(6, 3)


def number():
    return 3


nothing = None
"""


def run(*arguments: str | os.PathLike[str]) -> Result:
    return CliRunner().invoke(commands, ["evaluate", *map(os.fspath, arguments)])


def evidence(*arguments: str | os.PathLike[str]) -> Evidence:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return Evidence.from_json(json.loads(result.stdout))


def error_line(result: Result, status: int = 1) -> str:
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of the user's, an index over its model, and questions."""
    folder = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((46, 6)).astype(np.float32)
    targets = inputs[:, :3].argmax(1)
    np.savez(folder / "data.npz", inputs=inputs[:40], targets=targets[:40])
    np.savez(folder / "asked.npz", inputs=inputs[40:], targets=targets[40:])
    # A name of its own: modules are kept by name as long as the process lives.
    (folder / "users_own_training.py").write_text(CODE)
    sys.path.insert(0, str(folder))
    import users_own_training as own

    wf.build(own.model(), (own.X, own.Y), folder / "my.index", layers="linear", bits=8)
    return folder


def options(home: Path, *, train: str | None = "train", model: str | None = "model") -> list[str]:
    given = ["--queries", str(home / "asked.npz"), "--cache", str(home / "cache")]
    for option, name in (("--train", train), ("--model", model)):
        if name is not None:
            given += [option, f"{home / 'users_own_training.py'}:{name}"]
    return given


def asking(home: Path, model: str = "model") -> list[str]:
    """Options of an evaluation that trains nothing."""
    return [
        *("--queries", str(home / "asked.npz")),
        *("--model", f"{home / 'users_own_training.py'}:{model}"),
    ]


def trainings(home: Path) -> int:
    return len((home / "trainings.txt").read_text())


def test_every_evaluation_and_option_has_help_that_loads_no_torch() -> None:
    context = click.Context(evaluate_group)
    assert evaluate_group.list_commands(context) == list(EVALUATIONS)
    for name in EVALUATIONS:
        command = evaluate_group.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.help
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{name} {parameter.name}"
                assert parameter.help[-1] == "." or "..." in parameter.help
    script = (
        "import sys; from click.testing import CliRunner; from wherefrom.cli.main import commands\n"
        f"for name in {['', *EVALUATIONS]!r}:\n"
        "    page = CliRunner().invoke(commands, ['evaluate', *name.split(), '--help'])\n"
        "    assert page.exit_code == 0, page.output\n"
        "print({'torch', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert finished.stdout == "set()\n", finished.stderr


def test_choices_and_defaults_are_those_of_the_library() -> None:
    assert evaluate_options.BASELINES == BASELINES
    lds = evaluate_group.get_command(click.Context(evaluate_group), "lds")
    assert lds is not None
    by_name = {parameter.name: parameter for parameter in lds.params}
    assert by_name["curvatures"].type.choices == CURVATURE_KINDS  # type: ignore[attr-defined]
    recipe = TuningRecipe()
    for name in ("epochs", "batch_size", "learning_rate"):
        option = by_name[name]
        assert isinstance(option, click.Option)
        assert f"{getattr(recipe, name)} by default" in " ".join((option.help or "").split())
    receipts = evaluate_group.get_command(click.Context(evaluate_group), "counterfactual")
    assert receipts is not None
    (draws,) = [one.default for one in receipts.params if one.name == "random_draws"]
    assert draws == 10  # A single question is set against them alone.


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense", "x"],
        ["lds"],
        ["lds", "x"],
        ["lds", "x", "--prompt", "y"],
        ["lds", "x", "--queries", "f", "--completion", "y"],
        ["lds", "x", "--queries", "f", "--train", "train.py"],
        ["lds", "x", "--queries", "f", "--train", "train.txt:train"],
        ["lds", "x", "--queries", "f", "--train", "absent.py:train"],
        ["lds", "x", "--queries", "f", "--model", "absent.py:model"],
        ["lds", "x", "--queries", "f", "--train", f"{__file__}:f", "--epochs", "3"],
        ["lds", "x", "--queries", "f", "--train", f"{__file__}:f", "--learning-rate", "3"],
        ["lds", "x", "--queries", "f", "--train", f"{__file__}:f", "--batch-size", "3"],
        ["lds", "x", "--queries", "f", "--base-model", "m", "--learning-rate", "0"],
        ["lds", "x", "--queries", "f", "--baselines", "dot,tfidf"],
        ["lds", "x", "--queries", "f", "--curvature", "hessian"],
        ["lds", "x", "--queries", "f", "--workers", "0"],
        ["lds", "x", "--queries", "f", "--base-model", "m", "--curvature", "identity"],
        ["loo", "x", "--queries", "f", "--base-model", "m", "--curvature", "identity"],
        ["counterfactual", "x", "--queries", "f", "--base-model", "m", "--curvature", "identity"],
        ["pbrf", "x", "--queries", "f", "--curvature", "identity", "--baselines", "bm25,dot"],
        ["loo", "x", "--queries", "f", "--base-model", "m", "--seeds", "0"],
        [
            *("loo", "x", "--queries", "f", "--base-model", "m"),
            *("--choose", "largest", "--group-size", "2"),
        ],
        ["counterfactual", "x", "--queries", "f", "-k", "ten"],
        ["counterfactual", "x", "--queries", "f", "-k", "0"],
        ["fidelity", "x"],
        ["pbrf", "x", "--queries", "f", "--tolerance", "0"],
        ["mislabeled", "x", "--top", "-1"],
        ["selftest", "--width", "3"],
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""


def test_identity_is_refused_beside_the_same_ranking_only() -> None:
    with pytest.raises(click.UsageError, match="ranks as the baseline dot does"):
        Compared(None, ("kfac", "identity")).require()
    Compared((), ("identity",)).require()
    Compared(("bm25",), ("identity",)).require()
    Compared(None, ("kfac",)).require()


def test_lds_is_the_library_s_and_trains_nothing_twice(home: Path, tmp_path: Path) -> None:
    asked = [*options(home), "--subsets", "20", "--seed", "3"]
    found = evidence("lds", home / "my.index", *asked)
    import users_own_training as own

    index = wf.open(home / "my.index", model=own.model())
    with np.load(home / "asked.npz") as arrays:
        queries = tuple(torch.from_numpy(arrays[name]) for name in ("inputs", "targets"))
    subject = Subject.of_index(index, queries)
    measurement = Measurement(subject.extractor.objective, subject.questions)
    retrainer = Retrainer(FunctionTrainer(own.train), measurement, subject.digest)
    outcomes = retrainer.outcomes(random_halves(40, 20, 3), range(2))
    scores = {"ekfac": index.scores(queries), "ekfac, stored": index.scores(queries, tier="stored")}
    expected = linear_datamodelling(scores, outcomes, subject="", seed=3)
    for method in scores:
        np.testing.assert_allclose(
            found.value(method, "LDS"), expected.value(method, "LDS"), rtol=1e-9
        )
    assert found.kind == "lds"
    methods = {figure.method for figure in found.figures}
    assert {"dot", "cosine", "embedding", "random", "ekfac, stored"} < methods
    assert "bm25" not in methods

    before = trainings(home)
    files = ["--output", str(tmp_path / "lds.json"), "--plot", str(tmp_path / "lds.png")]
    result = run("lds", home / "my.index", *asked, *files, "--width", "100")
    assert result.exit_code == 0, result.output
    assert trainings(home) == before + 1  # The indexed model, by the function that returns it.
    assert Evidence.from_json(json.loads((tmp_path / "lds.json").read_text())) == found
    assert (tmp_path / "lds.png").read_bytes().startswith(b"\x89PNG")
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Result", "Plot"]
    told = " ".join(result.stdout.split())
    assert "lds: Sequential, my.index" in told
    value = found.figure("ekfac", "LDS")
    assert f"ekfac {value.value:.3f} {value.low:.3f} to {value.high:.3f}" in told


def test_baselines_and_curvatures_are_chosen(home: Path) -> None:
    chosen = ["--baselines", "cosine", "--curvature", "kfac", "--subsets", "20", "--seed", "3"]
    found = evidence("lds", home / "my.index", *options(home), *chosen)
    methods = [figure.method for figure in found.figures if figure.name == "LDS"]
    assert methods[:4] == ["ekfac", "ekfac, stored", "kfac", "cosine"]
    line = error_line(run("lds", home / "my.index", *options(home), "--baselines", "bm25"))
    assert "these documents are tensors" in line


def test_an_interrupted_evaluation_goes_on(home: Path) -> None:
    most = trainings(home) + 6
    (home / "most.txt").write_text(str(most))
    asked = [*options(home, train="interrupted"), "--subsets", "20", "--seed", "4"]
    line = error_line(run("lds", home / "my.index", *asked), status=130)
    # One trained the indexed model and two the first run, to see that it is deterministic.
    assert line.startswith("wherefrom: interrupted: 4 finished trainings are kept in ")
    assert line.endswith("; the same command goes on from there")
    (home / "most.txt").write_text("1000000")
    assert run("lds", home / "my.index", *asked).exit_code == 0
    assert trainings(home) == most + 1 + 40 - 4


def test_leave_one_out_and_groups(home: Path) -> None:
    asked = [*options(home), "--groups", "5", "--baselines", "none"]
    found = evidence("loo", home / "my.index", *asked, "--choose", "largest")
    assert found.kind == "loo"
    assert found.setting["largest_group"] == 1
    assert found.value("ekfac", "Pearson") > 0.0
    assert found.setting["choose"] == "largest"
    assert any("largest scores of some method" in note for note in found.notes)
    groups = evidence("loo", home / "my.index", *asked, "--group-size", "4")
    assert groups.setting["smallest_group"] == 4
    assert not any("largest scores" in note for note in groups.notes)
    assert "too few" in error_line(run("loo", home / "my.index", *options(home), "--groups", "2"))
    assert "41 documents" in error_line(
        run("loo", home / "my.index", *options(home), "--groups", "41")
    )


def test_every_method_names_a_document_in_turn() -> None:
    own = np.tile(np.arange(10.0, 0.0, -1.0), (3, 1))  # 0, 1, 2, ...
    other = -np.tile(np.arange(1.0, 11.0), (3, 1))  # 9, 8, 7, ...
    noise = np.zeros((3, 10))
    noise[:, 5] = 100.0
    scores = {"own": own, "other": other, "random": noise}

    def chosen(scores: dict[str, Scores], count: int) -> list[int]:
        return list(chosen_documents(scores, count, "largest", 0))

    assert chosen(scores, 4) == [0, 1, 8, 9]
    assert chosen(scores, 5) == [0, 1, 2, 8, 9]
    assert chosen({"own": own, "same": 2 * own, "other": other}, 3) == [0, 1, 9]
    assert chosen({"own": own, "random": noise}, 3) == [0, 1, 2]
    assert chosen(scores, 10) == list(range(10))
    assert len(set(chosen_documents(scores, 6, "random", 0))) == 6
    with pytest.raises(EvaluationError, match="11 documents are asked for and 10 are there"):
        chosen(scores, 11)


def test_of_two_methods_as_good_choosing_makes_neither_better() -> None:
    """Mean of 300 draws: by one method's own scores the difference would be above .05."""
    generator = np.random.default_rng(0)
    gained = []
    for _ in range(300):
        truth, one, other = generator.standard_normal((3, 1, 200))
        scores = {"one": truth + one, "other": truth + other}
        chosen = chosen_documents(scores, 25, "largest", 0)
        alike = [np.corrcoef(truth[0, chosen], s[0, chosen])[0, 1] for s in scores.values()]
        gained.append(alike[0] - alike[1])
    assert abs(np.mean(gained)) < 0.02


def test_counterfactual_prints_a_receipt(home: Path) -> None:
    asked = [*options(home), "-k", "2,5", "--baselines", "dot", "--random-draws", "2"]
    result = run("counterfactual", home / "my.index", *asked, "--width", "300")
    assert result.exit_code == 0, result.output
    assert "Without the 2 documents that ekfac scores highest, retrained" in result.stdout
    assert "Without the 5 documents that ekfac scores highest, retrained" in result.stdout
    found = evidence("counterfactual", home / "my.index", *asked, "--opponents")
    assert found.kind == "counterfactual"
    assert found.setting["k"] == [2, 5]
    assert any("bottom 5" in figure.name for figure in found.figures)
    assert found.figure("ekfac", "change beyond dot, top 2 removed").unit == "nats"
    details: Any = found.details
    assert len(details["receipt"]) == 4
    assert " ".join(details["receipt"][0].split()) in " ".join(result.stdout.split())
    with np.load(home / "asked.npz") as arrays:
        assert [one["target"] for one in details["asked"]] == arrays["targets"].tolist()
    for one in details["queries"]:
        assert one["asked"] == details["asked"][one["query"]]
        assert len(one["removed"]["ekfac, bottom 5 removed"]) == 5
        assert set(one["removed"]["dot, top 2 removed"]) <= {f"{i:02d}" for i in range(40)}
        assert f"query {one['query']} (target {one['asked']['target']}, " in one["receipt"][0]


def test_evaluations_that_train_nothing(home: Path) -> None:
    asked = asking(home, "model_and_objective")
    fidelity = evidence("fidelity", home / "my.index", *asked)
    assert fidelity.value("stored", "Pearson") > 0.9
    assert any(
        figure.name == "top 10 in 20"
        for figure in evidence("fidelity", home / "my.index", *asked, "-k", "20").figures
    )
    without = evidence("fidelity", home / "my.index", *asked, "--no-layers")
    assert {figure.method for figure in without.figures} == {"stored", "reranked"}
    pbrf = evidence(
        "pbrf", home / "my.index", *asked, "--documents", "4", "--damping", "1", "--most", "900"
    )
    assert pbrf.setting["responses"] == 4
    assert pbrf.setting["step"] == 1.0
    assert "too few" in error_line(run("pbrf", home / "my.index", *asked, "--documents", "2"))
    assert "no response of 3 was reached in 1 passes" in error_line(
        run("pbrf", home / "my.index", *asked, "--documents", "3", "--most", "1")
    )


def test_responses_stand_beside_leave_one_out(home: Path) -> None:
    few = ["--documents", "4", "--step", "0.1", "--baselines", "none"]
    asked = ["pbrf", home / "my.index", *asking(home), *few]
    training = ["--train", f"{home / 'users_own_training.py'}:train", "--cache", home / "cache"]
    alone = evidence(*asked)
    both = evidence(*asked, "--leave-one-out", *training, "--seeds", "2")
    assert both.figures[: len(alone.figures)] == alone.figures
    gap = both.figure("pbrf", "leave-one-out: Pearson")
    assert gap.low is not None
    assert both.value("retraining", "leave-one-out: effect") > 0.0
    assert both.setting["leave-one-out"]["groups"] == 4
    result = run(*asked, "--leave-one-out")
    assert "give --train FILE.py:FUNCTION" in error_line(result)


@pytest.mark.parametrize(
    ("arguments", "train", "said"),
    [
        (["lds"], "nothing", "no function 'nothing'"),
        (["loo"], "nothing", "no function 'nothing'"),
        (["loo", "--groups", "41"], "train", "41 documents are asked for and 40 are there"),
        (["loo", "--groups", "5", "--group-size", "40"], "train", "leave out some, not all"),
        (["counterfactual"], "nothing", "no function 'nothing'"),
        (["counterfactual", "-k", "3,40"], "train", "k=[3, 40] of 40 documents"),
        (["pbrf", "--documents", "41"], "train", "41 documents are asked for"),
        (["pbrf", "--leave-one-out"], "nothing", "no function 'nothing'"),
    ],
)
def test_what_cannot_be_done_is_said_before_scores_are_computed(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], train: str, said: str
) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("something that takes long was begun")

    for name in ("influence", "baselines", "fit"):
        monkeypatch.setattr(f"wherefrom.cli.evaluate_subject.{name}", begun)
    name, *rest = arguments
    assert said in error_line(run(name, home / "my.index", *options(home, train=train), *rest))


def test_baselines_that_do_not_apply_are_refused_before_curvatures_are_fitted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("something that takes long was begun")

    monkeypatch.setattr("wherefrom.cli.evaluate_subject.influence", begun)
    line = error_line(run("lds", home / "my.index", *options(home), "--baselines", "bm25"))
    assert "these documents are tensors" in line


def test_a_receipt_of_text_is_set_against_bm25_and_says_what_was_asked(texts: Path) -> None:
    asked = ["--prompt", "[red]the union", "--completion", " shall be", "--contrast", " end"]
    tuned = ["--base-model", texts / "base", "--epochs", "1", "--cache", texts / "cache"]
    small = ["-k", "2", "--seeds", "1", "--random-draws", "2", "--baselines", "dot,bm25"]
    command = ["counterfactual", texts / "lm.index", *asked, *tuned, *small]
    found = evidence(*command)
    names = {figure.name for figure in found.figures}
    assert "change beyond bm25, top 2 removed" in names
    assert "change beyond dot, top 2 removed" not in names
    assert any("2 random sets of each size: so few" in note for note in found.notes)
    details: Any = found.details
    question = {"prompt": "[red]the union", "completion": " shall be", "contrast": " end"}
    assert details["asked"] == [question]
    ids = set(wf.open(texts / "lm.index").doc_ids())
    (one,) = details["queries"]
    assert all(len(set(own) & ids) == 2 for own in one["removed"].values())
    printed = " ".join(run(*command, "--width", "400").stdout.split())
    assert 'query 0 ("shall be" after "[red]the union", not "end")' in printed


def test_the_demo_s_training_takes_the_recipe_and_documents_of_its_model(tmp_path: Path) -> None:
    documents = text_documents(10)
    recipe = Recipe(300, 48, 16, 24, layers=1, heads=2, epochs=1, batch_size=4)
    folder = tmp_path / "model"
    load_or_train(folder, documents, seed=3, progress=lambda *_: None, recipe=recipe)
    retrained = Retrained("demo", None, None, None, 1, 1, tmp_path / "cache")

    def trainer(over: Sequence[wf.Document], name: str) -> Trainer:
        wf.build(str(folder), over, tmp_path / name, encoder="none")
        opened = Opened(None, None, "cpu")
        index = opened_index(tmp_path / name, opened)
        subject = Subject.of_index(index, [wf.Query("the", " union")])
        return trainer_of(index, subject, opened, retrained)

    assert str(recipe) in trainer(documents, "same").recipe
    with pytest.raises(EvaluationError, match=r"holds 7 documents, and the model .* on 10 "):
        trainer(documents[:7], "fewer")
    with pytest.raises(EvaluationError, match=r"holds 10 documents, and the model .* on others "):
        trainer(documents[::-1], "reversed")
    marker = folder / MARKER
    kept = json.loads(marker.read_text())
    del kept["documents"]
    marker.write_text(json.dumps(kept))
    assert read_marker(folder).documents is None
    kept["recipe"]["unknown"] = 1
    marker.write_text(json.dumps(kept))
    with pytest.raises(ModelError, match="a recipe of another version"):
        read_marker(folder)


def test_the_demo_training_is_for_the_demo(texts: Path) -> None:
    result = run("lds", texts / "lm.index", "--queries", texts / "asked.jsonl", "--train", "demo")
    assert "is over another one" in error_line(result)


def test_suspects_are_listed(home: Path) -> None:
    model = asking(home)[2:]
    trusted = ["--held-out", str(home / "asked.npz"), "--top", "3"]
    found = evidence("mislabeled", home / "my.index", *model, *trusted)
    suspects = found.details["suspects"]
    assert isinstance(suspects, list)
    assert len(suspects) == 3
    result = run("mislabeled", home / "my.index", *model, *trusted)
    assert result.exit_code == 0, result.output
    told = " ".join(result.stdout.split())
    assert "Suspects, by self-influence" in told
    for suspect in suspects:
        assert f"{suspect['label']} ({suspect['label_probability']:.2f})" in told
        assert suspect["doc_id"] in told
    assert "Suspects" not in run("mislabeled", home / "my.index", *model, "--top", "0").stdout
    assert "no metadata column" in error_line(
        run("mislabeled", home / "my.index", *model, "--truth", "flipped")
    )


def test_what_cannot_be_retrained(home: Path, tmp_path: Path) -> None:
    index, subsets = home / "my.index", ["--subsets", "20"]
    line = error_line(run("lds", index, *options(home, train=None)))
    assert "does not say how its model was trained" in line
    assert "--train FILE.py:FUNCTION" in line
    assert "--base-model DIR" in line
    line = error_line(run("lds", index, *options(home, train="chance"), *subsets))
    assert "not deterministic" in line
    line = error_line(run("lds", index, *options(home), "--subsets", "19"))
    assert "too few for an interval" in line
    assert "no function 'nothing'" in error_line(run("lds", index, *options(home, train="nothing")))
    line = error_line(run("lds", index, *options(home, model=None)))
    assert "--model FILE.py:FUNCTION" in line
    assert "gives int" in error_line(run("lds", index, *options(home, model="number")))
    line = error_line(run("lds", index, *options(home), "--base-model", "m"))
    assert "leave one of them out" in line
    for name, code, said in (
        ("users_broken_file.py", "1 / 0", "ZeroDivisionError"),
        ("json.py", "def train(): pass", "another name"),
    ):
        (tmp_path / name).write_text(code)
        train = ["--train", f"{tmp_path / name}:train"]
        assert said in error_line(run("lds", index, *options(home, train=None), *train))


def test_numbers_of_another_precision_are_the_same_questions(home: Path) -> None:
    with np.load(home / "asked.npz") as arrays:
        wide = {name: arrays[name] for name in arrays}
    wide["inputs"] = wide["inputs"].astype(np.float64)
    np.savez(home / "wide.npz", **wide)
    asked = [*asking(home), "--no-layers"]
    narrow = evidence("fidelity", home / "my.index", *asked)
    assert evidence("fidelity", home / "my.index", *asked, "--queries", home / "wide.npz") == narrow


def test_questions_of_the_wrong_kind(home: Path, tmp_path: Path) -> None:
    model = asking(home)[2:]
    line = error_line(run("fidelity", home / "my.index", *model, "--completion", "x"))
    assert "holds tensors; give --queries FILE.npz" in line
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    line = error_line(
        run("fidelity", home / "my.index", *model, "--queries", tmp_path / "other.npz")
    )
    assert "numpy.savez(file, inputs=..., targets=...)" in line
    line = error_line(run("fidelity", tmp_path / "absent", *model, "--completion", "x"))
    assert "does not exist" in line


def test_results_that_could_not_be_written_are_refused_first(home: Path, tmp_path: Path) -> None:
    asked = asking(home)
    for files, said in (
        (["--output", tmp_path / "absent" / "a.json"], "make it first"),
        (["--plot", tmp_path / "a.jpg"], "end it in .png"),
    ):
        assert said in error_line(run("fidelity", home / "absent.index", *asked, *files))


def test_a_missing_library_is_named_with_its_pip_line() -> None:
    shown = Shown(as_json=False, output=None, plot=None, width=None)
    pip = r"need scipy.*pip install 'wherefrom\[evaluation\]'"
    with pytest.raises(MissingExtraError, match=pip), evaluating(shown):
        raise ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats")
    with pytest.raises(ModuleNotFoundError, match="yaml"), evaluating(shown):
        raise ModuleNotFoundError("No module named 'yaml'", name="yaml")


@pytest.mark.parametrize("misses", [[], ["LDS .5, below .6", "LOO .1, below .9"]])
def test_selftest_exits_1_with_a_line_for_each_miss(
    monkeypatch: pytest.MonkeyPatch, misses: list[str]
) -> None:
    made = ModuleType("wherefrom.evaluation.selftest")
    found = Evidence("selftest", "digits", (Figure("ekfac", "LDS", 0.5),), {})
    made.selftest = lambda progress=None: found  # type: ignore[attr-defined]
    made.failures = lambda evidence: misses  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, made.__name__, made)
    result = run("selftest")
    assert result.exit_code == (1 if misses else 0)
    assert "selftest: digits" in result.stdout
    assert result.stderr.splitlines() == [f"wherefrom: error: {line}" for line in misses]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, an index over it as it is, and over an adapter of it."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("texts")
    tiny_llama().float().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["gate_proj"], task_type="CAUSAL_LM")
    documents = text_documents(24)
    base = str(folder / "base")
    with warnings.catch_warnings():  # peft asks transformers for an attribute by its old name
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
        adapted = get_peft_model(tiny_llama().float(), config)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight)  # As after training.
        adapted.save_pretrained(folder / "adapter")
        wf.build(str(folder / "adapter"), documents, folder / "lora.index", base_model=base)
    wf.build(base, documents, folder / "lm.index", bits=8)
    rows = [{"prompt": "the union", "completion": " shall be preserved"}]
    (folder / "asked.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.mark.parametrize("index", ["lm.index", "lora.index"])
def test_the_base_is_fine_tuned(texts: Path, index: str) -> None:
    asked = ["--queries", texts / "asked.jsonl", "--cache", texts / "cache"]
    tuned = ["--base-model", texts / "base", "--epochs", "1", "--batch-size", "8"]
    found = evidence("lds", texts / index, *asked, *tuned, "--subsets", "20", "--seeds", "1")
    assert found.setting["models_per_subset"] == 1
    assert {"bm25", "embedding"} < {figure.method for figure in found.figures}
    assert any("One model a subset" in note for note in found.notes)
    assert found.details["asked"] == [
        {"prompt": "the union", "completion": " shall be preserved", "contrast": None}
    ]


def test_one_question_on_the_command_line(texts: Path) -> None:
    asked = ["--prompt", "the union", "--completion", " shall be preserved", "--contrast", " end"]
    found = evidence("fidelity", texts / "lm.index", *asked)
    assert found.kind == "fidelity"
    line = error_line(run("fidelity", texts / "lm.index", "--queries", texts / "asked.npz"))
    assert "holds text; give --queries FILE.jsonl" in line


def test_the_guide_names_every_evaluation_and_field() -> None:
    for name in EVALUATIONS:
        assert f"`wherefrom evaluate {name}`" in GUIDE
    for baseline in BASELINES:
        assert f"`{baseline}`" in GUIDE
    for field in Evidence("lds", "", (), {}).to_json():
        assert f"| `{field}` |" in GUIDE
    for field in fields(Figure):
        assert f"`figures[].{field.name}`" in GUIDE
    assert f'`"{SCHEMA}"`' in GUIDE


def test_the_files_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that trains digits, by the command line and from Python."""
    blocks = dict(re.findall(r"<!-- (.*?) -->\n```python\n(.*?)```", GUIDE, re.DOTALL))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "digits", raising=False)
    Path("digits.py").write_text(blocks["train file"])
    names: dict[str, Any] = {}
    exec(compile(blocks["from python"], "evaluation.md", "exec"), names)
    found: Evidence = names["evidence"]
    assert found.value("ekfac", "LDS") > found.value("random", "LDS")
    assert Path("lds.png").is_file()
    exec(compile(blocks["index"], "evaluation.md", "exec"), {})
    (line,) = re.findall(r"^wherefrom evaluate (lds digits.index .*)$", GUIDE, re.MULTILINE)
    again = evidence(*line.split(), "--subsets", "20", "--seeds", "1", "--baselines", "none")
    assert again.setting["documents"] == found.setting["documents"]
    assert "def train(members, seed):" in again.setting["recipe"]
    assert (
        again.setting["index_digest"]
        == wf.open("digits.index", model=names["indexed"]()).manifest.digest
    )
    assert np.shape(again.details["nats"]) == (20, 1, 8)
    del sys.modules["digits"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_begins_anew(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine-tuning starts from an adapter of the same form that does nothing yet."""
    made: list[torch.nn.Module] = []

    class Tuner(FineTuner):
        def __init__(self, base: torch.nn.Module, *arguments: Any, **options: Any) -> None:
            made.append(base)
            super().__init__(base, *arguments, **options)

    monkeypatch.setattr("wherefrom.cli.evaluate_training.FineTuner", Tuner)
    opened = Opened(None, str(texts / "base"), "cpu")
    index = opened_index(texts / "lora.index", opened)
    subject = Subject.of_index(index, [wf.Query("the", " union")])
    retrained = Retrained(None, 1, None, None, 1, 1, texts / "cache")
    trainer = trainer_of(index, subject, opened, retrained)
    assert "epochs=1," in trainer.recipe
    (module,) = made
    found = {name: float(weight.detach().abs().max()) for name, weight in module.named_parameters()}
    ours = {name: size for name, size in found.items() if "lora_" in name}
    assert len(ours) == 4
    for name, size in ours.items():
        assert (size == 0.0) == ("lora_B" in name)
    parameters = dict(module.named_parameters())
    for name, weight in index.asker.extractor.model.named_parameters():
        if "lora_" not in name:
            torch.testing.assert_close(parameters[name], weight)
