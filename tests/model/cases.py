"""The small worlds that are explored: who takes part, and which liberties the explorer may take."""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.facts import Mode
from coordinator.plan import Plan, Planned
from participants.contract import Vote, encode_json, fingerprint
from tests.model.leader import ID, TIMEOUT_MS

YES, NO, READ_ONLY = Vote.YES, Vote.NO, Vote.READ_ONLY
SDK, PLAIN = "S", "P"


@dataclass(frozen=True, slots=True)
class Case:
    """A small world.

    kinds               a letter for each participant: S on the SDK, P plain
    leaderships         how many leaders there are, one after the other
    votes               what a participant may vote
    contents            for each content that a client asks for under the id: how many participants,
                        from the first on
    forgets             the transaction may be forgotten once the machine allows it
    drops_tombstones    ... and then a participant its tombstone
    time                `expires_at` and the grace may pass (with a plain participant: always)
    calls_wait          a prepare may wait in its lane, be withdrawn there, or find its participant
                        unreachable
    useless_answers     a participant may answer a prepare with what is no vote
    slow                a plain participant may say that it is still working; its work is done in
                        the end, also after a rollback, but not after `expires_at` and the grace
    answers_wait        an answer may be heard long after it was given; else at once or not at all,
                        for to hear it later is to hear a repeat. Not so of a plain participant's
                        rollback: a repeat of it would find the prepare that it had overtaken
    early_prepares      prepares of SDK branches may travel from when Begin is proposed on, as
                        PROTOCOL section 3 allows
    acknowledges_later  an acknowledgement waits in the log's queue like any other command; else it
                        is applied at once, or lost with the answer that carried it
    """

    name: str
    kinds: str
    leaderships: int = 2
    votes: tuple[Vote, ...] = (YES, NO)
    contents: tuple[int, ...] = ()
    forgets: bool = False
    drops_tombstones: bool = False
    time: bool = False
    calls_wait: bool = False
    useless_answers: bool = False
    slow: bool = False
    answers_wait: bool = False
    early_prepares: bool = True
    acknowledges_later: bool = False

    @property
    def plain(self) -> frozenset[str]:
        return frozenset(_url(place) for place, kind in enumerate(self.kinds) if kind == PLAIN)

    @property
    def has_time(self) -> bool:
        return self.time or PLAIN in self.kinds

    def plans(self) -> tuple[Plan, ...]:
        """What clients ask for, all under the one id."""
        counts = self.contents or (len(self.kinds),)
        return tuple(_plan(number, count) for number, count in enumerate(counts, 1))


def place_of(url: str) -> int:
    """Which participant this is."""
    return int(url.rpartition("-")[2])


def _url(place: int) -> str:
    return f"http://participant-{place}"


def _plan(content: int, count: int) -> Plan:
    payload = encode_json(content)
    planned = []
    for place in range(count):
        url = _url(place)
        ends = (f"{url}/prepare", f"{url}/commit", f"{url}/rollback")
        planned.append(Planned(f"service-{place}", url, *ends))
    digest = fingerprint(
        Mode.ONE_SHOT,
        [(p.name, p.prepare_url, p.commit_url, p.rollback_url, payload) for p in planned],
    )
    return Plan(ID, digest, Mode.ONE_SHOT, tuple(planned), (payload,) * count, TIMEOUT_MS, b"{}")


THREE_LEADERSHIPS = Case("two on the SDK, three leaderships", "SS", leaderships=3, votes=(YES,))
ANY_VOTE = Case("two on the SDK, any vote", "SS", votes=(YES, NO, READ_ONLY))
FORGETTING = Case("two on the SDK, forgetting", "SS", forgets=True)
TOMBSTONES = Case(
    "two on the SDK, forgetting, tombstones dropped",
    "SS",
    votes=(YES,),
    forgets=True,
    drops_tombstones=True,
)
ONE_EVERYTHING = Case(
    "one on the SDK, everything",
    "S",
    leaderships=3,
    votes=(YES, NO, READ_ONLY),
    forgets=True,
    drops_tombstones=True,
    time=True,
    calls_wait=True,
    useless_answers=True,
    acknowledges_later=True,
)
ONE = Case("one on the SDK", "S")
LATE_SDK = Case("two on the SDK, time passes", "SS", votes=(YES, NO), time=True)
OTHER_WORK = Case("the id used again for other work", "SS", votes=(YES,), contents=(2, 1))
PLAIN_AND_SDK = Case("one plain, one on the SDK", "PS", calls_wait=True)
ONE_PLAIN = Case(
    "one plain, answers wait", "P", calls_wait=True, useless_answers=True, answers_wait=True
)
PLAIN_ANSWERS = Case("one plain, one on the SDK, answers wait", "PS", answers_wait=True)
SLOW_PLAIN = Case(
    "one plain that works slowly, one on the SDK",
    "PS",
    slow=True,
    calls_wait=True,
    useless_answers=True,
)
ONE_SLOW = Case(
    "one plain that works slowly", "P", slow=True, calls_wait=True, useless_answers=True
)
TWO_PLAIN = Case("two plain, three leaderships", "PP", leaderships=3, calls_wait=True)
PLAIN_FORGETTING = Case("one plain, one on the SDK, forgetting", "PS", votes=(YES,), forgets=True)

STANDARD = (
    THREE_LEADERSHIPS,
    ANY_VOTE,
    FORGETTING,
    TOMBSTONES,
    ONE_EVERYTHING,
    LATE_SDK,
    OTHER_WORK,
    PLAIN_AND_SDK,
    ONE_PLAIN,
    PLAIN_ANSWERS,
    ONE_SLOW,
    SLOW_PLAIN,
    TWO_PLAIN,
    PLAIN_FORGETTING,
)

LARGE = (
    Case("three on the SDK", "SSS", votes=(YES,)),
    Case("three on the SDK, any vote", "SSS", votes=(YES, NO, READ_ONLY)),
    Case(
        "two on the SDK, calls wait, time, useless answers",
        "SS",
        votes=(YES, NO, READ_ONLY),
        time=True,
        calls_wait=True,
        useless_answers=True,
    ),
    Case(
        "two on the SDK, forgetting, tombstones, three leaderships",
        "SS",
        leaderships=3,
        forgets=True,
        drops_tombstones=True,
    ),
    Case(
        "the id used again, forgetting, tombstones",
        "SS",
        contents=(2, 1),
        forgets=True,
        drops_tombstones=True,
    ),
    Case("two on the SDK, acknowledged later", "SS", acknowledges_later=True),
    Case("two on the SDK, answers wait", "SS", votes=(YES,), answers_wait=True),
    Case("one plain, two on the SDK", "PSS"),
    Case("two plain that work slowly", "PP", slow=True, calls_wait=True, useless_answers=True),
    Case(
        "one plain that works slowly, answers wait",
        "PS",
        slow=True,
        calls_wait=True,
        useless_answers=True,
        answers_wait=True,
    ),
    Case(
        "one plain, one on the SDK, three leaderships, forgetting",
        "PS",
        leaderships=3,
        forgets=True,
        calls_wait=True,
    ),
)
"""By the command only: up to a million states each."""
