"""The world around the project's code: network, log queue, leaderships, forgetting, an observer.

What is the project's own and only run here: `machine` (restored from its snapshot for every
command), `driver`, `conversation`, `live`, `inquiry` (all in `leader.py`), the SDK with its branch
table, and the contract (`services.py`). What is the model's:

- The log: the commands of the current leadership are applied in the order proposed, or lost with
  it. What a new epoch refuses as stale is taken out of the queue, for it is refused for ever.
- The network: a message may be delivered from when it is sent on, never or many times, in any
  order and however late; so messages are never taken out. The exceptions are a prepare to a plain
  participant, which arrives at most once, and messages under way when a tombstone is dropped,
  which happens when all is quiet. An answer is heard at once or lost: to hear it later is to hear a
  repeat. Prepares of one branch and content are the same, whoever sent them.
- A leader that is deposed goes on with what it knew. One that can do nothing more that is not done
  already is left out (`_is_inert`: all that it could ever do is looked at).
- Whenever the record changes, a client asks again for each content: what it is told must be true.

Every step of a component is computed once for each input of it; the rest is numbers in tuples.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, NamedTuple, TypeVar

from coordinator.commands import Acknowledge, Begin, Command, Epoch, Forget, Refuse, Resolve
from coordinator.facts import Outcome, Transaction
from coordinator.inquiry import Decision
from coordinator.machine import Applied, Machine, Result
from coordinator.moves import Refusal
from coordinator.plan import Plan
from participants.branch import ENDED, State
from participants.contract import Acknowledged, Failed, Operation, Vote, Voted
from participants.inquiry import Decision as ToldDecision
from participants.sdk import ParticipantSettings
from tests.model.cases import PLAIN, Case, place_of
from tests.model.leader import BEGUN_MS, ID, Effect, Live, Node, Sent
from tests.model.services import (
    FRESH,
    Answer,
    Delivered,
    Service,
    plain_ended,
    plain_prepared,
    sdk_ended,
    sdk_obeyed,
    sdk_prepared,
    sdk_swept,
)

Item = TypeVar("Item", bound=Hashable)

HORIZON_MS = BEGUN_MS + 1
NOTHING = 0
"""The number of what is not there: no conversation, no decision."""


class World:
    """A case, explored. Implements `explorer.World`."""

    def __init__(self, case: Case, *, stale_views: bool = False) -> None:
        self.case = case
        self._stale_views = stale_views
        self._count = len(case.kinds)
        self._plans = {plan.fingerprint: plan for plan in case.plans()}
        self._machines: Numbered[Frozen] = Numbered()
        self._lives: Numbered[Live | None] = Numbered(None)
        self._proposals: Numbered[Proposal] = Numbered()
        self._results: Numbered[Result] = Numbered()
        self._messages: Numbered[Message] = Numbered()
        self._services: Numbered[Service] = Numbered(FRESH)
        self._decisions: Numbered[Decided | None] = Numbered(None)
        self._told: Numbered[tuple[str, Outcome]] = Numbered()
        self._known: dict[tuple[object, ...], object] = {}


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
    """`kind`: prepare, commit, rollback, inquiry or answer; `place`: the participant's.

    `text`: the fingerprint of a prepare or an inquiry, or the decision that is the answer. `leader`
    tells apart the prepares of a plain participant, which are used up.
    """

    kind: str
    place: int
    text: str = ""
    leader: int = 0
    body: bytes = b""


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
