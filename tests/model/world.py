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

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from coordinator.commands import Acknowledge, Command, Decide, Epoch, Forget, Refuse, Resolve
from coordinator.facts import Outcome, Transaction
from coordinator.inquiry import Decision
from coordinator.machine import Machine, Result
from coordinator.moves import Refusal
from participants.branch import ENDED
from participants.branch import State as BranchState
from participants.contract import Acknowledged, Failed, Operation, Vote, Voted, read_prepare
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


class Move(NamedTuple):
    """What came of one event at one leader, in numbers."""

    live: int
    network: int
    proposals: tuple[int, ...] = ()
    told: int = 0
    answer: Decision | None = None


State = tuple[
    int,  # the epoch
    int,  # the machine
    tuple[int, ...],  # what each leadership, the first to the last, has in its hands
    tuple[int, ...],  # proposed and not applied
    int,  # the messages that were sent, a bit each
    tuple[int, ...],  # the services
    int,  # what clients were told, a bit each
    int,  # the first decision
    bool,  # late: `expires_at` and the grace have passed
    tuple[int, ...],  # the machines of deposed leaders, where anyone asks them; -1: none
]
EPOCH, MACHINE, LIVES, QUEUE, NETWORK, SERVICES, TOLD, DECIDED, LATE, VIEWS = range(10)
Step = tuple[bool, str, State]
FAILURES = (
    ("gets no answer in time", Failed("no answer in time")),
    ("has its connection broken", Failed("the connection broke", broken=True)),
)


class World:
    """A case, explored. Implements `explorer.World`.

    `stale_views`: remember what deposed leaders last saw, for the broken rule that asks them.
    """

    def __init__(self, case: Case, *, stale_views: bool = False) -> None:
        self.case = case
        self._stale_views = stale_views
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

    # --- what the explorer asks -------------------------------------------------------------------

    def first(self) -> State:
        machine = Machine()
        machine.step(Epoch(1, BEGUN_MS, "node"))
        nobody = (NOTHING,) * self.case.leaderships
        fresh = (self._services(FRESH),) * len(self.case.kinds)
        views = (-1,) * self.case.leaderships if self._stale_views else ()
        return (1, self._freeze(machine), nobody, (), 0, fresh, 0, NOTHING, False, views)

    def steps(self, state: State) -> list[Step]:
        """Every step from here: whether the system takes it by itself, what, the next state."""
        found: list[Step] = []
        self._client_asks(state, found)
        self._log_applies(state, found)
        self._leaders_go_on(state, found)
        self._messages_arrive(state, found)
        self._operator_aborts(state, found)
        self._leadership_changes(state, found)
        if self.case.has_time and not state[LATE]:
            self._time_passes(state, found)
        if self.case.drops_tombstones:
            self._tombstones_go(state, found)
        return found

    def violation(self, state: State) -> str | None:
        """What must never be, and is."""
        key = ("violation", state[SERVICES], state[DECIDED], state[TOLD], state[MACHINE])
        if key not in self._known:
            self._known[key] = self._violation(state)
        fault: str | None = self._known[key]
        return fault

    def is_settled(self, state: State) -> bool:
        """I10, I11: nothing is left prepared, unfinished or under way."""
        if state[QUEUE] or state[LIVES][state[EPOCH] - 1]:
            return False
        record = self._machines[state[MACHINE]].record
        if record is not None and record.finished_ms is None:
            return False
        return all(self._services[s].state is not BranchState.PREPARED for s in state[SERVICES])

    def _violation(self, state: State) -> str | None:
        decided = self._decisions[state[DECIDED]]
        committed = decided is not None and decided.outcome is Outcome.COMMIT
        for place, number in enumerate(state[SERVICES]):
            service = self._services[number]
            if service.commits > 1:
                return f"I7: branch {place} committed twice"
            if service.works > 1:
                return f"I7: plain branch {place} was prepared twice"
            if service.commits and not committed:
                return f"I5: branch {place} committed, but the transaction did not"
            if service.commits and not service.dropped and decided is not None:
                if service.fingerprint != decided.fingerprint:
                    return f"I7: branch {place} committed the work of another content"
        if decided is None:
            return None
        if committed:
            fault = self._wrongly_committed(state, decided)
            if fault is not None:
                return fault
        record = self._machines[state[MACHINE]].record
        if record is not None and record.fingerprint == decided.fingerprint:
            if record.outcome is not decided.outcome:
                return "I2: the outcome changed"
        told = {
            outcome
            for fingerprint, outcome in self._told_in(state[TOLD])
            if fingerprint == decided.fingerprint
        }
        if told - {decided.outcome}:
            said = " and ".join(sorted(told))
            return f"I4: the client was told {said}, the outcome is {decided.outcome}"
        return None

    def _wrongly_committed(self, state: State, decided: Decided) -> str | None:
        for place in range(len(self._plans[decided.fingerprint].branches)):
            vote = decided.votes[place]
            if vote not in (Vote.YES, Vote.READ_ONLY):
                return f"I3: the outcome is commit without the vote of branch {place}"
            service = self._services[state[SERVICES][place]]
            if (
                vote is Vote.YES
                and not service.commits
                and service.state is not BranchState.PREPARED
            ):
                return (
                    f"I1: the transaction committed, but branch {place} holds nothing that it "
                    f"could commit ({service.state})"
                )
        return None

    def _told_in(self, bits: int) -> list[tuple[str, Outcome]]:
        return [told for number, told in enumerate(self._told.values) if bits >> number & 1]

    # --- the steps --------------------------------------------------------------------------------

    def _client_asks(self, state: State, found: list[Step]) -> None:
        """What it is told of a decided one is seen to in `_clients_are_told`."""
        epoch, live = state[EPOCH], state[LIVES][state[EPOCH] - 1]
        if live:
            return
        for content, fingerprint in enumerate(self._plans, 1):
            move = self._submitted(state[MACHINE], fingerprint, state[LATE], epoch)
            if move.live != live or move.proposals:
                parts = list(state)
                self._led(parts, epoch, move)
                found.append(
                    (False, f"a client asks leader {epoch} for content {content}", _state(parts))
                )

    def _log_applies(self, state: State, found: list[Step]) -> None:
        machine, queue = state[MACHINE], state[QUEUE]
        if queue:
            parts = list(state)
            parts[QUEUE] = queue[1:]
            self._applied(parts, queue[0])
            found.append((True, self._what_applied(queue[0]), _state(parts)))
        elif self.case.forgets:
            after = self._forgotten(machine, state[EPOCH])
            if self._machines[after].record is not self._machines[machine].record:
                parts = list(state)
                parts[MACHINE] = after
                found.append((False, "the transaction is forgotten", _state(parts)))

    def _leaders_go_on(self, state: State, found: list[Step]) -> None:
        epoch = state[EPOCH]
        for leader, live in enumerate(state[LIVES][:epoch], 1):
            if not live:
                continue
            for by_itself, what, move in self._own_events(live, leader, state[LATE]):
                parts = list(state)
                self._led(parts, leader, move)
                after = _state(parts)
                if after != state:
                    found.append((by_itself and leader == epoch, what, after))

    def _messages_arrive(self, state: State, found: list[Step]) -> None:
        network, late, services = state[NETWORK], state[LATE], state[SERVICES]
        left, number = network, 0
        while left:
            if left & 1:
                message = self._messages[number]
                service = services[message.place]
                if message.kind == "inquiry":
                    self._inquiry_arrives(state, message, found)
                elif message.kind == "answer":
                    after = self._obeyed(service, number, late)
                    if after != service:
                        by_itself = self._is_answered_now(state, message)
                        parts = list(state)
                        parts[SERVICES] = _replaced(services, message.place, after)
                        what = f"{message.place} obeys the answer to its inquiry: {message.text}"
                        found.append((by_itself, what, _state(parts)))
                else:
                    self._call_arrives(state, number, message, found)
            left >>= 1
            number += 1

    def _call_arrives(self, state: State, number: int, message: Message, found: list[Step]) -> None:
        services, epoch = state[SERVICES], state[EPOCH]
        place = message.place
        service = services[place]
        network = state[NETWORK]
        if message.leader:
            network &= ~(1 << number)
        for what, after, answer, asks in self._deliveries(service, number, state[LATE]):
            current = state[LIVES][epoch - 1]
            by_itself = self._heard(current, epoch, number, answer, state[LATE]) is not None
            parts = list(state)
            parts[NETWORK] = network | asks
            if after != service:
                parts[SERVICES] = _replaced(services, place, after)
            lost = _state(parts)
            if lost != state:
                found.append((by_itself, f"{what}, the answer is lost", lost))
            for leader, live in enumerate(state[LIVES][:epoch], 1):
                move = self._heard(live, leader, number, answer, state[LATE])
                if move is None:
                    continue
                parts = list(lost)
                self._led(parts, leader, move)
                heard = _state(parts)
                if heard != state:
                    found.append((leader == epoch, f"{what}, leader {leader} hears it", heard))

    def _inquiry_arrives(self, state: State, message: Message, found: list[Step]) -> None:
        epoch, place = state[EPOCH], message.place
        asker = (place, message.text)
        service = self._services[state[SERVICES][place]]
        asks = service.state is BranchState.PREPARED and service.fingerprint == message.text
        for leader in range(1, epoch + 1):
            machine = (
                state[MACHINE] if leader == epoch else (state[VIEWS] or (-1,) * epoch)[leader - 1]
            )
            if machine < 0:
                continue
            live = state[LIVES][leader - 1]
            move = self._inquired(machine, live, leader, asker, leader == epoch)
            parts = list(state)
            if move.answer in (Decision.COMMIT, Decision.ABORT):
                parts[NETWORK] |= 1 << self._messages(Message("answer", place, move.answer))
            parts[QUEUE] += tuple(p for p in move.proposals if p not in state[QUEUE])
            after = _state(parts)
            if after != state:
                said = move.answer or "not before a Refuse is applied"
                found.append(
                    (
                        asks and leader == epoch,
                        f"leader {leader} is asked by {place}, answers: {said}",
                        after,
                    )
                )

    def _operator_aborts(self, state: State, found: list[Step]) -> None:
        record = self._machines[state[MACHINE]].record
        if record is None or record.outcome is not None:
            return
        epoch = state[EPOCH]
        for proposal in self._aborted_by_hand(
            state[LIVES][epoch - 1], epoch, state[LATE]
        ).proposals:
            if proposal not in state[QUEUE]:
                parts = list(state)
                parts[QUEUE] += (proposal,)
                found.append((False, "an operator aborts the transaction", _state(parts)))

    def _leadership_changes(self, state: State, found: list[Step]) -> None:
        epoch, queue = state[EPOCH], state[QUEUE]
        if epoch == self.case.leaderships:
            return
        gone = f"leader {epoch + 1} takes over"
        found.append(
            (False, f"leader {epoch} dies, {gone}", self._taken_over(state, 0, goes_on=False))
        )
        live = state[LIVES][epoch - 1]
        inert = self._is_inert(state, live, epoch)
        if inert and not self._stale_views:
            return
        for landed in range(len(queue) + 1):
            what = f"leader {epoch} is deposed unknowing, {gone}"
            if landed:
                what += f", {landed} of the former's proposals came into the log"
            found.append((False, what, self._taken_over(state, landed, goes_on=True)))

    def _taken_over(self, state: State, landed: int, *, goes_on: bool) -> State:
        epoch, queue = state[EPOCH], state[QUEUE]
        parts = list(state)
        if not goes_on:
            parts[LIVES] = _replaced(state[LIVES], epoch - 1, NOTHING)
        if self._stale_views and goes_on:
            parts[VIEWS] = _replaced(state[VIEWS], epoch - 1, state[MACHINE])
        for proposal in queue[:landed]:
            parts[MACHINE] = self._apply(parts[MACHINE], proposal)[0]
            self._observe(parts)
        parts[EPOCH] = epoch + 1
        parts[MACHINE] = self._epoch_begins(parts[MACHINE], epoch + 1)
        parts[QUEUE] = tuple(p for p in queue[landed:] if not self._is_stale(parts[MACHINE], p))
        self._led(parts, epoch + 1, self._leads(parts[MACHINE], epoch + 1, state[LATE]))
        self._clients_are_told(parts)
        return _state(parts)

    def _time_passes(self, state: State, found: list[Step]) -> None:
        parts = list(state)
        parts[LATE] = True
        # What keeps the contract refuses a prepare from then on (PROTOCOL, section 6).
        for number, message in enumerate(self._messages.values):
            if message.leader:
                parts[NETWORK] &= ~(1 << number)
        for leader, live in enumerate(state[LIVES][: state[EPOCH]], 1):
            if live:
                self._led(parts, leader, self._woken(live, leader))
        found.append((True, "expires_at and the grace pass", _state(parts)))

    def _tombstones_go(self, state: State, found: list[Step]) -> None:
        record = self._machines[state[MACHINE]].record
        kept_ms = ParticipantSettings().tombstones_kept_ms
        for place, number in enumerate(state[SERVICES]):
            service = self._services[number]
            if service.state not in ENDED or service.dropped or self.case.kinds[place] == PLAIN:
                continue
            swept = self._services(sdk_swept(service, str(place + 1), kept_ms=kept_ms))
            if swept != number:
                parts = list(state)
                parts[SERVICES] = _replaced(state[SERVICES], place, swept)
                found.append((False, f"{place} drops its tombstone at once", _state(parts)))
            over = record is None or record.acknowledged >> place & 1
            if record is not None and record.votes and not record.is_refusal:
                over = over or record.votes[place] is Vote.READ_ONLY
            if over:
                parts = list(state)
                bare = self._services(service._replace(branch=None, dropped=True))
                parts[SERVICES] = _replaced(state[SERVICES], place, bare)
                parts[NETWORK] &= ~self._quiet(place)
                deposed = (NOTHING,) * (state[EPOCH] - 1)
                parts[LIVES] = (*deposed, *state[LIVES][state[EPOCH] - 1 :])
                found.append((False, f"all is quiet, {place} drops its tombstone", _state(parts)))

    def _quiet(self, place: int) -> int:
        """The messages that are under way no more.

        A deposed leader may wake up once more and ask for a prepare. It is taken to have learnt
        within days that it was deposed, so it goes on with no commit that nobody acknowledged.
        """
        return sum(
            1 << number
            for number, message in enumerate(self._messages.values)
            if message.place == place and message.kind != "prepare"
        )

    # --- what an event changes --------------------------------------------------------------------

    def _led(self, parts: list[Any], leader: int, move: Move) -> None:
        """A leader has done something."""
        parts[NETWORK] |= move.network
        parts[TOLD] |= move.told
        live = move.live
        lives = parts[LIVES]
        if lives[leader - 1] != live:
            parts[LIVES] = _replaced(lives, leader - 1, live)
        for proposal in move.proposals:
            self._propose(parts, leader, proposal)
        if live and leader != parts[EPOCH]:
            if self._is_inert(parts, live, leader):
                parts[LIVES] = _replaced(parts[LIVES], leader - 1, NOTHING)

    def _propose(self, parts: list[Any], leader: int, proposal: int) -> None:
        if leader != parts[EPOCH]:
            if not self._is_stale(parts[MACHINE], proposal):
                parts[QUEUE] += (proposal,)
        elif self._is_acknowledgement(proposal) and not self.case.acknowledges_later:
            self._applied(parts, proposal)
        else:
            parts[QUEUE] += (proposal,)

    def _applied(self, parts: list[Any], proposal: int) -> None:
        """A command is applied, and whoever proposed it is told, if he still leads."""
        epoch, before = parts[EPOCH], parts[MACHINE]
        parts[MACHINE], result = self._apply(before, proposal)
        self._observe(parts)
        command, asker = self._proposals[proposal]
        if command.epoch == epoch:
            live = parts[LIVES][epoch - 1]
            move = self._continued(live, proposal, result, parts[LATE])
            self._led(parts, epoch, move)
            if asker is not None and move.answer in (Decision.COMMIT, Decision.ABORT):
                answer = Message("answer", asker[0], move.answer)
                parts[NETWORK] |= 1 << self._messages(answer)
        if parts[MACHINE] != before:
            self._clients_are_told(parts)

    def _observe(self, parts: list[Any]) -> None:
        record = self._machines[parts[MACHINE]].record
        if parts[DECIDED] or record is None or record.outcome is None or record.is_refusal:
            return
        decided = Decided(record.fingerprint, record.outcome, record.votes)
        parts[DECIDED] = self._decisions(decided)

    def _clients_are_told(self, parts: list[Any]) -> None:
        epoch = parts[EPOCH]
        key = ("told", parts[MACHINE], parts[LIVES][epoch - 1], parts[LATE])
        bits = self._known.get(key)
        if bits is None:
            bits = 0
            for plan in self._plans.values():
                node = self._node(parts[LIVES][epoch - 1], epoch, parts[LATE], parts[MACHINE])
                _, outcome = node.submit(plan)
                if outcome is not None:
                    bits |= 1 << self._told((plan.fingerprint, outcome))
            self._known[key] = bits
        parts[TOLD] |= bits

    # --- leaders, once for each input -------------------------------------------------------------

    def _node(
        self,
        live: int,
        epoch: int,
        late: bool,
        machine: int | None = None,
        *,
        current: bool = True,
        calls_wait: bool | None = None,
    ) -> Node:
        case = self.case
        return Node(
            self._lives[live],
            None if machine is None else self._thaw(machine),
            epoch,
            late=late,
            plain=case.plain,
            calls_wait=case.calls_wait if calls_wait is None else calls_wait,
            current=current,
        )

    def _noted(self, effect: Effect, leader: int, asker: tuple[int, str] | None = None) -> Move:
        network = 0
        for sent in effect.sent:
            network |= 1 << self._messages(self._message(sent, leader))
        live, told = effect.live, 0
        if effect.told is not None:
            told = 1 << self._told(effect.told)
        proposals = tuple(self._proposals(Proposal(c, asker)) for c in effect.proposed)
        return Move(self._lives(live), network, proposals, told, effect.answer)

    def _message(self, sent: Sent, leader: int) -> Message:
        place = place_of(sent.participant)
        if sent.operation is not Operation.PREPARE:
            return Message(sent.operation.value, place, body=sent.body)
        fingerprint = read_prepare(json.loads(sent.body)).fingerprint
        plain = self.case.kinds[place] == PLAIN
        return Message("prepare", place, fingerprint, leader if plain else 0, sent.body)

    def _submitted(self, machine: int, fingerprint: str, late: bool, epoch: int) -> Move:
        key = ("submitted", machine, fingerprint, late)
        move: Move | None = self._known.get(key)
        if move is None:
            effect, _ = self._node(NOTHING, epoch, late, machine).submit(self._plans[fingerprint])
            move = self._noted(effect, epoch)
            if self.case.early_prepares:
                for proposal in move.proposals:
                    early = self._early_prepares(machine, move.live, proposal, epoch)
                    move = move._replace(network=move.network | early)
            self._known[key] = move
        return move

    def _early_prepares(self, machine: int, live: int, proposal: int, epoch: int) -> int:
        """The prepares that leave for SDK branches once this Begin is applied, as messages."""
        result = self._results[self._apply(machine, proposal)[1]]
        node = self._node(live, epoch, late=False, calls_wait=False)
        effect = node.applied(self._proposals[proposal].command, result)
        early = [self._message(sent, epoch) for sent in effect.sent]
        return sum(1 << self._messages(m) for m in early if m.kind == "prepare" and not m.leader)

    def _own_events(self, live: int, leader: int, late: bool) -> list[tuple[bool, str, Move]]:
        """What a leader does, or suffers, without a message from outside."""
        key = ("own", live, leader, late)
        events: list[tuple[bool, str, Move]] | None = self._known.get(key)
        if events is None:
            events = self._known[key] = list(self._make_own_events(live, leader, late))
        return events

    def _make_own_events(
        self, live: int, leader: int, late: bool
    ) -> Iterator[tuple[bool, str, Move]]:
        held = self._lives[live]
        if held is None or held.talk is None:
            return

        def noted(act: Callable[[Node], Effect]) -> Move:
            return self._noted(act(self._node(live, leader, late)), leader)

        for place, leg in enumerate(held.talk.legs):
            if leg.waits:
                if not late:  # the gateway gives a prepare up at its deadline
                    what = f"leader {leader}'s prepare to {place} leaves"
                    yield True, what, noted(lambda node: node.prepare_leaves(place))  # noqa: B023
                unreached = Failed("cannot be reached", arrived=False)
                what = f"leader {leader}'s prepare to {place} cannot be sent"
                yield late, what, noted(lambda node: node.prepare_answered(place, unreached))  # noqa: B023
            elif (
                leg.preparing
                and held.talk.decision is None
                and held.talk.transaction.outcome is None
            ):
                for why, failed in FAILURES:
                    what = f"leader {leader}'s prepare to {place} {why}"
                    yield True, what, noted(lambda node: node.prepare_answered(place, failed))  # noqa: B023
            elif leg.ending:
                what = f"leader {leader}'s call to end {place} fails, and is made again"
                failed = Failed("the connection broke", broken=True)
                yield True, what, noted(lambda node: node.end_answered(place, failed))  # noqa: B023

    def _heard(
        self, live: int, leader: int, message: int, answer: Answer, late: bool
    ) -> Move | None:
        """What a leader does with an answer; None if no call of his waits for one."""
        key = ("heard", live, leader, message, answer, late)
        if key not in self._known:
            self._known[key] = self._make_heard(live, leader, message, answer, late)
        move: Move | None = self._known[key]
        return move

    def _make_heard(
        self, live: int, leader: int, message: int, answer: Answer, late: bool
    ) -> Move | None:
        held, sent = self._lives[live], self._messages[message]
        if held is None or held.talk is None or sent.leader not in (0, leader):
            return None
        talk = held.talk
        if sent.place >= len(talk.legs):
            return None
        leg, node = talk.legs[sent.place], self._node(live, leader, late)
        if sent.kind == "prepare":
            waits = leg.preparing and not leg.waits and talk.transaction.fingerprint == sent.text
            if not waits:
                return None
            assert not isinstance(answer, Acknowledged)
            return self._noted(node.prepare_answered(sent.place, answer), leader)
        outcome = Outcome.COMMIT if sent.kind == "commit" else Outcome.ABORT
        if not leg.ending or talk.transaction.outcome is not outcome:
            return None
        assert isinstance(answer, Acknowledged | Failed)
        return self._noted(node.end_answered(sent.place, answer), leader)

    def _continued(self, live: int, proposal: int, result: int, late: bool) -> Move:
        """What the current leader does when a proposal of his has been applied."""
        key = ("continued", live, proposal, result, late)
        move: Move | None = self._known.get(key)
        if move is None:
            command, asker = self._proposals[proposal]
            node, outcome = self._node(live, command.epoch, late), self._results[result]
            match command:
                case Refuse():
                    assert asker is not None
                    fresh = self._node(NOTHING, command.epoch, late, self._blank(command.epoch))
                    effect = fresh.inquired(str(asker[0] + 1), asker[1], outcome)
                    effect = effect._replace(live=self._lives[live], proposed=())
                case Resolve():
                    effect = node.abort_by_hand(outcome)
                case _ if live:
                    effect = node.applied(command, outcome)
                case _:
                    effect = Effect(None)
            move = self._known[key] = self._noted(effect, command.epoch)
        return move

    def _leads(self, machine: int, epoch: int, late: bool) -> Move:
        key = ("leads", machine, late)
        move: Move | None = self._known.get(key)
        if move is None:
            effect = self._node(NOTHING, epoch, late, machine).lead()
            move = self._known[key] = self._noted(effect, epoch)
        return move

    def _woken(self, live: int, leader: int) -> Move:
        key = ("woken", live, leader)
        move: Move | None = self._known.get(key)
        if move is None:
            move = self._noted(self._node(live, leader, late=True).woken(), leader)
            self._known[key] = move
        return move

    def _inquired(
        self, machine: int, live: int, epoch: int, asker: tuple[int, str], current: bool
    ) -> Move:
        key = ("inquired", machine, live, epoch, asker, current)
        move: Move | None = self._known.get(key)
        if move is None:
            node = self._node(live, epoch, False, machine, current=current)
            effect = node.inquired(str(asker[0] + 1), asker[1])
            move = self._known[key] = self._noted(effect, epoch, asker)
        return move

    def _is_answered_now(self, state: State, answer: Message) -> bool:
        """Whether an inquiry made now would be given this answer, so no luck is needed."""
        epoch, place = state[EPOCH], answer.place
        fingerprint = self._services[state[SERVICES][place]].fingerprint or ""
        live = state[LIVES][epoch - 1]
        move = self._inquired(state[MACHINE], live, epoch, (place, fingerprint), True)
        return move.answer == answer.text

    def _aborted_by_hand(self, live: int, epoch: int, late: bool) -> Move:
        key = ("aborted by hand", live, epoch, late)
        move: Move | None = self._known.get(key)
        if move is None:
            move = self._noted(self._node(live, epoch, late).abort_by_hand(), epoch)
            self._known[key] = move
        return move

    def _is_inert(self, parts: Sequence[Any], live: int, leader: int) -> bool:
        """Whether a deposed leader can change nothing: all that it may ever do is done already."""
        if not live:
            return True
        key = ("reach", live, leader, parts[LATE])
        reach = self._known.get(key)
        if reach is None:
            reach = self._known[key] = self._reach(live, leader, parts[LATE])
        messages, told, proposals = reach
        if told & ~parts[TOLD] or messages & ~parts[NETWORK]:
            return False
        return all(self._is_stale(parts[MACHINE], proposal) for proposal in proposals)

    def _reach(self, live: int, leader: int, late: bool) -> tuple[int, int, frozenset[int]]:
        """All messages, tellings and proposals that may come of a leader, whatever it hears."""
        messages, told, proposals = 0, 0, set()
        seen, work = {(live, late)}, [(live, late)]
        while work:
            for move, is_late in self._all_moves(*work.pop(), leader):
                messages |= move.network
                told |= move.told
                proposals.update(move.proposals)
                if move.live and (move.live, is_late) not in seen:
                    seen.add((move.live, is_late))
                    work.append((move.live, is_late))
        return messages, told, frozenset(proposals)

    def _all_moves(self, live: int, late: bool, leader: int) -> Iterator[tuple[Move, bool]]:
        held = self._lives[live]
        if held is None or held.talk is None:
            return
        for _, _, move in self._own_events(live, leader, late):
            yield move, late
        answers: list[Answer] = [Voted(vote) for vote in self.case.votes]
        answers.append(Failed("useless", answered=True))
        for place, leg in enumerate(held.talk.legs):
            if leg.preparing and not leg.waits:
                for answer in answers:
                    node = self._node(live, leader, late)
                    assert not isinstance(answer, Acknowledged)
                    yield self._noted(node.prepare_answered(place, answer), leader), late
            if leg.ending:
                node = self._node(live, leader, late)
                yield self._noted(node.end_answered(place, Acknowledged()), leader), late
        if self.case.has_time and not late:
            yield self._woken(live, leader), True

    # --- the machine, once for each input ---------------------------------------------------------

    def _freeze(self, machine: Machine) -> int:
        return self._machines(Frozen(tuple(machine.chunks(machine.view())), machine.get(ID)))

    def _thaw(self, number: int) -> Machine:
        machine = Machine()
        machine.restore(iter(self._machines[number].chunks))
        return machine

    def _stepped(self, machine: int, command: Command) -> tuple[int, int]:
        thawed = self._thaw(machine)
        result = thawed.step(command)
        return self._freeze(thawed), self._results(result)

    def _apply(self, machine: int, proposal: int) -> tuple[int, int]:
        """The machine after it, and the result."""
        key = ("apply", machine, proposal)
        after: tuple[int, int] | None = self._known.get(key)
        if after is None:
            after = self._stepped(machine, self._proposals[proposal].command)
            self._known[key] = after
        return after

    def _is_stale(self, machine: int, proposal: int) -> bool:
        return self._results[self._apply(machine, proposal)[1]] is Refusal.STALE_EPOCH

    def _is_acknowledgement(self, proposal: int) -> bool:
        return isinstance(self._proposals[proposal].command, Acknowledge)

    def _epoch_begins(self, machine: int, epoch: int) -> int:
        key = ("epoch", machine, epoch)
        after: int | None = self._known.get(key)
        if after is None:
            after = self._known[key] = self._stepped(machine, Epoch(epoch, BEGUN_MS, "node"))[0]
        return after

    def _forgotten(self, machine: int, epoch: int) -> int:
        key = ("forget", machine)
        after: int | None = self._known.get(key)
        if after is None:
            after = self._stepped(machine, Forget(epoch, BEGUN_MS, HORIZON_MS))[0]
            self._known[key] = after
        return after

    def _blank(self, epoch: int) -> int:
        """A machine that knows nothing: what an inquiry saw that proposed a Refuse."""
        machine = Machine()
        machine.step(Epoch(epoch, BEGUN_MS, "node"))
        return self._freeze(machine)

    def _what_applied(self, proposal: int) -> str:
        command = self._proposals[proposal].command
        votes = f" {'/'.join(command.votes)}" if isinstance(command, Decide) else ""
        return f"{type(command).__name__}{votes} of epoch {command.epoch} is applied"

    # --- participants, once for each input --------------------------------------------------------

    def _deliveries(
        self, service: int, message: int, late: bool
    ) -> list[tuple[str, int, Answer, int]]:
        """What may come of a call: what, the service after it, the answer, its inquiry to come."""
        key = ("delivered", service, message, late)
        found: list[tuple[str, int, Answer, int]] | None = self._known.get(key)
        if found is None:
            found = self._known[key] = []
            sent = self._messages[message]
            for delivered in self._make_deliveries(self._services[service], sent, late):
                state = self._services[service].state
                what = f"{sent.place} ({state}) gets {sent.kind} and {delivered.what}"
                after, asks = delivered.after, 0
                if after.state is BranchState.PREPARED and self.case.kinds[sent.place] != PLAIN:
                    inquiry = Message("inquiry", sent.place, after.fingerprint or "")
                    asks = 1 << self._messages(inquiry)
                found.append((what, self._services(after), delivered.answer, asks))
        return found

    def _make_deliveries(self, service: Service, sent: Message, late: bool) -> Iterator[Delivered]:
        case, plain = self.case, self.case.kinds[sent.place] == PLAIN
        if sent.kind == "prepare":
            if plain:
                yield from plain_prepared(
                    service, sent.body, case.votes, useless=case.useless_answers
                )
                return
            yield from sdk_prepared(service, sent.body, case.votes, late=late)
            if case.useless_answers:
                yield Delivered("answers 500", service, Failed("answered 500", answered=True))
        elif plain:
            yield plain_ended(service, Operation(sent.kind))
        else:
            yield sdk_ended(service, Operation(sent.kind), sent.body, late=late)

    def _obeyed(self, service: int, answer: int, late: bool) -> int:
        key = ("obeyed", service, answer, late)
        after: int | None = self._known.get(key)
        if after is None:
            sent = self._messages[answer]
            branch_id, decision = str(sent.place + 1), ToldDecision(sent.text)
            after = self._services(
                sdk_obeyed(self._services[service], branch_id, decision, late=late)
            )
            self._known[key] = after
        return after


def _replaced(numbers: tuple[int, ...], at: int, number: int) -> tuple[int, ...]:
    return (*numbers[:at], number, *numbers[at + 1 :])


def _state(parts: list[Any]) -> State:
    return tuple(parts)  # type: ignore[return-value]
