"""Whether a figure is as good as it is meant to be. Pure.

What was not measured is not held: a figure that is missing must not look like a good one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """`value` must be at most `bound`, or at least; None: it could not be measured."""

    what: str
    value: float | None
    bound: float
    unit: str = ""
    at_least: bool = False

    @property
    def held(self) -> bool:
        if self.value is None or math.isnan(self.value):
            return False
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "held": self.held}


def shown(verdict: Mapping[str, Any]) -> str:
    """One line for people."""
    sign = ">=" if verdict["at_least"] else "<="
    word = "held    " if verdict["held"] else "NOT HELD"
    bound = f"{sign} {number(verdict['bound'])}{verdict['unit']}"
    return f"  {word}  {verdict['what']}: {number(verdict['value'])}{verdict['unit']}, {bound}"


def number(value: Any) -> str:
    """Three digits that say something, thousands apart; text as it is, nothing as a dash."""
    if value is None:
        return "-"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if math.isnan(value) or math.isinf(value):
        return "-"
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}"


def rank(values: Sequence[float], share: float) -> float | None:
    """The least of `values` that `share` (0 to 1) of them do not exceed; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def ratio(value: float | None, base: float | None) -> float | None:
    """`value` by `base`; None where there is nothing to divide by."""
    if value is None or not base:
        return None
    return value / base
