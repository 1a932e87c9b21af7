"""The one door to participants: every prepare, commit and rollback leaves through it.

Rules
- Isolation: a participant has two lanes, one for prepares and one for commits and rollbacks, each
  with its own queue and its own bounded number of calls under way. One that hangs holds up only
  its own lane, and its hanging prepares never hold up its commits.
- A call is answered exactly once, on the event loop, and never from within `begin`; one that is
  withdrawn while it waits is never sent and never answered. One that is withdrawn while it is under
  way is not cut off (its participant would see that in the middle of its work), but never goes
  again: it would, for as long as its transaction may last, also when this node leads no longer.
- Prepares are always tried: they are answered at their deadline, sent or not. Commits and
  rollbacks to a participant that does not serve wait in a closed lane, and one of them at a time
  probes (coordinator/lane.py). The probe's failure is its answer; the others have none until they
  are sent.
- For a participant that takes many messages at once, everything that waits in a lane shares one
  request, save what has URLs of its own: their hosts and queries would be lost. One such request is
  under way at a time, and the next gathers meanwhile: no timers.
- A prepare that may go twice is given up after a while and sent again: one that hangs must not
  hold up the others for as long as its transaction may last.
- A request of many that is refused as a whole says nothing of its messages: something on the way
  takes no such requests, or none so large. They wait again and go one by one, as all do for a
  while; only a plain branch's prepare, which may go once, has failed.
- A participant that has not answered yet may be one of those: until it has, a call leaves beside
  those under way only after 5 ms, and no more than 16 are under way. Else a burst to one that is
  new to this node would open hundreds of connections.
- A participant is a URL: a service that is named by two of them counts as two.

How it works: `begin` puts the call into its lane; `_pump` takes out of a lane whoever may go; the
courier (coordinator/courier.py) carries it; the answer frees the place, and the lane is pumped
again.
"""

from __future__ import annotations

import asyncio
import bisect
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import TypeAlias

from coordinator.courier import Answer, Courier, Delivery
from coordinator.declarations import Declarations
from coordinator.lane import Backoff, Impression, Lane
from coordinator.settings import Limits, Timings
from participants.contract import (
    Failed,
    Operation,
)

_log = logging.getLogger(__name__)

_PREPARE = Operation.PREPARE  # looked up once: 90 ns each time

_BATCH_CALLS = 500
"""Calls that share one request at most: beyond some hundreds there is nothing more to gain."""

_BATCH_BYTES = 512 << 10
"""Of the messages that share a request; what is larger goes alone. Half of what nginx takes unless
it is told otherwise, and a sixty-fourth of what the SDK takes. 500 usual prepares are 200 KB."""

_BATCH_PATIENCE_S = 0.05
"""How long a batch may take before the next one leaves beside it. Two under way bring nothing while
the participant is quick (measured: 0.99 of the throughput), and save the others when it is not."""

_STRANGER_PATIENCE_S = 0.005
"""The same for the first calls to a participant: it may be a slow one, and must not be held up."""

_MOST_BESIDE = 16
"""Requests of either kind under way at one time: what hangs must not use up all connections."""

_TRY_S = 10.0
"""After so long without an answer a prepare that may go twice is sent again. Transactions may last
an hour: what hung on a participant that was stopped, or lost its machine, would hold up all that
come after. A usual transaction's own time is over by then; a participant that is still working
answers the second as it would have the first."""


@dataclass(slots=True, eq=False)
class Call:
    """One message (`courier.Message`) to a participant, and whom to tell what became of it.

    `participant` is what lanes, limits and failures are counted by. `end_s` is a prepare's
    deadline; a commit or rollback has `Timings.call_timeout_ms` from when it is sent, whatever it
    says before. `repeatable`: it may be sent again though it may have arrived, as all may but the
    prepare of a plain branch, and what was withdrawn. `shares`: it may go to the participant's
    batch call instead of `url`, for that is no more than its place with the operation's name.
    `sent_s` is set when the call leaves, before the first byte of it does; `perhaps_arrived` when
    it is to leave once more.
    """

    participant: str
    operation: Operation
    url: str
    transaction_id: str
    branch_id: str
    body: bytes
    end_s: float
    done: Callable[[Answer], None]
    traceparent: str | None = None
    repeatable: bool = True
    shares: bool = True
    sent_s: float | None = None
    perhaps_arrived: bool = False


class Gateway:
    """See the top of this file. Everything happens on the event loop's thread."""

    on_answers: Callable[[Sequence[Call], Sequence[Answer], float], None]
    """Told the answers of a request just before `done` is, with the seconds since it left (0 of
    calls that never did). For metrics.
    """

    def __init__(self, *, limits: Limits, timings: Timings, random: Random | None = None) -> None:
        self.on_answers = lambda _calls, _answers, _seconds: None
        self._room = limits.calls_per_participant
        self._timeout_s = timings.call_timeout_ms / 1000
        self._backoff = Backoff(timings.retry_initial_ms / 1000, timings.retry_max_ms / 1000)
        self._random = random or Random()
        self._courier = Courier(answer_bytes=limits.answer_bytes)
        self._doors: dict[_Key, _Door] = {}
        self._expiries: dict[Call, asyncio.TimerHandle] = {}
        self.declarations = Declarations()
        self._open = False

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._courier.start()
        self._open = True

    async def stop(self) -> None:
        """Answer everything at once, as failed, and close every connection."""
        if not self._open:
            return
        self._open = False
        for door in self._doors.values():
            door.set_timer(None)
            for call in list(door.lane):
                if self._take_back(door, call):
                    self._tell((call,), (Failed("this node is stopping", arrived=False),))
        await self._courier.stop()
        self._doors.clear()

    def begin(self, call: Call) -> None:
        """Send the call as soon as its lane allows; `call.done` is told later what became of it."""
        if not self._open:
            stopped = Failed("this node is stopping", arrived=False)
            asyncio.get_running_loop().call_soon(call.done, stopped)
            return
        key = call.participant, call.operation is _PREPARE, call.shares
        door = self._doors.get(key) or self._new_door(key)
        door.lane.put(call)
        if door.gathering:
            return  # it is pumped in a moment
        now_s = self._loop.time()
        if self._batch_url(door, now_s) is not None:
            door.gather(self._loop, self._pump)  # who decides at the deadline withdraws it, too
            return
        if not door.is_prepare:
            door.pump_soon(self._loop, self._pump)  # who waits for the decision is answered first
            return
        self._send(door, None, now_s)
        if call.sent_s is None and call in door.lane:
            self._expiries[call] = self._loop.call_at(call.end_s, self._expire, door, call)

    def withdraw(self, call: Call) -> bool:
        """Whether the call was still waiting: then it will never be sent, and never be answered.

        One that is under way is answered, but does not go again.
        """
        call.repeatable, call.body = False, b""  # which may be large, and is under way for long
        door = self._doors.get((call.participant, call.operation is _PREPARE, call.shares))
        if door is None or not self._take_back(door, call):
            return False
        self._pump(door)
        return True

    def wake(self, participant: str) -> None:
        """Probe at once, if the participant's commits and rollbacks wait for it to come back."""
        for shares in (True, False):
            door = self._doors.get((participant, False, shares))
            if door is not None:
                door.lane.wake(self._loop.time())
                self._pump(door)

    def repeatable(self, participants: Iterable[str]) -> tuple[bool, ...]:
        """Of each, whether it has said that it is no plain one."""
        return self.declarations.repeatable(participants)

    def waiting(self) -> dict[str, int]:
        """How many calls wait, per participant for which any does."""
        counts: dict[str, int] = {}
        for (participant, _, _), door in self._doors.items():
            if door.lane:
                counts[participant] = counts.get(participant, 0) + len(door.lane)
        return counts

    def _new_door(self, key: _Key) -> _Door:
        participant, is_prepare, shares = key
        backoff = None if is_prepare else self._backoff
        lane: Lane[Call] = Lane(room=self._room, backoff=backoff, random=self._random)
        door = self._doors[key] = _Door(participant, is_prepare, shares, lane)
        return door

    def _pump(self, door: _Door) -> None:
        """Send whoever may go."""
        door.gathering = False
        if self._open:
            now_s = self._loop.time()
            self._send(door, self._batch_url(door, now_s), now_s)

    def _send(self, door: _Door, batch_url: str | None, now_s: float) -> None:
        """The same, over the participant's batch call if it has one. The one place where calls
        leave a queue.
        """
        patience_s: float | None = None  # None: all go that there is room for
        if batch_url is not None:
            patience_s = _BATCH_PATIENCE_S
            if door.may_send(now_s, patience_s) and (calls := _take_batch(door.lane, now_s)):
                self._go(door, calls, batch_url, now_s)
        elif door.participant not in self.declarations:
            patience_s = _STRANGER_PATIENCE_S
            if door.may_send(now_s, patience_s) and (call := door.lane.take(now_s)) is not None:
                self._go(door, [call], None, now_s)
        else:
            while (call := door.lane.take(now_s)) is not None:
                self._go(door, [call], None, now_s)
        if door.lane or door.timer is not None or not door.requests:
            self._look_again(door, now_s, patience_s)  # else an answer will

    def _look_again(self, door: _Door, now_s: float, patience_s: float | None) -> None:
        """Forget a lane that is not in use; else see to it that it is pumped when time allows."""
        forget_at_s = door.lane.forget_at()
        if forget_at_s is not None and forget_at_s <= now_s:
            door.set_timer(None)
            if self._doors.get(door.key) is door:
                del self._doors[door.key]
            return
        look_at_s = door.lane.next_at() if forget_at_s is None else forget_at_s
        if patience_s is not None and door.lane:
            may_at_s = door.may_send_at(patience_s)
            if may_at_s is None:
                look_at_s = None  # an answer pumps
            elif now_s < may_at_s:  # else what waits, waits for room, and an answer pumps
                look_at_s = max(look_at_s or 0.0, may_at_s)
        door.set_timer(
            None if look_at_s is None else self._loop.call_at(look_at_s, self._pump, door)
        )

    def _go(self, door: _Door, calls: list[Call], batch_url: str | None, now_s: float) -> None:
        """Send the calls, in one request if there are several; they are answered one by one."""
        if self._expiries:
            for call in calls:
                self._drop_expiry(call)
        if door.is_prepare:
            ends = [call.end_s for call in calls]
            until_s = max(ends)
            if now_s >= min(ends):
                late = [call for call in calls if now_s >= call.end_s]
                calls = [call for call in calls if now_s < call.end_s]
                self._loop.call_soon(self._came_too_late, door, late)
                if not calls:
                    return
            if until_s > now_s + _TRY_S and all(call.repeatable for call in calls):
                until_s = now_s + _TRY_S
        else:
            until_s = now_s + self._timeout_s
            for call in calls:
                call.end_s = until_s
        for call in calls:
            call.sent_s = now_s
        door.requests += 1
        door.last_sent_s = now_s
        told = functools.partial(self._answered, door, calls)
        if batch_url is None or len(calls) == 1:
            self._courier.carry(calls[0], until_s, told)
        else:
            self._courier.carry_batch(batch_url, calls, until_s, told)

    def _answered(self, door: _Door, calls: list[Call], delivery: Delivery) -> None:
        participant, now_s = door.participant, self._loop.time()
        if delivery.heard or (delivery.answered and participant not in self.declarations):
            self.declarations.heard(participant, delivery.declaration)
        if delivery.refused_batch:
            self.declarations.refused_batch(participant, now_s)
            calls, delivery = self._put_back(door, calls, delivery, now_s)
        elif delivery.gave_up and door.is_prepare:
            calls, delivery = self._put_back(door, calls, delivery, now_s)
        if calls:
            door.lane.finished(delivery.impressions, now_s)
            self._tell(calls, delivery.answers)
        door.requests -= 1
        if not door.lane:
            if not door.requests:
                self._look_again(door, now_s, None)
        elif self._batch_url(door, now_s) is not None:
            door.pump_soon(self._loop, self._pump)
        elif self._open:
            self._send(door, None, now_s)

    def _put_back(
        self, door: _Door, calls: list[Call], delivery: Delivery, now_s: float
    ) -> tuple[list[Call], Delivery]:
        """What may go again, and has time, waits again; the others have failed, all alike."""
        failure = delivery.answers[0]
        assert isinstance(failure, Failed)
        again, failed = [], []
        for call in calls:
            if call.repeatable and (now_s < call.end_s or not door.is_prepare):
                call.perhaps_arrived |= failure.arrived
                again.append(call)
            else:
                failed.append(call)
        door.lane.put_back(again)
        impressions = [delivery.impressions[0]] * len(failed)
        return failed, delivery._replace(answers=[failure] * len(failed), impressions=impressions)

    def _came_too_late(self, door: _Door, calls: list[Call]) -> None:
        late = _too_late(len(calls))
        door.lane.finished(late.impressions, self._loop.time())
        self._tell(calls, late.answers)
        self._pump(door)

    def _batch_url(self, door: _Door, now_s: float) -> str | None:
        """Where the participant takes many messages at once; None if it does not, or not these."""
        return self.declarations.batch_url(door.participant, now_s) if door.shares else None

    def _tell(self, calls: Sequence[Call], answers: Sequence[Answer]) -> None:
        """What became of each. A callback that raises must not keep the others from theirs."""
        sent_s = calls[0].sent_s
        seconds = 0.0 if sent_s is None else self._loop.time() - sent_s
        try:
            self.on_answers(calls, answers, seconds)
        except Exception:
            _log.exception("answers of %s could not be counted", calls[0].participant)
        for call, answer in zip(calls, answers, strict=True):
            try:
                call.done(_of_all_tries(answer) if call.perhaps_arrived else answer)
            except Exception:
                _log.exception("the answer for %s could not be used", call.transaction_id)

    def _expire(self, door: _Door, call: Call) -> None:
        """A prepare's deadline passed while it waited."""
        if self._take_back(door, call):
            self._tell((call,), _too_late(1).answers)
            self._pump(door)

    def _take_back(self, door: _Door, call: Call) -> bool:
        self._drop_expiry(call)
        return door.lane.withdraw(call)

    def _drop_expiry(self, call: Call) -> None:
        timer = self._expiries.pop(call, None)
        if timer is not None:
            timer.cancel()


_Key: TypeAlias = tuple[str, bool, bool]
"""Of a lane: the participant, whether it is for prepares, and whether its calls may share."""


@dataclass(slots=True, eq=False)
class _Door:
    """A lane with its place among the others, and the timer that will look at it again."""

    participant: str
    is_prepare: bool
    shares: bool
    lane: Lane[Call]
    timer: asyncio.TimerHandle | None = field(default=None)
    requests: int = 0  # under way
    last_sent_s: float = 0.0
    gathering: bool = False

    @property
    def key(self) -> _Key:
        return self.participant, self.is_prepare, self.shares

    def gather(self, loop: asyncio.AbstractEventLoop, pump: Callable[[_Door], None]) -> None:
        """A call has come: pump soon, or when the request that is under way takes too long."""
        if not self.requests:
            self.pump_soon(loop, pump)
        elif self.timer is None:
            self.timer = loop.call_at(self.last_sent_s + _BATCH_PATIENCE_S, pump, self)

    def pump_soon(self, loop: asyncio.AbstractEventLoop, pump: Callable[[_Door], None]) -> None:
        """Pump when this turn of the loop is over: what else it brings goes in the same request."""
        if not self.gathering:
            self.gathering = True
            loop.call_soon(pump, self)

    def may_send(self, now_s: float, patience_s: float) -> bool:
        may_at_s = self.may_send_at(patience_s)
        return may_at_s is not None and now_s >= may_at_s

    def may_send_at(self, patience_s: float) -> float | None:
        """One is under way at a time, and the next gathers meanwhile; one that takes long does not
        hold up the others. None: when an answer has come."""
        if self.requests == 0:
            return 0.0
        return self.last_sent_s + patience_s if self.requests < _MOST_BESIDE else None

    def set_timer(self, timer: asyncio.TimerHandle | None) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = timer


def _take_batch(lane: Lane[Call], now_s: float) -> list[Call]:
    """Those that share the next request; the first of them, at least, whatever its size."""
    calls = lane.take_all(now_s, _BATCH_CALLS)
    sizes = [len(call.body) for call in calls]
    if sum(sizes) > _BATCH_BYTES:
        within = bisect.bisect_right(list(itertools.accumulate(sizes)), _BATCH_BYTES)
        count = max(1, within)
        lane.put_back(calls[count:])
        calls = calls[:count]
    return calls


def _of_all_tries(answer: Answer) -> Answer:
    """What a call has become that may have arrived before its last try."""
    if isinstance(answer, Failed) and not answer.arrived:
        return replace(answer, arrived=True, broken=True)
    return answer


def _too_late(count: int) -> Delivery:
    """Nothing was sent, so nothing was learnt; a prepare's lane does not ask anyway."""
    waited = Failed("its deadline passed before it could be sent", arrived=False)
    return Delivery((waited,) * count, (Impression.REFUSED,) * count)
