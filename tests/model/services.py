"""The participants of the model: the project's own SDK, and the most forgetful plain service.

A participant between two messages is a `Service`, a value that can be hashed. One on the SDK is
thawed into a `participants.sdk.Participant` on a `MemoryStore`, so what a message does to it is
done by the branch table, the SDK and the contract. A plain one is the model's own: it keeps the
contract of PROTOCOL section 6 and remembers nothing that it need not.
"""

from __future__ import annotations

import json
from collections.abc import Coroutine, Iterator
from typing import Any, NamedTuple

from participants.branch import Branch, End, State
from participants.contract import (
    Decision,
    EndAnswer,
    Operation,
    PrepareAnswer,
    Vote,
    encode_json,
    read_end_answer,
    read_prepare_answer,
)
from participants.endpoints import Reply
from participants.memory_store import MemoryStore, MemoryTable
from participants.messages import EndBranch, Received, read_end, read_prepare
from participants.sdk import Participant, ParticipantSettings, Resource, Work
from participants.store import BranchRecord
from tests.model.leader import BEGUN_MS, GRACE_MS, ID, TIMEOUT_MS

LATE_MS = BEGUN_MS + TIMEOUT_MS + GRACE_MS + 1_000


class Service(NamedTuple):
    """One participant: its branch (None: absent), and what an all-seeing observer counts."""

    branch: Branch | None
    works: int  # times that it carried out a prepare; counted of a plain one only
    commits: int  # times that its work became real
    dropped: bool  # its tombstone has been dropped
    working: str | None = None  # a plain one: the fingerprint of what it is still working on

    @property
    def state(self) -> State:
        return State.ABSENT if self.branch is None else self.branch.state

    @property
    def fingerprint(self) -> str | None:
        return None if self.branch is None else self.branch.fingerprint


FRESH = Service(None, 0, 0, False)
Answer = PrepareAnswer | EndAnswer


class Delivered(NamedTuple):
    """What came of a message: the service after it, and the answer that leaves."""

    what: str
    after: Service
    answer: Answer


# --- on the SDK -----------------------------------------------------------------------------------


class _Observed(Resource[MemoryTable]):
    """A resource that votes as it is told, and counts what it is made to do."""

    def __init__(self, vote: Vote) -> None:
        self._vote = vote
        self.commits = 0

    def prepare(self, work: Work[MemoryTable], payload: Any) -> Vote:  # noqa: ARG002
        return self._vote

    def commit(self, work: Work[MemoryTable]) -> None:  # noqa: ARG002
        self.commits += 1

    def rollback(self, work: Work[MemoryTable]) -> None:
        pass


class CrashingStore(MemoryStore):
    """`crashes`: the process ends as soon as the replies have left.

    What `perform` has returned is synced (participants/store.py), so that changes nothing.
    """

    crashes = False


class _Thawed:
    def __init__(self, service: Service, branch_id: str, *, late: bool, vote: Vote) -> None:
        self._before = service
        self._branch_id = branch_id
        self._resource = _Observed(vote)
        self.store = CrashingStore()
        self.participant = Participant(
            self._resource,
            self.store,
            ParticipantSettings(grace_ms=GRACE_MS),
            now_ms=lambda: LATE_MS if late else BEGUN_MS,
        )
        if service.branch is not None:
            record = BranchRecord(ID, branch_id, service.branch, changed_at_ms=BEGUN_MS)
            _done(self.store.perform([lambda local: local.keep(record)]))

    def receive(self, message: Received) -> Reply:
        (reply,) = _done(self.participant.receive([message]))
        assert isinstance(reply, Reply)
        return reply

    def after(self) -> Service:
        record = self.store.find(ID, self._branch_id)
        before = self._before
        return Service(
            None if record is None else record.branch,
            before.works,
            min(before.commits + self._resource.commits, 2),
            before.dropped,
        )


def sdk_prepared(
    service: Service, body: bytes, votes: tuple[Vote, ...], *, late: bool
) -> Iterator[Delivered]:
    """A prepare arrives; it may be voted on in each way, and the process may crash after it."""
    message = read_prepare(json.loads(body))
    seen = set()
    for vote in votes:
        for crashes in (False, True):
            thawed = _Thawed(service, message.branch_id, late=late, vote=vote)
            thawed.store.crashes = crashes
            reply = thawed.receive(message)
            branch = ID, message.branch_id
            answer = read_prepare_answer(reply.status, encode_json(reply.body), branch)
            delivered = Delivered(_voted(answer, crashes=crashes), thawed.after(), answer)
            if delivered[1:] not in seen:
                seen.add(delivered[1:])
                yield delivered


def sdk_ended(service: Service, operation: Operation, body: bytes, *, late: bool) -> Delivered:
    """A commit or a rollback arrives."""
    _, branch_id = read_end(json.loads(body))
    thawed = _Thawed(service, branch_id, late=late, vote=Vote.YES)
    reply = thawed.receive(EndBranch(ID, branch_id, End(operation.value)))
    answer = read_end_answer(operation, reply.status, encode_json(reply.body), (ID, branch_id))
    return Delivered(f"answers {reply.status}", thawed.after(), answer)


def sdk_obeyed(service: Service, branch_id: str, decision: Decision, *, late: bool) -> Service:
    """The answer to its inquiry arrives."""
    thawed = _Thawed(service, branch_id, late=late, vote=Vote.YES)
    record = thawed.store.find(ID, branch_id)
    if record is None or service.state is not State.PREPARED:
        return service  # the Inquirer asks for what is in doubt only
    _done(thawed.participant._obey(record, decision))
    return thawed.after()


def sdk_swept(service: Service, branch_id: str, *, kept_ms: int) -> Service:
    """The sweep, as `Participant._sweep` does it once, the moment after the branch ended."""
    thawed = _Thawed(service, branch_id, late=False, vote=Vote.YES)
    if _done(thawed.store.drop_tombstones(BEGUN_MS - kept_ms)):
        return thawed.after()._replace(dropped=True)
    return service


def _done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of what does not really wait."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        return finished.value
    raise AssertionError("a MemoryStore never waits")


# --- plain ----------------------------------------------------------------------------------------


def plain_prepared(
    service: Service, body: bytes, votes: tuple[Vote, ...], *, useless: bool, slow: bool
) -> Iterator[Delivered]:
    """A prepare arrives. `useless`: it may also answer with what is no vote, done or not.

    `slow`: it may say that it is still working, and expects to be asked again. An error is then an
    answer to the call, and no end of the work.
    """
    message = read_prepare(json.loads(body))
    held = Branch(State.PREPARED, message.fingerprint)
    done = service._replace(branch=held, works=min(service.works + 1, 2))
    answers: list[tuple[Service, int, bytes]] = []
    if slow:
        done = done._replace(works=service.works)
        begun = service._replace(working=message.fingerprint)
        answers.append((begun if service.state is State.ABSENT else service, 202, b""))
    if slow and (service.working or service.state is State.PREPARED):
        if not service.working:
            answers = [(service, 200, b"true")]
        if useless:
            answers.append((service, 500, b""))
    else:
        if Vote.YES in votes:
            answers.append((done, 200, b"true"))
        if Vote.NO in votes:
            answers.append((service, 200, b"false"))
        if useless:
            answers += [(done, 500, b""), (service, 500, b"")]
    for after, status, text in answers:
        answer = read_prepare_answer(status, text, (ID, message.branch_id))
        held_now = " and holds it" if after.branch != service.branch else ""
        yield Delivered(_voted(answer, crashes=False) + held_now, after, answer)


def plain_finished(service: Service) -> Service:
    """Its work is done. It has forgotten whether a rollback came in between."""
    return service._replace(branch=Branch(State.PREPARED, service.working), working=None)


def plain_ended(service: Service, operation: Operation) -> Delivered:
    """A commit or a rollback arrives. It does not remember that it rolled back."""
    status, after = 404, service
    if operation is Operation.COMMIT and service.state in (State.PREPARED, State.COMMITTED):
        status = 200
        if service.state is State.PREPARED:
            committed = Branch(State.COMMITTED, service.fingerprint)
            after = service._replace(branch=committed, commits=min(service.commits + 1, 2))
    elif operation is Operation.ROLLBACK and service.state is State.COMMITTED:
        status = 409
    elif operation is Operation.ROLLBACK:
        status, after = 200, service._replace(branch=None)
    answer = read_end_answer(operation, status, b"", (ID, ""))
    return Delivered(f"answers {status}", after, answer)


def _voted(answer: Answer, *, crashes: bool) -> str:
    said = getattr(answer, "vote", None) or getattr(answer, "what", "that it is still working")
    return f"answers {said}" + (", then crashes" if crashes else "")
