"""Workers that die: their tasks go to others; where they die again and again, the build says so."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf
from small_models import mlp
from wherefrom.errors import WherefromError


def tensors(count: int = 3000) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(1)).double()
    return x, torch.arange(count) % 3


class Slow(nn.Module):
    """Gives its killer time."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.05)
        return self.inner(x)


class Deadly(Slow):
    """Takes its process with it, except the one that began the build."""

    def __init__(self) -> None:
        super().__init__()
        self.first = os.getpid()

    def forward(self, x: Tensor) -> Tensor:
        if os.getpid() != self.first:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.inner(x)


def build(path: Path, model: nn.Module, **options: Any) -> wf.Index:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wf.build(
            model, tensors(), path, encoder="none", executor="processes", workers=1, **options
        )


def test_the_death_of_a_worker_costs_its_task_only(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    killed: list[int] = []
    work = tmp_path / "i" / "work"

    def kill_one() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if list(work.glob("fit-1/*")) or (work / "fit-1.safetensors").exists():
                for child in psutil.Process().children(recursive=True):
                    if "spawn_main" in " ".join(child.cmdline()):
                        child.kill()
                        killed.append(child.pid)
                        return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    found = build(tmp_path / "i", Slow())
    killer.join()
    assert killed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = wf.build(Slow(), tensors(), tmp_path / "j", encoder="none")
    assert found.vectors().tobytes() == wanted.vectors().tobytes()
    assert not work.exists()


@pytest.mark.slow
def test_workers_that_always_die_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WherefromError, match="worker processes died 3 times") as caught:
        build(tmp_path / "i", Deadly())
    assert "\n" not in str(caught.value)
    assert (tmp_path / "i" / "work" / "plan.json").exists()  # Nothing is lost.
