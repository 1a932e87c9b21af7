"""What the model is made of: values that can be hashed, each with a number, so that a state is a
tuple of numbers and every step of a part is computed once for each input of it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from coordinator.commands import Command
from coordinator.facts import Outcome, Transaction
from coordinator.machine import Result
from participants.contract import Decision, Vote
from tests.model.cases import Case
from tests.model.leader import Live
from tests.model.services import FRESH, Answer, Service

Item = TypeVar("Item", bound=Hashable)

NOTHING = 0
"""The number of what is not there: no conversation, no decision."""


class Frozen(NamedTuple):
    """A machine as its snapshot has it, and what is read of it."""

    chunks: tuple[bytes, ...]
    record: Transaction | None


class Proposal(NamedTuple):
    """A command in the log's queue. `asker`: the (place, fingerprint) whose inquiry it serves."""

    command: Command
    asker: tuple[int, str] | None = None


class Decided(NamedTuple):
    """The first decision ever applied, remembered by the observer."""

    fingerprint: str
    outcome: Outcome
    votes: tuple[Vote, ...]


class Message(NamedTuple):
    """`kind`: prepare, commit, rollback, reply, inquiry or answer; `place`: the participant's.

    `text`: the fingerprint of a prepare or an inquiry, or the decision that is the answer. `leader`
    tells apart the prepares of a plain participant, which are used up. A reply is the `answer` to a
    call (`text`: of which kind) of this leader.
    """

    kind: str
    place: int
    text: str = ""
    leader: int = 0
    body: bytes = b""
    answer: Answer | None = None


class Numbered(Generic[Item]):
    """Gives each value a number, so that states are tuples of numbers."""

    def __init__(self, *first: Item) -> None:
        self._numbers: dict[Item, int] = {}
        self.values: list[Item] = []
        for item in first:
            self(item)

    def __call__(self, item: Item) -> int:
        number = self._numbers.get(item)
        if number is None:
            number = self._numbers[item] = len(self.values)
            self.values.append(item)
        return number

    def __getitem__(self, number: int) -> Item:
        return self.values[number]


class Move(NamedTuple):
    """What came of one event at one leader, in numbers."""

    live: int
    network: int
    proposals: tuple[int, ...] = ()
    told: int = 0
    answer: Decision | None = None


class State(NamedTuple):
    """All that there is, in numbers."""

    epoch: int
    machine: int
    lives: tuple[int, ...]  # what each leadership, the first to the last, has in its hands
    queue: tuple[int, ...]  # proposed and not applied
    network: int  # the messages that were sent, a bit each
    services: tuple[int, ...]
    told: int  # what clients were told, a bit each
    decided: int  # the first decision
    late: bool  # `expires_at` and the grace have passed
    views: tuple[int, ...]  # the machines of deposed leaders, where anyone asks them; -1: none


class Draft:
    """A state to be."""

    __slots__ = State._fields

    def __init__(self, state: State) -> None:
        (
            self.epoch,
            self.machine,
            self.lives,
            self.queue,
            self.network,
            self.services,
            self.told,
            self.decided,
            self.late,
            self.views,
        ) = state

    def done(self) -> State:
        return State(
            self.epoch,
            self.machine,
            self.lives,
            self.queue,
            self.network,
            self.services,
            self.told,
            self.decided,
            self.late,
            self.views,
        )


class Parts:
    """The values met so far, and what is known to come of them."""

    def __init__(self, case: Case, *, reduced: bool) -> None:
        self.case = case
        self._reduced = reduced
        self._plans = {plan.fingerprint: plan for plan in case.plans()}
        self._machines: Numbered[Frozen] = Numbered()
        self._lives: Numbered[Live | None] = Numbered(None)
        self._proposals: Numbered[Proposal] = Numbered()
        self._results: Numbered[Result] = Numbered()
        self._messages: Numbered[Message] = Numbered()
        self._services: Numbered[Service] = Numbered(FRESH)
        self._decisions: Numbered[Decided | None] = Numbered(None)
        self._told: Numbered[tuple[str, Outcome]] = Numbered()
        self._known: dict[object, Any] = {}
