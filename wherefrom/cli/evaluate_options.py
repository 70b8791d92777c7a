"""Options that evaluations share; each group of them reaches a command as one record."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from wherefrom.cli import values
from wherefrom.errors import EvaluationError

__all__ = [
    "BASELINES",
    "DEMO",
    "Asked",
    "Compared",
    "Opened",
    "Retrained",
    "Shown",
    "asked_options",
    "choose_option",
    "compared_options",
    "numbers",
    "opened_options",
    "retrained_options",
    "seed_option",
    "shown_options",
]

BASELINES = ("dot", "cosine", "bm25", "embedding", "random")
"""``wherefrom.evaluation.baselines.BASELINES``, which takes torch to import."""

DEMO = "demo"
"""What ``--train`` is for models that ``wherefrom demo`` trained."""

_CURVATURES = ("ekfac", "kfac", "diagonal", "identity", "datainf", "lissa", "exact")
"""``wherefrom.curvature.kinds.CURVATURE_KINDS``, likewise."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of the model."""

    prompt: str | None
    completion: str | None
    contrast: str | None
    queries: Path | None

    def require(self) -> None:
        """Refuse a question that is asked in two ways, or in none.

        Raises:
            UsageError: It is.
        """
        if self.queries is None and self.completion is None:
            raise click.UsageError("give --queries FILE, or --completion (and --prompt)")
        for name in ("prompt", "completion", "contrast"):
            if self.queries is not None and getattr(self, name) is not None:
                raise click.UsageError(f"--{name} does not go with --queries; write it in the file")


@dataclass(frozen=True, slots=True)
class Opened:
    """How an index is opened."""

    model: str | None
    base_model: str | None
    device: str


@dataclass(frozen=True, slots=True)
class Compared:
    """What the index's own scores are set beside."""

    baselines: tuple[str, ...] | None
    curvatures: tuple[str, ...]

    def require(self) -> None:
        """Refuse to judge one ranking under two names.

        Raises:
            UsageError: Under the curvature ``identity`` scores are gradients' inner products.
        """
        if "identity" in self.curvatures and (self.baselines is None or "dot" in self.baselines):
            raise click.UsageError(
                "--curvature identity ranks as the baseline dot does; leave it out, or dot out of "
                "--baselines"
            )


@dataclass(frozen=True, slots=True)
class Retrained:
    """How models are trained again."""

    train: str | None
    epochs: int | None
    learning_rate: float | None
    batch_size: int | None
    seeds: int
    workers: int
    cache: Path

    def require(self, opened: Opened) -> None:
        """Refuse what could not train, before anything is loaded.

        Raises:
            UsageError: An option goes without the one that it belongs to.
            EvaluationError: Nothing says how to train.
        """
        if self.train is not None:
            for name in ("epochs", "learning_rate", "batch_size"):
                if getattr(self, name) is not None:
                    option = name.replace("_", "-")
                    raise click.UsageError(f"--{option} does not go with --train; leave it out")
        elif opened.base_model is None:
            raise EvaluationError(
                "an index does not say how its model was trained, and this trains it again on "
                "parts of the documents; give --train FILE.py:FUNCTION, where function(members, "
                "seed) returns the trained module, or --base-model DIR, the model to fine-tune"
            )


@dataclass(frozen=True, slots=True)
class Shown:
    """Where evidence goes."""

    as_json: bool
    output: Path | None
    plot: Path | None
    width: int | None


def _together(
    kind: type[Any], name: str, *options: Callable[[_Command], _Command]
) -> Callable[[_Command], Callable[..., Any]]:
    """Options whose values reach a command as one record of that name."""

    def decorate(command: _Command) -> Callable[..., Any]:
        @functools.wraps(command)
        def gather(**given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(kind)}
            return command(**given, **{name: kind(**own)})

        decorated: Any = gather
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate


def numbers(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, ...] | None:
    """Whole numbers of at least 1, with commas between them.

    Raises:
        BadParameter: One is none.
    """
    if value is None:
        return None
    found = []
    for part in value.split(","):
        if not part.strip().isdecimal() or int(part) < 1:
            raise click.BadParameter(f"{part!r} is no number of at least 1; give them as 10,50")
        found.append(int(part))
    return tuple(found)


def _baselines(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    """Names with commas between them; ``None`` for all that apply."""
    if value is None or value == "all":
        return None
    names = () if value == "none" else tuple(part.strip() for part in value.split(","))
    for name in names:
        if name not in BASELINES:
            raise click.BadParameter(
                f"{name!r} is no baseline; give all, none or some of {','.join(BASELINES)}"
            )
    return names


def _code(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """``FILE.py:FUNCTION``; for training the demo's, for a model anything else."""
    if value is None or (option.name == "train" and value == DEMO):
        return value
    if option.name == "model" and not value.partition(":")[0].endswith(".py"):
        return value
    file, _, function = value.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise click.BadParameter(f"{value!r} names no function; give FILE.py:FUNCTION")
    if not Path(file).is_file():
        raise click.BadParameter(f"{file} does not exist; give FILE.py:FUNCTION")
    return value


asked_options = _together(
    Asked,
    "asked",
    click.option(
        "--queries",
        type=click.Path(allow_dash=True, path_type=Path),
        metavar="FILE",
        help="What the model is asked, a question a line: JSON lines with completion and, as "
        "needed, prompt and contrast (- is standard input); for an index over tensors an .npz file "
        "with inputs and targets.",
    ),
    click.option(
        "--prompt",
        callback=values.valid_unicode,
        help="One question in place of a file: what the model was given.",
    ),
    click.option("--completion", callback=values.valid_unicode, help="What it said."),
    click.option(
        "--contrast", callback=values.valid_unicode, help="What it might have said instead."
    ),
)

opened_options = _together(
    Opened,
    "opened",
    click.option(
        "--model",
        metavar="DIR|FILE.py:FUNCTION",
        callback=_code,
        help="The model that the index was built with; by default where the index says it is. For "
        "a model from memory a function without arguments that returns it (or it and its "
        "objective).",
    ),
    click.option(
        "--base-model",
        metavar="DIR",
        help="Where models are trained again, the one to fine-tune: the indexed model as it was "
        "before it saw the documents. For an adapter, the model that it is for.",
    ),
    click.option(
        "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda, ..."
    ),
)

compared_options = _together(
    Compared,
    "compared",
    click.option(
        "--baselines",
        callback=_baselines,
        default="all",
        show_default=True,
        metavar="LIST",
        help=f"Simpler rankings to judge beside: {', '.join(BASELINES)}; with commas between, all "
        "that apply, or none.",
    ),
    click.option(
        "--curvature",
        "curvatures",
        multiple=True,
        type=click.Choice(_CURVATURES),
        help="Another curvature to judge beside the index's, fitted for this; may be repeated.",
    ),
)

retrained_options = _together(
    Retrained,
    "retrained",
    click.option(
        "--train",
        metavar="FILE.py:FUNCTION|demo",
        callback=_code,
        help="How to train: function(members, seed) returns the module trained on the documents at "
        "these positions (in the order of the index), taking all chance from seed; or demo, as "
        "`wherefrom demo` does.",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        metavar="N",
        help="Of fine-tuning --base-model; 3 by default.",
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(min=0, min_open=True),
        metavar="NUMBER",
        help="Of fine-tuning --base-model, at its start; 5e-05 by default.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        help="Of fine-tuning --base-model; 8 by default.",
    ),
    click.option(
        "--seeds",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        metavar="N",
        help="Models trained on each set of documents; what they differ by is chance.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Models trained at the same time, in processes of one thread.",
    ),
    click.option(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("wherefrom-retraining"),
        show_default=True,
        metavar="DIR",
        help="Where finished trainings are kept; nothing is trained twice.",
    ),
)

shown_options = _together(
    Shown,
    "shown",
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."
    ),
    click.option(
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Also write the JSON object to a file.",
    ),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Also draw the figures: a .png, .svg or .pdf file.",
    ),
    click.option(
        "--width",
        type=click.IntRange(min=40),
        metavar="COLUMNS",
        help="Width of the table; that of the terminal by default.",
    ),
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what is drawn at random here.",
)

choose_option = click.option(
    "--choose",
    type=click.Choice(["random", "largest"]),
    default="random",
    show_default=True,
    help="Which documents: drawn at random, or those of the largest scores of either sign, whose "
    "effect chance hides least; every method (but random) names one in turn.",
)
