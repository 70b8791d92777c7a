"""What the guide says is what the code has; the objective of one's own is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import torch

import wherefrom as wf
from small_models import mlp
from wherefrom.curvature.kinds import CURVATURE_KINDS
from wherefrom.gradients import objectives

ROOT = Path(__file__).resolve().parent.parent
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
OWN_OBJECTIVE = ROOT / "docs" / "how-to" / "own-objective.md"


def test_the_own_objective_of_the_docs(tmp_path: Path) -> None:
    """At most 15 lines, and its scores are those of the built-in objective where these agree."""
    page = OWN_OBJECTIVE.read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- own objective -->\n```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, OWN_OBJECTIVE.name, "exec"), names)
    own = names["SoftLabels"]
    lines = [line for line in code[code.index("class ") :].splitlines() if line.strip()]
    assert len(lines) <= 15
    model, x = mlp(), torch.randn(10, 5, dtype=torch.float64)
    hard = torch.randint(0, 3, (10,))
    soft = torch.nn.functional.one_hot(hard, 3).double()
    asked = torch.randn(2, 5, dtype=torch.float64)
    index = wf.build(model, (x, soft), tmp_path / "soft", objective=own())
    assert index.manifest.curvature.fisher == "empirical"
    again = wf.open(tmp_path / "soft", model=model, objective=own())
    known = wf.build(model, (x, hard), tmp_path / "hard", fisher="empirical")
    expected = known.scores((asked, torch.tensor([0, 2])))
    found = again.scores((asked, torch.eye(3, dtype=torch.float64)[[0, 2]]))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_guide_names_every_curvature_and_objective() -> None:
    for kind in CURVATURE_KINDS:
        assert f"| `{kind}` |" in GUIDE
    known = [
        name
        for name in objectives.__all__
        if isinstance(getattr(objectives, name), type)
        and "kind" in vars(getattr(objectives, name))
        and name not in ("Objective", "Probabilistic", "TextObjective", "Categorical", "Gaussian")
    ]
    assert len(known) >= 6
    for name in known:
        assert f"`wf.{name}(" in GUIDE


def test_the_readme_shows_every_file() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme[readme.index("## The tree") :]
    for path in sorted((ROOT / "wherefrom").rglob("*.py")):
        room = path.parent.relative_to(ROOT / "wherefrom").parts
        if path.name.startswith("__") or (room and room[0] in ("cli", "demo")) or len(room) > 1:
            continue
        assert f" {path.name} " in tree, f"{path} is not in the README's tree"


def test_options_of_the_guide_are_those_of_the_code() -> None:
    from wherefrom.encoding.stages import REDUCTIONS
    from wherefrom.gradients.fisher import Fisher
    from wherefrom.records import Normalise, Rerank
    from wherefrom.store import AcceleratorKind

    for fisher in get_args(Fisher):
        assert f'"{fisher}"' in GUIDE
    for value in ("auto", *REDUCTIONS, *get_args(Rerank), *get_args(Normalise)):
        assert f'| `"{value}"` |' in GUIDE
    for kind in get_args(AcceleratorKind):
        assert f"| `{kind}` |" in GUIDE
