"""coordinator/conversation.py in a world that loses, delays and breaks: everything ends well.

One transaction, services of the most forgetful kind that keeps the contract, a log that is
sometimes too busy, leaders that die. A seed gives a world. What is held against it is what a
service would see: nothing split, nothing done twice, nothing reserved for ever.

Breaking a rule of the conversation must be noticed: the last tests do.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from random import Random

import pytest

from coordinator.alarms import NEVER_S
from coordinator.commands import Acknowledge, Command, Decide, Epoch
from coordinator.conversation import (
    Action,
    Conversation,
    ProposeAcknowledgement,
    ProposeDecision,
    SendEnd,
    SendPrepare,
    WithdrawPrepare,
)
from coordinator.facts import Outcome, outstanding
from coordinator.inquiry import answer_inquiry
from coordinator.machine import Applied
from coordinator.settings import Timings
from participants.contract import (
    Acknowledged,
    Decision,
    Failed,
    Operation,
    PrepareAnswer,
    Vote,
    Voted,
    Working,
)
from tests.builders import BEGAN_MS, EPOCH, begin, branch, led_machine, record, resolve

EXPIRES_S, GRACE_S = 10.0, 5.0
CALM_FROM_S = 60.0
END_S = 2_000.0
SEEDS = 400

SILENT = Failed("no answer in time")
BROKEN = Failed("connection lost", broken=True)
REFUSED = Failed("connection refused", arrived=False)
NEVER_LEFT = Failed("it was decided before its turn came", arrived=False)


class Service:
    """What one branch is at its participant. A plain one remembers nothing but what it holds."""

    def __init__(self, world: World, character: str, *, plain: bool) -> None:
        self.world = world
        self.character = character
        self.plain = plain
        self.holds = False
        self.works = False
        self.is_rolled_back = False  # an SDK's tombstone
        self.times_worked = 0
        self.times_committed = 0

    def prepare(self) -> PrepareAnswer:
        if self.holds:
            if self.plain and not self.works:
                self._reserve()  # it did not ask to be asked again, and cannot tell that it is
            return Voted(Vote.YES)
        if self.is_rolled_back or (self.times_committed and not self.plain):
            return Voted(Vote.NO, "finished")
        if self.world.now_s >= EXPIRES_S + GRACE_S:
            return Voted(Vote.NO, "too late")  # by the clock of a service that is slow by the grace
        match self.character:
            case "no":
                return Voted(Vote.NO, "sold out")
            case "reads":
                return Voted(Vote.READ_ONLY)
            case "fails":
                return Failed("answered 500", answered=True)
            case "slow" if not self.works:
                self.works = True
                pause_s = self.world.random.random() * 6
                self.world.after(pause_s, self._finish_work)
                return Working()
            case "slow":
                return Working()
        self._reserve()
        return Voted(Vote.YES)

    def _finish_work(self) -> None:
        if self.world.now_s < EXPIRES_S + GRACE_S and not self.is_rolled_back:
            self._reserve()
            self.character = "says yes to what it holds"

    def _reserve(self) -> None:
        self.holds = True
        self.times_worked += 1
        asked_once = self.plain and not self.works
        assert self.times_worked == 1 or not asked_once, "a plain service worked twice"

    def commit(self) -> None:
        assert self.holds or self.times_committed, "nothing to commit"
        self.times_committed += self.holds
        self.holds = False

    def roll_back(self) -> None:
        self.holds = False
        self.is_rolled_back = not self.plain


CHARACTERS = ("willing",) * 6 + ("no", "reads", "fails", "slow")


class World:
    """Everything around one conversation, on one clock."""

    def __init__(self, seed: int, *, taken_for_sdk: bool = False) -> None:
        self.random = Random(seed)
        self.now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        count = self.random.randrange(1, 5)
        all_sdk = self.random.random() < 0.5
        self.services = [
            Service(
                self,
                self.random.choice(CHARACTERS),
                plain=not all_sdk and self.random.random() < 0.6,
            )
            for _ in range(count)
        ]
        asked = tuple(
            branch(number, plain=service.plain and not taken_for_sdk)
            for number, service in enumerate(self.services, 1)
        )
        self.machine = led_machine(begin(of=asked))
        self.storm = self.random.choice((0.0, 0.1, 0.3))
        self.leaders = 0
        self.conversation = self._lead()
        for _ in range(self.random.choice((0, 0, 1, 2))):
            self.after(self.random.random() * 20, self._fail_over)
        if self.random.random() < 0.1:
            self.after(self.random.random() * 3, lambda: self._apply(self._resolve()))

    # --- time ---

    def after(self, pause_s: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now_s + pause_s, next(self._numbers), what))

    def run(self) -> None:
        """To the end, then as participants in doubt would go on, then what is left is looked at."""
        steps = 0
        while self._events:
            at_s, _, what = heapq.heappop(self._events)
            self.now_s = max(self.now_s, at_s)
            what()
            steps += 1
            assert self.now_s < END_S, "it does not end"
            assert steps < 20_000, "it turns in vain"
        transaction = record(self.machine)
        assert transaction.finished_ms is not None, "nothing is due, and it is not finished"
        for service, recorded in zip(self.services, transaction.branches, strict=True):
            if service.holds and not service.plain:
                self._inquire(service, recorded.branch_id)
        self._look()

    def _inquire(self, service: Service, branch_id: str) -> None:
        match answer_inquiry(record(self.machine), branch_id, "f1"):
            case Decision.ABORT:
                service.roll_back()
            case Decision.COMMIT | Decision.PENDING as answer:
                raise AssertionError(f"finished, and a branch that is still held is told {answer}")

    def _look(self) -> None:
        transaction = record(self.machine)
        for service, vote in zip(self.services, transaction.votes, strict=True):
            assert not service.holds, "reserved for ever"
            committed = transaction.outcome is Outcome.COMMIT and vote is Vote.YES
            assert service.times_committed == int(committed), "split, or done twice"

    # --- leadership ---

    def _lead(self) -> Conversation:
        conversation = Conversation(
            record(self.machine),
            Timings(),
            deadline_s=EXPIRES_S,
            expires_s=EXPIRES_S,
            took_over=self.leaders > 0,
        )
        self.leaders += 1
        self.epoch = EPOCH + self.leaders - 1
        self.preparing: set[int] = set()
        self.ending: set[int] = set()
        self.queued: dict[int, list[bool]] = {}
        self.heard = 0
        self.conversation = conversation
        self.machine.step(Epoch(self.epoch, 0, "n"))
        self.perform(conversation, conversation.start(self.now_s))
        return conversation

    def _fail_over(self) -> None:
        if record(self.machine).finished_ms is None:
            self._lead()

    # --- what the conversation wants ---

    def perform(self, conversation: Conversation, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case SendPrepare(position=position):
                    self._send_prepare(conversation, position)
                case WithdrawPrepare(position=position):
                    self._withdraw(conversation, position)
                case SendEnd(position=position, operation=operation):
                    self._send_end(conversation, position, operation)
                case ProposeDecision():
                    fields = (action.votes, action.vote_reasons, action.reason)
                    self._propose(conversation, action, Decide(self.epoch, BEGAN_MS, "t", *fields))
                case ProposeAcknowledgement(branches=branches):
                    assert branches & ~self.heard == 0, "acknowledged for a branch that did not"
                    self._propose(
                        conversation, action, Acknowledge(self.epoch, BEGAN_MS, "t", branches)
                    )
        due_s = conversation.due_s
        if due_s != NEVER_S and not conversation.is_finished:
            self.after(max(0.0, due_s - self.now_s), lambda: self._wake(conversation, due_s))

    def _wake(self, conversation: Conversation, due_s: float) -> None:
        if conversation is not self.conversation or conversation.due_s != due_s:
            return
        actions = conversation.woken(self.now_s)
        assert actions or conversation.due_s > self.now_s, "woken for nothing, and due again"
        self.perform(conversation, actions)

    def _propose(self, conversation: Conversation, action: Action, command: Command) -> None:
        if self.random.random() < self.storm:
            conversation.not_proposed(action, self.now_s, 0.05)
        else:
            self.after(self.random.random() * 0.3, lambda: self._apply(command))

    def _apply(self, command: Command) -> None:
        result = self.machine.step(command)
        if isinstance(result, Applied):
            conversation = self.conversation
            self.perform(conversation, conversation.applied(result.transaction, self.now_s))

    def _resolve(self) -> Command:
        by_hand = resolve()
        return type(by_hand)(self.epoch, BEGAN_MS, "t", None, None, "ann", "why not")

    # --- the network ---

    def _send_prepare(self, conversation: Conversation, position: int) -> None:
        assert record(self.machine).outcome is None
        assert position not in self.preparing, "two prepares at once"
        self.preparing.add(position)
        may_leave = self.queued[position] = [True]
        waits_s = self.random.random() * 2 if self.random.random() < self.storm else 0.0
        self.after(waits_s, lambda: self._prepare_leaves(conversation, position, may_leave))

    def _withdraw(self, conversation: Conversation, position: int) -> None:
        may_leave = self.queued.get(position)
        if may_leave and may_leave[0]:
            may_leave[0] = False
            self.after(0.0, lambda: self._prepared(conversation, position, NEVER_LEFT))

    def _prepare_leaves(
        self, conversation: Conversation, position: int, may_leave: list[bool]
    ) -> None:
        if not may_leave[0]:
            return
        may_leave[0] = False
        service, random = self.services[position], self.random

        def answered(answer: PrepareAnswer, pause_s: float) -> None:
            if self.now_s + pause_s > EXPIRES_S:
                answer, pause_s = SILENT, max(0.0, EXPIRES_S - self.now_s)
            self.after(pause_s, lambda: self._prepared(conversation, position, answer))

        luck = random.random()
        if luck >= self.storm:
            self.after(random.random() * 0.3, lambda: answered(service.prepare(), 0.01))
            return
        match random.randrange(4):
            case 0:
                answered(REFUSED, 0.01)
            case 1:
                answered(random.choice((SILENT, BROKEN)), random.random() * 20)
            case 2:  # the answer is lost, and the call arrives whenever it likes
                self.after(random.random() * 20, service.prepare)
                answered(random.choice((SILENT, BROKEN)), random.random() * 20)
            case _:  # the answer comes late
                self.after(
                    random.random() * 5, lambda: answered(service.prepare(), random.random() * 5)
                )

    def _prepared(self, conversation: Conversation, position: int, answer: PrepareAnswer) -> None:
        if conversation is not self.conversation:
            return
        self.preparing.discard(position)
        if isinstance(answer, Voted) and answer.vote is Vote.NO:
            self.heard |= 1 << position
        if isinstance(answer, Failed) and not answer.arrived:
            self.heard |= 1 << position
        jitter = self.random.random()
        actions = conversation.prepare_answered(position, answer, self.now_s, jitter)
        self.perform(conversation, actions)

    def _send_end(self, conversation: Conversation, position: int, operation: Operation) -> None:
        transaction = record(self.machine)
        assert transaction.outcome is not None, "I5"
        assert (operation is Operation.COMMIT) is (transaction.outcome is Outcome.COMMIT)
        assert outstanding(transaction) >> position & 1
        assert position not in self.ending, "two calls at once"
        self.ending.add(position)
        service, sent_s = self.services[position], self.now_s
        act = service.commit if operation is Operation.COMMIT else service.roll_back
        unlucky = self.now_s < CALM_FROM_S and self.random.random() < self.storm
        answer = BROKEN if unlucky else Acknowledged()
        pause_s = self.random.random() * (3.0 if unlucky else 0.2)
        if not unlucky or self.random.random() < 0.5:
            self.after(pause_s, act)

        def answered() -> None:
            if conversation is not self.conversation:
                return
            self.ending.discard(position)
            if isinstance(answer, Acknowledged):
                self.heard |= 1 << position
            jitter = self.random.random()
            now_s = self.now_s
            self.perform(
                conversation, conversation.end_answered(position, answer, sent_s, now_s, jitter)
            )

        self.after(pause_s, answered)


@pytest.mark.parametrize("first", range(0, SEEDS, 100))
def test_every_transaction_ends_the_same_everywhere_and_leaves_nothing_behind(first: int) -> None:
    outcomes = set()
    for seed in range(first, first + 100):
        world = World(seed)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        outcomes.add(record(world.machine).outcome)
    assert outcomes == set(Outcome)


def violations(**settings: bool) -> str:
    """What the worlds complain of, all in one text."""
    found = []
    for seed in range(SEEDS):
        try:
            World(seed, **settings).run()
        except AssertionError as error:
            found.append(str(error))
    return "\n".join(found)


def test_an_early_rollback_that_counts_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversation, "_counts", lambda *_: True)
    assert "reserved for ever" in violations()


def test_a_branch_still_working_that_is_taken_for_over_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learn = Conversation._learn_fate

    def careless(self: Conversation, leg: object, answer: PrepareAnswer) -> None:
        learn(self, leg, Voted(Vote.YES) if isinstance(answer, Working) else answer)  # type: ignore[arg-type]

    monkeypatch.setattr(Conversation, "_learn_fate", careless)
    assert "reserved for ever" in violations()


def test_a_plain_service_that_is_asked_twice_is_noticed() -> None:
    assert "worked twice" in violations(taken_for_sdk=True)


def test_an_acknowledgement_of_a_branch_that_gave_none_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end = Conversation._end

    def hasty(self: Conversation, position: int, actions: list[Action]) -> None:
        end(self, position, actions)
        self._unproposed |= 1 << position

    monkeypatch.setattr(Conversation, "_end", hasty)
    assert "acknowledged for a branch that did not" in violations()


def test_a_leader_that_wakes_for_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def due_s(self: Conversation) -> float:
        return min(self._next_call_s, self._acknowledge_by_s, self.deadline_s)

    monkeypatch.setattr(Conversation, "due_s", property(due_s))
    assert "woken for nothing" in violations()
