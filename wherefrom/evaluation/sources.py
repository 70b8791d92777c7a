"""What code of the user's own is, in text: retrainings are kept under it.

The text is the source, what defaults and closures bind, and nothing of what is called: a key must
change when the code in the user's hands does, and stay the same in the next process.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from types import CellType, FunctionType
from typing import Any

import numpy as np
import torch

from wherefrom.errors import EvaluationError

__all__ = ["class_text", "function_text", "tensor_text"]

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def function_text(function: Callable[..., Any]) -> str:
    """Source, defaults and closure of a function.

    Numbers, text, arrays, tensors, dataclasses, and lists, tuples, sets and dicts of these are
    told apart by their values.

    Raises:
        EvaluationError: It is no plain function (a method, a ``functools.partial``), its source
            cannot be read, or it binds something else.
    """
    if not isinstance(function, FunctionType):
        raise EvaluationError(
            f"what {_name(function)} does is not seen, for it is a {type(function).__name__} and "
            "no plain function; say what decides its models: FunctionTrainer(..., recipe='...')"
        )
    return _function(function, "say what decides its models: FunctionTrainer(..., recipe='...')")


def class_text(kind: type) -> str:
    """Source of a class, and what its methods' closures and defaults bind.

    Raises:
        EvaluationError: The source cannot be read, or a method binds what has no stable text.
    """
    remedy = f"define {kind.__name__} in a file, and keep what decides its values in options()"
    text = _source(kind, remedy)
    bound = [_bound(method, remedy) for method in _methods(kind)]
    return "\n".join([text, *bound])


def tensor_text(tensor: torch.Tensor) -> str:
    """Type, shape and SHA-256 of a tensor's values."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
    return f"{tensor.dtype} {list(tensor.shape)} {digest}"


def _function(function: FunctionType, remedy: str) -> str:
    bound = _bound(function, remedy)
    return _source(function, remedy) + (f"\nwith {bound}" if bound != "{}" else "")


def _methods(kind: type) -> Iterator[FunctionType]:
    """Those that stand in the class's source; a decorator may have added others."""
    file = Path(inspect.getfile(kind)).resolve()
    for member in vars(kind).values():
        methods = (member, getattr(member, "__func__", None), getattr(member, "fget", None))
        for method in methods:
            if not isinstance(method, FunctionType):
                continue
            if Path(method.__code__.co_filename).resolve() == file:
                yield method


def _source(code: Any, remedy: str) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError) as error:
        raise EvaluationError(
            f"the source of {_name(code)} cannot be read, and retrainings are kept under it; "
            f"{remedy}"
        ) from error


def _bound(function: FunctionType, remedy: str) -> str:
    """Values of defaults and closure, by name."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    values: dict[str, Any] = {name: cell for name, cell in cells if name != "__class__"}
    for name, parameter in inspect.signature(function, follow_wrapped=False).parameters.items():
        if parameter.default is not parameter.empty:
            values[name] = parameter.default
    texts = {}
    for name, value in sorted(values.items()):
        try:
            texts[name] = _text(value)
        except TypeError as error:
            raise EvaluationError(
                f"{_name(function)} binds {name}, a {error}, which retrainings cannot be kept "
                f"under; {remedy}"
            ) from error
    return repr(texts)


def _text(value: Any) -> str:
    """The same in every process.

    Raises:
        TypeError: That cannot be said; the message is the type's name.
    """
    if isinstance(value, CellType):
        try:
            return _text(value.cell_contents)
        except ValueError as error:
            raise TypeError("name without a value yet") from error
    if isinstance(value, torch.Tensor):
        return tensor_text(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return tensor_text(torch.from_numpy(np.ascontiguousarray(value)))
    if isinstance(value, (*_PLAIN, np.generic, PurePath, Enum)):
        return f"{type(value).__qualname__} {value!r}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__qualname__} {[_text(part) for part in value]}"
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__qualname__} {sorted(map(_text, value))}"
    if isinstance(value, dict):
        return f"dict {sorted((_text(name), _text(part)) for name, part in value.items())}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, _text(getattr(value, field.name))) for field in fields(value)]
        return f"{type(value).__qualname__} {parts}"
    raise TypeError(type(value).__name__)


def _name(code: Any) -> str:
    return str(getattr(code, "__qualname__", None) or type(code).__name__)
