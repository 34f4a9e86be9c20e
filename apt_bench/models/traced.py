"""Run a network on a CPU without Python between its tensor operations.

A decision of a small network is thousands of small operations, and Python takes a large part of its time.
`torch.jit.trace` stores the operations of a function for inputs of one shape. They run in the same order, so that
results are equal bit for bit (tests/models/test_traced.py).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

MOST = 16
"""Shapes that are traced, at most. In a run, shapes differ by the number of words. The traces of one shape take 20 MB
for the mini network and 90 MB for the released size."""

T = TypeVar("T")


class Traced(Generic[T]):
    """A function that is traced when it first gets inputs of a shape. It records no gradients.

    Arguments and result are tensors, tuples and dictionaries of them, and objects whose attributes are these. What is
    not a tensor must be hashable; another value is another shape. The function must not turn values of tensors into
    numbers or branches of Python: a trace would keep those of the first call. After `MOST` shapes, inputs of new shapes
    are passed to the function itself. Calls may not overlap.

    Args:
        function: The function.
        module: Owner of all parameters that the function uses.
    """

    def __init__(self, function: Callable[..., T], module: nn.Module) -> None:
        self.function, self.module = function, module
        self._traces: dict[Hashable, tuple[Callable[..., tuple[Tensor, ...]], T]] = {}

    def __call__(self, *args: object) -> T:
        """Return what the function returns."""
        inputs: list[Tensor] = []
        shape = _read(args, inputs)
        if shape not in self._traces:
            if len(self._traces) == MOST:
                return self.function(*args)
            self._traces[shape] = self._trace(args, inputs)
        trace, example = self._traces[shape]
        # To optimise a trace takes longer than it saves in a run.
        with torch.jit.optimized_execution(False):
            return _filled(example, iter(trace(*inputs)))

    def _trace(self, args: tuple[object, ...], inputs: list[Tensor]) -> tuple[Any, T]:
        """The trace, and an example of the result."""
        example = self.function(*args)

        def call(*tensors: Tensor) -> tuple[Tensor, ...]:
            found: list[Tensor] = []
            _read(self.function(*_filled(args, iter(tensors))), found)
            return tuple(found)

        trained = [p for p in self.module.parameters() if p.requires_grad]
        try:
            self.module.requires_grad_(False)  # parameters become constants, which may not require gradients
            with warnings.catch_warnings():
                # Sizes become constants, as they should. The function is deprecated; nothing else does the same.
                warnings.simplefilter("ignore")
                trace = torch.jit.trace(call, tuple(inputs), check_trace=False)
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)
        return trace, example


def _read(value: object, tensors: list[Tensor]) -> Hashable:
    """Append all tensors in a value to a list. Return the value with the shape and type of each tensor in its place."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return tuple(value.shape), value.dtype
    if isinstance(value, tuple):
        return tuple(_read(v, tensors) for v in value)
    if isinstance(value, dict):
        return tuple((k, _read(v, tensors)) for k, v in value.items())
    if hasattr(value, "__dict__"):
        return type(value), _read(vars(value), tensors)
    return value


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """A copy of a value with other tensors, in the order of `_read`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, tuple):
        return tuple(_filled(v, tensors) for v in value)
    if isinstance(value, dict):
        return {k: _filled(v, tensors) for k, v in value.items()}
    if hasattr(value, "__dict__"):
        copied = copy.copy(value)
        vars(copied).update(_filled(vars(value), tensors))
        return copied
    return value
