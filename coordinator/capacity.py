"""How much more may be begun: what is met here is an answer (429), never a queue that grows. Pure.

Counted are branches by participant, so that one which is down cannot use up everybody's room. Those
whose `Begin` is still under way are in no record yet and are counted here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from coordinator.errors import AtCapacity
from coordinator.indexes import Payloads
from coordinator.settings import Limits

_SHARE = 5
"""A participant may have a fifth of the undecided bytes, as of the number of transactions."""


class Capacity:
    """The limits of one leader, and what it is beginning."""

    def __init__(self, limits: Limits) -> None:
        self._unfinished = limits.unfinished
        self._per_participant = limits.unfinished_per_participant
        self._undecided_bytes = limits.undecided_bytes
        self._beginning: dict[str, int] = {}

    def check(
        self,
        participants: Iterable[str],
        unfinished: int,
        backlog: Mapping[str, int],
        payloads: Payloads,
    ) -> None:
        """Raises AtCapacity if a branch at each of these cannot be begun now.

        `unfinished`: transactions under way; `backlog`: recorded branches that are not finished,
        by participant; `payloads`: those that are recorded, for what the log has under way is
        bounded by itself.
        """
        if unfinished >= self._unfinished:
            raise AtCapacity(f"{unfinished} transactions are unfinished: try again later")
        if payloads.bytes >= self._undecided_bytes:
            raise AtCapacity(f"payloads of {payloads.bytes} bytes are undecided: try again later")
        beginning, most = self._beginning, self._per_participant
        for participant in participants:
            count = backlog.get(participant, 0) + beginning.get(participant, 0)
            if count >= most:
                raise AtCapacity(
                    f"{count} branches are unfinished at {participant}: try again later",
                    participant=participant,
                )
            size = payloads.bytes_for.get(participant, 0)
            if size >= self._undecided_bytes // _SHARE:
                raise AtCapacity(
                    f"payloads of {size} bytes are undecided at {participant}: try again later",
                    participant=participant,
                )

    def beginning(self, participants: Iterable[str]) -> None:
        """The `Begin` of a branch at each is proposed."""
        beginning = self._beginning
        for participant in participants:
            beginning[participant] = beginning.get(participant, 0) + 1

    def begun(self, participants: Iterable[str]) -> None:
        """That `Begin` has been applied, or never will be."""
        beginning = self._beginning
        for participant in participants:
            left = beginning[participant] - 1
            if left:
                beginning[participant] = left
            else:
                del beginning[participant]

    def clear(self) -> None:
        """Leadership has ended, and with it what was under way."""
        self._beginning.clear()


def largest(backlog: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    """The participants with most unfinished branches, the most first."""
    return heapq.nsmallest(most, backlog.items(), key=lambda item: (-item[1], item[0]))
