"""The commands' surface: help, errors, exit statuses, what ``info`` tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from wherefrom import __version__
from wherefrom.cli import accelerate as accelerate_command
from wherefrom.cli import build as build_command
from wherefrom.cli import query as query_command
from wherefrom.cli.main import commands
from wherefrom.curvature.kinds import CURVATURE_KINDS
from wherefrom.encoding.stages import CODE_BITS, REDUCTIONS
from wherefrom.gradients.fingerprints import DTYPES
from wherefrom.query.options import QueryOptions
from wherefrom.records import SCORE_CONTRACT, Document, Normalise, Rerank, Sign
from wherefrom.store import (
    AcceleratorKind,
    AdapterRecord,
    BackgroundRecord,
    ChoiceRecord,
    CorpusRecord,
    CurvatureRecord,
    DocumentTable,
    EncoderRecord,
    FidelityRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    ObjectiveRecord,
    ScanCopy,
    TriedRecord,
    begin_build,
)

CONTEXT = click.Context(commands)
COMMANDS = [commands.get_command(CONTEXT, name) for name in commands.list_commands(CONTEXT)]


FIDELITY = FidelityRecord(
    documents=300, queries=2, among=60, recall=0.975, correlation=0.875, noise=0.0625, slope=0.5
)
MEASURED = ("recall", "correlation", "noise")


def run(*arguments: str | os.PathLike[str]) -> Result:
    return CliRunner().invoke(commands, [os.fspath(argument) for argument in arguments])


def words(text: str) -> str:
    return " ".join(text.split())


def error_line(result: Result) -> str:
    """The one line that a failed command may print."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("wherefrom: error: ")
    return line


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A finished index of three documents."""
    path = tmp_path / "my.index"
    begin_build(path, {})
    table = DocumentTable.create(
        path, metadata={"year": "int64"}, dimension=2, bits=32, inputs=None
    )
    documents = [Document(f"d{i}", f"text {i}", {"year": 1900 + i}) for i in range(3)]
    vectors = np.eye(3, 2, dtype=np.float32)
    table.append(documents, vectors, norms=np.ones(3), tokens=np.full(3, 4))
    Manifest(
        created="2026-01-01T00:00:00+00:00",
        model=ModelRecord(
            kind="adapter",
            source="/models/tiny",
            weights_sha256="ab" * 32,
            tokenizer_sha256="cd" * 32,
            architecture="LlamaForCausalLM",
            task="causal_lm",
            dtype="float32",
            adapter=AdapterRecord(source="/adapters/tiny", sha256="fe" * 32),
        ),
        layers=tuple(
            LayerRecord(name=f"mlp.{i}", kind="Linear", d_in=3, d_out=2, bias=i == 1)
            for i in range(2)
        ),
        objective=ObjectiveRecord(kind="causal_lm", options={"context": 64, "label": None}),
        curvature=CurvatureRecord(
            kind="lissa",
            damping=0.1,
            whitened=False,
            fisher="sampled",
            fit_documents=3,
            seed=5,
            report={"iterations": 57.0, "residual": 0.00012345},
        ),
        encoder=EncoderRecord(
            name="sketch 2, fp32",
            reduce="sketch",
            reduced=2,
            rotate=False,
            bits=32,
            dimension=2,
            bytes_per_document=8,
            seed=5,
            file_sha256="00",
            fidelity=FIDELITY,
            choice=ChoiceRecord(
                bytes_per_document=8,
                fidelity=0.5,
                documents=3,
                queries=2,
                tried=(
                    TriedRecord(
                        encoder="sketch 2, fp32",
                        bytes_per_document=8,
                        chosen=True,
                        **{name: getattr(FIDELITY, name) for name in MEASURED},
                    ),
                    TriedRecord(
                        encoder="energy 2, fp32",
                        bytes_per_document=8,
                        chosen=False,
                        recall=0.5,
                        correlation=0.25,
                        noise=0.125,
                    ),
                ),
            ),
        ),
        corpus=CorpusRecord(
            documents=3, parents=2, tokens=12, skipped=("e",), skipped_count=1, content_sha256="ee"
        ),
        scale=1 / 3,
        metadata={"year": "int64"},
        store=table.seal(),
        scan=ScanCopy.build(table, path / "scan"),
        background=BackgroundRecord(
            pairs=6,
            queries=2,
            documents=3,
            seed=5,
            levels=(0.0, 0.01, 0.99, 1.0),
            quantiles=(-0.9, -0.25, 0.5, 1.0),
            highest=(0.25, 0.5),
            lowest=(-0.5, -0.25),
        ),
        seconds_per_document=0.0123,
        versions={"wherefrom": "0.1.0", "torch": "2.13.0"},
        replay="wherefrom build docs.jsonl",
        warnings=("the curvature does next to nothing",),
    ).write(path)
    return path


def test_every_command_and_option_has_help() -> None:
    for command in COMMANDS:
        assert command is not None
        assert command.help
        summary = command.get_short_help_str(200)
        assert summary.endswith("."), command.name
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{command.name} {parameter.name}"
                assert parameter.help[-1] == "." or "..." in parameter.help
            else:
                assert parameter.make_metavar(CONTEXT) in command.help


def test_help_is_whole_on_80_columns() -> None:
    page = run("--help").output
    for command in COMMANDS:
        assert command is not None
        assert command.get_short_help_str(200) in page


@pytest.mark.parametrize("command", [[], ["demo"], ["build"], ["query"]])
def test_help_says_what_scores_mean(command: list[str]) -> None:
    assert SCORE_CONTRACT in words(run(*command, "--help").output)


def test_version() -> None:
    assert run("--version").output == f"wherefrom {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["query"],
        ["query", "x", "--completion", "y", "-k", "0"],
        ["query", "x", "--completion", "y", "--sign", "sideways"],
        ["build", "c", "--model", "m"],
        ["query", "x"],
        ["query", "x", "--prompt", "y"],
        ["query", "x", "--completion", "y", "--queries", "f"],
        ["query", "x", "--prompt", "", "--queries", "f"],
        ["query", "x", "--contrast", "", "--queries", "f"],
        ["query", "x", "--completion", "y", "--reduce", "sum"],
        ["query", "x", "--queries", "f", "--reduce", "median"],
        ["query", "x", "--completion", "y", "--damping", "-1"],
        ["query", "x", "--completion", "y", "--damping", "nan"],
        ["query", "x", "--completion", "y", "--damping", "inf"],
        ["query", "x", "--completion", "y", "--dampings", ""],
        ["query", "x", "--completion", "y", "--dampings", "0.1,,1"],
        ["query", "x", "--completion", "y", "--dampings", "0.1,much"],
        ["query", "x", "--completion", "y", "--sweep-damping", "--damping", "0"],
        ["query", "x", "--completion", "y", "--sweep-damping", "--sign", "proponents"],
        ["query", "x", "--completion", "y", "--sweep-damping", "--where", "year<1900"],
        ["query", "x", "--completion", "y", "--dampings", "1", "--html", "f"],
        ["build", "c", "--model", "m", "--index", "i", "--damping", "0"],
        ["build", "c", "--model", "m", "--index", "i", "--damping", "0", "--curvature", "datainf"],
        ["build", "c", "--model", "m", "--index", "i", "--damping", "inf"],
        ["build", "c", "--model", "m", "--index", "i", "--damping", "little"],
        ["build", "c", "--model", "m", "--index", "i", "--curvature", "hessian"],
        ["build", "c", "--model", "m", "--index", "i", "--dtype", "int8"],
        ["build", "c", "--model", "m", "--index", "i", "--objective", "regression"],
        ["build", "c", "--model", "m", "--index", "i", "--label", "l", "--objective", "causal-lm"],
        ["build", "c", "--model", "m", "--index", "i", "--fit-documents", "0"],
        ["build", "c", "--model", "m", "--index", "i", "--fit-documents", "1.5"],
        ["build", "c", "--model", "m", "--index", "i", "--fit-documents", "many"],
        ["build", "c", "--model", "m", "--index", "i", "--fit-documents", "nan.0"],
        ["build", "c", "--model", "m", "--index", "i", "--encoder", "zip"],
        ["build", "c", "--model", "m", "--index", "i", "--bits", "3"],
        ["build", "c", "--model", "m", "--index", "i", "--pca", "0"],
        ["build", "c", "--model", "m", "--index", "i", "--bytes-per-document", "0"],
        ["build", "c", "--model", "m", "--index", "i", "--fidelity", "0"],
        ["build", "c", "--model", "m", "--index", "i", "--fidelity", "1.01"],
        ["build", "c", "--model", "m", "--index", "i", "--fidelity", "nan"],
        ["build", "c", "--model", "m", "--index", "i", "--fidelity", "high"],
        ["accelerate", "--kind", "lance-ivf"],
        ["accelerate", "x", "--kind", "annoy"],
        ["query", "x", "--completion", "y", "--normalise", "l2"],
        ["query", "x", "--completion", "y", "--rerank", "never"],
        ["query", "x", "--completion", "y", "--rerank-seconds", "-1"],
        ["query", "x", "--completion", "y", "--rerank-seconds", "nan"],
        ["query", "x", "--completion", "y", "--rerank-seconds", "1", "--rerank", "stored"],
        ["query", "x", "--completion", "y", "--candidates", "0"],
        ["query", "x", "--completion", "y", "--candidates", "9", "--rerank", "stored"],
        ["query", "x", "--completion", "y", "--refine", "-1"],
        ["query", "x", "--completion", "y", "--refine", "1", "--damping", "1"],
        ["query", "x", "--completion", "y", "--refine", "1", "--refine-damping", "-1"],
        ["query", "x", "--completion", "y", "--refine-damping", "1"],
        ["query", "x", "--completion", "y", "--refine-documents", "1"],
        ["query", "x", "--completion", "y", "--refine", "1", "--refine-documents", "0"],
        ["query", "x", "--completion", "y", "--backend", "annoy"],
        ["query", "x", "--completion", "y", "--backend", "lance-ivf", "--normalise", "cosine"],
        *(
            ["query", "x", "--completion", "y", "--sweep-damping", *options]
            for options in (
                ["--normalise", "cosine"],
                ["--rerank", "recompute"],
                ["--rerank-seconds", "1"],
                ["--candidates", "9"],
                ["--refine", "1"],
                ["--refine", "1", "--refine-damping", "1"],
                ["--refine-documents", "9"],
                ["--backend", "lance-ivf"],
            )
        ),
    ],
)
def test_wrong_usage_is_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert result.stderr.endswith(f"{error}\n")
    assert result.stdout == ""


def test_choices_are_those_of_the_library() -> None:
    assert build_command.CURVATURES == CURVATURE_KINDS
    assert set(build_command.DTYPES) == set(DTYPES)
    assert ("auto", *REDUCTIONS) == build_command.ENCODERS
    assert build_command.BITS == CODE_BITS
    assert get_args(AcceleratorKind) == accelerate_command.KINDS
    assert ("scan", *get_args(AcceleratorKind)) == query_command.BACKENDS


def test_defaults_are_those_of_the_library() -> None:
    (query,) = (command for command in COMMANDS if command and command.name == "query")
    with query.make_context("query", ["x", "--completion", "y"]) as context:
        given = context.params
    options = {field.name: getattr(QueryOptions(), field.name) for field in fields(QueryOptions)}
    assert options.pop("where") == {}
    assert given["clauses"] == ()
    assert {name: given[name] for name in options} == options
    for name, kinds in (("sign", Sign), ("normalise", Normalise), ("rerank", Rerank)):
        (option,) = (parameter for parameter in query.params if parameter.name == name)
        assert option.type.choices == get_args(kinds)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_under_standard_output_is_one_line(index: Path, options: list[str]) -> None:
    with open("/dev/full", "w") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "wherefrom", "info", str(index), *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert finished.returncode == 1
    assert finished.stderr.count("\n") == 1
    assert "No space left on device" in finished.stderr


def test_a_misspelt_command_is_told_from_those_nearly_so() -> None:
    result = CliRunner().invoke(commands, ["qery"])
    assert result.exit_code == 2
    assert "Did you mean 'query'?" in result.stderr
    assert "Did you mean" not in CliRunner().invoke(commands, ["xyzzy"]).stderr


@pytest.mark.parametrize("option", ["--prompt", "--completion", "--contrast"])
def test_text_that_is_no_unicode_is_wrong_usage(index: Path, option: str) -> None:
    result = run("query", index, "--completion", "x", option, os.fsdecode(b"caf\xe9"))
    assert result.exit_code == 2
    assert "not valid UTF-8" in result.stderr


@pytest.mark.parametrize(
    "command", [["info"], ["query", "--completion", "x"], ["accelerate", "--kind", "lance-ivf"]]
)
def test_what_is_no_index(tmp_path: Path, command: list[str]) -> None:
    name, *options = command
    assert "does not exist" in error_line(run(name, tmp_path / "absent", *options))
    (tmp_path / "notes.txt").write_text("x")
    assert "is no wherefrom index" in error_line(run(name, tmp_path, *options))


def test_a_broken_manifest_is_one_line(index: Path) -> None:
    manifest = index / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "format_version": 99}))
    assert "format version 99" in error_line(run("info", index))


def test_errors_stay_on_one_harmless_line(tmp_path: Path) -> None:
    line = error_line(run("info", tmp_path / "a\nb\x1b[31m\u202e"))
    assert "a b does not exist" in line


def test_filters_are_checked_before_the_model_is_loaded(index: Path) -> None:
    line = error_line(run("query", index, "--completion", "x", "--where", "president=Lincoln"))
    assert "president=Lincoln" in line
    assert "year" in line


def test_info_tells_everything(index: Path) -> None:
    result = run("info", index)
    assert result.exit_code == 0, result.output
    told = words(result.stdout)
    size = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
    for expected in (
        "state finished",
        "documents 3, passages of 2",
        "scored tokens 12",
        "skipped 1",
        "metadata year (int64)",
        "model LlamaForCausalLM, causal_lm, float32, /models/tiny",
        "adapter /adapters/tiny",
        "adapter SHA-256 " + "fe" * 32,
        "objective causal_lm, context 64",
        "layers 2 with 14 weights: mlp.0 ... mlp.1",
        "curvature lissa, damping 0.1, sampled Fisher, fitted on 3 documents, seed 5, "
        "iterations 57, residual 0.0001234",
        "N = 3 documents",
        "encoder sketch 2, fp32: 8 bytes per document, seed 5",
        "fidelity 97.5% of the true top 10 are among its best 60; sums of scores over random "
        "subsets correlate at 0.875 with uncompressed ones (300 sampled documents, 2 held-out "
        "queries)",
        "asked for at most 8 bytes per document and fidelity 0.5",
        "tried sketch 2, fp32: 8 bytes, recall 0.975, correlation 0.875, noise 0.0625 (chosen)",
        "tried energy 2, fp32: 8 bytes, recall 0.500, correlation 0.250, noise 0.125 background",
        "background 6 random document/query pairs (2 queries), 98% of their cosines between -0.25 "
        "and +0.5",
        "exact scores 12.3 ms per document",
        f"size on disk {size / 1000:.1f} kB",
        "created 2026-01-01T00:00:00+00:00",
        "wherefrom 0.1.0, torch 2.13.0",
        Manifest.read(index).digest,
        "replay wherefrom build docs.jsonl",
        "warning the curvature does next to nothing",
    ):
        assert expected in told, expected
    assert "None" not in told


def test_info_of_a_module_and_its_gradient_dot(index: Path) -> None:
    manifest = Manifest.read(index)
    changed = manifest.model_copy(
        update={
            "model": ModelRecord(
                kind="module",
                source=None,
                task=None,
                dtype="float64",
                weights_sha256="ab" * 32,
                tokenizer_sha256=None,
                architecture="Sequential",
                adapter=None,
            ),
            "objective": ObjectiveRecord(
                kind="diffusion", options={"draws": 8, "condition": "none", "scheduler": {"T": 9}}
            ),
            "curvature": CurvatureRecord(
                kind="identity", damping=0.0, whitened=True, fisher=None, fit_documents=3, seed=5
            ),
        }
    )
    (index / "manifest.json").write_bytes(changed.to_bytes())
    told = words(run("info", index).stdout)
    for expected in (
        "model Sequential, float64, handed over in memory weights",
        'objective diffusion, draws 8, condition none, scheduler {"T": 9} layers',
        "curvature identity, damping 0 scale",
    ):
        assert expected in told, expected
    assert "adapter" not in told


def test_info_as_json(index: Path) -> None:
    fields = json.loads(run("info", index, "--json").stdout)
    manifest = Manifest.read(index)
    assert fields["schema"] == "wherefrom-info/1"
    assert fields["state"] == "finished"
    assert fields["manifest_sha256"] == manifest.digest
    assert Manifest.model_validate(fields["manifest"]) == manifest
    assert fields["bytes_on_disk"] > 1000


def test_info_of_an_unfinished_build(tmp_path: Path) -> None:
    path = tmp_path / "my.index"
    begin_build(path, {"replay": "wherefrom build docs.jsonl"})
    result = run("info", path)
    assert "run the command that began it again" in error_line(result)
    assert "state unfinished" in words(result.stdout)
    assert "started 20" in words(result.stdout)
    assert "wherefrom build docs.jsonl" in result.stdout
    result = run("info", path, "--json")
    assert "unfinished" in error_line(result)
    fields = json.loads(result.stdout)
    assert fields["state"] == "unfinished"
    assert fields["build"]["replay"] == "wherefrom build docs.jsonl"


def test_interruption_is_130_and_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "read", interrupt)
    result = run("info", index)
    assert result.exit_code == 130
    assert result.stderr == "wherefrom: interrupted: nothing was changed\n"


def process(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "wherefrom", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        stderr=subprocess.PIPE,
        **options,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_leaves_early_is_no_error(index: Path, form: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with process("info", str(index), *form, stdout=write) as running:
        os.close(write)
        assert running.stderr is not None
        assert running.stderr.read() == b""


def test_info_never_loads_torch(index: Path) -> None:
    program = (
        "import sys\nfrom wherefrom.cli.main import commands\n"
        "commands(sys.argv[1:], standalone_mode=False)\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program, "info", str(index)], capture_output=True, text=True
    )
    assert finished.stderr == "False\n"


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [({}, "1 false False 40"), ({"TRANSFORMERS_VERBOSITY": "info"}, "1 false False 20")],
)
def test_libraries_stay_offline_and_silent(
    tmp_path: Path, chosen: dict[str, str], expected: str
) -> None:
    program = (
        "import os, sys\nfrom wherefrom.cli.main import commands\n"
        "try: commands(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "from transformers.utils import logging\n"
        "print(os.environ['HF_HUB_OFFLINE'], os.environ['TOKENIZERS_PARALLELISM'],"
        " logging.is_progress_bar_enabled(), logging.get_verbosity())"
    )
    told = {"HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"}
    finished = subprocess.run(
        [sys.executable, "-c", program, "info", str(tmp_path)],
        env={**{name: value for name, value in os.environ.items() if name not in told}, **chosen},
        capture_output=True,
        text=True,
    )
    assert finished.stdout.strip() == expected


def test_shells_complete_commands() -> None:
    asked = {
        **os.environ,
        "_WHEREFROM_COMPLETE": "bash_complete",
        "COMP_WORDS": "wherefrom que",
        "COMP_CWORD": "1",
    }
    with process(env=asked, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.read() == b"plain,query\n"
