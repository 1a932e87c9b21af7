"""Makers of branches, plans and commands, so that a test names only what it is about.

Nothing here decides anything: a rule that a test relies on is in the test.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from coordinator.commands import (
    Acknowledge,
    Begin,
    Close,
    Command,
    Decide,
    Enlist,
    Epoch,
    Forget,
    Refuse,
    Resolve,
)
from coordinator.facts import Branch, Branches, Effect, Mode, Transaction
from coordinator.ids import IdMaker
from coordinator.machine import Applied, Machine
from coordinator.plan import Plan, Planned
from participants.contract import Vote

EPOCH = 7
BEGAN_MS = 1_000_000
TIMEOUT_MS = 10_000


PAYLOAD = b'{"quantity":1}'


def uuid7(now_ms: int, random: Random) -> str:
    """An id that carries this time."""
    return IdMaker(lambda: now_ms, random)()


def branch(number: int = 1, *, plain: bool = False) -> Branch:
    url = f"http://participant-{number}"
    ends = (f"{url}/prepare", f"{url}/commit", f"{url}/rollback")
    return Branch(str(number), f"service-{number}", url, *ends, not plain)


def branches(count: int, *, plain: bool = False) -> Branches:
    return Branches(branch(number, plain=plain) for number in range(1, count + 1))


def begin(
    transaction_id: str = "t",
    *,
    of: int | tuple[Branch, ...] = 2,
    mode: Mode = Mode.ONE_SHOT,
    fingerprint: str = "f1",
    epoch: int = EPOCH,
    now_ms: int = BEGAN_MS,
) -> Begin:
    recorded = branches(of) if isinstance(of, int) else Branches(of)
    payloads = (PAYLOAD,) * len(recorded)
    deadline_ms = now_ms + TIMEOUT_MS
    return Begin(
        epoch, now_ms, transaction_id, fingerprint, mode, recorded, payloads, deadline_ms, b"{}"
    )


def decide(
    votes: tuple[Vote, ...],
    transaction_id: str = "t",
    *,
    reason: str | None = None,
    epoch: int = EPOCH,
    now_ms: int = BEGAN_MS + 10,
) -> Decide:
    return Decide(epoch, now_ms, transaction_id, votes, (None,) * len(votes), reason)


def acknowledge(branches_heard: int, transaction_id: str = "t", *, now_ms: int = 0) -> Acknowledge:
    return Acknowledge(EPOCH, now_ms or BEGAN_MS + 20, transaction_id, branches_heard)


def resolve(
    branch_id: str | None = None,
    transaction_id: str = "t",
    *,
    effect: Effect | None = None,
    actor: str = "ann",
) -> Resolve:
    effect = effect or (Effect.COMMITTED if branch_id else None)
    return Resolve(EPOCH, BEGAN_MS + 30, transaction_id, branch_id, effect, actor, "disk lost")


def led_machine(*commands: Command) -> Machine:
    """A machine in epoch EPOCH that has taken these commands, each of which changed it."""
    machine = Machine()
    machine.step(Epoch(EPOCH, 0, "n1"))
    for command in commands:
        result = machine.step(command)
        assert not isinstance(result, Applied) or result.changed, command
    return machine


def record(machine: Machine, transaction_id: str = "t") -> Transaction:
    transaction = machine.get(transaction_id)
    assert transaction is not None
    return transaction


def applied(machine: Machine, command: Command) -> Transaction:
    """The transaction as it stands after the command, which was not refused."""
    result = machine.step(command)
    assert isinstance(result, Applied), result
    return result.transaction


def snapshot(machine: Machine) -> list[bytes]:
    return list(machine.chunks(machine.view()))


def restore(machine: Machine, chunks: Iterable[bytes]) -> None:
    restoring = machine.restoring()
    for chunk in chunks:
        restoring.feed(chunk)
    restoring.finish()


def plan(
    transaction_id: str = "t",
    *,
    of: int | tuple[Branch, ...] = 2,
    fingerprint: str = "f1",
    timeout_ms: int = TIMEOUT_MS,
) -> Plan:
    asked = branches(of) if isinstance(of, int) else of
    planned = tuple(Planned(*each[1:6]) for each in asked)
    payloads = (PAYLOAD,) * len(planned)
    return Plan(transaction_id, fingerprint, Mode.ONE_SHOT, planned, payloads, timeout_ms, b"{}")


class RandomCommands:
    """A stream of commands about few ids, so that they meet in every state; the seed gives it.

    Times wander, ids with and without a time are mixed, epochs are sometimes over or to come.
    """

    def __init__(self, seed: int, *, ids: int = 12) -> None:
        self._random = Random(seed)
        self._epoch = 1
        self._now_ms = BEGAN_MS
        made = [uuid7(BEGAN_MS + 500 * i, self._random) for i in range(ids // 2)]
        self._ids = made + [f"plain-id-{i}" for i in range(ids - len(made))]

    def __call__(self) -> Command:
        pick = self._random
        self._now_ms += pick.randrange(-20, 60)
        now_ms, transaction_id = self._now_ms, pick.choice(self._ids)
        epoch = self._epoch if pick.random() < 0.95 else self._epoch + pick.choice((-1, 1))
        match pick.randrange(100):
            case n if n < 2:
                self._epoch += 1
                return Epoch(self._epoch, now_ms, pick.choice("abc"))
            case n if n < 25:
                return self._begin(epoch, transaction_id)
            case n if n < 32:
                some = branch(pick.randrange(1, 6), plain=pick.random() < 0.5)
                return Enlist(epoch, now_ms, transaction_id, some, PAYLOAD)
            case n if n < 37:
                return Close(epoch, now_ms, transaction_id)
            case n if n < 60:
                return self._decide(epoch, transaction_id)
            case n if n < 63:
                return Refuse(epoch, now_ms, transaction_id)
            case n if n < 88:
                return Acknowledge(epoch, now_ms, transaction_id, pick.randrange(1 << 5))
            case n if n < 93:
                branch_id = pick.choice((None, "1", "2", "9"))
                effect = pick.choice((None, *Effect))
                return Resolve(epoch, now_ms, transaction_id, branch_id, effect, "ann", "ünlucky")
            case _:
                return Forget(epoch, now_ms, now_ms - pick.randrange(0, 3000))

    def _begin(self, epoch: int, transaction_id: str) -> Begin:
        pick = self._random
        mode = pick.choice((Mode.ONE_SHOT, Mode.ONE_SHOT, Mode.INTERACTIVE))
        asked = tuple(
            branch(number, plain=pick.random() < 0.5) for number in range(1, pick.randrange(5) + 1)
        )
        fingerprint = pick.choice(("f1", "f2"))
        return begin(
            transaction_id,
            of=asked,
            mode=mode,
            fingerprint=fingerprint,
            epoch=epoch,
            now_ms=self._now_ms,
        )

    def _decide(self, epoch: int, transaction_id: str) -> Decide:
        pick = self._random
        willing = pick.random() < 0.6
        kinds = (Vote.YES, Vote.YES, Vote.READ_ONLY) if willing else tuple(Vote)
        votes = tuple(pick.choice(kinds) for _ in range(pick.choice((5, 5, 5, 2, 0))))
        reasons = tuple(pick.choice((None, "nö")) for _ in votes)
        return Decide(epoch, self._now_ms, transaction_id, votes, reasons, pick.choice((None, "r")))
