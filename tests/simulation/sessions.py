"""Who asks the cluster, and the history of it: of every call its beginning and its end."""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

from cluster.client.answers import ClientError, Refused, Transaction
from cluster.client.async_client import Client
from cluster.client.calls import HttpAnswer
from tests.simulation.astray import VIA
from tests.simulation.world import ClientHost

if TYPE_CHECKING:
    from tests.simulation.workload import Load

Body = dict[str, Any]


class Session:
    """Whoever asks, from one start of one client's program."""

    def __init__(self, load: Load, host: ClientHost, library: Client, draw: Random) -> None:
        self.load = load
        self.world = load.world
        self._host = host
        self.library = library
        self._draw = draw
        self._session = f"{host.name}.{host.starts}"

    def invoke(self, call: str, id: str | None, **fields: Any) -> Call:
        self.load.operations += 1
        return Call(self, self.load.operations, call, id, fields)

    def record(self, event: str, **fields: Any) -> None:
        process = self._host.process
        if process is not None and process.alive:
            self.world.record(event, client=self._session, **fields)

    def failed_at(self, answer: HttpAnswer) -> None:
        """A node has met what its code does not foresee."""
        self.record("unhandled", message="a node answered 500", error=answer.body.decode()[:200])


class Call:
    """One call in the history."""

    def __init__(self, user: Session, number: int, call: str, id: str | None, fields: Body) -> None:
        self._user = user
        self._number = number
        self.id = id
        self._call = call
        user.record("invoke", op=number, call=call, id=id, **fields)

    def answered(self, answer: Transaction) -> None:
        self.end("ok", outcome=answer.outcome, state=answer.state, branches=shown(answer))
        if self._call == "submit" and answer.outcome is not None:
            self._user.world.count(answer.outcome)
            self._user.load.told.append(answer.id)

    def failed(self, error: Refused) -> None:
        self.end("fail", error=error.code)
        self._user.world.count("refused")

    def unknown(self, error: ClientError) -> None:
        self.end("info", error=type(error).__name__)
        if self._call == "submit" and self.id is not None:
            self._user.world.count("unknown")
            self._user.load.unknown.append(self.id)

    def read(self, answer: HttpAnswer) -> None:
        """What one node said by itself; only 200 and 404 say anything."""
        if VIA in answer.headers:
            self.end("info", error="no node said that")
        elif answer.status == 404:
            self.unheard_of()
        elif answer.status == 200:
            told = json.loads(answer.body)
            listed = {row["id"]: row for row in told.get("transactions", [told])}
            row = listed.get(self.id)
            if row is None:
                self.end("info", error="not on this page")
            else:
                branches = {branch["name"]: branch["state"] for branch in row["branches"]}
                self.end("ok", outcome=row["outcome"], state=row["state"], branches=branches)
        else:
            self.end("info", error=str(answer.status))
            if answer.status == 500:
                self._user.failed_at(answer)

    def refused_to_say(self, error: Refused) -> None:
        """404 or 410: nobody knows of it, if it was a node that said so."""
        if error.code.startswith("http_"):
            self.unknown(error)
        else:
            self.unheard_of()

    def unheard_of(self) -> None:
        self.end("ok", outcome=None, state="unknown")

    def end(self, event: str, **fields: Any) -> None:
        self._user.record(event, op=self._number, call=self._call, id=self.id, **fields)


def shown(answer: Transaction) -> Body:
    """What history keeps of an answer's branches."""
    return {branch.name: branch.state for branch in answer.branches}


def told_of(body: Body) -> Body:
    """What history keeps of a body."""
    participants = {
        entry["name"]: [entry["payload"][k] for k in ("account", "amount", "vote")]
        for entry in body["participants"]
    }
    work = body["participants"][0]["payload"]["work"]
    return {"participants": participants, "work": work}
