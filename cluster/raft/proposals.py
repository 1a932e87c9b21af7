"""What was proposed to the leader and is not answered: commands on their way.

Rules
- Everything that waits goes into one group, up to a limit; while a group is under way the next one
  gathers. There is no delay: a command that finds nothing under way leaves at once.
- A command that may wait goes with the next that may not, or when its time has come: an entry of
  its own would cost as much as that of a decision, and hold up the next one.
- A command that never entered the log fails definitely; one that did, with its fate unknown.

Nothing here calls anybody: what is to be told is returned as (whom, what).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from coordinator.log import Done, FateUnknown, LogError, NotApplied, Overloaded

Told: TypeAlias = list[tuple[Done, object]]


@dataclass(frozen=True, slots=True)
class ProposalLimits:
    """How much may wait, and how much goes into one group."""

    waiting_commands: int = 20_000
    waiting_bytes: int = 64 << 20
    command_bytes: int = 4 << 20
    group_commands: int = 256
    """Applied and told in one turn of the loop, some 15 ms. With 1,024 of them a busy machine was
    late with its heartbeats."""
    group_bytes: int = 1 << 20
    groups_under_way: int = 1
    """Two were measured to be no faster: the second is smaller by what the first took."""


@dataclass(frozen=True, slots=True)
class _UnderWay:
    index: int
    term: int
    dones: list[Done]


class Proposals:
    """The commands of one leadership."""

    def __init__(self, limits: ProposalLimits) -> None:
        self.limits = limits
        self._waiting: deque[tuple[bytes, Done]] = deque()
        self._waiting_bytes = 0
        self.leave_by_s = math.inf
        """When the first of those that wait is to leave, and all that it shares its group with;
        0 if at once. By the clock of `next_group`."""
        self._under_way: deque[_UnderWay] = deque()

    @property
    def is_idle(self) -> bool:
        """Is no entry of this leadership under way?"""
        return not self._under_way

    def takes(self, size: int) -> bool:
        """Whether a command of so many bytes may wait, too."""
        limits = self.limits
        return (
            size <= limits.command_bytes
            and len(self._waiting) < limits.waiting_commands
            and self._waiting_bytes + size <= limits.waiting_bytes
        )

    def add(self, command: bytes, done: Done, *, leave_by_s: float = 0.0) -> None:
        """Let `command` wait for the next group, until then at most. Raises Overloaded."""
        size = len(command)
        if not self.takes(size):
            if size > self.limits.command_bytes:
                most = self.limits.command_bytes
                raise Overloaded(f"a command of {size} bytes; {most} are allowed")
            raise Overloaded(f"{len(self._waiting)} commands wait already; try again later")
        self._waiting.append((command, done))
        self._waiting_bytes += size
        self.leave_by_s = min(self.leave_by_s, leave_by_s)

    def next_group(self, now_s: float) -> tuple[list[bytes], list[Done]] | None:
        """What waits, as much as one group takes; None when nothing may go now."""
        if now_s < self.leave_by_s or len(self._under_way) >= self.limits.groups_under_way:
            return None
        commands: list[bytes] = []
        dones: list[Done] = []
        size, most_bytes = 0, self.limits.group_bytes
        for _ in range(min(len(self._waiting), self.limits.group_commands)):
            if size >= most_bytes:
                break
            command, done = self._waiting.popleft()
            commands.append(command)
            dones.append(done)
            size += len(command)
        self._waiting_bytes -= size
        self.leave_by_s = 0.0 if self._waiting else math.inf
        return commands, dones

    def entered(self, index: int, term: int, dones: list[Done]) -> None:
        """A group is in the log at `index`."""
        self._under_way.append(_UnderWay(index, term, dones))

    def applied(self, index: int, term: int, results: list[object]) -> Told:
        """The entry at `index` was applied."""
        told: Told = []
        while self._under_way and self._under_way[0].index <= index:
            group = self._under_way.popleft()
            if group.index == index and group.term == term:
                told += zip(group.dones, results, strict=True)
            elif group.index == index:
                error = NotApplied(f"entry {index} was overwritten by the leader of term {term}")
                told += [(done, error) for done in group.dones]
            else:
                told += [
                    (done, FateUnknown(f"entry {group.index} was lost sight of"))
                    for done in group.dones
                ]
        return told

    def fail(self, *, waiting: LogError, under_way: LogError) -> Told:
        """The leadership is over: everything is answered."""
        told: Told = [(done, under_way) for group in self._under_way for done in group.dones]
        told += [(done, waiting) for _, done in self._waiting]
        self._under_way.clear()
        self._waiting.clear()
        self._waiting_bytes = 0
        self.leave_by_s = math.inf
        return told
