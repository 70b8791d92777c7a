"""Minimising a function whose gradient may jump: preconditioned L-BFGS.

Nocedal and Wright (2006), algorithm 7.4, with a preconditioner as the first guess of the inverse
Hessian. A network of ReLUs has kinks, and often its minimum lies on one, where no gradient
vanishes; with a line search that asks for no more than the weak Wolfe conditions the method goes on
to the minimum all the same (Lewis and Overton 2013, algorithm 2.6), and it is the function's value
that says when it is there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Minimum", "minimise"]

Function = Callable[[Tensor], tuple[float, Tensor]]
"""Value and gradient, float64 ``[weight]``, at a point ``[weight]``."""

_SUFFICIENT = 1e-4
_FLATTER = 0.5
_TRIALS = 25
_LATEST = 10
_STEEPEST = 0.5
"""Residual that a kink may leave; on the way to where there is no minimum it is far larger."""


@dataclass(frozen=True, slots=True, eq=False)
class Minimum:
    """Where a minimisation ended.

    Attributes:
        point: float64 ``[weight]``.
        residual: Norm of the gradient there, as a share of that at the start.
        gain: What the last ten steps lowered the value by, as a share of what all did.
        passes: How often value and gradient were computed.
        reached: Whether it is a minimum to the tolerance: the residual is within it, or the root of
            the gain, which is of the same order as the error of the point, and the residual is not
            that of a slope without end.
    """

    point: Tensor
    residual: float
    gain: float
    passes: int
    reached: bool


def minimise(
    function: Function,
    start: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float,
    most: int,
    history: int = 30,
) -> Minimum:
    """Follow a function downhill until it is flat, or until ``most`` passes are spent.

    Args:
        function: Value and gradient at a point.
        start: A point, float64 ``[weight]``.
        precondition: Times a symmetric positive matrix P, best the inverse Hessian. Norms of
            gradients are ``sqrt(g^T P g)``.
        tolerance: Of the point, as a share of the way to it.
        most: Passes.
        history: Steps to remember.
    """
    point = start
    value, slope = function(point)
    passes = 1
    values = [value]
    first = _norm(slope, precondition)
    memory = _Memory(precondition, history)
    residual, gain = (1.0, 1.0) if first > 0.0 else (0.0, 0.0)
    while residual > tolerance and gain > tolerance**2 and passes < most:
        direction = -memory.times(slope)
        line = _Line(function, point, value, float(slope @ direction), direction)
        passes += line.search(most - passes)
        if line.slope is None and memory.steps:
            memory.steps.clear()
            continue
        if line.slope is None:
            # Not even the first direction leads down: what is left to gain is rounding.
            gain = 0.0 if len(values) > 1 else gain
            break
        moved = line.length * direction
        memory.keep(moved, line.slope - slope)
        point, value, slope = point + moved, line.value, line.slope
        values.append(value)
        residual = _norm(slope, precondition) / first
        if len(values) > _LATEST:
            gain = (values[-1 - _LATEST] - value) / (values[0] - value)
    settled = gain <= tolerance**2 and residual < _STEEPEST
    reached = residual <= tolerance or settled
    return Minimum(point, residual, gain, passes, reached)


def _norm(vector: Tensor, precondition: Callable[[Tensor], Tensor]) -> float:
    return math.sqrt(max(0.0, float(vector @ precondition(vector))))


class _Memory:
    """The inverse Hessian as the last steps showed it."""

    def __init__(self, precondition: Callable[[Tensor], Tensor], history: int) -> None:
        self._precondition = precondition
        self._scale = 1.0
        self.steps: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=history)

    def keep(self, moved: Tensor, turned: Tensor) -> None:
        """Learn from a step and the change of the gradient along it."""
        curvature = float(moved @ turned)
        if curvature > 0.0:
            self._scale = curvature / float(turned @ self._precondition(turned))
            self.steps.append((moved, turned, 1.0 / curvature))

    def times(self, vector: Tensor) -> Tensor:
        """The two loops of algorithm 7.4."""
        rest = vector.clone()
        shares = []
        for moved, turned, inverse in reversed(self.steps):
            shares.append(inverse * float(moved @ rest))
            rest.sub_(turned, alpha=shares[-1])
        result = self._precondition(rest) * self._scale
        for (moved, turned, inverse), share in zip(self.steps, reversed(shares), strict=True):
            result.add_(moved, alpha=share - inverse * float(turned @ result))
        return result


class _Line:
    """A search along a direction for a lower place from which it is less steep."""

    def __init__(
        self,
        function: Function,
        point: Tensor,
        value: float,
        steepness: float,
        direction: Tensor,
    ) -> None:
        self._function = function
        self._point = point
        self._direction = direction
        self._before = value
        self._steepness = steepness
        self.length = 0.0
        self.value = value
        self.slope: Tensor | None = None

    def search(self, most: int) -> int:
        """Set ``length``, ``value`` and ``slope`` of a better point, if there is one.

        Returns:
            Number of passes.
        """
        low, high, length = 0.0, math.inf, 1.0
        trials = min(most, _TRIALS)
        for trial in range(1, trials + 1):
            value, slope = self._function(self._point + length * self._direction)
            allowed = self._before + _SUFFICIENT * length * self._steepness
            if not value <= allowed:
                high = length
            else:
                self.length, self.value, self.slope = length, value, slope
                if float(slope @ self._direction) >= _FLATTER * self._steepness:
                    return trial
                low = length
            length = 2.0 * low if math.isinf(high) else 0.5 * (low + high)
        return trials
