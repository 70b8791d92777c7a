"""Pictures of evidence: what they show, the same bytes every time, and what cannot be drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from wherefrom.errors import EvaluationError, MissingExtraError
from wherefrom.evaluation.evidence import Evidence, Figure
from wherefrom.evaluation.plots import FORMATS, plot, require_format, scatter

EVIDENCE = Evidence(
    "lds",
    "digits $^$ perceptron",
    (
        Figure("dot", "LDS", 0.25, 0.125, 0.5),
        Figure("ekfac", "LDS", 0.75, 0.5, 1.0),
        Figure("random", "LDS", -0.125),
        Figure("ekfac", "time", 3.0, unit="s"),
    ),
    {},
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Canvas]:
    """Every canvas that is saved."""
    canvases = []
    save = Canvas.savefig

    def remember(canvas: Canvas, *arguments: object, **options: object) -> None:
        canvases.append(canvas)
        save(canvas, *arguments, **options)

    monkeypatch.setattr(Canvas, "savefig", remember)
    return canvases


def test_bars_stand_for_the_figures(tmp_path: Path, drawn: list[Canvas]) -> None:
    plot(EVIDENCE, tmp_path / "a.png")
    (canvas,) = drawn
    lds, time = canvas.axes
    assert (lds.get_title(), time.get_title()) == ("LDS", "time (s)")
    labels = [label.get_text() for label in lds.get_yticklabels()]
    assert labels == ["random", "dot", "ekfac"]  # From below: the highest is on top.
    assert [bar.get_width() for bar in lds.patches] == [-0.125, 0.25, 0.75]
    intervals = [line.get_xdata() for line in lds.lines if len(set(line.get_ydata())) == 1]
    assert [list(ends) for ends in intervals] == [[0.125, 0.5], [0.5, 1.0]]
    assert canvas.get_suptitle() == "digits $^$ perceptron: lds, 95 % intervals"
    assert canvas.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_a_choice_of_figures(tmp_path: Path, drawn: list[Canvas]) -> None:
    plot(EVIDENCE, tmp_path / "a.png", names=["LDS"], methods=["ekfac", "dot"], title="Two")
    (axes,) = drawn[0].axes
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.75]
    assert drawn[0].get_suptitle() == "Two"
    for names, methods in ((["AUC"], None), (["time"], ["dot"]), ([], None)):
        with pytest.raises(EvaluationError, match="there are: LDS, time"):
            plot(EVIDENCE, tmp_path / "b.png", names=names, methods=methods)
    assert not (tmp_path / "b.png").exists()


def test_points_stand_for_changes(tmp_path: Path, drawn: list[Canvas]) -> None:
    measured = np.arange(6.0).reshape(3, 2)
    scatter(
        {"ekfac": measured / 2, "none": np.zeros((3, 2))},
        measured,
        tmp_path / "a.png",
        title="Leave-one-out",
    )
    axes, constant = drawn[0].axes
    points = axes.collections[0].get_offsets()
    np.testing.assert_array_equal(points, np.stack([measured.ravel() / 2, measured.ravel()], 1))
    assert axes.get_xlim()[0] < 0.0
    assert axes.get_xlim()[1] > 2.5
    assert axes.get_ylabel() == "measured, nats"
    assert constant.get_title() == "none"
    with pytest.raises(EvaluationError, match=r"shape \(2, 3\)"):
        scatter({"ekfac": measured.T.copy().reshape(2, 3)}, measured, tmp_path / "b.png", title="")
    with pytest.raises(EvaluationError, match="at least one"):
        scatter({}, measured, tmp_path / "b.png", title="")


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_bytes_every_time_and_everywhere(tmp_path: Path, ending: str) -> None:
    plot(EVIDENCE, tmp_path / f"a{ending}")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        plot(EVIDENCE, tmp_path / f"b{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()
    assert matplotlib.rcParams["svg.hashsalt"] is None
    assert len(list(tmp_path.iterdir())) == 2


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match=r"end it in \.png, \.svg, \.pdf"):
        plot(EVIDENCE, tmp_path / "a.jpg")
    with pytest.raises(EvaluationError, match="make the folder first"):
        plot(EVIDENCE, tmp_path / "absent" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[plots\]'"):
        require_format(tmp_path / "a.png")
