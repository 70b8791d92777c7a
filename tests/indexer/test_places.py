"""Where an index is built: at links, and on file systems of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import wherefrom as wf
from small_models import mlp
from wherefrom.errors import IndexExistsError, WherefromError
from wherefrom.indexer import workplace


def build(path: Path, count: int = 12, **given: object) -> wf.Index:
    x = torch.randn(count, 5, dtype=torch.float64)
    model = mlp((5, 4, 3)).double()
    return wf.build(model, (x, torch.arange(count) % 3), path, encoder="none", **given)  # type: ignore[arg-type]


def test_a_replacement_at_a_link_replaces_what_it_leads_to(tmp_path: Path) -> None:
    real, link = tmp_path / "data" / "my.index", tmp_path / "www" / "current"
    build(real)
    link.parent.mkdir()
    link.symlink_to(real)
    assert len(build(link, 20, overwrite=True)) == 20
    assert link.is_symlink()
    assert len(wf.open(real, model=mlp((5, 4, 3)).double())) == 20
    assert [place.name for place in link.parent.iterdir()] == ["current"]
    assert [place.name for place in real.parent.iterdir()] == ["my.index"]


def test_an_index_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    build(Path("."))
    assert (tmp_path / "here" / "manifest.json").exists()


def test_a_file_system_of_its_own_is_not_replaced_after_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "i")
    monkeypatch.setattr(workplace.os.path, "ismount", lambda path: True)
    with pytest.raises(IndexExistsError, match="a file system of its own"):
        build(tmp_path / "i", overwrite=True)


@pytest.mark.parametrize("given", [{"factor_memory": "8G"}, {"threads": 0}, {"threads": True}])
def test_what_is_no_number_is_one_line(tmp_path: Path, given: dict[str, object]) -> None:
    (name,) = given
    with pytest.raises(WherefromError, match=rf"^{name}=.* is not allowed; give a whole number"):
        build(tmp_path / "i", **given)
    assert not (tmp_path / "i").exists()
