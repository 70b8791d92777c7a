"""kronfluence's half of the comparison: run by its own Python, without wherefrom.

Reads the model and the token ids that the other half uses and writes scores and times. Conventions
are matched: one document is one example, its loss is summed over tokens, position t reads token t
and predicts token t + 1, padding is masked, the Fisher is empirical, damping is 0.1 times the mean
eigenvalue (``damping_factor=None``) and everything is float32 but the eigendecompositions.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # importing is part of the bill

import argparse  # noqa: E402
import json  # noqa: E402
import resource  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from kronfluence.analyzer import Analyzer, prepare_model  # type: ignore[import-not-found]  # noqa: E402
from kronfluence.arguments import (  # type: ignore[import-not-found]  # noqa: E402
    FactorArguments,
    ScoreArguments,
)
from kronfluence.task import Task  # type: ignore[import-not-found]  # noqa: E402
from kronfluence.utils.dataset import DataLoaderKwargs  # type: ignore[import-not-found]  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

__all__: list[str] = []

BATCH_SIZE = 32
_IGNORED = -100

Batch = dict[str, Tensor]


class LanguageModelling(Task):  # type: ignore[misc]
    """The summed loss of next-token prediction; for queries, of the completion."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Track ``modules``."""
        super().__init__()
        self._modules = list(modules)

    def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Tensor:
        """Nats, summed over tokens and documents; only true labels are asked for here."""
        if sample:
            raise ValueError("labels are not drawn in this comparison; the Fisher is empirical")
        logits = model(
            input_ids=batch["inputs"], attention_mask=batch["attended"], use_cache=False
        ).logits
        return F.cross_entropy(
            logits.flatten(0, 1),
            batch["labels"].flatten(),
            reduction="sum",
            ignore_index=_IGNORED,
        )

    def compute_measurement(self, batch: Batch, model: nn.Module) -> Tensor:
        """As the loss: minus the log-likelihood of the completion."""
        return self.compute_train_loss(batch, model)

    def get_influence_tracked_modules(self) -> list[str]:
        """The layers that wherefrom indexes."""
        return self._modules

    def get_attention_mask(self, batch: Batch) -> Tensor:
        """1 where a position is not padding."""
        return batch["attended"]


def examples(rows: Sequence[dict[str, list[int]]]) -> list[Batch]:
    """Examples, padded to the longest of ``rows``."""
    width = max(len(row["ids"]) for row in rows) - 1
    found = []
    for row in rows:
        count = len(row["ids"]) - 1
        inputs = torch.zeros(width, dtype=torch.int64)
        labels = torch.full((width,), _IGNORED, dtype=torch.int64)
        attended = torch.zeros(width, dtype=torch.int64)
        inputs[:count] = torch.tensor(row["ids"][:-1])
        labels[:count] = torch.tensor(row["ids"][1:])
        labels[:count][~torch.tensor(row["scored"][1:], dtype=torch.bool)] = _IGNORED
        attended[:count] = 1
        found.append({"inputs": inputs, "labels": labels, "attended": attended})
    return found


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Fit the factors, score two batches of queries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    job: dict[str, Any] = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    documents = examples(job["documents"])
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    task = LanguageModelling(job["modules"])
    analyzer = Analyzer(
        analysis_name="comparison",
        model=prepare_model(model, task),
        task=task,
        cpu=True,
        disable_tqdm=True,
        output_dir=str(folder / "kronfluence"),
    )
    analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0))
    times: dict[str, float] = {"loading": time.perf_counter() - STARTED}
    peaks = {"loading": peak_memory()}

    def timed(name: str, step: Callable[[], object]) -> None:
        begun = time.perf_counter()
        step()
        times[name] = time.perf_counter() - begun
        peaks[name] = peak_memory()

    fit = partial(
        analyzer.fit_all_factors,
        factors_name="ekfac",
        dataset=documents,
        per_device_batch_size=BATCH_SIZE,
        factor_args=FactorArguments(strategy="ekfac", use_empirical_fisher=True),
        overwrite_output_dir=True,
    )
    timed("factors", fit)
    for name in ("first", "second"):
        queries = examples(job[name])
        score = partial(
            analyzer.compute_pairwise_scores,
            scores_name=name,
            factors_name="ekfac",
            query_dataset=queries,
            train_dataset=documents,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=BATCH_SIZE,
            score_args=ScoreArguments(damping_factor=None),
            overwrite_output_dir=True,
        )
        timed(name, score)
        if name == "first":
            times["total"] = time.perf_counter() - STARTED
    scores = analyzer.load_pairwise_scores("first")["all_modules"]
    np.save(folder / "kronfluence.npy", scores.double().numpy())
    found = {
        "seconds": times,
        "peak_bytes": {**peaks, "end": peak_memory()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (folder / "kronfluence.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
