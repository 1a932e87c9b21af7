"""The world around the project's code: network, log queue, leaderships, forgetting, an observer.

What is the project's own and only run here: `machine` (restored from its snapshot for every
command), `driver`, `talks`, `live`, `conversation`, `inquiry` (all in `leader.py`), the SDK with
its branch table, and the contract (`services.py`). What is the model's:

- The log: the commands of the current leadership are applied in the order proposed, or lost with
  it. What a new epoch refuses as stale is taken out of the queue, for it is refused for ever.
- The network: a message may be delivered from when it is sent on, never or many times, in any
  order and however late; so messages are never taken out. The exceptions are a prepare to a plain
  participant, which arrives at most once, and messages under way when a tombstone is dropped,
  which happens when all is quiet. An answer is heard at once or lost, for to hear it later is to
  hear a repeat (where that is not so, see `Case.answers_wait`). Prepares of one branch and content
  are the same, whoever sent them.
- A leader that is deposed goes on with what it knew. One that can do nothing more that is not done
  already is left out (`_is_inert`: all that it could ever do is looked at).
- Whenever the record changes, a client asks again for each content: what it is told must be true.

Not here: interactive transactions, branches resolved by hand, several ids, membership. The driver's
sweep is left out too, for it is a second net: what it would find must not be there.

Every step of a component is computed once for each input of it; the rest is numbers in tuples.
"""

from __future__ import annotations

from coordinator.commands import Epoch
from coordinator.machine import Machine
from participants.branch import ENDED
from participants.branch import State as BranchState
from participants.contract import Decision, Vote
from participants.sdk import ParticipantSettings
from tests.model.cases import PLAIN, Case
from tests.model.checks import Checks
from tests.model.deliveries import Deliveries
from tests.model.leader import BEGUN_MS
from tests.model.leaders import Leaders
from tests.model.parts import NOTHING, Decided, Draft, Message, Move, State
from tests.model.services import FRESH, plain_finished, sdk_swept

Step = tuple[bool, str, State]
"""Whether the system takes it by itself, what it is, the next state."""


class World(Leaders, Deliveries, Checks):
    """A case, explored. Implements `explorer.World`.

    `stale_views`: remember what deposed leaders last saw, for the broken rule that asks them.
    `reduced`: leave out what cannot matter (`leader.py`, `_is_inert`). Without it the same must
    come out, only later.
    """

    def __init__(self, case: Case, *, stale_views: bool = False, reduced: bool = True) -> None:
        super().__init__(case, reduced=reduced)
        self._stale_views = stale_views

    # --- what the explorer asks -------------------------------------------------------------------

    def first(self) -> State:
        machine = Machine()
        machine.step(Epoch(1, BEGUN_MS, "node"))
        nobody = (NOTHING,) * self.case.leaderships
        fresh = (self._services(FRESH),) * len(self.case.kinds)
        views = (-1,) * self.case.leaderships if self._stale_views else ()
        return State(1, self._freeze(machine), nobody, (), 0, fresh, 0, NOTHING, False, views)

    def steps(self, state: State) -> list[Step]:
        """Every step from here: whether the system takes it by itself, what, the next state."""
        found: list[Step] = []
        self._client_asks(state, found)
        self._log_applies(state, found)
        self._leaders_go_on(state, found)
        self._messages_arrive(state, found)
        self._operator_aborts(state, found)
        self._leadership_changes(state, found)
        if self.case.has_time and not state.late:
            self._time_passes(state, found)
        if self.case.slow:
            self._work_ends(state, found)
        if self.case.drops_tombstones:
            self._tombstones_go(state, found)
        return found

    # --- the steps --------------------------------------------------------------------------------

    def _client_asks(self, state: State, found: list[Step]) -> None:
        """What it is told of a decided one is seen to in `_clients_are_told`."""
        epoch, live = state.epoch, state.lives[state.epoch - 1]
        if live:
            return
        for content, fingerprint in enumerate(self._plans, 1):
            move = self._submitted(state.machine, fingerprint, state.late, epoch)
            if move.live != live or move.proposals:
                draft = Draft(state)
                self._led(draft, epoch, move)
                found.append(
                    (False, f"a client asks leader {epoch} for content {content}", draft.done())
                )

    def _log_applies(self, state: State, found: list[Step]) -> None:
        machine, queue = state.machine, state.queue
        if queue:
            draft = Draft(state)
            draft.queue = queue[1:]
            self._applied(draft, queue[0])
            found.append((True, self._what_applied(queue[0]), draft.done()))
        elif self.case.forgets:
            after = self._forgotten(machine, state.epoch)
            if self._machines[after].record is not self._machines[machine].record:
                draft = Draft(state)
                draft.machine = after
                found.append((False, "the transaction is forgotten", draft.done()))

    def _leaders_go_on(self, state: State, found: list[Step]) -> None:
        epoch = state.epoch
        for leader, live in enumerate(state.lives[:epoch], 1):
            if not live:
                continue
            for event in self._own_events(live, leader, state.late):
                by_itself, place, ends, what, move = event
                draft = Draft(state)
                if self.case.answers_wait:
                    draft.network &= ~self._replies_of(leader, place, ends=ends)
                self._led(draft, leader, move)
                after = draft.done()
                if after != state:
                    found.append((by_itself and leader == epoch, what, after))

    def _messages_arrive(self, state: State, found: list[Step]) -> None:
        network, late, services = state.network, state.late, state.services
        left, number = network, 0
        while left:
            if left & 1:
                message = self._messages[number]
                service = services[message.place]
                if message.kind == "inquiry":
                    self._inquiry_arrives(state, message, found)
                elif message.kind == "reply":
                    self._reply_arrives(state, message, found)
                elif message.kind == "answer":
                    after = self._obeyed(service, number, late)
                    if after != service:
                        by_itself = self._is_answered_now(state, message)
                        draft = Draft(state)
                        draft.services = _replaced(services, message.place, after)
                        what = f"{message.place} obeys the answer to its inquiry: {message.text}"
                        found.append((by_itself, what, draft.done()))
                else:
                    self._call_arrives(state, number, message, found)
            left >>= 1
            number += 1

    def _call_arrives(self, state: State, number: int, message: Message, found: list[Step]) -> None:
        services, epoch = state.services, state.epoch
        place = message.place
        service = services[place]
        network = state.network
        if message.leader:
            network &= ~(1 << number)
        for what, after, answer, asks in self._deliveries(service, number, state.late):
            current = state.lives[epoch - 1]
            by_itself = self._heard(current, epoch, number, answer, state.late) is not None
            draft = Draft(state)
            draft.network = network | asks
            if after != service:
                draft.services = _replaced(services, place, after)
            lost = draft.done()
            if lost != state:
                found.append((by_itself, f"{what}, the answer is lost", lost))
            for leader, live in enumerate(state.lives[:epoch], 1):
                move = self._heard(live, leader, number, answer, state.late)
                if move is None:
                    continue
                draft = Draft(lost)
                if self.case.answers_wait:
                    reply = Message("reply", place, message.kind, leader, b"", answer)
                    draft.network |= 1 << self._messages(reply)
                    what_next = f"{what}, the answer is on its way to leader {leader}"
                else:
                    self._led(draft, leader, move)
                    what_next = f"{what}, leader {leader} hears it"
                heard = draft.done()
                if heard != state:
                    found.append((leader == epoch, what_next, heard))

    def _reply_arrives(self, state: State, message: Message, found: list[Step]) -> None:
        leader = message.leader
        live = state.lives[leader - 1]
        assert message.answer is not None
        call = self._messages(message._replace(kind=message.text, text=self._fingerprint(live)))
        move = self._heard(live, leader, call, message.answer, state.late)
        draft = Draft(state)
        draft.network &= ~self._replies_of(leader, message.place, ends=message.text != "prepare")
        if move is not None:
            self._led(draft, leader, move)
        what = f"leader {leader} hears the answer of {message.place} to its {message.text}"
        found.append((leader == state.epoch, what, draft.done()))

    def _fingerprint(self, live: int) -> str:
        held = self._lives[live]
        return "" if held is None else held.fingerprint

    def _replies_of(self, leader: int, place: int | None = None, *, ends: bool = False) -> int:
        """The answers on their way to a leader: all, or one branch's to its prepare or its end."""
        messages = self._messages.values
        key = ("replies", leader, place, ends, len(messages))
        bits: int | None = self._known.get(key)
        if bits is None:
            bits = self._known[key] = sum(
                1 << number
                for number, message in enumerate(messages)
                if message.kind == "reply" and message.leader == leader
                if place is None or (message.place == place and (message.text != "prepare") == ends)
            )
        return bits

    def _inquiry_arrives(self, state: State, message: Message, found: list[Step]) -> None:
        epoch, place = state.epoch, message.place
        asker = (place, message.text)
        service = self._services[state.services[place]]
        asks = service.state is BranchState.PREPARED and service.fingerprint == message.text
        for leader in range(1, epoch + 1):
            machine = (
                state.machine if leader == epoch else (state.views or (-1,) * epoch)[leader - 1]
            )
            if machine < 0:
                continue
            live = state.lives[leader - 1]
            move = self._inquired(machine, live, leader, asker, leader == epoch)
            draft = Draft(state)
            if move.answer in (Decision.COMMIT, Decision.ABORT):
                draft.network |= 1 << self._messages(Message("answer", place, move.answer))
            draft.queue += tuple(p for p in move.proposals if p not in state.queue)
            after = draft.done()
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
        record = self._machines[state.machine].record
        if record is None or record.outcome is not None:
            return
        epoch = state.epoch
        for proposal in self._aborted_by_hand(state.lives[epoch - 1], epoch, state.late).proposals:
            if proposal not in state.queue:
                draft = Draft(state)
                draft.queue += (proposal,)
                found.append((False, "an operator aborts the transaction", draft.done()))

    def _leadership_changes(self, state: State, found: list[Step]) -> None:
        epoch, queue = state.epoch, state.queue
        if epoch == self.case.leaderships:
            return
        gone = f"leader {epoch + 1} takes over"
        found.append(
            (False, f"leader {epoch} dies, {gone}", self._taken_over(state, 0, goes_on=False))
        )
        live = state.lives[epoch - 1]
        inert = self._is_inert(state, live, epoch)
        if inert and not self._stale_views:
            return
        for landed in range(len(queue) + 1):
            what = f"leader {epoch} is deposed unknowing, {gone}"
            if landed:
                what += f", {landed} of the former's proposals came into the log"
            found.append((False, what, self._taken_over(state, landed, goes_on=True)))

    def _taken_over(self, state: State, landed: int, *, goes_on: bool) -> State:
        epoch, queue = state.epoch, state.queue
        draft = Draft(state)
        draft.network &= ~self._replies_of(epoch)
        if not goes_on:
            draft.lives = _replaced(state.lives, epoch - 1, NOTHING)
        if self._stale_views and goes_on:
            draft.views = _replaced(state.views, epoch - 1, state.machine)
        for proposal in queue[:landed]:
            draft.machine = self._apply(draft.machine, proposal)[0]
            self._observe(draft)
        draft.epoch = epoch + 1
        draft.machine = self._epoch_begins(draft.machine, epoch + 1)
        draft.queue = tuple(p for p in queue[landed:] if not self._is_stale(draft.machine, p))
        self._led(draft, epoch + 1, self._leads(draft.machine, epoch + 1, state.late))
        self._clients_are_told(draft)
        return draft.done()

    def _work_ends(self, state: State, found: list[Step]) -> None:
        for place, number in enumerate(state.services):
            service = self._services[number]
            if service.working:
                draft = Draft(state)
                done = self._services(plain_finished(service))
                draft.services = _replaced(state.services, place, done)
                found.append((True, f"{place} has done its work", draft.done()))
                if Vote.NO in self.case.votes:
                    draft = Draft(state)
                    failed = self._services(service._replace(working=None))
                    draft.services = _replaced(state.services, place, failed)
                    found.append((True, f"{place} gives its work up", draft.done()))

    def _time_passes(self, state: State, found: list[Step]) -> None:
        draft = Draft(state)
        draft.late = True
        # What keeps the contract refuses a prepare from then on (PROTOCOL, section 6).
        for number, message in enumerate(self._messages.values):
            if message.leader:
                draft.network &= ~(1 << number)
        idle = (self._services[s]._replace(working=None) for s in state.services)
        draft.services = tuple(self._services(service) for service in idle)
        for leader, live in enumerate(state.lives[: state.epoch], 1):
            if live:
                self._led(draft, leader, self._woken(live, leader))
        found.append((True, "expires_at and the grace pass", draft.done()))

    def _tombstones_go(self, state: State, found: list[Step]) -> None:
        record = self._machines[state.machine].record
        kept_ms = ParticipantSettings().tombstones_kept_ms
        for place, number in enumerate(state.services):
            service = self._services[number]
            if service.state not in ENDED or service.dropped or self.case.kinds[place] == PLAIN:
                continue
            swept = self._services(sdk_swept(service, str(place + 1), kept_ms=kept_ms))
            if swept != number:
                draft = Draft(state)
                draft.services = _replaced(state.services, place, swept)
                found.append((False, f"{place} drops its tombstone at once", draft.done()))
            over = record is None or place >= len(record.branches)
            if record is not None and not over:
                read_only = record.votes[place : place + 1] == (Vote.READ_ONLY,)
                over = bool(record.acknowledged >> place & 1) or read_only
            if over:
                draft = Draft(state)
                bare = self._services(service._replace(branch=None, dropped=True))
                draft.services = _replaced(state.services, place, bare)
                draft.network &= ~self._quiet(place)
                deposed = (NOTHING,) * (state.epoch - 1)
                draft.lives = (*deposed, *state.lives[state.epoch - 1 :])
                found.append((False, f"all is quiet, {place} drops its tombstone", draft.done()))

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

    def _led(self, draft: Draft, leader: int, move: Move) -> None:
        """A leader has done something."""
        draft.network |= move.network
        draft.told |= move.told
        live = move.live
        lives = draft.lives
        if lives[leader - 1] != live:
            draft.lives = _replaced(lives, leader - 1, live)
        for proposal in move.proposals:
            self._propose(draft, leader, proposal)
        if live and leader != draft.epoch and self._is_inert(draft, live, leader):
            draft.lives = _replaced(draft.lives, leader - 1, NOTHING)

    def _propose(self, draft: Draft, leader: int, proposal: int) -> None:
        if leader != draft.epoch:
            if not self._is_stale(draft.machine, proposal):
                draft.queue += (proposal,)
        elif self._is_acknowledgement(proposal) and not self.case.acknowledges_later:
            self._applied(draft, proposal)
        else:
            draft.queue += (proposal,)

    def _applied(self, draft: Draft, proposal: int) -> None:
        """A command is applied, and whoever proposed it is told, if he still leads."""
        epoch, before = draft.epoch, draft.machine
        draft.machine, result = self._apply(before, proposal)
        self._observe(draft)
        command, asker = self._proposals[proposal]
        if command.epoch == epoch:
            live = draft.lives[epoch - 1]
            move = self._continued(live, proposal, result, draft.late, draft.machine)
            self._led(draft, epoch, move)
            if asker is not None and move.answer in (Decision.COMMIT, Decision.ABORT):
                answer = Message("answer", asker[0], move.answer)
                draft.network |= 1 << self._messages(answer)
        if draft.machine != before:
            self._clients_are_told(draft)

    def _observe(self, draft: Draft) -> None:
        record = self._machines[draft.machine].record
        if draft.decided or record is None or record.outcome is None or record.is_refusal:
            return
        decided = Decided(record.fingerprint, record.outcome, record.votes)
        draft.decided = self._decisions(decided)

    def _clients_are_told(self, draft: Draft) -> None:
        epoch = draft.epoch
        key = ("told", draft.machine, draft.lives[epoch - 1], draft.late)
        bits = self._known.get(key)
        if bits is None:
            bits = 0
            for plan in self._plans.values():
                node = self._node(draft.lives[epoch - 1], epoch, draft.late, draft.machine)
                _, outcome = node.submit(plan)
                if outcome is not None:
                    bits |= 1 << self._told((plan.fingerprint, outcome))
            self._known[key] = bits
        draft.told |= bits


def _replaced(numbers: tuple[int, ...], at: int, number: int) -> tuple[int, ...]:
    return (*numbers[:at], number, *numbers[at + 1 :])
