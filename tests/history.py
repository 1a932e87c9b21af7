"""What clients were told against what services did: the checker of the tests with real processes.
Pure.

    history = History(["inventory", "profile"])
    history.begun(id); history.told(id, "committed"); history.effects("inventory", effects)
    assert history.violations() == []

It knows the rules of atomicity and nothing of how they are kept: an outcome that was told never
changes, a committed transaction has its effect once at every service, an aborted one nowhere, and
one whose outcome nobody was told is the same at all services.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

COMMITTED, ABORTED = "committed", "aborted"


@dataclass(slots=True)
class History:
    """`services`: those that take part in every transaction. `outcomes`: what was told, by id."""

    services: Sequence[str]
    outcomes: dict[str, set[str]] = field(default_factory=dict)
    at: dict[str, collections.Counter[tuple[str, str]]] = field(default_factory=dict)

    def begun(self, id: str) -> None:
        """A client has asked for it, and may have been told nothing."""
        self.outcomes.setdefault(id, set())

    def told(self, id: str, outcome: str | None) -> None:
        """A client was told the outcome."""
        assert outcome in (COMMITTED, ABORTED), f"{id}: {outcome!r} is not an outcome"
        self.outcomes.setdefault(id, set()).add(outcome)

    def effects(self, service: str, effects: Iterable[tuple[str, str]]) -> None:
        """All that the service has done: (transaction id, how its branch ended)."""
        self.at[service] = collections.Counter(effects)

    def ids(self, outcome: str) -> list[str]:
        """Those that were told to have ended so."""
        return [id for id, outcomes in self.outcomes.items() if outcome in outcomes]

    def violations(self) -> list[str]:
        """A sentence for everything that must not be."""
        found = [
            f"the effects of {one} were not read" for one in self.services if one not in self.at
        ]
        for id, outcomes in self.outcomes.items():
            if len(outcomes) > 1:
                found.append(f"{id}: told committed and aborted")
            counts = [self._count(service, id) for service in self.services]
            if any(count > 1 for count in counts):
                found.append(f"{id}: its effect is there more than once: {self._spell(counts)}")
            if COMMITTED in outcomes and 0 in counts:
                found.append(f"{id}: told committed, and not everywhere: {self._spell(counts)}")
            if ABORTED in outcomes and any(counts):
                found.append(f"{id}: told aborted, and somewhere committed: {self._spell(counts)}")
            if not outcomes and 0 in counts and any(counts):
                found.append(f"{id}: committed at some and not at others: {self._spell(counts)}")
        for service in self.services:
            for id, effect in self.at.get(service, ()):
                if effect == COMMITTED and id not in self.outcomes:
                    found.append(f"{id}: committed at {service}, and nobody asked for it")
        return found

    def _count(self, service: str, id: str) -> int:
        return self.at.get(service, collections.Counter())[(id, COMMITTED)]

    def _spell(self, counts: Sequence[int]) -> str:
        pairs = zip(self.services, counts, strict=True)
        return ", ".join(f"{count} at {service}" for service, count in pairs)
