"""A loss is a few numbers per row: `@define_loss` turns one plain function into every backend's loss.

For a row of logits z with p = softmax(z), H = -sum p log p, given label y and soft target t, the gradient is

    dz_j = a p_j - b [j = y] - c t_j + e p_j t_j + d p_j (log p_j + H) + f

with six scalars that depend only on a few statistics of the row. A coefficient function names the statistics it needs
as arguments (`STATISTICS`), then its parameters with their defaults, and returns `loss, a, b, c, d, e, f`. Its body is
plain arithmetic with `log`, `exp`, `where` and `larger`; the same source is run by torch, compiled
by numba and compiled by Triton, with those four names of `fastlnl.arithmetic` bound to each one's own.
"""

import inspect
import linecache
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

import torch

from fastlnl import arithmetic
from fastlnl.errors import DefinitionError

STATISTICS = {
    "nll": "-log p_y of the given label y",
    "p_label": "p_y, the probability of the given label",
    "entropy": "H = -sum p log p",
    "target_sum": "sum t",
    "target_p": "<t, p>",
    "target_logp": "<t, log p>",
    "logp_sum": "sum log p",
    "num_classes": "C",
}
COEFFICIENTS = ("a", "b", "c", "d", "e", "f")
MAX_PARAMETERS = 4
_LABEL, _TARGET = {"nll", "p_label"}, {"target_sum", "target_p", "target_logp"}


@dataclass(frozen=True, eq=False)
class LossDefinition:
    """One loss: its coefficient function, and what can be read off it before any row is seen."""

    name: str
    function: FunctionType
    statistics: tuple[str, ...]
    defaults: Mapping[str, float]

    @cached_property
    def constant_zero(self) -> tuple[bool, ...]:
        """For each coefficient: is it written as the literal 0 (its term is then never computed)?"""
        probe = dict.fromkeys(self.statistics, torch.tensor(0.5, dtype=torch.float64))
        returned = self.function(**probe, **self.defaults)
        if not isinstance(returned, tuple) or len(returned) != 1 + len(COEFFICIENTS):
            raise DefinitionError(
                f"loss '{self.name}' returns {returned!r}; expected seven numbers: loss, {', '.join(COEFFICIENTS)}"
            )
        return tuple(isinstance(value, (int, float)) and value == 0 for value in returned[1:])

    def uses(self, coefficient: str) -> bool:
        """Is the term of this coefficient part of the gradient?"""
        return not self.constant_zero[COEFFICIENTS.index(coefficient)]

    @cached_property
    def needs_label(self) -> bool:
        """Does the loss look at the given label?"""
        return self.uses("b") or bool(_LABEL & set(self.statistics))

    @cached_property
    def needs_target(self) -> bool:
        """Does the loss look at a soft target (dense, or the label memory)?"""
        return self.uses("c") or self.uses("e") or bool(_TARGET & set(self.statistics))

    def parameters(self, **given: float) -> tuple[float, ...]:
        """The parameters in order, defaults where none is given."""
        unknown = set(given) - set(self.defaults)
        if unknown:
            raise DefinitionError(
                f"loss '{self.name}' has no parameter {', '.join(sorted(unknown))}; it has "
                f"{', '.join(self.defaults) or 'none'}"
            )
        return tuple(float(given.get(key, value)) for key, value in self.defaults.items())

    def bind(self, namespace: Mapping[str, Any]) -> FunctionType:
        """The same body with `log`, `exp`, `where`, `larger` taken from `namespace`."""
        return FunctionType(
            self.function.__code__, {**self.function.__globals__, **namespace}, self.function.__name__, None
        )

    def with_all_arguments(self, bound: Callable[..., Any], **visible: Any) -> FunctionType:
        """`bound` behind the one signature kernels call: every statistic, then `MAX_PARAMETERS` parameters.

        Compilers want a function with a source, so the two lines are written out and put where `inspect` looks;
        `visible` are the other names they want to see from there.
        """
        slots = [f"parameter_{i}" for i in range(MAX_PARAMETERS)]
        passed = [*self.statistics, *slots[: len(self.defaults)]]
        source = f"def coefficients({', '.join([*STATISTICS, *slots])}):\n    return bound({', '.join(passed)})\n"
        filename = f"<fastlnl loss {self.name}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        scope: dict[str, Any] = {"bound": bound, "__name__": __name__, **visible}
        exec(compile(source, filename, "exec"), scope)
        function: FunctionType = scope["coefficients"]
        return function


LOSSES: dict[str, LossDefinition] = {}


def define_loss(function: Callable[..., tuple[Any, ...]]) -> LossDefinition:
    """Make a loss of a coefficient function: `@fastlnl.define_loss`.

        from fastlnl.arithmetic import exp, log

        @fastlnl.define_loss
        def generalised_cross_entropy(nll, q=0.7):
            p_q = exp(-q * nll)
            return (1 - p_q) / q, p_q, p_q, 0, 0, 0, 0  # loss, a, b, c, d, e, f

    Arguments without a default are statistics of the row (`fastlnl.ops.row_loss.STATISTICS`), arguments with one are
    parameters. A per-sample weight needs no line: loss and gradient are multiplied by it outside. Soft targets and
    the label memory count as constants. Check the result once with `fastlnl.check_loss`.

    Raises:
        DefinitionError: an argument is no statistic and has no default; more than four parameters; not seven numbers.
    """
    signature = inspect.signature(function)
    statistics = tuple(k for k, v in signature.parameters.items() if v.default is v.empty)
    defaults = {k: float(v.default) for k, v in signature.parameters.items() if v.default is not v.empty}
    name = function.__name__
    for argument in statistics:
        if argument not in STATISTICS:
            raise DefinitionError(
                f"loss '{name}' asks for '{argument}', which is no row statistic ({', '.join(STATISTICS)}); "
                "give it a default if it is a parameter"
            )
    if len(defaults) > MAX_PARAMETERS:
        raise DefinitionError(f"loss '{name}' has {len(defaults)} parameters; kernels pass at most {MAX_PARAMETERS}")
    if not isinstance(function, FunctionType) or function.__closure__:
        raise DefinitionError(f"loss '{name}' must be a plain function without a closure; pass values as parameters")
    definition = LossDefinition(name, function, statistics, defaults)
    LOSSES[name] = definition
    return definition


TORCH_NAMESPACE = {name: getattr(arithmetic, name) for name in arithmetic.__all__}
