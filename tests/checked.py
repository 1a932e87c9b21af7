"""What the checker keeps: of a transaction, and of what was asked for without an id. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]
Asked = dict[str, Sequence[Any] | None]
"""What each participant was asked for, None where that is not written down."""

COMMITTED, ABORTED = "committed", "aborted"


@dataclass(slots=True)
class Enlisting:
    """What is known of an interactive transaction beyond that."""

    works: dict[str | None, None] = field(default_factory=dict)
    """The bodies that are filled by and by: in `Transaction.bodies` stands what is surely in."""
    offered: dict[str, list[Sequence[Any]]] = field(default_factory=dict)
    """Participant → what it was to be enlisted for, whatever came of it."""
    offers: dict[str, int] = field(default_factory=dict)
    """Participant → how many enlists of it were not refused."""
    numbers: dict[str, str] = field(default_factory=dict)
    """Branch → the participant of which somebody was told that this is its number."""
    commits: int = 0
    """How many calls that ask it to commit were not refused."""
    rolls_back: str | None = None
    """Whose rollback was answered before anybody asked it to commit."""
    prepared: dict[tuple[str, str], None] = field(default_factory=dict)
    """(participant, branch) that was asked to prepare."""
    heard: dict[tuple[str, str], None] = field(default_factory=dict)
    """(participant, branch) that was told the outcome."""

    def offer(self, participant: str, asked: Sequence[Any]) -> None:
        self.offered.setdefault(participant, []).append(asked)
        self.offers[participant] = self.offers.get(participant, 0) + 1

    def number(self, participant: str, branch: str) -> str | None:
        """Its number is told; what is wrong with it."""
        other = self.numbers.setdefault(branch, participant)
        if other != participant:
            return f"branch {branch} is told to be {participant}, and was told to be {other}"
        several = [b for b, name in self.numbers.items() if name == participant]
        return f"{participant} is branches {' and '.join(several)}" if several[1:] else None


@dataclass(slots=True)
class Transaction:
    """What is known of an id. `named_at`: when anybody named it first."""

    named_at: float
    bodies: dict[str | None, Asked] = field(default_factory=dict)
    """By work."""
    told: dict[str, str] = field(default_factory=dict)
    """Outcome → who said so first."""
    answered: dict[str | None, str] = field(default_factory=dict)
    """Work → outcome that a submit with it was answered."""
    ended: dict[tuple[str, str], str] = field(default_factory=dict)
    """(participant, work) → who was told, in its name, that this branch of it is over or never was,
    when it had not committed."""
    asking: dict[str | None, int] = field(default_factory=dict)
    """Work → how many submits of it were not refused."""
    refused: dict[str | None, str] = field(default_factory=dict)
    """Work → who refused it, when every submit of it was refused."""
    votes: dict[tuple[str, str], str] = field(default_factory=dict)
    """(participant, branch) → the best vote it has given."""
    effects: dict[tuple[str, str], list[Event]] = field(default_factory=dict)
    asked: dict[tuple[str, str], bool] = field(default_factory=dict)
    """(participant, branch) → whether it may be asked again for its vote."""
    by_hand: dict[tuple[str, str], None] = field(default_factory=dict)
    """(participant, branch) that somebody ended at the participant himself: he answers for it."""
    resolving: dict[str, None] = field(default_factory=dict)
    """Participants of whose branch somebody says, or is about to, that it is over."""
    resolved: dict[str, dict[str, None]] = field(default_factory=dict)
    """Branch → the effects that somebody told of it, and was answered that they are taken down."""
    enlisting: Enlisting = field(default_factory=Enlisting)
    rank: int = 0
    rank_by_client: dict[str, int] = field(default_factory=dict)

    def committed(self) -> list[Event]:
        """What the coordinator had committed."""
        return [
            event
            for key, events in self.effects.items()
            if key not in self.by_hand
            for event in events
            if event["effect"] == COMMITTED
        ]

    def moved(self) -> list[Event]:
        """What was committed, by whomever."""
        return [e for es in self.effects.values() for e in es if e["effect"] == COMMITTED]

    @property
    def is_interactive(self) -> bool:
        """Whether nobody has asked for anything else under its id."""
        return bool(self.bodies) and self.bodies.keys() <= self.enlisting.works.keys()

    def asked_of(self, work: str | None, participant: str) -> list[Sequence[Any] | None]:
        """What this participant may have to do for this body."""
        asked = [self.bodies[work].get(participant)]
        if work in self.enlisting.works:
            asked += self.enlisting.offered.get(participant, ())
        return asked

    def is_by_hand(self, participant: str) -> bool:
        return any(name == participant for name, _ in self.by_hand)


_BRANCHES: Mapping[str, frozenset[str]] = {
    "active": frozenset(("active",)),
    "preparing": frozenset(("preparing", "prepared", "not_prepared")),
    "committing": frozenset(("committing", "committed")),
    "committed": frozenset(("committed",)),
    "aborting": frozenset(("rolling_back", "rolled_back", "not_prepared")),
    "aborted": frozenset(("rolled_back", "not_prepared")),
}
_IN_ANY = frozenset(("read_only", "resolved"))
"""What a branch may be whatever became of the whole."""


def contradicting(state: str, branches: Mapping[str, str]) -> list[str]:
    """Participants shown in a state in which no branch of a transaction in `state` is."""
    may_be = _BRANCHES.get(state, frozenset()) | _IN_ANY
    return [name for name, shown in branches.items() if shown not in may_be]


def wrong_money(
    transactions: Iterable[Transaction], participants: Mapping[str, Event]
) -> Iterator[tuple[str, str]]:
    """(about, what is wrong): balances against effects, and the sum of these.

    `participants`: each one's `participant_end`. Of what somebody has ended in part as he saw fit
    the sum may be anything.
    """
    moved: dict[tuple[str, str], int] = {}
    made = 0
    for transaction in transactions:
        for event in transaction.moved():
            if event.get("account") is not None:
                key = (event["participant"], event["account"])
                moved[key] = moved.get(key, 0) + event["amount"]
                made += 0 if transaction.by_hand else event["amount"]
    for name, event in participants.items():
        for account, balance in event.get("balances", {}).items():
            due = event["opening"] + moved.get((name, account), 0)
            if balance != due:
                yield name, f"{account} has {balance}, its history says {due}"
            if balance < 0:
                yield name, f"{account} is overdrawn: {balance}"
    if participants and made:
        yield "all", f"{made} were made of nothing"


class Nameless:
    """Submits without an id: each may become one transaction, whose id is seen later, or none."""

    def __init__(self) -> None:
        self._asked: dict[str, Asked] = {}
        """By work, those of which no transaction is known."""
        self._ids: dict[str, str] = {}
        self._unexplained: dict[str, None] = {}
        """Ids that nobody has begun, as far as is known."""

    def submitted(self, work: str, asked: Asked) -> None:
        self._asked[work] = asked

    def refused(self, work: str) -> str | None:
        """It is none, surely; the id under which it was seen all the same."""
        self._asked.pop(work, None)
        return self._ids.get(work)

    def claim(self, work: str | None, id: str) -> Asked | None:
        """The body of this work, if it was asked for without an id and is seen under one now."""
        if work is None or work not in self._asked:
            return None
        self._ids[work] = id
        self._unexplained.pop(id, None)
        return self._asked.pop(work)

    def other_id(self, work: str | None, id: str) -> str | None:
        """Under which other id this work was seen before, if it was."""
        before = None if work is None else self._ids.get(work)
        return None if before == id else before

    def may_be(self, id: str) -> bool:
        """Whether an id that nobody has begun may be of one of these."""
        if self._asked:
            self._unexplained[id] = None
        return id in self._unexplained

    def too_many(self) -> list[str]:
        """Ids in the end that cannot all be of these."""
        return list(self._unexplained)[len(self._asked) :]
