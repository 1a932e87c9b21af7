"""So many per second, and as many at once: a token bucket. Pure."""

from __future__ import annotations


class Allowance:
    """`take` says whether one more is allowed at `now_s`, any clock that only grows."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._left = float(per_s)
        self._at_s = 0.0

    def take(self, now_s: float) -> bool:
        passed_s, self._at_s = now_s - self._at_s, now_s
        self._left = min(float(self._per_s), self._left + passed_s * self._per_s)
        if self._left < 1:
            return False
        self._left -= 1
        return True
