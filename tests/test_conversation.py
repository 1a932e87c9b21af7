"""coordinator/conversation.py: what one leadership says to the branches of one transaction.

The clock is a number: the transaction begins at 0, prepares expire at 10, and with the grace a
rollback of a plain branch counts from 15 on.
"""

from __future__ import annotations

import pytest

from coordinator.alarms import GRAIN_S, NEVER_S
from coordinator.commands import Acknowledge, Close, Decide, Enlist
from coordinator.conversation import (
    ACKNOWLEDGE_WITHIN_S,
    CALLS_AT_ONCE,
    CALLS_PER_TURN,
    MAX_REASON_CHARS,
    Action,
    Conversation,
    ProposeAcknowledgement,
    ProposeDecision,
    SendEnd,
    SendPrepare,
    WithdrawPrepare,
)
from coordinator.facts import Branch, Mode, Outcome, Transaction
from coordinator.machine import Machine
from coordinator.settings import Timings
from participants.contract import (
    Acknowledged,
    EndAnswer,
    Failed,
    Operation,
    PrepareAnswer,
    Vote,
    Voted,
    Working,
)
from tests.builders import (
    BEGAN_MS,
    EPOCH,
    applied,
    begin,
    branch,
    branches,
    decide,
    led_machine,
    record,
    resolve,
)

EXPIRES_S, COUNTS_S = 10.0, 15.0
TIMINGS = Timings()
JITTER = 0.5

YES, NO, READ_ONLY = Voted(Vote.YES), Voted(Vote.NO, "out of stock"), Voted(Vote.READ_ONLY)
REFUSED = Failed("connection refused", arrived=False)
BROKEN = Failed("connection lost", broken=True)
SILENT = Failed("no answer in time")
ANSWERED_500 = Failed("answered 500", answered=True)
NEVER_LEFT = Failed("it was decided before its turn came", arrived=False)


def prepares(*positions: int) -> list[Action]:
    return [SendPrepare(position) for position in positions]


def commits(*positions: int) -> list[Action]:
    return [SendEnd(position, Operation.COMMIT) for position in positions]


def rollbacks(*positions: int) -> list[Action]:
    return [SendEnd(position, Operation.ROLLBACK) for position in positions]


class Talk:
    """A conversation with its machine and its clock. Each step gives the actions that it led to."""

    def __init__(
        self,
        *asked: Branch,
        machine: Machine | None = None,
        took_over: bool = False,
        now_s: float = 0.0,
    ) -> None:
        self.machine = machine or led_machine(begin(of=asked or branches(2)))
        self.now_s = now_s
        self.conversation = Conversation(
            record(self.machine),
            TIMINGS,
            deadline_s=EXPIRES_S,
            expires_s=EXPIRES_S,
            took_over=took_over,
        )
        self.started = self.conversation.start(now_s)

    @property
    def due_s(self) -> float:
        return self.conversation.due_s

    def prepared(self, position: int, answer: PrepareAnswer) -> list[Action]:
        return self.conversation.prepare_answered(position, answer, self.now_s, JITTER)

    def ended(
        self, position: int, answer: EndAnswer | None = None, *, sent_s: float | None = None
    ) -> list[Action]:
        sent_s = self.now_s if sent_s is None else sent_s
        answer = answer or Acknowledged()
        return self.conversation.end_answered(position, answer, sent_s, self.now_s, JITTER)

    def woken(self, now_s: float | None = None) -> list[Action]:
        self.now_s = self.due_s if now_s is None else now_s
        return self.conversation.woken(self.now_s)

    def log_applies(self, actions: list[Action]) -> list[Action]:
        """The one proposal among the actions is applied."""
        (proposal,) = (
            a for a in actions if isinstance(a, ProposeDecision | ProposeAcknowledgement)
        )
        if isinstance(proposal, ProposeDecision):
            fields = (proposal.votes, proposal.vote_reasons, proposal.reason)
            return self.changed(applied(self.machine, Decide(EPOCH, BEGAN_MS, "t", *fields)))
        heard = Acknowledge(EPOCH, BEGAN_MS, "t", proposal.branches)
        return self.changed(applied(self.machine, heard))

    def changed(self, transaction: Transaction) -> list[Action]:
        return self.conversation.applied(transaction, self.now_s)

    def decided(self) -> Outcome | None:
        return record(self.machine).outcome


def voted(*votes: PrepareAnswer, plain: bool = False) -> tuple[Talk, list[Action]]:
    """A talk in which each branch has given its answer, and what the last one led to."""
    talk = Talk(*branches(len(votes), plain=plain))
    actions: list[Action] = []
    for position, answer in enumerate(votes):
        actions = talk.prepared(position, answer)
    return talk, actions


def decision(actions: list[Action]) -> ProposeDecision:
    (proposal,) = actions
    assert isinstance(proposal, ProposeDecision)
    return proposal


# --- phase one ------------------------------------------------------------------------------------


def test_every_branch_is_asked_to_prepare_at_once() -> None:
    assert Talk(*branches(5)).started == prepares(0, 1, 2, 3, 4)


def calls_by_turn(talk: Talk, first: list[Action]) -> list[list[Action]]:
    """What is sent at once, and in each turn after it until nothing is due any more."""
    turns = [first]
    while talk.due_s <= talk.now_s:
        turns.append(talk.woken(talk.now_s))
        assert len(turns) <= 256
    return turns


def flat(turns: list[list[Action]]) -> list[Action]:
    return [action for turn in turns for action in turn]


def sizes_of(count: int) -> list[int]:
    rest = count - CALLS_AT_ONCE
    return [CALLS_AT_ONCE] + [CALLS_PER_TURN] * (rest // CALLS_PER_TURN)


HUGE = CALLS_AT_ONCE + 10 * CALLS_PER_TURN


def test_of_a_huge_transaction_few_branches_are_called_in_a_turn_and_each_once() -> None:
    talk = Talk(*branches(HUGE))
    turns = calls_by_turn(talk, talk.started)
    assert [len(turn) for turn in turns] == sizes_of(HUGE)
    assert flat(turns) == prepares(*range(HUGE))
    for position in range(HUGE):
        actions = talk.prepared(position, YES)
    turns = calls_by_turn(talk, talk.log_applies(actions))
    assert [len(turn) for turn in turns] == sizes_of(HUGE)
    assert flat(turns) == commits(*range(HUGE))


@pytest.mark.parametrize("decided", [False, True])
def test_what_a_turn_had_no_room_for_is_due_at_once_and_not_a_grain_later(decided: bool) -> None:
    """Alarms ring when the grain that a time is in has passed: 34 turns of 100 branches took 128 ms
    where each was due at its own present."""
    talk = huge_one_decided() if decided else Talk(*branches(HUGE))
    late_s = talk.now_s + 3 * GRAIN_S
    for _ in range(3):
        assert len(talk.woken(late_s)) == CALLS_PER_TURN
        assert talk.due_s <= late_s - GRAIN_S, "its grain is over"
        late_s += GRAIN_S / 100


def test_a_usual_transaction_calls_all_its_branches_in_one_turn() -> None:
    talk = Talk(*branches(CALLS_AT_ONCE))
    assert talk.started == prepares(*range(CALLS_AT_ONCE))
    assert talk.due_s == EXPIRES_S


def huge_one_decided() -> Talk:
    """Decided, with the first of its branches called."""
    talk = Talk(*branches(HUGE))
    calls_by_turn(talk, talk.started)
    for position in range(HUGE):
        actions = talk.prepared(position, YES)
    talk.log_applies(actions)
    return talk


def test_acknowledgements_wait_for_the_calls_that_are_due_and_not_sent() -> None:
    talk = huge_one_decided()
    for position in range(CALLS_AT_ONCE):
        assert talk.ended(position) == []  # though no call is under way after the last
    assert calls_by_turn(talk, [])[1:]
    for position in range(CALLS_AT_ONCE, HUGE - 1):
        assert talk.ended(position) == []
    assert talk.ended(HUGE - 1) == [ProposeAcknowledgement((1 << HUGE) - 1)]


def test_acknowledgements_wait_between_the_turns_in_which_the_others_are_called() -> None:
    talk = huge_one_decided()
    for position in range(CALLS_AT_ONCE):
        talk.ended(position)
    left = set(range(CALLS_AT_ONCE, HUGE))
    while left:
        proposed: list[Action] = []
        for action in talk.woken(talk.now_s):
            assert isinstance(action, SendEnd)
            left.remove(action.position)
            proposed = talk.ended(action.position)
        assert proposed == ([] if left else [ProposeAcknowledgement((1 << HUGE) - 1)])


def test_a_branch_that_was_not_called_yet_when_another_refused_hears_nothing() -> None:
    talk = Talk(*branches(HUGE, plain=True))
    proposal = decision(talk.prepared(0, NO))
    assert proposal.votes[CALLS_AT_ONCE:] == (Vote.UNSENT,) * (HUGE - CALLS_AT_ONCE)
    assert talk.woken(talk.now_s) == []
    actions = talk.log_applies([proposal])
    turns = calls_by_turn(talk, actions)
    told = {action.position for action in flat(turns) if isinstance(action, SendEnd)}
    assert told == set(range(1, CALLS_AT_ONCE))


def test_acknowledgements_do_not_wait_for_calls_that_the_decision_made_needless() -> None:
    talk = Talk(*branches(HUGE))
    talk.woken(talk.now_s)  # more are due than this turn has room for
    for position in range(1, 10):
        talk.prepared(position, READ_ONLY)
    told = [
        action.position
        for action in talk.log_applies(talk.prepared(0, NO))
        if isinstance(action, SendEnd)
    ]
    for position in told[:-1]:
        assert talk.ended(position) == []
    assert talk.ended(told[-1]) == [ProposeAcknowledgement(sum(1 << n for n in told))]


@pytest.mark.parametrize(("answer", "counts"), [(ANSWERED_500, True), (SILENT, False)])
def test_after_a_failed_prepare_a_rollback_counts_at_once_only_if_the_prepare_was_answered(
    answer: Failed, counts: bool
) -> None:
    talk = Talk(branch(1, plain=True), branch(2))
    assert talk.log_applies(talk.prepared(0, answer))[0] == rollbacks(0)[0]
    talk.ended(1)
    heard = talk.ended(0)
    if counts:
        assert heard == [ProposeAcknowledgement(0b11)]
    else:
        assert talk.conversation.legs[0].called_again_s == COUNTS_S


def test_the_decision_is_proposed_at_the_last_vote_and_nothing_irrevocable_leaves_before_it() -> (
    None
):
    talk, actions = voted(YES, READ_ONLY, YES)
    assert decision(actions).votes == (Vote.YES, Vote.READ_ONLY, Vote.YES)
    assert talk.woken(5.0) == []
    assert talk.log_applies(actions) == commits(0, 2)


def test_the_first_no_is_proposed_without_waiting_for_the_others() -> None:
    talk = Talk(*branches(3))
    proposal = decision(talk.prepared(1, NO))
    assert proposal.votes == (Vote.UNKNOWN, Vote.NO, Vote.UNKNOWN)
    assert proposal.vote_reasons == (None, "out of stock", None)
    assert proposal.reason == "service-2 voted no: out of stock"
    assert talk.log_applies([proposal]) == [
        WithdrawPrepare(0),
        *rollbacks(0),
        WithdrawPrepare(2),
        *rollbacks(2),
    ]


def test_votes_that_come_after_the_proposal_are_not_counted_and_proposed_no_second_time() -> None:
    talk = Talk(*branches(2))
    first = talk.prepared(0, NO)
    assert talk.prepared(1, YES) == []
    assert record(talk.machine).outcome is None
    talk.log_applies(first)
    assert record(talk.machine).votes == (Vote.NO, Vote.UNKNOWN)


def test_a_prepare_that_never_arrived_is_unsent_and_one_without_an_answer_is_unknown() -> None:
    one, other = Talk(*branches(2, plain=True)), Talk(*branches(2, plain=True))
    assert decision(one.prepared(0, REFUSED)).votes == (Vote.UNSENT, Vote.UNKNOWN)
    for failure in (SILENT, BROKEN, ANSWERED_500):
        other = Talk(*branches(2, plain=True))
        assert decision(other.prepared(0, failure)).votes == (Vote.UNKNOWN, Vote.UNKNOWN), failure


def test_a_plain_branch_is_never_asked_twice_whatever_the_failure() -> None:
    for failure in (REFUSED, SILENT, BROKEN, ANSWERED_500):
        talk = Talk(branch(1, plain=True))
        actions = talk.prepared(0, failure)
        assert decision(actions).reason == f"service-1 failed to prepare: {failure.what}"


def test_asking_a_plain_branch_twice_stops_the_program() -> None:
    talk = Talk(*branches(2, plain=True))
    talk.conversation._call_again(talk.conversation.legs[0], 1.0)
    with pytest.raises(AssertionError):
        talk.woken(1.0)


def test_a_plain_branch_that_says_it_still_works_is_asked_again() -> None:
    talk = Talk(branch(1, plain=True))
    for pause_s in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        before_s = talk.now_s
        assert talk.prepared(0, Working()) == []
        assert talk.due_s == pytest.approx(before_s + pause_s)
        assert talk.woken(talk.due_s - 0.001) == []
        assert talk.woken() == prepares(0)
    assert decision(talk.prepared(0, YES)).votes == (Vote.YES,)


def test_each_branch_is_called_again_when_its_own_pause_is_over_and_not_before() -> None:
    talk = Talk(*branches(4))
    for position, pause_ms in enumerate((1_500, 1_000, 2_000, 3_000)):
        talk.prepared(position, Working(pause_ms))
    called = []
    while talk.due_s < EXPIRES_S:
        called.append((talk.due_s, talk.woken()))
    expected = ((1.0, 1), (1.5, 0), (2.0, 2), (3.0, 3))
    assert called == [(due_s, prepares(position)) for due_s, position in expected]


def test_the_participants_own_pause_is_kept_but_not_beyond_the_deadline() -> None:
    talk = Talk(branch(1))
    talk.prepared(0, Working(3_000))
    assert talk.due_s == 3.0
    assert talk.woken() == prepares(0)
    talk.prepared(0, Working(60_000))
    assert talk.due_s == EXPIRES_S
    assert isinstance(talk.woken()[0], ProposeDecision)


def test_an_sdk_branch_whose_connection_breaks_is_asked_again_until_the_deadline() -> None:
    talk = Talk(branch(1))
    assert talk.prepared(0, BROKEN) == []
    assert talk.due_s == pytest.approx(JITTER * TIMINGS.retry_initial_ms / 1000)
    tries = 1
    while talk.woken() == prepares(0):
        tries += 1
        assert talk.prepared(0, REFUSED if tries % 2 else BROKEN) == []
    assert talk.now_s == EXPIRES_S
    assert 5 < tries < 30


def test_a_vote_takes_the_place_of_the_error_before_it() -> None:
    talk = Talk(*branches(2))
    talk.prepared(0, BROKEN)
    leg = talk.conversation.legs[0]
    assert (leg.vote, leg.last_error) == (None, "connection lost")
    talk.woken()
    talk.prepared(0, YES)
    assert (leg.vote, leg.last_error, leg.attempts) == (Vote.YES, None, 2)


def test_an_sdk_branch_that_answers_uselessly_or_not_in_time_is_not_asked_again() -> None:
    for failure in (ANSWERED_500, SILENT):
        assert decision(Talk(branch(1)).prepared(0, failure)).votes == (Vote.UNKNOWN,)


def test_an_sdk_branch_that_was_asked_twice_and_then_not_reached_is_unknown_not_unsent() -> None:
    talk = Talk(branch(1))
    talk.prepared(0, BROKEN)
    talk.woken()
    talk.prepared(0, REFUSED)
    assert decision(talk.woken(EXPIRES_S)).votes == (Vote.UNKNOWN,)


def test_the_deadline_decides_and_says_who_was_waited_for() -> None:
    talk = Talk(*branches(3))
    talk.prepared(0, YES)
    talk.prepared(1, BROKEN)
    assert talk.woken(EXPIRES_S - 0.001) == prepares(1)
    assert talk.due_s == EXPIRES_S
    proposal = decision(talk.woken())
    assert proposal.votes == (Vote.YES, Vote.UNKNOWN, Vote.UNKNOWN)
    assert proposal.reason == (
        "timed out after 10000 ms without the vote of service-2 (connection lost), service-3"
    )


def test_a_long_reason_is_cut() -> None:
    proposal = decision(Talk(*branches(256)).woken(EXPIRES_S))
    assert proposal.reason is not None
    assert len(proposal.reason) == MAX_REASON_CHARS


def test_nobody_is_called_and_nothing_is_due_between_the_proposal_and_its_application() -> None:
    """A due time in the past would wake the loop again and again, as fast as it can turn."""
    talk = Talk(*branches(2))
    talk.prepared(0, BROKEN)
    due_s = talk.due_s
    actions = talk.prepared(1, NO)
    assert due_s < talk.due_s == NEVER_S
    assert talk.woken(due_s + 1) == []
    assert talk.conversation.hurry(talk.now_s) == []
    assert talk.due_s == NEVER_S
    assert talk.log_applies(actions) == rollbacks(0)
    assert talk.due_s == NEVER_S


# --- what the log did not take --------------------------------------------------------------------


def test_a_decision_that_the_log_did_not_take_is_proposed_again_unchanged_after_the_pause() -> None:
    cases: list[tuple[PrepareAnswer, ...]] = [(NO, YES), (YES, YES), (READ_ONLY, SILENT)]
    for answers in cases:
        talk, actions = Talk(*branches(2)), list[Action]()
        for position, answer in enumerate(answers):
            actions = actions or talk.prepared(position, answer)
        proposal = decision(actions)
        talk.conversation.not_proposed(proposal, 1.0, 0.05)
        assert talk.due_s == pytest.approx(1.05)
        assert talk.woken(1.0) == []
        assert talk.woken(1.05) == [proposal], "the same votes, and the same reason"
        assert talk.due_s == NEVER_S
        assert talk.woken(EXPIRES_S + 1) == []


def test_votes_that_come_while_the_log_takes_nothing_do_not_change_the_decision() -> None:
    talk = Talk(*branches(2))
    proposal = decision(talk.prepared(0, NO))
    talk.conversation.not_proposed(proposal, 0.0, 0.05)
    assert talk.prepared(1, YES) == []
    assert talk.woken() == [proposal]


def test_acknowledgements_that_the_log_did_not_take_are_proposed_again() -> None:
    talk, actions = voted(YES, YES)
    talk.log_applies(actions)
    talk.ended(0)
    (proposal,) = talk.ended(1)
    talk.conversation.not_proposed(proposal, 1.0, 0.05)
    assert talk.due_s == pytest.approx(1.05)
    assert talk.woken() == [proposal] == [ProposeAcknowledgement(0b11)]
    talk.log_applies([proposal])
    assert talk.conversation.is_finished


def test_what_was_heard_before_the_log_took_no_acknowledgements_is_proposed_with_them() -> None:
    talk, actions = voted(YES, YES, YES, YES)
    talk.log_applies(actions)
    assert talk.ended(0) == []
    (proposal,) = talk.woken()
    assert proposal == ProposeAcknowledgement(0b0001), "the others take too long"
    assert talk.ended(1) == []
    talk.conversation.not_proposed(proposal, talk.now_s, 0.05)
    assert talk.woken(talk.now_s + 0.3) == [ProposeAcknowledgement(0b0011)]


# --- phase two ------------------------------------------------------------------------------------


def test_acknowledgements_are_proposed_together_once_no_call_is_under_way() -> None:
    talk, actions = voted(YES, YES, YES)
    talk.log_applies(actions)
    assert talk.ended(0) == []
    assert talk.ended(2) == []
    assert talk.ended(1) == [ProposeAcknowledgement(0b111)]


def test_one_slow_branch_holds_up_the_acknowledgements_of_the_others_for_a_fifth_of_a_second() -> (
    None
):
    talk, actions = voted(YES, YES, YES)
    talk.log_applies(actions)
    talk.now_s = 1.0
    talk.ended(0)
    talk.now_s = 1.1
    talk.ended(1)
    assert talk.due_s == pytest.approx(1.0 + ACKNOWLEDGE_WITHIN_S)
    assert talk.woken() == [ProposeAcknowledgement(0b011)]
    assert talk.due_s == NEVER_S
    talk.now_s = 60.0
    assert talk.ended(2) == [ProposeAcknowledgement(0b100)]


def test_a_branch_that_is_down_does_not_hold_up_the_acknowledgements_of_the_others() -> None:
    talk, actions = voted(YES, YES)
    talk.log_applies(actions)
    talk.ended(1, BROKEN)
    acknowledged = talk.ended(0)
    assert acknowledged == [ProposeAcknowledgement(0b01)]
    assert talk.log_applies(acknowledged) == [], "nor are they a reason to call it earlier"


def test_a_failed_commit_is_sent_again_with_growing_pauses_until_it_is_acknowledged() -> None:
    talk, actions = voted(YES)
    assert talk.log_applies(actions) == commits(0)
    for pause_ms in (50, 100, 200, 400, 800, 1600, 2000, 2000):
        before_s = talk.now_s
        assert talk.ended(0, ANSWERED_500) == []
        assert talk.conversation.legs[0].last_error == "answered 500"
        assert talk.due_s == pytest.approx(before_s + JITTER * pause_ms / 1000)
        assert talk.woken() == commits(0)
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]
    assert talk.conversation.legs[0].last_error is None


def test_only_the_branches_that_need_phase_two_hear_the_outcome() -> None:
    talk = Talk(*branches(4))
    talk.prepared(0, READ_ONLY)
    talk.prepared(1, BROKEN)
    talk.woken()
    talk.prepared(1, YES)
    actions = talk.prepared(2, NO)
    assert talk.log_applies(actions) == [*rollbacks(1), WithdrawPrepare(3), *rollbacks(3)]


def test_nothing_is_said_where_the_decision_finishes_the_transaction() -> None:
    talk, actions = voted(READ_ONLY, READ_ONLY)
    assert talk.log_applies(actions) == []
    assert talk.conversation.is_finished
    assert talk.decided() is Outcome.COMMIT


def test_an_abort_by_hand_rolls_everybody_back_and_our_own_late_proposal_changes_nothing() -> None:
    talk, ours = voted(YES, YES)
    assert talk.changed(applied(talk.machine, resolve())) == rollbacks(0, 1)
    assert talk.log_applies(ours) == []
    assert talk.decided() is Outcome.ABORT


def test_who_voted_no_before_an_abort_by_hand_is_not_called() -> None:
    talk = Talk(*branches(2))
    talk.prepared(0, NO)
    actions = talk.changed(applied(talk.machine, resolve()))
    assert actions == [WithdrawPrepare(1), *rollbacks(1)]
    assert talk.ended(1) == [ProposeAcknowledgement(0b11)]


def test_an_abort_by_hand_while_prepares_are_under_way_ends_every_branch() -> None:
    talk = Talk(*branches(3, plain=True))
    talk.prepared(0, YES)
    actions = talk.changed(applied(talk.machine, resolve()))
    assert [a for a in actions if isinstance(a, SendEnd)] == rollbacks(0, 1, 2)
    assert talk.prepared(1, NO) == []
    assert talk.prepared(2, NEVER_LEFT) == []
    for position in (0, 1):
        assert talk.ended(position) == []
    assert talk.ended(2) == [ProposeAcknowledgement(0b111)]


def test_a_branch_ended_by_hand_is_called_no_more() -> None:
    talk, actions = voted(YES, YES)
    talk.log_applies(actions)
    talk.ended(0, BROKEN)
    assert talk.changed(applied(talk.machine, resolve("1"))) == []
    assert talk.woken() == []
    assert talk.due_s == NEVER_S
    assert talk.ended(1) == [ProposeAcknowledgement(0b10)]


def test_nothing_is_due_for_an_acknowledgement_that_an_operator_made_needless() -> None:
    """A due time in the past would wake the loop again and again, as fast as it can turn."""
    talk, actions = voted(YES, YES)
    talk.log_applies(actions)
    assert talk.ended(0) == []
    assert talk.changed(applied(talk.machine, resolve("1"))) == []
    assert talk.woken() == []
    assert talk.due_s == NEVER_S


def test_an_operator_in_a_hurry_has_whoever_waits_called_at_once_and_nobody_twice() -> None:
    talk, actions = voted(YES, YES, YES)
    talk.log_applies(actions)
    talk.ended(0, BROKEN)
    talk.ended(1)
    assert talk.conversation.hurry(talk.now_s) == commits(0)
    assert talk.conversation.hurry(talk.now_s) == [], "its call, and the third's, are under way"


def test_a_hurry_asks_again_whom_it_may_while_nothing_is_decided() -> None:
    talk = Talk(*branches(2))
    talk.prepared(0, Working(5_000))
    assert talk.conversation.hurry(0.5) == prepares(0)
    assert talk.conversation.hurry(0.5) == []


# --- plain branches whose prepare may still arrive (section 6) ------------------------------------


def aborted_with_a_prepare_under_way() -> Talk:
    """Branch 1 (plain) has been asked and has not answered; branch 2 said no."""
    talk = Talk(*branches(2, plain=True))
    talk.now_s = 1.0
    assert talk.log_applies(talk.prepared(1, NO)) == [WithdrawPrepare(0), *rollbacks(0)]
    return talk


def test_an_early_rollback_of_an_unanswered_prepare_does_not_count_and_the_deciding_one_does() -> (
    None
):
    talk = aborted_with_a_prepare_under_way()
    assert talk.ended(0) == []
    assert talk.due_s == COUNTS_S
    assert talk.woken(COUNTS_S - 0.001) == []
    assert talk.woken() == rollbacks(0)
    assert talk.ended(0, sent_s=COUNTS_S) == [ProposeAcknowledgement(0b1)]


def test_it_matters_when_the_rollback_was_sent_not_when_it_was_acknowledged() -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.now_s = COUNTS_S + 100
    assert talk.ended(0, sent_s=COUNTS_S - 0.001) == []
    assert talk.due_s == talk.now_s
    assert talk.woken() == rollbacks(0)


@pytest.mark.parametrize("answer", [YES, READ_ONLY, ANSWERED_500])
def test_a_prepare_that_is_answered_at_last_is_followed_by_a_rollback_that_counts(
    answer: PrepareAnswer,
) -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.ended(0)
    talk.now_s = 3.0
    assert talk.prepared(0, answer) == rollbacks(0)
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]


def test_a_rollback_under_way_when_the_prepare_is_answered_does_not_count_and_is_repeated() -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.now_s = 3.0
    assert talk.prepared(0, YES) == [], "one call at a time"
    assert talk.ended(0, sent_s=1.0) == []
    assert talk.due_s == talk.now_s, "at once, and not after the grace"
    assert talk.woken() == rollbacks(0)
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]


def test_a_rollback_does_not_count_that_left_just_before_the_prepare_was_answered() -> None:
    """uvloop's clock counts milliseconds."""
    talk = aborted_with_a_prepare_under_way()
    assert talk.prepared(0, YES) == []
    assert talk.ended(0, sent_s=talk.now_s) == []
    assert talk.woken() == rollbacks(0)
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]


@pytest.mark.parametrize("answer", [NO, NEVER_LEFT])
def test_a_prepare_that_left_nothing_behind_needs_no_further_rollback(
    answer: PrepareAnswer,
) -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.ended(0)
    assert talk.prepared(0, answer) == [ProposeAcknowledgement(0b1)]


def test_a_branch_that_holds_nothing_is_not_called_again_because_its_rollback_failed() -> None:
    talk = aborted_with_a_prepare_under_way()
    assert talk.prepared(0, NO) == [], "the rollback is under way"
    assert talk.ended(0, BROKEN) == [ProposeAcknowledgement(0b1)]
    assert talk.woken() == []


@pytest.mark.parametrize("answer", [SILENT, BROKEN, Working()])
def test_an_answer_that_does_not_end_the_prepare_leaves_its_fate_unknown(
    answer: PrepareAnswer,
) -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.ended(0)
    assert talk.prepared(0, answer) == []
    assert talk.due_s == COUNTS_S


def test_a_plain_branch_last_heard_to_be_working_is_rolled_back_again_after_the_grace() -> None:
    """Its work may end, and leave a reservation, after the first rollback."""
    for last in (None, NEVER_LEFT, ANSWERED_500):
        talk = Talk(*branches(2, plain=True))
        talk.prepared(0, Working())
        if last is not None:
            assert talk.woken() == prepares(0)
        actions = talk.log_applies(talk.prepared(1, NO))
        assert rollbacks(0)[0] in actions
        if last is not None:
            assert talk.prepared(0, last) == []
        assert talk.ended(0) == []
        assert talk.due_s == COUNTS_S


def test_an_error_after_still_working_does_not_end_the_work_and_a_vote_does() -> None:
    """An error to the second call is not an end of what the first one began."""
    talk = Talk(*branches(1, plain=True))
    talk.prepared(0, Working())
    assert talk.woken() == prepares(0)
    assert talk.log_applies(talk.prepared(0, ANSWERED_500)) == rollbacks(0)
    assert talk.ended(0) == []
    assert talk.due_s == COUNTS_S
    talk = Talk(*branches(2, plain=True))
    talk.prepared(0, Working())
    assert talk.woken() == prepares(0)
    talk.log_applies(talk.prepared(1, NO))
    assert talk.ended(0, sent_s=talk.now_s) == []
    assert talk.prepared(0, YES) == rollbacks(0)
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]


@pytest.mark.parametrize("answer", [YES, NO])
def test_an_answer_that_comes_when_the_rollback_has_counted_leads_to_nothing(
    answer: PrepareAnswer,
) -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.now_s = COUNTS_S
    assert talk.ended(0, sent_s=COUNTS_S) == [ProposeAcknowledgement(0b1)]
    assert talk.prepared(0, answer) == [], "nor while the log has not applied it"


def test_a_rollback_sent_after_a_late_vote_counts_when_the_vote_came_before_the_decision() -> None:
    """The vote arrives between the proposal and its application: the rollback follows it anyway."""
    talk = Talk(*branches(2, plain=True))
    actions = talk.prepared(1, NO)
    assert talk.prepared(0, YES) == []
    assert talk.log_applies(actions) == rollbacks(0)
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]


def test_a_late_no_before_the_decision_is_applied_needs_no_rollback() -> None:
    talk = Talk(*branches(2, plain=True))
    actions = talk.prepared(1, NO)
    assert talk.prepared(0, NO) == []
    assert talk.log_applies(actions) == [ProposeAcknowledgement(0b1)]


def test_the_rollback_of_an_sdk_branch_counts_at_once_for_its_tombstone_stops_the_prepare() -> None:
    talk = Talk(*branches(2))
    talk.log_applies(talk.prepared(1, NO))
    assert talk.ended(0) == [ProposeAcknowledgement(0b1)]
    assert talk.prepared(0, YES) == []


@pytest.mark.parametrize("answer", [YES, NO])
def test_a_late_answer_of_an_sdk_branch_does_not_stand_for_its_acknowledgement(
    answer: PrepareAnswer,
) -> None:
    """Another prepare of it may be under way: only the rollback leaves the tombstone."""
    talk = Talk(*branches(2))
    talk.log_applies(talk.prepared(1, NO))
    talk.ended(0, BROKEN)
    assert talk.prepared(0, answer) == []
    assert talk.woken() == rollbacks(0)


def test_a_hurried_rollback_that_is_too_early_is_still_followed_by_the_one_that_counts() -> None:
    talk = aborted_with_a_prepare_under_way()
    talk.ended(0)
    assert talk.conversation.hurry(2.0) == rollbacks(0)
    talk.now_s = 2.0
    assert talk.ended(0) == []
    assert talk.due_s == COUNTS_S


# --- takeover (section 7) -------------------------------------------------------------------------


def test_a_new_leader_asks_all_branches_again_if_every_one_is_repeatable() -> None:
    talk = Talk(*branches(3), took_over=True, now_s=4.0)
    assert talk.started == prepares(0, 1, 2)
    assert talk.prepared(0, REFUSED) == [], "an earlier prepare may have arrived: asked again"


def test_a_new_leader_aborts_what_a_plain_branch_may_have_been_asked() -> None:
    talk = Talk(branch(1), branch(2, plain=True), took_over=True, now_s=4.0)
    proposal = decision(talk.started)
    assert proposal.votes == (Vote.UNKNOWN, Vote.UNKNOWN)
    assert talk.log_applies([proposal]) == rollbacks(0, 1)
    talk.ended(0)
    assert talk.ended(1) == [ProposeAcknowledgement(0b01)], "the plain one's is too early"
    assert talk.woken(COUNTS_S) == rollbacks(1)
    assert talk.ended(1) == [ProposeAcknowledgement(0b10)]


def test_a_new_leader_decides_what_is_past_its_deadline() -> None:
    proposal = decision(Talk(*branches(2), took_over=True, now_s=EXPIRES_S).started)
    assert proposal.votes == (Vote.UNKNOWN, Vote.UNKNOWN)


def test_a_new_leader_carries_out_what_is_decided_at_whoever_has_not_acknowledged() -> None:
    votes = (Vote.YES, Vote.YES, Vote.READ_ONLY, Vote.YES)
    heard = Acknowledge(EPOCH, BEGAN_MS, "t", 0b1000)
    machine = led_machine(begin(of=4), decide(votes), heard)
    talk = Talk(machine=machine, took_over=True, now_s=60.0)
    assert talk.started == commits(0, 1)
    talk.ended(0)
    talk.log_applies(talk.ended(1))
    assert talk.conversation.is_finished


def test_a_new_leader_rolls_back_what_is_decided_and_counts_the_plain_unknown_only_when_late() -> (
    None
):
    machine = led_machine(
        begin(of=branches(2, plain=True)), decide((Vote.YES, Vote.UNKNOWN), reason="died")
    )
    talk = Talk(machine=machine, took_over=True, now_s=2.0)
    assert talk.started == rollbacks(0, 1)
    talk.ended(1)
    assert talk.ended(0) == [ProposeAcknowledgement(0b01)], "its vote was heard: over and done"
    assert talk.woken() == rollbacks(1)
    assert talk.now_s == COUNTS_S
    assert talk.ended(1) == [ProposeAcknowledgement(0b10)]


def test_an_open_transaction_waits_for_its_client_until_the_deadline() -> None:
    machine = led_machine(begin(mode=Mode.INTERACTIVE))
    talk = Talk(machine=machine, took_over=True)
    assert (talk.started, talk.due_s) == ([], EXPIRES_S)
    proposal = decision(talk.woken())
    assert proposal.reason == "the deadline passed before the client ended the transaction"
    assert talk.log_applies([proposal]) == rollbacks(0, 1)


# --- interactive transactions ---------------------------------------------------------------------


def opened(*asked: Branch) -> Talk:
    """A talk in which these were enlisted; the first of them before it began."""
    talk = Talk(machine=led_machine(begin(of=asked[:1], mode=Mode.INTERACTIVE)))
    assert talk.started == []
    for each in asked[1:]:
        assert (
            talk.changed(applied(talk.machine, Enlist(EPOCH, BEGAN_MS, "t", each, b"null"))) == []
        )
    return talk


def closed(talk: Talk) -> list[Action]:
    return talk.changed(applied(talk.machine, Close(EPOCH, BEGAN_MS, "t")))


def test_prepares_leave_when_the_close_is_applied_to_all_that_were_enlisted() -> None:
    talk = opened(*branches(3, plain=True))
    assert talk.due_s == EXPIRES_S
    assert closed(talk) == prepares(0, 1, 2)
    for position in range(2):
        assert talk.prepared(position, YES) == []
    assert talk.log_applies(talk.prepared(2, YES)) == commits(0, 1, 2)


def test_a_close_that_is_applied_twice_asks_nobody_twice() -> None:
    talk = opened(*branches(2, plain=True))
    closed(talk)
    assert closed(talk) == []


def test_nobody_enlisted_and_there_is_nothing_to_vote_on() -> None:
    talk = Talk(machine=led_machine(begin(of=(), mode=Mode.INTERACTIVE)))
    assert talk.log_applies(closed(talk)) == []
    assert talk.decided() is Outcome.COMMIT


def test_its_client_rolls_it_back_before_anybody_was_asked() -> None:
    talk = opened(*branches(2, plain=True))
    proposal = talk.conversation.roll_back("rolled back")
    assert decision(proposal).votes == (Vote.UNSENT, Vote.UNSENT)
    assert talk.conversation.roll_back("rolled back") == [], "it is proposed once"
    assert talk.log_applies(proposal) == rollbacks(0, 1)
    talk.ended(0)
    assert talk.ended(1) == [ProposeAcknowledgement(0b11)], "no prepare can come after it"
    assert talk.conversation.roll_back("rolled back") == []


def test_who_is_enlisted_behind_the_proposed_rollback_was_not_asked_either() -> None:
    """Else its participant would be waited for until the deadline is over."""
    first, second = branches(2, plain=True)
    talk = opened(first)
    proposal = talk.conversation.roll_back("rolled back")
    talk.changed(applied(talk.machine, Enlist(EPOCH, BEGAN_MS, "t", second, b"null")))
    assert talk.log_applies(proposal) == rollbacks(0, 1)
    talk.ended(0)
    assert talk.ended(1) == [ProposeAcknowledgement(0b11)]


def test_no_prepare_leaves_between_a_close_and_the_rollback_proposed_before_it() -> None:
    talk = opened(*branches(2, plain=True))
    proposal = talk.conversation.roll_back("rolled back")
    assert closed(talk) == []
    assert talk.log_applies(proposal) == rollbacks(0, 1)


def test_no_prepare_leaves_when_the_close_comes_with_the_deadline() -> None:
    talk = opened(*branches(2, plain=True))
    talk.now_s = EXPIRES_S
    assert closed(talk) == []
    assert decision(talk.woken()).votes == (Vote.UNSENT, Vote.UNSENT)


def test_a_rollback_while_it_is_prepared_aborts_it_with_the_votes_that_are_in() -> None:
    talk = opened(*branches(2))
    closed(talk)
    talk.prepared(0, YES)
    proposal = talk.conversation.roll_back("rolled back")
    assert decision(proposal).votes == (Vote.YES, Vote.UNKNOWN)


@pytest.mark.parametrize("answer", [NO, REFUSED])
def test_who_promised_nothing_hears_of_the_rollback_for_it_has_worked(
    answer: PrepareAnswer,
) -> None:
    talk = opened(*branches(2, plain=True))
    closed(talk)
    actions = talk.log_applies(talk.prepared(0, answer))
    assert [a for a in actions if isinstance(a, SendEnd)] == rollbacks(0, 1)
    assert talk.ended(0) == []
    assert talk.prepared(1, NO) == [], "its rollback is under way, and was too early"
    assert ProposeAcknowledgement(0b01) in talk.ended(1)
    assert talk.woken() == rollbacks(1)
    assert talk.ended(1) == [ProposeAcknowledgement(0b10)]


def test_a_new_leader_goes_on_with_what_is_open_and_nobody_was_asked_before_it() -> None:
    machine = led_machine(begin(of=branches(2, plain=True), mode=Mode.INTERACTIVE))
    talk = Talk(machine=machine, took_over=True)
    assert closed(talk) == prepares(0, 1)
    assert talk.log_applies(talk.prepared(0, REFUSED))
    assert record(talk.machine).votes == (Vote.UNSENT, Vote.UNKNOWN)


def test_the_first_leader_too_decides_at_once_what_began_past_its_deadline() -> None:
    proposal = decision(Talk(*branches(1), now_s=EXPIRES_S).started)
    assert proposal.votes == (Vote.UNSENT,)
