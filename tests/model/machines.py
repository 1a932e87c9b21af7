"""The project's machine, restored from its snapshot for every command."""

from __future__ import annotations

from coordinator.commands import Acknowledge, Command, Decide, Epoch, Forget
from coordinator.machine import Machine
from coordinator.moves import Refusal
from tests.builders import restore
from tests.model.leader import BEGUN_MS, ID
from tests.model.parts import Frozen, Parts

HORIZON_MS = BEGUN_MS + 1


class Machines(Parts):
    """What commands do to machines."""

    def _freeze(self, machine: Machine) -> int:
        return self._machines(Frozen(tuple(machine.chunks(machine.view())), machine.get(ID)))

    def _thaw(self, number: int) -> Machine:
        machine = Machine()
        restore(machine, iter(self._machines[number].chunks))
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
