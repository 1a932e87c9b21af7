"""coordinator/driver.py over a log in memory and a gateway that the test plays."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import weakref
from collections.abc import Iterable
from random import Random

import pytest

from coordinator.admission import IN_TURN_LEAST, Queued, WayIn
from coordinator.capacity import Capacity
from coordinator.commands import (
    Acknowledge,
    Begin,
    Command,
    Decide,
    Epoch,
    Forget,
    Refuse,
    Resolve,
    decode,
    encode,
)
from coordinator.conversation import Action, Conversation
from coordinator.courier import Answer
from coordinator.driver import REFUSES_PER_S, TAKE_UP_AT_ONCE
from coordinator.errors import (
    AtCapacity,
    Conflict,
    CoordinatorError,
    Draining,
    Expired,
    NotAllowed,
    UnknownTransaction,
)
from coordinator.facts import Effect, Mode, Outcome, Transaction
from coordinator.gateway import Call
from coordinator.log import FateUnknown, LogError, NotLeader, Overloaded
from coordinator.plan import Wait
from coordinator.settings import Limits
from participants.contract import PLAIN, Acknowledged, Decision, Failed, Operation, Vote, Voted
from tests.builders import BEGAN_MS, begin, branch, plan, uuid7
from tests.driver_rig import SDK, Rig, down, play, silence, yes_to_all
from tests.skipped_time import CLOCK_STARTS_S

PREPARE, COMMIT, ROLLBACK = Operation.PREPARE, Operation.COMMIT, Operation.ROLLBACK
NOW_MS = int(CLOCK_STARTS_S * 1000)
DAY_MS = 86_400_000


def votes_only(call: Call) -> Answer | None:
    return Voted(Vote.YES) if call.operation is PREPARE else None


def second_says_no(call: Call) -> Answer:
    if call.operation is not PREPARE:
        return Acknowledged()
    return Voted(Vote.NO, "sold out") if call.branch_id == "2" else Voted(Vote.YES)


def kinds(rig: Rig) -> list[str]:
    return [type(decode(command)).__name__ for command in rig.log.applied]


# --- a transaction --------------------------------------------------------------------------------


def test_prepares_leave_together_while_begin_is_under_way_if_all_can_inquire() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.log.held = True
        rig.driver.submit(plan(of=3), Wait.DECISION)
        await rig.settle()
        assert rig.gateway.sent(PREPARE) == ["1", "2", "3"]
        assert kinds(rig) == ["Epoch"], "Begin is not applied"
        rig.log.release()
        assert rig.gateway.sent(PREPARE) == ["1", "2", "3"]

    play(scene)


def test_with_a_plain_participant_no_prepare_leaves_before_begin_is_applied() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.gateway.declared = {"http://participant-2": PLAIN}
        rig.log.held = True
        rig.driver.submit(plan(of=3), Wait.DECISION)
        await rig.settle()
        assert rig.gateway.calls == []
        rig.log.release()
        assert rig.gateway.sent(PREPARE) == ["1", "2", "3"]

    play(scene)


def test_a_call_says_whether_it_may_go_twice_and_whether_it_may_share_a_request() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.declared = {"http://participant-2": PLAIN}
        asked = plan(of=3)
        own_urls = asked.branches[2]._replace(url=None)
        rig.gateway.declared[own_urls.prepare_url] = SDK
        asked = asked._replace(branches=(*asked.branches[:2], own_urls))
        await rig.driver.submit(asked, Wait.COMPLETION)
        said = {(c.operation, c.branch_id): (c.repeatable, c.shares) for c in rig.gateway.calls}
        assert said == {
            (PREPARE, "1"): (True, True),
            (PREPARE, "2"): (False, True),
            (PREPARE, "3"): (True, False),
            (COMMIT, "1"): (True, True),
            (COMMIT, "2"): (True, True),
            (COMMIT, "3"): (True, False),
        }

    play(scene)


@pytest.mark.parametrize("plain", [False, True])
def test_every_call_carries_the_trace_that_the_client_began(plain: bool) -> None:
    async def scene(rig: Rig) -> None:
        asked = plan()._replace(traceparent="00-1-2-01")
        await rig.driver.submit(asked, Wait.COMPLETION)
        assert [call.traceparent for call in rig.gateway.calls] == ["00-1-2-01"] * 4

    play(scene, plain=plain)


def test_votes_that_come_before_begin_is_applied_decide_after_it() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        wait = rig.driver.submit(plan(of=3), Wait.DECISION)
        await rig.settle()
        assert not wait.done(), "all have voted, and nothing is durable yet"
        assert rig.gateway.sent(COMMIT) == []
        rig.log.release()
        assert (await wait).outcome is Outcome.COMMIT
        assert kinds(rig)[:3] == ["Epoch", "Begin", "Decide"]

    play(scene)


@pytest.mark.parametrize("plain", [False, True])
def test_a_participant_that_refuses_connections_ends_the_transaction_at_once(plain: bool) -> None:
    """Also where its prepare leaves with `Begin`: it is the only one that anybody ever sent."""

    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: down() if call.branch_id == "2" else yes_to_all(call)
        wait = rig.driver.submit(plan(), Wait.COMPLETION)
        assert (await wait).votes == (Vote.YES, Vote.UNSENT)
        assert asyncio.get_running_loop().time() < CLOCK_STARTS_S + 1
        assert rig.gateway.sent(ROLLBACK) == ["1"], "nothing was ever prepared at the other"

    play(scene, plain=plain)


def test_a_node_that_is_paused_while_it_begins_still_ends_what_it_began() -> None:
    """The deadline is over before the first prepare, and the decision must not come before the
    `Begin`: it would be refused, and the transaction be undecided for ever."""

    async def scene(rig: Rig) -> None:
        loop = asyncio.get_running_loop()

        def pauses(participants: Iterable[str]) -> tuple[bool, ...]:
            before = loop.time
            loop.time = lambda: before() + 11  # type: ignore[method-assign]
            return tuple(True for _ in participants)

        rig.gateway.repeatable = pauses  # type: ignore[method-assign]
        transaction = await rig.driver.submit(plan(), Wait.DECISION)
        assert transaction.reason == (
            "timed out after 10000 ms without the vote of service-1, service-2"
        )
        await rig.settle()
        assert kinds(rig) == ["Epoch", "Begin", "Decide"]
        assert rig.driver.live_count == 0

    play(scene)


def test_a_log_that_is_too_busy_for_begin_sends_no_prepare() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.too_busy_for = 1
        with pytest.raises(Overloaded):
            await rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        assert rig.gateway.calls == []
        assert rig.driver.live_count == 0

    play(scene)


def test_a_transaction_commits_and_every_participant_hears_it() -> None:
    async def scene(rig: Rig) -> None:
        transaction = await rig.driver.submit(plan(of=3), Wait.COMPLETION)
        assert transaction.outcome is Outcome.COMMIT
        assert rig.gateway.sent(COMMIT) == ["1", "2", "3"]
        assert rig.gateway.sent(ROLLBACK) == []
        assert kinds(rig) == ["Epoch", "Begin", "Decide", "Acknowledge"]
        assert rig.driver.live_count == 0

    play(scene)


def test_a_prepare_carries_all_that_the_contract_asks_for() -> None:
    async def scene(rig: Rig) -> None:
        await rig.driver.submit(plan(of=1), Wait.DECISION)
        prepare = rig.gateway.calls[0]
        assert prepare.body == (
            b'{"transaction_id":"t","branch_id":"1","payload":{"quantity":1},"fingerprint":"f1",'
            b'"expires_at":"1970-01-01T00:16:50.000Z","coordinators":["http://n1"]}'
        )
        assert prepare.url == "http://participant-1/prepare"
        assert prepare.end_s == CLOCK_STARTS_S + 10
        commit = rig.gateway.calls[1]
        assert (commit.url, commit.body) == (
            "http://participant-1/commit",
            b'{"transaction_id":"t","branch_id":"1"}',
        )

    play(scene)


def test_the_first_no_decides_and_whoever_has_not_answered_is_not_waited_for() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: second_says_no(call) if call.branch_id == "2" else None
        transaction = await rig.driver.submit(plan(of=3), Wait.DECISION)
        assert (transaction.outcome, transaction.reason) == (
            Outcome.ABORT,
            "service-2 voted no: sold out",
        )
        assert asyncio.get_running_loop().time() < CLOCK_STARTS_S + 0.1
        assert rig.gateway.sent(ROLLBACK) == ["1", "3"]

    play(scene)


def test_the_client_is_answered_as_early_as_it_asked_for_and_no_earlier() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.log.held = True
        waits = [rig.driver.submit(plan(), wait) for wait in Wait]
        await rig.settle()
        assert [w.done() for w in waits] == [False, False, False], "Begin is not applied"
        rig.log.release()
        assert [w.done() for w in waits] == [True, False, False]
        rig.log.held = True
        rig.gateway.answer_all()
        await rig.settle()
        assert [w.done() for w in waits] == [True, False, False], "the decision is not applied"
        rig.log.release()
        assert [w.done() for w in waits] == [True, True, False]
        rig.gateway.answer_all()
        await rig.settle()
        assert [w.done() for w in waits] == [True, True, True]
        later = [await rig.driver.submit(plan(), wait) for wait in Wait]
        assert later == [rig.record()] * 3

    play(scene)


def test_a_participant_that_never_answers_is_waited_for_until_the_deadline() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: None if call.branch_id == "2" else yes_to_all(call)
        transaction = await rig.driver.submit(plan(), Wait.DECISION)
        assert transaction.reason == "timed out after 10000 ms without the vote of service-2"
        assert asyncio.get_running_loop().time() == pytest.approx(CLOCK_STARTS_S + 10)

    play(scene)


def test_a_commit_is_repeated_until_the_participant_is_back() -> None:
    async def scene(rig: Rig) -> None:
        back_s = CLOCK_STARTS_S + 60

        def away(call: Call) -> Answer | None:
            is_back = asyncio.get_running_loop().time() >= back_s
            away = call.operation is COMMIT and call.branch_id == "2" and not is_back
            return down() if away else yes_to_all(call)

        rig.gateway.script = away
        await rig.driver.submit(plan(), Wait.COMPLETION)
        assert back_s <= asyncio.get_running_loop().time() <= back_s + 2.5
        tries = len(rig.gateway.sent(COMMIT))
        assert 30 < tries < 200
        assert kinds(rig).count("Acknowledge") == 2

    play(scene)


def test_an_early_rollback_of_a_plain_branch_is_sent_again_after_the_grace() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: (
            None if (call.operation, call.branch_id) == (PREPARE, "1") else second_says_no(call)
        )
        transaction = await rig.driver.submit(plan(), Wait.COMPLETION)
        assert transaction.votes == (Vote.UNKNOWN, Vote.NO)
        assert rig.gateway.sent(ROLLBACK) == ["1", "1"]
        assert asyncio.get_running_loop().time() == pytest.approx(CLOCK_STARTS_S + 15)

    play(scene, plain=True)


def test_a_rollback_sent_before_the_grace_is_over_does_not_count_when_it_is_answered_after_it() -> (
    None
):
    async def scene(rig: Rig) -> None:
        loop = asyncio.get_running_loop()

        def slow(call: Call) -> Answer | None:
            if call.branch_id == "2":
                return second_says_no(call)
            if call.operation is ROLLBACK:
                pause_s = 20 if loop.time() < CLOCK_STARTS_S + 15 else 0
                loop.call_later(pause_s, rig.gateway.answer, call, Acknowledged())
            return None

        rig.gateway.script = slow
        await rig.driver.submit(plan(), Wait.COMPLETION)
        assert rig.gateway.sent(ROLLBACK) == ["1", "1"]
        assert rig.gateway.calls[-1].sent_s == pytest.approx(CLOCK_STARTS_S + 20)

    play(scene, plain=True)


def test_a_prepare_still_in_its_queue_at_the_decision_never_leaves_and_leaves_nothing_to_do() -> (
    None
):
    async def scene(rig: Rig) -> None:
        rig.gateway.queueing = True
        waits = rig.driver.submit(plan(), Wait.COMPLETION)
        await rig.settle()
        rig.gateway.queueing = False
        one, two = rig.gateway.queued
        rig.gateway.queued.remove(two)
        two.done(Voted(Vote.NO, "sold out"))
        assert (await waits).outcome is Outcome.ABORT
        assert rig.gateway.queued == []
        assert one.sent_s is None
        assert asyncio.get_running_loop().time() < CLOCK_STARTS_S + 1, "no grace to be waited for"

    play(scene, plain=True)


def test_a_prepare_that_perhaps_arrived_is_not_done_with_because_it_was_withdrawn() -> None:
    """It waited for another try. What its first one began is to be rolled back."""

    async def scene(rig: Rig) -> None:
        rig.gateway.queueing = True
        wait = rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        rig.gateway.queueing = False
        rig.gateway.script = silence
        one, two = rig.gateway.queued
        one.perhaps_arrived = True
        rig.gateway.queued.remove(two)
        two.done(Voted(Vote.NO, "sold out"))
        assert (await wait).outcome is Outcome.ABORT
        await asyncio.sleep(1)
        assert rig.gateway.queued == []
        assert rig.gateway.sent(ROLLBACK) == ["1"]
        assert rig.record().finished_ms is None, "the rollback is not answered"

    play(scene, plain=True)


def test_what_is_known_of_a_participant_is_recorded_at_begin() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.declared = {"http://participant-2": SDK}
        await rig.driver.submit(plan(), Wait.NONE)
        assert [b.repeatable for b in rig.record().branches] == [False, True]

    play(scene, plain=True)


def test_the_driver_tells_how_far_each_branch_is() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: None if call.branch_id == "2" else votes_only(call)
        rig.gateway.everybody_is = PLAIN
        assert rig.driver.progress("t") is None
        rig.driver.submit(plan(), Wait.NONE)
        assert rig.driver.progress("t") is None
        await rig.settle()
        progress = rig.driver.progress("t")
        assert progress is not None
        assert [(p.vote, p.attempts) for p in progress] == [(Vote.YES, 1), (None, 1)]

    play(scene)


def test_a_thousand_transactions_at_once_all_end_and_leave_nothing_behind() -> None:
    async def scene(rig: Rig) -> None:
        random = Random(5)

        def sometimes_no(call: Call) -> Answer | None:
            if call.operation is PREPARE and random.random() < 0.1:
                return Voted(Vote.NO, "no luck")
            return down() if random.random() < 0.1 else yes_to_all(call)

        rig.gateway.script = sometimes_no
        waits = [rig.driver.submit(plan(f"t{n}", of=3), Wait.COMPLETION) for n in range(1_000)]
        ended = await asyncio.gather(*waits)
        assert len({t.id for t in ended}) == 1_000
        assert {t.outcome for t in ended} == {Outcome.COMMIT, Outcome.ABORT}
        assert rig.driver.live_count == 0
        assert rig.machine.backlog() == {}
        assert (rig.machine.payloads().bytes, rig.machine.payloads().bytes_for) == (0, {})
        assert not rig.driver._capacity._beginning
        await asyncio.sleep(0.1)  # the bell that is set for what was brought forward rings
        loop = asyncio.get_running_loop()
        assert not [t for t in loop._scheduled if not t.cancelled()]  # type: ignore[attr-defined]

    play(scene)


# --- the same id ----------------------------------------------------------------------------------


def test_the_same_id_joins_the_transaction_at_every_stage_of_it() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.log.held = True
        waits = [rig.driver.submit(plan(), Wait.COMPLETION)]
        for step in (rig.log.release, rig.gateway.answer_all, rig.gateway.answer_all):
            waits.append(rig.driver.submit(plan(timeout_ms=500), Wait.COMPLETION))
            step()
            await rig.settle()
        waits.append(rig.driver.submit(plan(), Wait.COMPLETION))
        assert set(await asyncio.gather(*waits)) == {rig.record()}
        assert kinds(rig).count("Begin") == 1
        assert rig.gateway.sent(PREPARE) == ["1", "2"]

    play(scene)


def test_the_same_id_with_other_content_is_a_conflict_at_every_stage() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.log.held = True
        rig.driver.submit(plan(), Wait.NONE)
        rig.log.release()
        await rig.settle()
        for step in (rig.gateway.answer_all, rig.gateway.answer_all, list):
            with pytest.raises(Conflict) as conflict:
                await rig.driver.submit(plan(fingerprint="f2"), Wait.DECISION)
            assert conflict.value.details == {"id": "t"}
            step()
            await rig.settle()
        assert rig.record().finished_ms is not None
        assert kinds(rig).count("Begin") == 1

    play(scene)


def test_while_a_begin_is_under_way_nobody_is_told_that_the_id_stands_for_it() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        rig.driver.submit(plan(), Wait.NONE)
        other = rig.driver.submit(plan(fingerprint="f2"), Wait.DECISION)
        gone = rig.driver.submit(plan(fingerprint="f3"), Wait.DECISION)
        await rig.settle()
        assert not other.done()
        gone.cancel()
        rig.log.release()
        with pytest.raises(Conflict):
            await other
        assert kinds(rig).count("Begin") == 1

    play(scene)


def test_what_another_node_began_is_no_conflict_with_a_begin_that_is_lost() -> None:
    """1. Another node leads and begins "t" with content f2; nobody hears of it yet.
    2. This one believes that it leads still, and is asked for "t" with other content, and by who
       waits for f2 and asks every node.
    3. It finds out that it leads no more, and its `Begin` is lost: who asked for f2 must ask on.
    """

    async def scene(rig: Rig) -> None:
        rig.log.held = True
        lost = rig.driver.submit(plan(), Wait.DECISION)
        asks_on = rig.driver.submit(plan(fingerprint="f2"), Wait.DECISION)
        await rig.settle()
        rig.log.stop_leading()
        with pytest.raises(FateUnknown):
            await lost
        with pytest.raises(NotLeader):
            await asks_on

    play(scene)


def test_content_whose_id_another_begin_wanted_in_vain_is_begun() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.too_busy_for = 1
        lost = rig.driver.submit(plan(), Wait.DECISION)
        begun = rig.driver.submit(plan(fingerprint="f2"), Wait.DECISION)
        with pytest.raises(Overloaded):
            await lost
        assert (await begun).fingerprint == "f2"

    play(scene)


def test_an_expired_id_is_refused_and_nothing_is_written() -> None:
    async def scene(rig: Rig) -> None:
        old = uuid7(NOW_MS - 5_000, Random(1))
        await rig.driver.submit(plan(old), Wait.COMPLETION)
        rig.log.propose(encode(Forget(1, NOW_MS, NOW_MS + 1_000)), 1, lambda _result: None)
        await rig.settle()
        written = len(rig.log.applied)
        with pytest.raises(Expired):
            await rig.driver.submit(plan(old), Wait.DECISION)
        assert len(rig.log.applied) == written
        assert rig.driver.live_count == 0

    play(scene)


def test_an_id_that_expires_while_its_begin_is_under_way_is_refused() -> None:
    async def scene(rig: Rig) -> None:
        old = uuid7(NOW_MS - 5_000, Random(1))
        rig.log.held = True
        rig.log.propose(encode(Forget(1, NOW_MS, NOW_MS)), 1, lambda _result: None)
        wait = rig.driver.submit(plan(old), Wait.NONE)
        rig.log.release()
        with pytest.raises(Expired):
            await wait
        assert rig.driver.live_count == 0

    play(scene)


# --- limits ---------------------------------------------------------------------------------------


def test_at_capacity_new_ids_are_refused_and_known_ones_are_not() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        for number in range(3):
            rig.driver.submit(plan(f"t{number}"), Wait.NONE)
        with pytest.raises(AtCapacity):
            await rig.driver.submit(plan("one too many"), Wait.NONE)
        await rig.settle()
        with pytest.raises(AtCapacity):
            await rig.driver.submit(plan("one too many"), Wait.NONE)
        again = rig.driver.submit(plan("t0"), Wait.DECISION)
        for _ in range(2):
            rig.gateway.answer_all()
            await rig.settle()
        assert (await again).outcome is Outcome.COMMIT
        await rig.driver.submit(plan("now there is room"), Wait.NONE)

    play(scene, limits=Limits(unfinished=3))


def test_a_participant_at_its_limit_refuses_only_its_own() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        for number in range(2):
            rig.driver.submit(plan(f"t{number}", of=(branch(1), branch(2))), Wait.NONE)
            if number == 0:
                await rig.settle()  # one applied, one still to be applied: both count
        with pytest.raises(AtCapacity) as refused:
            await rig.driver.submit(plan("u", of=(branch(3), branch(2))), Wait.NONE)
        assert refused.value.details == {"participant": "http://participant-2"}
        assert (await rig.driver.submit(plan("v", of=(branch(3),)), Wait.NONE)).id == "v"

    play(scene, limits=Limits(unfinished_per_participant=2))


def test_large_payloads_take_room_until_they_are_decided() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        large = plan("t1")._replace(payloads=(b'"%s"' % (b"x" * 5_000), b"1"))
        await rig.driver.submit(large, Wait.NONE)
        with pytest.raises(AtCapacity, match="5002 bytes are undecided at http://participant-1"):
            await rig.driver.submit(plan("t2"), Wait.NONE)
        other = plan("t3", of=(branch(3),))
        assert (await rig.driver.submit(other, Wait.NONE)).id == "t3"
        rig.gateway.answer_all()
        await rig.settle()
        assert rig.machine.unfinished_count == 2, "decided, not finished"
        assert (await rig.driver.submit(plan("t2"), Wait.NONE)).id == "t2"

    play(scene, limits=Limits(body_bytes=1_000, undecided_bytes=25_000))


def test_a_begin_that_was_lost_gives_its_room_back() -> None:
    async def scene(rig: Rig) -> None:
        for _ in range(5):
            rig.log.too_busy_for = 1
            with pytest.raises(Overloaded):
                await rig.driver.submit(plan(of=1), Wait.NONE)
            rig.log.held = True
            lost = rig.driver.submit(plan(of=1), Wait.NONE)
            await rig.settle()
            rig.fail_over()
            with pytest.raises(FateUnknown):
                await lost
            rig.log.held = False
        assert (await rig.driver.submit(plan(of=1), Wait.COMPLETION)).outcome is Outcome.COMMIT

    play(scene, limits=Limits(unfinished_per_participant=1, unfinished=1))


def test_who_stands_in_line_is_told_of_room_when_what_they_began_is_applied() -> None:
    async def scene(rig: Rig) -> None:
        admission, line = rig.driver._admission, rig.driver.line
        now_s = asyncio.get_running_loop().time()
        assert rig.driver.way_in("alone", "10.0.0.1") is WayIn.AT_ONCE
        rig.driver.submit(plan("alone")._replace(address="10.0.0.1"), Wait.NONE)
        for number in range(IN_TURN_LEAST):
            rig.driver.submit(plan(f"t{number}"), Wait.NONE)
        told = asyncio.Event()
        line.wait(Queued("10.0.0.1", 1, 1, told.set), now_s)
        assert not told.is_set()
        assert rig.driver.figures().waiting_for_room == 1
        await told.wait()
        await rig.settle()
        assert rig.driver.figures().waiting_for_room == 0
        assert (admission.waiting, admission._waiting_in_turn, admission._waiting_of) == (0, 0, {})

    play(scene)


def test_what_nobody_foresaw_is_told_to_whoever_asked_and_to_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A transaction that waited for room begins when another one has begun, in its callback."""

    def checked(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    async def scene(rig: Rig) -> None:
        first = rig.driver.submit(plan("first"), Wait.DECISION)
        second = plan("second")._replace(address="10.0.0.1")
        waiting = rig.driver.submit_in_order(second, Wait.DECISION, 100)
        monkeypatch.setattr(Capacity, "check", checked)
        assert (await first).outcome is Outcome.COMMIT
        with pytest.raises(ZeroDivisionError):
            await waiting

    play(scene)


def test_what_a_new_leadership_has_not_taken_up_yet_takes_room_too() -> None:
    count = TAKE_UP_AT_ONCE + 5

    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        for number in range(count):
            rig.driver.submit(plan(f"t{number}", of=1), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.fail_over()
        assert rig.driver.live_count == TAKE_UP_AT_ONCE
        with pytest.raises(AtCapacity):
            await rig.driver.submit(plan("one too many"), Wait.NONE)

    play(scene, limits=Limits(unfinished=count))


def test_a_draining_driver_begins_nothing_new_and_finishes_what_it_has() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        wait = rig.driver.submit(plan(), Wait.COMPLETION)
        rig.driver.drain()
        with pytest.raises(Draining):
            await rig.driver.submit(plan("new"), Wait.NONE)
        await rig.settle()
        joined = rig.driver.submit(plan(), Wait.DECISION)
        for _ in range(2):
            rig.gateway.answer_all()
            await rig.settle()
        assert (await wait).outcome is (await joined).outcome is Outcome.COMMIT
        assert rig.driver.live_count == 0

    play(scene)


# --- leadership -----------------------------------------------------------------------------------


def test_with_leadership_gone_those_who_wait_are_told_that_the_end_is_unknown() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        waits = [rig.driver.submit(plan(), wait) for wait in (Wait.DECISION, Wait.COMPLETION)]
        await rig.settle()
        waits.append(rig.driver.wait_for("t", Wait.COMPLETION))
        waits.append(rig.driver.submit(plan("not even begun"), Wait.NONE))
        rig.log.stop_leading()
        for wait in waits:
            with pytest.raises(FateUnknown):
                await wait
        with pytest.raises(NotLeader):
            await rig.driver.submit(plan(), Wait.NONE)
        assert rig.driver.live_count == 0

    play(scene)


def test_with_leadership_gone_queued_calls_are_withdrawn_and_late_answers_do_nothing() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan("sent"), Wait.NONE)
        await rig.settle()
        rig.gateway.queueing = True
        rig.driver.submit(plan("queued"), Wait.NONE)
        await rig.settle()
        assert len(rig.gateway.queued) == 2
        rig.log.stop_leading()
        assert rig.gateway.queued == []
        written = len(rig.log.applied)
        rig.gateway.answer_all()
        await asyncio.sleep(60)
        assert len(rig.log.applied) == written
        assert len(rig.gateway.calls) == 4

    play(scene)


def test_late_answers_to_the_deposed_leadership_do_nothing_in_the_next_one_either() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        await rig.settle()
        before, rig.gateway.under_way = rig.gateway.under_way, []
        rig.fail_over()
        await rig.settle()
        assert rig.gateway.sent(PREPARE) == ["1", "2", "1", "2"]
        for call in before:
            call.done(Voted(Vote.YES))
        await rig.settle()
        assert rig.record().outcome is None, "those were answers to another leadership"
        rig.gateway.answer_all()
        await rig.settle()
        assert rig.record().outcome is Outcome.COMMIT

    play(scene)


def test_a_new_leadership_asks_sdk_branches_again_and_whoever_joins_learns_the_outcome() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.gateway.script = yes_to_all
        rig.fail_over()
        transaction = await rig.driver.submit(plan(), Wait.COMPLETION)
        assert transaction.outcome is Outcome.COMMIT
        assert kinds(rig) == ["Epoch", "Begin", "Epoch", "Decide", "Acknowledge"]

    play(scene)


def test_a_new_leadership_waits_no_longer_than_the_first_one_would_have() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        await asyncio.sleep(6)
        rig.gateway.under_way = []
        rig.fail_over()
        transaction = await rig.driver.submit(plan(), Wait.DECISION)
        assert transaction.outcome is Outcome.ABORT
        assert asyncio.get_running_loop().time() == pytest.approx(CLOCK_STARTS_S + 10, abs=0.01)

    play(scene)


@pytest.mark.parametrize(("before_ms", "after_ms"), [(DAY_MS, 0), (0, -DAY_MS)])
def test_a_new_leadership_waits_no_longer_than_the_timeout_whichever_clock_was_wrong(
    before_ms: int, after_ms: int
) -> None:
    """Else a service that hangs would keep the others' locks for a day."""

    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.ahead_ms = before_ms
        rig.driver.submit(plan(), Wait.NONE)
        await asyncio.sleep(6)
        rig.gateway.under_way = []
        rig.ahead_ms = after_ms
        rig.fail_over()
        transaction = await rig.driver.submit(plan(), Wait.DECISION)
        assert transaction.outcome is Outcome.ABORT
        assert asyncio.get_running_loop().time() == pytest.approx(CLOCK_STARTS_S + 16, abs=0.01)

    play(scene)


def test_a_plain_branch_is_rolled_back_after_the_time_that_its_prepare_named() -> None:
    """Though that is a day away, for the clock was wrong: until then it may still be prepared."""

    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.ahead_ms = DAY_MS
        rig.driver.submit(plan(), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.gateway.script = yes_to_all
        rig.ahead_ms = 0
        rig.fail_over()
        await rig.driver.submit(plan(), Wait.DECISION)
        assert asyncio.get_running_loop().time() < CLOCK_STARTS_S + 1
        await rig.driver.wait_for("t", Wait.COMPLETION)
        assert asyncio.get_running_loop().time() >= CLOCK_STARTS_S + DAY_MS / 1000 + 15

    play(scene, plain=True)


def test_a_new_leadership_aborts_what_a_plain_branch_may_have_been_asked() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.gateway.script = yes_to_all
        rig.fail_over()
        transaction = await rig.driver.submit(plan(), Wait.COMPLETION)
        assert transaction.outcome is Outcome.ABORT
        assert rig.gateway.sent(PREPARE) == ["1", "2"], "never a second one"
        assert asyncio.get_running_loop().time() >= CLOCK_STARTS_S + 15

    play(scene, plain=True)


@pytest.mark.parametrize("plain", [True, False])
def test_a_new_leadership_goes_on_with_phase_two(plain: bool) -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: (
            None if (call.operation, call.branch_id) == (COMMIT, "2") else yes_to_all(call)
        )
        rig.driver.submit(plan(), Wait.NONE)
        await asyncio.sleep(0.5)
        assert rig.record().acknowledged == 0b01
        rig.gateway.under_way = []
        rig.gateway.script = yes_to_all
        rig.fail_over()
        await rig.driver.wait_for("t", Wait.COMPLETION)
        assert rig.gateway.sent(COMMIT) == ["1", "2", "2"]
        assert rig.driver.live_count == 0

    play(scene, plain=plain)


def test_a_begin_that_was_lost_with_leadership_can_be_submitted_again() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        lost = rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        rig.fail_over()
        again = rig.driver.submit(plan(), Wait.COMPLETION)
        rig.log.release()
        with pytest.raises(FateUnknown):
            await lost
        assert (await again).outcome is Outcome.COMMIT
        assert kinds(rig).count("Begin") == 1

    play(scene)


def test_a_begin_that_is_applied_after_its_leadership_was_let_go_sends_nothing() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        rig.gateway.everybody_is = PLAIN
        wait = rig.driver.submit(plan(of=1), Wait.NONE)
        rig.driver.lead(rig.log.epoch)
        with pytest.raises(FateUnknown):
            await wait
        rig.log.release()
        await asyncio.sleep(60)
        assert rig.record().outcome is None
        assert rig.gateway.calls == []
        assert not rig.driver._capacity._beginning, "it holds no room at its participant"
        assert not rig.driver._admission.waiting, "nor among those that wait to begin"
        assert rig.driver.take_up_forgotten() == 1
        await rig.driver.wait_for("t", Wait.COMPLETION)

    play(scene)


@pytest.mark.parametrize("of", [1, 30])
def test_a_new_leadership_takes_up_many_transactions_without_holding_up_the_loop(of: int) -> None:
    async def scene(rig: Rig) -> None:
        at_once = TAKE_UP_AT_ONCE // of
        count = 2 * at_once + 10
        rig.gateway.script = silence
        for number in range(count):
            rig.driver.submit(plan(f"t{number}", of=of), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.gateway.script = yes_to_all
        rig.log.stop_leading()
        rig.log.lead()
        assert rig.driver.live_count == at_once
        last = rig.driver.submit(plan(f"t{count - 1}", of=of), Wait.COMPLETION)
        assert rig.driver.take_up_forgotten() == 0, "they are being taken up"
        await last
        await asyncio.sleep(1)
        assert rig.machine.unfinished_count == 0

    play(scene)


def test_of_open_transactions_without_branches_no_more_are_taken_up_at_once() -> None:
    async def scene(rig: Rig) -> None:
        epoch = rig.machine.epoch
        for number in range(2 * TAKE_UP_AT_ONCE):
            id_ = f"t{number}"
            rig.machine.step(begin(id_, of=0, mode=Mode.INTERACTIVE, epoch=epoch, now_ms=NOW_MS))
        rig.log.stop_leading()
        rig.log.lead()
        assert rig.driver.live_count == TAKE_UP_AT_ONCE
        await rig.settle()
        assert rig.driver.live_count == 2 * TAKE_UP_AT_ONCE

    play(scene)


def test_taking_up_goes_on_behind_what_has_ended_meanwhile() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        for number in range(2 * TAKE_UP_AT_ONCE):
            rig.driver.submit(plan(f"t{number}", of=1), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.log.stop_leading()
        epoch = rig.log.lead()
        by_hand = Resolve(epoch, BEGAN_MS, f"t{TAKE_UP_AT_ONCE}", None, None, "ada", "it hangs")
        acknowledged = Acknowledge(epoch, BEGAN_MS, f"t{TAKE_UP_AT_ONCE}", 1)
        for command in (by_hand, acknowledged):
            rig.machine.step(command)
        await rig.settle()
        assert rig.driver.live_count == 2 * TAKE_UP_AT_ONCE - 1

    play(scene)


def test_taking_up_stops_when_leadership_ends_in_the_middle_of_it() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        for number in range(TAKE_UP_AT_ONCE + 10):
            rig.driver.submit(plan(f"t{number}", of=1), Wait.NONE)
        await rig.settle()
        rig.gateway.under_way = []
        rig.log.stop_leading()
        rig.log.lead()
        rig.log.stop_leading()
        sent = len(rig.gateway.calls)
        await asyncio.sleep(1)
        assert len(rig.gateway.calls) == sent
        assert rig.driver.live_count == 0

    play(scene)


@pytest.mark.parametrize("seed", range(4))
def test_a_storm_of_failovers_leaves_every_transaction_with_one_outcome(seed: int) -> None:
    async def scene(rig: Rig) -> None:
        random, loop = Random(seed), asyncio.get_running_loop()
        told: dict[str, set[Outcome | None]] = {}

        def now_and_then(call: Call) -> Answer | None:
            answer: Answer = Failed("connection lost", broken=True)
            if random.random() < 0.8:
                answer = second_says_no(call) if random.random() < 0.1 else yes_to_all(call)
            loop.call_later(random.random() * 0.3, rig.gateway.answer, call, answer)
            return None

        async def client(number: int) -> None:
            while True:
                try:
                    transaction = await rig.driver.submit(plan(f"t{number}", of=3), Wait.DECISION)
                except (LogError, CoordinatorError):
                    await asyncio.sleep(random.random() * 0.2)
                else:
                    told.setdefault(transaction.id, set()).add(transaction.outcome)
                    if random.random() < 0.5:
                        return

        rig.gateway.script = now_and_then
        clients = [asyncio.create_task(client(number)) for number in range(40)]
        for _ in range(10):
            await asyncio.sleep(random.random() * 0.3)
            rig.log.stop_leading()
            rig.gateway.under_way = _Forgiving(rig.gateway.under_way)
            await asyncio.sleep(random.random() * 0.1)
            rig.gateway.under_way = _Forgiving()
            rig.log.lead()
        await asyncio.gather(*clients)
        await asyncio.sleep(30)
        assert rig.machine.unfinished_count == 0, seed
        assert rig.driver.live_count == 0
        for transaction_id, outcomes in told.items():
            assert outcomes == {rig.record(transaction_id).outcome}, seed

    play(scene)


class _Forgiving(list[Call]):
    """Calls under way; those of an earlier leadership are answered too, and are not in here."""

    def remove(self, call: Call) -> None:
        if call in self:
            super().remove(call)


# --- a log that takes nothing for a while ---------------------------------------------------------


def test_a_decision_and_acknowledgements_that_the_log_did_not_take_are_proposed_again() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        wait = rig.driver.submit(plan(), Wait.COMPLETION)
        for _ in range(2):
            await rig.settle()
            rig.log.too_busy_for = 5
            rig.gateway.answer_all()
            await asyncio.sleep(0.3)
        assert (await wait).outcome is Outcome.COMMIT
        assert kinds(rig) == ["Epoch", "Begin", "Decide", "Acknowledge"]

    play(scene)


def test_a_no_whose_decision_had_to_wait_is_still_told_as_the_reason() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        wait = rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        rig.log.too_busy_for = 3
        rig.gateway.answer_all(second_says_no)
        assert (await wait).reason == "service-2 voted no: sold out"

    play(scene)


def test_the_loop_does_not_turn_in_vain_while_a_decision_is_on_its_way() -> None:
    """A repeat of a prepare is due, but it is decided already: nothing is to be woken for."""

    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        wait = rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        rig.log.held = True
        one, two = rig.gateway.under_way
        rig.gateway.answer(one, Failed("connection lost", broken=True))
        rig.gateway.answer(two, Voted(Vote.NO, "sold out"))
        turns, began_s = itertools.count(), asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began_s + 1:
            assert next(turns) < 100
            await asyncio.sleep(0.05)
        assert rig.gateway.sent(PREPARE) == ["1", "2"]
        rig.log.release()
        assert (await wait).outcome is Outcome.ABORT

    play(scene)


# --- inquiry --------------------------------------------------------------------------------------


def test_an_unknown_id_is_refused_in_the_log_before_abort_is_answered() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        asked = asyncio.create_task(rig.driver.inquire("t", "1", "f1"))
        await rig.settle()
        assert not asked.done()
        rig.log.release()
        assert await asked is Decision.ABORT
        assert isinstance(decode(rig.log.applied[-1]), Refuse)
        refused = await rig.driver.submit(plan(), Wait.COMPLETION)
        assert refused.is_refusal
        assert rig.gateway.calls == [], "it does not run after all"
        assert await rig.driver.inquire("t", "1", "f1") is Decision.ABORT
        assert kinds(rig).count("Refuse") == 1

    play(scene)


def test_a_begin_that_loses_the_race_against_a_refuse_gives_the_abort() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        rig.gateway.everybody_is = PLAIN
        asked = asyncio.create_task(rig.driver.inquire("t", "1", "f1"))
        await rig.settle()
        wait = rig.driver.submit(plan(), Wait.DECISION)
        rig.log.release()
        assert await asked is Decision.ABORT
        assert (await wait).is_refusal
        assert kinds(rig) == ["Epoch", "Refuse", "Begin"]
        assert rig.gateway.calls == []
        assert rig.driver.live_count == 0

    play(scene)


def test_a_refuse_that_loses_the_race_is_answered_from_the_record() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        asked = asyncio.create_task(rig.driver.inquire("t", "1", "f1"))
        await rig.settle()
        rig.machine.step(begin(epoch=rig.machine.epoch, now_ms=NOW_MS))
        rig.log.release()
        assert await asked is Decision.PENDING

    play(scene)


def another_leads(rig: Rig) -> None:
    """What the log brings first is another node's epoch, of which this one has not heard yet."""
    rig.machine.step(Epoch(rig.machine.epoch + 1, NOW_MS, "n2"))
    rig.log.release()


def test_what_another_epoch_overtook_is_refused_and_never_answered_as_done() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.everybody_is = PLAIN
        await rig.driver.submit(plan("decided"), Wait.COMPLETION)
        rig.log.held = True
        asked = asyncio.create_task(rig.driver.inquire("stranger", "1", "f1"))
        by_hand = asyncio.create_task(resolve(rig, "decided", branch_id="1"))
        await rig.settle()
        begun = rig.driver.submit(plan("begun"), Wait.NONE)
        another_leads(rig)
        with pytest.raises(NotLeader):
            await asked
        with pytest.raises(FateUnknown):
            await by_hand
        with pytest.raises(NotLeader):
            await begun
        assert rig.driver.live_count == 0
        assert not [call for call in rig.gateway.calls if call.transaction_id == "begun"]

    play(scene)


def test_a_begin_that_finds_other_content_under_its_id_is_a_conflict() -> None:
    """Another epoch's, that was not applied yet when this one was proposed."""

    async def scene(rig: Rig) -> None:
        rig.gateway.everybody_is = PLAIN
        rig.log.held = True
        wait = rig.driver.submit(plan(), Wait.DECISION)
        rig.machine.step(begin(fingerprint="f2", epoch=rig.machine.epoch, now_ms=NOW_MS))
        rig.log.release()
        with pytest.raises(Conflict):
            await wait
        assert rig.gateway.calls == []
        assert rig.driver.live_count == 0

    play(scene)


def test_an_inquired_id_that_expires_while_its_refuse_is_under_way_is_aborted() -> None:
    async def scene(rig: Rig) -> None:
        old = uuid7(NOW_MS - 1, Random(1))
        rig.log.held = True
        asked = asyncio.create_task(rig.driver.inquire(old, "1", "f1"))
        await rig.settle()
        rig.machine.step(Forget(rig.machine.epoch, NOW_MS, NOW_MS))
        rig.log.release()
        assert await asked is Decision.ABORT
        assert rig.machine.get(old) is None

    play(scene)


def test_an_id_whose_begin_is_under_way_is_pending_and_is_not_refused() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.held = True
        wait = rig.driver.submit(plan(), Wait.COMPLETION)
        assert await rig.driver.inquire("t", "1", "f1") is Decision.PENDING
        rig.log.release()
        await wait
        assert "Refuse" not in kinds(rig)

    play(scene)


def test_an_inquiry_is_answered_from_the_record() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        await rig.settle()
        assert await rig.driver.inquire("t", "1", "f1") is Decision.PENDING
        rig.gateway.answer_all()
        await rig.settle()
        assert await rig.driver.inquire("t", "1", "f1") is Decision.COMMIT
        assert await rig.driver.inquire("t", "1", "f2") is Decision.ABORT
        rig.gateway.answer_all()
        await rig.settle()
        assert await rig.driver.inquire("t", "1", "f1") is Decision.ABORT, "a ghost"

    play(scene)


def test_an_inquiry_is_answered_from_what_is_recorded_once_it_is_current() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        await rig.settle()
        rig.gateway.answer_all()
        await rig.settle()
        asked = asyncio.create_task(rig.driver.inquire("t", "1", "f1"))
        await asyncio.sleep(0)  # it waits for the barrier
        rig.machine.step(Acknowledge(1, NOW_MS, "t", 0b1))
        assert await asked is Decision.ABORT

    play(scene)


def test_an_inquiry_about_an_expired_id_is_answered_and_nothing_is_written() -> None:
    async def scene(rig: Rig) -> None:
        rig.log.propose(encode(Forget(1, NOW_MS, NOW_MS)), 1, lambda _result: None)
        await rig.settle()
        old = uuid7(NOW_MS - 5, Random(1))
        assert await rig.driver.inquire(old, "1", "f1") is Decision.ABORT
        assert kinds(rig) == ["Epoch", "Forget"]

    play(scene)


def test_only_a_leader_answers_inquiries_and_not_when_it_is_deposed_on_the_way() -> None:
    async def scene(rig: Rig) -> None:
        await rig.driver.submit(plan(), Wait.COMPLETION)
        asked = asyncio.create_task(rig.driver.inquire("t", "1", "f1"))
        await asyncio.sleep(0)
        rig.log.stop_leading()
        with pytest.raises(LogError):
            await asked
        with pytest.raises(NotLeader):
            await rig.driver.inquire("t", "1", "f1")
        rig.log.lead()
        rig.log.held = True
        asked = asyncio.create_task(rig.driver.inquire("unknown", "1", "f1"))
        await rig.settle()
        rig.log.stop_leading()
        with pytest.raises(LogError):
            await asked

    play(scene)


def test_how_fast_refusals_are_written_is_limited() -> None:
    async def scene(rig: Rig) -> None:
        for number in range(REFUSES_PER_S):
            await rig.driver.inquire(f"u{number}", "1", "f1")
        with pytest.raises(AtCapacity):
            await rig.driver.inquire("one too many", "1", "f1")
        assert await rig.driver.inquire("u0", "1", "f1") is Decision.ABORT, "nothing to write"
        await asyncio.sleep(0.01)
        assert await rig.driver.inquire("one too many", "1", "f1") is Decision.ABORT

    play(scene)


# --- operators ------------------------------------------------------------------------------------


async def resolve(
    rig: Rig,
    transaction_id: str = "t",
    branch_id: str | None = None,
    effect: Effect | None = None,
) -> Transaction:
    return await rig.driver.resolve(
        transaction_id, branch_id=branch_id, effect=effect, actor="ann", reason="disk lost"
    )


def test_an_operator_may_abort_what_is_undecided_and_whoever_waits_is_told() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        wait = rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        assert (await resolve(rig)).outcome is Outcome.ABORT
        assert (await wait).reason == "aborted by ann: disk lost"
        assert rig.gateway.sent(ROLLBACK) == ["1", "2"]
        assert (await resolve(rig)).outcome is Outcome.ABORT, "asking again is safe"

    play(scene)


def test_an_operator_may_end_a_branch_that_will_never_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: (
            None if (call.operation, call.branch_id) == (COMMIT, "2") else yes_to_all(call)
        )
        wait = rig.driver.submit(plan(), Wait.COMPLETION)
        await asyncio.sleep(1)
        assert not wait.done()
        await resolve(rig, branch_id="2", effect=Effect.UNKNOWN)
        assert (await wait).outcome is Outcome.COMMIT
        assert rig.driver.live_count == 0
        assert "t branch 2 ended (unknown) by hand by ann: disk lost" in caplog.text

    play(scene)


def test_a_branch_that_was_ended_by_hand_is_not_ended_otherwise() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: None if call.operation is COMMIT else yes_to_all(call)
        await rig.driver.submit(plan(), Wait.DECISION)
        await resolve(rig, branch_id="2", effect=Effect.UNKNOWN)
        again = await resolve(rig, branch_id="2", effect=Effect.UNKNOWN)
        assert len(again.resolutions) == 1, "asking again is safe"
        with pytest.raises(NotAllowed, match="already, as unknown"):
            await resolve(rig, branch_id="2", effect=Effect.COMMITTED)

    play(scene)


def test_what_was_applied_right_behind_a_branch_ended_by_hand_is_not_forgotten_again() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = votes_only
        await rig.driver.submit(plan(of=3), Wait.DECISION)
        rig.log.held = True
        by_hand = asyncio.ensure_future(resolve(rig, branch_id="2", effect=Effect.UNKNOWN))
        await rig.settle()
        rig.gateway.answer(rig.gateway.under_way[0], Acknowledged())
        await asyncio.sleep(0.3)
        rig.log.release()  # both are applied before whoever resolved is resumed
        await by_hand
        assert rig.record().acknowledged == 0b001
        conversation = rig.driver._talks.lives["t"].conversation
        assert conversation is not None
        assert conversation.transaction == rig.record()

    play(scene)


def test_the_queued_call_of_a_branch_ended_by_hand_never_leaves() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(of=3), Wait.NONE)
        await rig.settle()
        rig.gateway.queueing = True
        rig.gateway.answer_all()
        await rig.settle()
        assert [call.branch_id for call in rig.gateway.queued] == ["1", "2", "3"]
        await resolve(rig, branch_id="2", effect=Effect.COMMITTED)
        await rig.settle()
        assert [call.branch_id for call in rig.gateway.queued] == ["1", "3"]
        for call in list(rig.gateway.queued):
            rig.gateway.queued.remove(call)
            call.done(Acknowledged())
        await rig.settle()
        assert rig.record().finished_ms is not None

    play(scene)


def test_a_branch_ended_by_hand_waits_to_be_called_again_no_more() -> None:
    """Whoever waits makes the pauses of all that failed longer, and is held in memory."""

    def never_ends(call: Call) -> Answer:
        if call.operation is PREPARE:
            return Voted(Vote.YES)
        return Acknowledged() if call.branch_id == "1" else Failed("down", arrived=False)

    async def scene(rig: Rig) -> None:
        rig.gateway.script = never_ends
        await rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        waiting = rig.driver._talks._retries
        assert len(waiting) == 1
        await resolve(rig, branch_id="2", effect=Effect.COMMITTED)
        await rig.settle()
        assert rig.record().finished_ms is not None
        assert len(waiting) == 0

    play(scene)


def test_what_an_operator_may_not_do_is_refused_with_the_reason() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = votes_only
        await rig.driver.submit(plan(), Wait.DECISION)
        with pytest.raises(NotAllowed, match="committed"):
            await resolve(rig)
        with pytest.raises(NotAllowed, match="no such branch"):
            await resolve(rig, branch_id="9", effect=Effect.UNKNOWN)
        with pytest.raises(UnknownTransaction, match=r"stranger is not remembered.*: check the id"):
            await resolve(rig, "stranger")
        rig.gateway.script = silence
        await rig.driver.submit(plan("u"), Wait.NONE)
        with pytest.raises(NotAllowed, match="nothing is decided"):
            await resolve(rig, "u", "1", Effect.COMMITTED)
        rig.log.stop_leading()
        with pytest.raises(NotLeader):
            await resolve(rig)

    play(scene)


def test_an_operator_may_have_whoever_waits_called_now() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: votes_only(call) or down()
        rig.driver.submit(plan(of=1), Wait.NONE)
        await asyncio.sleep(60)
        rig.gateway.script = yes_to_all
        before_s = asyncio.get_running_loop().time()
        rig.driver.retry_now("t")
        await rig.settle()
        assert rig.record().finished_ms is not None
        assert asyncio.get_running_loop().time() - before_s < 0.01
        assert rig.gateway.woken == ["http://participant-1"]
        assert rig.driver.retry_now("t").finished_ms is not None
        assert rig.driver.live_count == 0, "nobody takes up what is finished"
        with pytest.raises(UnknownTransaction):
            rig.driver.retry_now("stranger")
        rig.log.stop_leading()
        with pytest.raises(NotLeader):
            rig.driver.retry_now("t")

    play(scene)


# --- looking and sweeping -------------------------------------------------------------------------


def test_the_figures_say_what_is_under_way() -> None:
    async def scene(rig: Rig) -> None:
        await rig.driver.submit(plan("done"), Wait.COMPLETION)
        rig.gateway.script = silence
        rig.driver.submit(plan(of=1), Wait.NONE)
        await asyncio.sleep(3)
        figures = rig.driver.figures()
        assert figures.leading
        assert (figures.unfinished, figures.conversations, figures.remembered) == (1, 1, 1)
        assert figures.undecided_bytes == len(plan(of=1).payloads[0])
        assert figures.remembered_bytes == rig.machine.remembered_bytes > 0
        assert 3_000 <= figures.oldest_in_doubt_ms <= 3_100
        assert figures.backlog == {"http://participant-1": 1}
        rig.log.stop_leading()
        figures = rig.driver.figures()
        assert (figures.leading, figures.unfinished, figures.conversations) == (False, 1, 0)

    play(scene)


def test_undecided_is_what_waits_for_its_begin_for_votes_or_for_its_decision() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.gateway.declared = {"http://participant-1": PLAIN}
        rig.log.held = True
        rig.driver.submit(plan(), Wait.NONE)
        counts = [rig.driver.undecided_count]
        rig.log.release()
        await rig.settle()
        counts.append(rig.driver.undecided_count)
        rig.log.held = True
        rig.gateway.answer_all()
        counts.append(rig.driver.undecided_count)
        rig.log.release()
        await rig.settle()
        assert (counts, rig.driver.undecided_count) == ([1, 1, 1], 0)
        assert rig.driver.live_count == 1, "its branches have not acknowledged"

    play(scene)


def test_waiting_for_the_end_finds_the_transaction_wherever_it_is() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        rig.driver.submit(plan(), Wait.NONE)
        early = rig.driver.wait_for("t", Wait.COMPLETION)
        for _ in range(3):
            await rig.settle()
            rig.gateway.answer_all()
        assert await early == await rig.driver.wait_for("t", Wait.COMPLETION) == rig.record()
        with pytest.raises(UnknownTransaction):
            await rig.driver.wait_for("stranger", Wait.COMPLETION)
        rig.machine.step(begin("not taken up yet", epoch=rig.machine.epoch, now_ms=NOW_MS))
        rig.gateway.script = yes_to_all
        assert (
            await rig.driver.wait_for("not taken up yet", Wait.COMPLETION)
        ).outcome is Outcome.COMMIT
        rig.gateway.script = silence
        await rig.driver.submit(plan("u"), Wait.NONE)
        rig.log.stop_leading()
        assert await rig.driver.wait_for("t", Wait.COMPLETION) == rig.record()
        with pytest.raises(NotLeader):
            await rig.driver.wait_for("u", Wait.COMPLETION)

    play(scene)


def test_the_sweep_takes_up_what_has_no_conversation_and_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        for transaction_id in ("kept", "lost"):
            await rig.driver.submit(plan(transaction_id), Wait.NONE)
        assert rig.driver.take_up_forgotten() == 0
        del rig.driver._talks.lives["lost"]
        rig.gateway.under_way = [c for c in rig.gateway.under_way if c.transaction_id == "kept"]
        with caplog.at_level(logging.ERROR):
            assert rig.driver.take_up_forgotten() == 1
        assert "lost" in caplog.text
        assert [c.transaction_id for c in rig.gateway.calls] == ["kept"] * 2 + ["lost"] * 4
        assert rig.driver.take_up_forgotten() == 0
        rig.log.stop_leading()
        assert rig.driver.take_up_forgotten() == 0

    play(scene)


def test_whoever_waited_may_go_away_and_the_transaction_goes_on() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        gone = [rig.driver.submit(plan(), wait) for wait in Wait]
        gone.append(rig.driver.submit(plan("lost"), Wait.DECISION))
        for wait in gone:
            wait.cancel()
        stays = rig.driver.submit(plan(), Wait.COMPLETION)
        for _ in range(3):
            await rig.settle()
            rig.gateway.answer_all()
        assert (await stays).outcome is Outcome.COMMIT
        gone_too = rig.driver.submit(plan("u"), Wait.DECISION)
        await rig.settle()
        gone_too.cancel()
        rig.log.stop_leading()

    play(scene)


def test_an_operator_or_an_inquirer_that_gives_up_waiting_does_no_harm() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        await rig.driver.submit(plan(), Wait.NONE)
        rig.log.held = True
        tasks = [
            asyncio.create_task(resolve(rig)),
            asyncio.create_task(rig.driver.inquire("unknown", "1", "f1")),
        ]
        await rig.settle()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        rig.log.release()
        await rig.settle()
        assert rig.record().outcome is Outcome.ABORT
        assert rig.record("unknown").is_refusal
        assert rig.gateway.sent(ROLLBACK) == ["1", "2"], "what was applied is carried out"

    play(scene)


def test_a_branch_is_called_no_more_when_who_ended_it_by_hand_has_gone() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: (
            down() if (call.operation, call.branch_id) == (COMMIT, "2") else yes_to_all(call)
        )
        await rig.driver.submit(plan(), Wait.DECISION)
        rig.log.held = True
        operator = asyncio.create_task(resolve(rig, branch_id="2", effect=Effect.ROLLED_BACK))
        await rig.settle()
        operator.cancel()
        await asyncio.wait([operator])
        rig.log.release()
        await asyncio.sleep(1)
        assert rig.record().finished_ms is not None
        assert rig.driver.live_count == 0
        calls = len(rig.gateway.calls)
        await asyncio.sleep(60)
        assert len(rig.gateway.calls) == calls

    play(scene)


def test_a_stopped_driver_does_nothing_more() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        wait = rig.driver.submit(plan(), Wait.DECISION)
        await rig.settle()
        rig.driver.stop()
        with pytest.raises(FateUnknown):
            await wait
        rig.gateway.answer_all()
        written = len(rig.log.applied)
        await asyncio.sleep(60)
        assert len(rig.log.applied) == written
        assert rig.driver.live_count == 0

    play(scene)


def test_every_command_of_a_conversation_carries_the_epoch_in_which_it_began() -> None:
    async def scene(rig: Rig) -> None:
        await rig.driver.submit(plan("a"), Wait.COMPLETION)
        rig.fail_over()
        await rig.driver.submit(plan("b"), Wait.COMPLETION)
        epochs: dict[str, set[int]] = {}
        for command in map(decode, rig.log.applied):
            if isinstance(command, Begin | Decide | Acknowledge):
                epochs.setdefault(command.id, set()).add(command.epoch)
        assert epochs == {"a": {1}, "b": {2}}

    play(scene)


def test_many_are_let_go_of_piece_by_piece_when_leadership_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coordinator.talks.LET_GO_AT_ONCE", 3)

    async def scene(rig: Rig) -> None:
        rig.gateway.queueing = True
        waits = [rig.driver.submit(plan(f"t{n}"), Wait.DECISION) for n in range(7)]
        await rig.settle()
        rig.log.stop_leading()
        assert rig.driver.live_count == 0
        assert sum(wait.done() for wait in waits) == 3
        assert len({call.transaction_id for call in rig.gateway.queued}) == 4
        rig.log.lead()
        again = rig.driver.submit(plan("t6"), Wait.DECISION)
        results = await asyncio.gather(*waits, return_exceptions=True)
        assert {type(result) for result in results} == {FateUnknown}
        await rig.settle()
        assert {call.transaction_id for call in rig.gateway.queued} == {f"t{n}" for n in range(7)}
        assert len(rig.gateway.queued) == len({id(call) for call in rig.gateway.queued})
        assert rig.driver.live_count == 7, "the next leadership's"
        assert not again.done()
        rig.log.stop_leading()
        assert isinstance((await asyncio.gather(again, return_exceptions=True))[0], FateUnknown)

    play(scene)


def test_who_gave_up_waiting_is_let_go_of() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        await rig.driver.submit(plan(), Wait.NONE)
        live = rig.driver._talks.lives["t"]
        staying = rig.driver.wait_for("t", Wait.COMPLETION)
        for _ in range(1_000):
            rig.driver.wait_for("t", Wait.COMPLETION).cancel()
        assert len(live._waiting) < 50
        rig.gateway.answer_all()
        await rig.settle()
        rig.gateway.answer_all()
        assert (await staying).outcome is Outcome.COMMIT

    play(scene)


def test_a_conversation_that_fails_when_it_is_woken_is_woken_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = 0
    original = Conversation.woken

    def failing(conversation: Conversation, now_s: float) -> list[Action]:
        nonlocal failures
        if failures < 2:
            failures += 1
            raise RuntimeError("not now")
        return original(conversation, now_s)

    monkeypatch.setattr(Conversation, "woken", failing)

    async def scene(rig: Rig) -> None:
        rig.gateway.script = silence
        transaction = await rig.driver.submit(plan(), Wait.DECISION)
        assert transaction.outcome is Outcome.ABORT
        assert asyncio.get_running_loop().time() == pytest.approx(CLOCK_STARTS_S + 12)

    play(scene)
    assert failures == 2
    assert "could not be woken" in caplog.text


def test_a_prepare_that_outlives_its_transaction_holds_nothing_of_it() -> None:
    async def scene(rig: Rig) -> None:
        rig.gateway.script = lambda call: (
            None if call.branch_id == "1" and call.operation is PREPARE else second_says_no(call)
        )
        wait = rig.driver.submit(plan(), Wait.COMPLETION)
        conversation = weakref.ref(rig.driver._talks.lives["t"].conversation)
        assert (await wait).finished_ms is not None
        (late,) = rig.gateway.under_way
        rig.gateway.answer(late, Voted(Vote.YES))
        del late
        rig.gateway.calls.clear()
        await rig.settle()
        assert conversation() is None, "it is in a circle, which waits for a collection"

    gc.disable()
    try:
        play(scene)
    finally:
        gc.enable()


def patient_kinds(rig: Rig) -> list[type[Command]]:
    """The kinds of the commands that were proposed with patience."""
    return [type(decode(command)) for command in rig.log.patient]


def test_acknowledgements_are_patient_unless_somebody_waits_for_the_end() -> None:
    async def scene(rig: Rig) -> None:
        await rig.driver.submit(plan("t1"), Wait.DECISION)
        await rig.settle()
        assert patient_kinds(rig) == [Begin, Acknowledge]
        await rig.driver.submit(plan("t2"), Wait.COMPLETION)
        await rig.settle()
        assert patient_kinds(rig) == [Begin, Acknowledge, Begin]

    play(scene)


def test_a_begin_waits_for_its_decision_if_its_prepares_have_left() -> None:
    async def scene(rig: Rig) -> None:
        await rig.driver.submit(plan("t1"), Wait.NONE)
        assert patient_kinds(rig) == [], "its client waits for nothing else"
        rig.gateway.declared = {"http://participant-2": PLAIN}
        await rig.driver.submit(plan("t2"), Wait.DECISION)
        assert Begin not in patient_kinds(rig), "no prepare leaves before it"

    play(scene)
