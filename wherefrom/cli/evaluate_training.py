"""How models are trained again: a function in a file of the user's, or fine-tuning of a base."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from wherefrom.cli.evaluate_options import DEMO, Opened, Retrained
from wherefrom.demo.model import MARKER, making_digest, read_marker
from wherefrom.demo.trainer import DemoTrainer
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import FunctionTrainer, Trainer
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.gradients.models import load_model
from wherefrom.gradients.objectives import CausalLM
from wherefrom.maintenance.index import Index
from wherefrom.query.documents import row_blocks

__all__ = ["trainer_of", "user_function"]


def trainer_of(index: Index, subject: Subject, opened: Opened, retrained: Retrained) -> Trainer:
    """Who trains models like an index's: a function of the user's, or fine-tuning of the base.

    Raises:
        EvaluationError: Options contradict each other, or the function cannot be used.
        ModelError: The base cannot be loaded.
    """
    adapter = index.manifest.model.adapter is not None
    if retrained.train == DEMO:
        return _demo(index)
    if retrained.train is not None:
        if opened.base_model is not None and not adapter:
            raise EvaluationError(
                "--base-model is fine-tuned where --train is not given; leave one of them out"
            )
        file, _, name = retrained.train.rpartition(":")
        code = Path(file).read_text(encoding="utf-8")
        return FunctionTrainer(user_function(retrained.train), f"{name} of {code}")
    if opened.base_model is None:
        raise EvaluationError("nothing says how to train; give --train or --base-model")
    if subject.texts is None:
        raise EvaluationError(
            f"--base-model fine-tunes models of text, and {index.location} holds tensors; give "
            "--train FILE.py:FUNCTION"
        )
    given: dict[str, Any] = {
        "epochs": retrained.epochs,
        "batch_size": retrained.batch_size,
        "learning_rate": retrained.learning_rate,
    }
    return FineTuner(
        _fresh_adapter(index, opened.base_model, opened.device) if adapter else opened.base_model,
        subject.extractor.objective,
        subject.documents,
        TuningRecipe(**{name: value for name, value in given.items() if value is not None}),
        device=opened.device,
    )


def _demo(index: Index) -> DemoTrainer:
    """Training as the demo does it, by the recipe that the model's folder records.

    Raises:
        EvaluationError: The index is over another model than the demo trains, or over other
            documents than that model was trained on.
    """
    source = index.manifest.model.source
    objective = index.asker.extractor.objective
    if source is None or not (Path(source) / MARKER).is_file():
        raise EvaluationError(
            f"--train {DEMO} trains the model of `wherefrom demo`, and {index.location} is over "
            "another one; give --train FILE.py:FUNCTION or --base-model DIR"
        )
    if not isinstance(objective, CausalLM):
        raise EvaluationError(f"the demo's model is no {objective.kind}; give --train")
    marker = read_marker(Path(source))
    documents = [document for _, rows in row_blocks(index.table) for document in rows.documents()]
    if making_digest(documents, marker.seed, marker.recipe) != marker.digest:
        trained = "others" if marker.documents in (None, len(documents)) else marker.documents
        raise EvaluationError(
            f"{index.location} holds {len(documents)} documents, and the model in {source} was "
            f"trained on {trained} (ids, texts and order count): scores of these documents would "
            "be set beside another training; index what it was trained on, or give --train "
            "FILE.py:FUNCTION"
        )
    tokenizer = cast("PreTrainedTokenizerFast", objective.bound_tokenizer)
    return DemoTrainer(documents, tokenizer, marker.recipe)


def user_function(reference: str) -> Callable[..., Any]:
    """The function that ``FILE.py:FUNCTION`` names; its file is run, under its own name.

    Raises:
        EvaluationError: It cannot be run, or has no such function.
    """
    file, _, name = reference.rpartition(":")
    path = Path(file).resolve()
    # Processes that train beside this one find the function under the same name.
    folder = str(path.parent)
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        return _imported(file, path, name)
    except EvaluationError:
        if added:
            sys.path.remove(folder)
        raise


def _imported(file: str, path: Path, name: str) -> Callable[..., Any]:
    try:
        module = import_module(path.stem)
    except Exception as error:
        raise EvaluationError(
            f"{file} cannot be imported: {type(error).__name__}: {error}; mend it and try again"
        ) from error
    if Path(module.__file__ or "").resolve() != path:
        raise EvaluationError(f"{file} is called as a module that is there; give it another name")
    function = getattr(module, name, None)
    if not callable(function):
        raise EvaluationError(f"{file} has no function {name!r}; give FILE.py:FUNCTION")
    found: Callable[..., Any] = function
    return found


def _fresh_adapter(index: Index, base_model: str, device: str) -> nn.Module:
    """The base with an adapter like the index's that has learnt nothing yet.

    Raises:
        EvaluationError: Other weights were trained with the adapter.
    """
    # An adapter was read to come here, so PEFT is installed.
    from peft import get_peft_model

    indexed: Any = index.asker.extractor.model
    config = copy.deepcopy(indexed.active_peft_config)
    if config.modules_to_save:
        raise EvaluationError(
            f"with the adapter of {index.location} whole layers were trained "
            f"({', '.join(config.modules_to_save)}), which is not done here; give --train"
        )
    config.inference_mode = False
    base = load_model(base_model, device, dtype=index.manifest.model.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = get_peft_model(base.module, config)
    return module
