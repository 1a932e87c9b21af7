"""What must hold in every state, by the numbers of the invariants.

I1 no two branches end differently, I2 an outcome never changes, I3 commit only on every vote, I4
what a client was told is so, I5 nothing leaves before what justifies it is in the log, I6 what is
forgotten is not run again (it would show as I2 or I7), I7 a branch's work happens at most once. I10
and I11, that everything ends and nothing is left reserved, are asked of every state by the explorer
with `is_settled`.
"""

from __future__ import annotations

from coordinator.facts import Outcome
from participants.branch import State as BranchState
from participants.contract import Vote
from tests.model.parts import Decided, Parts, State


class Checks(Parts):
    """Looks at states."""

    def violation(self, state: State) -> str | None:
        """What must never be, and is."""
        key = ("violation", state.services, state.decided, state.told, state.machine)
        if key not in self._known:
            self._known[key] = self._violation(state)
        fault: str | None = self._known[key]
        return fault

    def is_settled(self, state: State) -> bool:
        """I10, I11: nothing is left prepared, unfinished or under way."""
        if state.queue or state.lives[state.epoch - 1]:
            return False
        record = self._machines[state.machine].record
        if record is not None and record.finished_ms is None:
            return False
        return all(self._services[s].state is not BranchState.PREPARED for s in state.services)

    def _violation(self, state: State) -> str | None:
        decided = self._decisions[state.decided]
        committed = decided is not None and decided.outcome is Outcome.COMMIT
        for place, number in enumerate(state.services):
            service = self._services[number]
            if service.commits > 1:
                return f"I7: branch {place} committed twice"
            if service.works > 1:
                return f"I7: plain branch {place} was prepared twice"
            if service.commits and not committed:
                return f"I5: branch {place} committed, but the transaction did not"
            held = None if service.dropped or not service.commits else service.fingerprint
            if decided is not None and held not in (None, decided.fingerprint):
                return f"I7: branch {place} committed the work of another content"
        if decided is None:
            return None
        if committed:
            fault = self._wrongly_committed(state, decided)
            if fault is not None:
                return fault
        record = self._machines[state.machine].record
        if record is not None and record.fingerprint == decided.fingerprint:
            if record.outcome is None:
                return "I6: what was decided is begun again"
            if record.outcome is not decided.outcome:
                return "I2: the outcome changed"
        told = {
            outcome
            for fingerprint, outcome in self._told_in(state.told)
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
            service = self._services[state.services[place]]
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
