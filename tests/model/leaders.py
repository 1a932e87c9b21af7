"""What comes of each event at each leader, once for each input (see `leader.py`)."""

from __future__ import annotations

import json
from collections.abc import Iterator

from coordinator.commands import Refuse, Resolve
from coordinator.facts import Outcome
from participants.contract import (
    Acknowledged,
    Failed,
    Operation,
    Voted,
    Working,
)
from participants.messages import read_prepare
from tests.model.cases import PLAIN, place_of
from tests.model.leader import Effect, Node, Sent
from tests.model.machines import Machines
from tests.model.parts import NOTHING, Draft, Message, Move, Proposal, State
from tests.model.services import Answer

OwnEvent = tuple[bool, int, bool, str, Move]
"""By itself, the branch's place, whether it is about its end, what, what comes of it."""

UNREACHED = Failed("cannot be reached", arrived=False)
UNANSWERED = Failed("no answer in time")
BROKEN = Failed("the connection broke", broken=True)


class Leaders(Machines):
    """What leaders do."""

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
            reduced=self._reduced,
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

    def _own_events(self, live: int, leader: int, late: bool) -> list[OwnEvent]:
        """What a leader does, or suffers, without a message from outside."""
        key = ("own", live, leader, late)
        events: list[OwnEvent] | None = self._known.get(key)
        if events is None:
            events = self._known[key] = list(self._make_own_events(live, leader, late))
        return events

    def _make_own_events(self, live: int, leader: int, late: bool) -> Iterator[OwnEvent]:
        held = self._lives[live]
        if held is None or held.talk is None:
            return

        talk = held.talk
        undecided = talk.decision is None and talk.transaction.outcome is None
        for place, leg in enumerate(talk.legs):
            prepare = f"leader {leader}'s prepare to {place}"
            if leg.waits and not late:  # the gateway gives a prepare up at its deadline
                move = self._noted(self._node(live, leader, late).prepare_leaves(place), leader)
                yield True, place, False, f"{prepare} leaves", move
            if leg.waits:
                move = self._failed(live, leader, late, place, UNREACHED)
                yield late, place, False, f"{prepare} cannot be sent", move
            elif leg.preparing and undecided:
                move = self._failed(live, leader, late, place, UNANSWERED)
                yield True, place, False, f"{prepare} gets no answer in time", move
                move = self._failed(live, leader, late, place, BROKEN)
                yield True, place, False, f"{prepare} has its connection broken", move
            elif leg.ending:
                move = self._noted(
                    self._node(live, leader, late).end_answered(place, BROKEN), leader
                )
                what = f"leader {leader}'s call to end {place} fails, and is made again"
                yield True, place, True, what, move

    def _failed(self, live: int, leader: int, late: bool, place: int, failed: Failed) -> Move:
        node = self._node(live, leader, late)
        return self._noted(node.prepare_answered(place, failed), leader)

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

    def _continued(self, live: int, proposal: int, result: int, late: bool, machine: int) -> Move:
        """What the current leader does when a proposal of his has been applied, to `machine`."""
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
                case Resolve():  # of the machine it reads the record again, which is in the result
                    node = self._node(live, command.epoch, late, machine)
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
        epoch, place = state.epoch, answer.place
        fingerprint = self._services[state.services[place]].fingerprint or ""
        live = state.lives[epoch - 1]
        move = self._inquired(state.machine, live, epoch, (place, fingerprint), True)
        return move.answer == answer.text

    def _aborted_by_hand(self, live: int, epoch: int, late: bool) -> Move:
        key = ("aborted by hand", live, epoch, late)
        move: Move | None = self._known.get(key)
        if move is None:
            move = self._noted(self._node(live, epoch, late).abort_by_hand(), epoch)
            self._known[key] = move
        return move

    def _is_inert(self, state: State | Draft, live: int, leader: int) -> bool:
        """Whether a deposed leader can change nothing: all that it may ever do is done already."""
        if not live or not self._reduced:
            return not live
        key = ("reach", live, leader, state.late)
        reach = self._known.get(key)
        if reach is None:
            reach = self._known[key] = self._reach(live, leader, state.late)
        messages, told, proposals = reach
        if told & ~state.told or messages & ~state.network:
            return False
        return all(self._is_stale(state.machine, proposal) for proposal in proposals)

    def _reach(self, live: int, leader: int, late: bool) -> tuple[int, int, frozenset[int]]:
        """All messages, tellings and proposals that may come of a leader, whatever it hears."""
        messages, told = 0, 0
        proposals: set[int] = set()
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
        for *_, move in self._own_events(live, leader, late):
            yield move, late
        answers: list[Answer] = [Voted(vote) for vote in self.case.votes]
        answers += [Failed("useless", answered=True), Working()]
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
