"""The history of a test with real processes, written as it happens, in the shape of `checker`.

    recording = Recording(["inventory", "profile"], path)
    recording.begun(id); recording.told(id, "committed"); recording.effects("inventory", effects)
    assert recording.violations() == []

Every transaction is asked for at all of `services`. What those did is read at the end, so the
effects stand there, in an order of their own (`ordered` is false). `path` gets the same, as JSON
lines, for `python -m tests.checker`; what it holds is what is checked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.checked import ABORTED, COMMITTED
from tests.checker import check


class Recording:
    """`outcomes`: what was told, by id."""

    def __init__(self, services: Sequence[str], path: Path | None = None) -> None:
        self.services = services
        self.outcomes: dict[str, set[str]] = {}
        self._path = path
        self._lines: list[str] = []
        self._operations = 0
        if path is not None:
            path.write_text("")
        self._write(
            "run",
            source="real processes",
            participants=dict.fromkeys(services, "sdk"),
            nodes=[],
            forgets=False,
            complete=True,
            ordered=False,
        )

    def begun(self, id: str) -> None:
        """A client has asked for it, and may have been told nothing."""
        if id not in self.outcomes:
            self.outcomes[id] = set()
            self._operations += 1
            asked = dict.fromkeys(self.services)
            self._write("invoke", op=self._operations, call="submit", id=id, participants=asked)

    def told(self, id: str, outcome: str | None) -> None:
        """A client was told the outcome."""
        assert outcome in (COMMITTED, ABORTED), f"{id}: {outcome!r} is not an outcome"
        self.begun(id)
        self.outcomes[id].add(outcome)
        self._operations += 1
        self._write("ok", op=self._operations, call="submit", id=id, outcome=outcome, state=None)

    def effects(self, service: str, effects: Iterable[tuple[str, str]]) -> None:
        """All that the service has done: (transaction id, how its branch ended)."""
        for id, effect in effects:
            self._write("effect", participant=service, id=id, branch="", effect=effect)
        self._write("participant_end", participant=service, in_doubt=[], held=[])

    def node(self, node: str, outcomes: Mapping[str, str]) -> None:
        """What a node knows, asked for itself when all is over."""
        self._write("node_end", node=node, outcomes=dict(outcomes))

    def ids(self, outcome: str) -> list[str]:
        """Those that were told to have ended so."""
        return [id for id, outcomes in self.outcomes.items() if outcome in outcomes]

    def violations(self) -> list[str]:
        """A sentence for everything that must not be, as far as it was recorded."""
        lines = self._lines if self._path is None else self._path.read_text().splitlines()
        return [str(violation) for violation in check(json.loads(line) for line in lines)]

    def _write(self, event: str, **fields: Any) -> None:
        client = {"client": "test"} if event in ("invoke", "ok") else {}
        line = json.dumps({"event": event, "at": time.time(), **client, **fields})
        self._lines.append(line)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(line + "\n")
