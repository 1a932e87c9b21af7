"""What clients ask without the library: one node's own answer, nonsense, submits without an id."""

from __future__ import annotations

import json

from cluster.client.calls import HttpAnswer, NoAnswer
from tests.simulation.astray import VIA
from tests.simulation.sessions import Body, Call, Session, told_of
from tests.simulation.world import NodeHost

READ_S = 20.0
"""How long a direct request waits: longer than a node that was stopped sleeps."""
HOPS = 4
"""Redirects that are followed, as any program follows them: with the same body."""

_ID_AHEAD = "f1977420-0000-7000-8000-000000000000"
"""Its time is thousands of years away."""
_OF_TOMORROW = json.dumps(
    {"id": _ID_AHEAD, "participants": [{"name": "a", "url": "http://127.0.2.99:9000"}]}
).encode()

NONSENSE: tuple[tuple[str, str, bytes | None], ...] = (
    ("POST", "/v1/transactions", b"{"),
    ("POST", "/v1/transactions", b"\xff\x00"),
    ("POST", "/v1/transactions", b"[]"),
    ("POST", "/v1/transactions", b"null"),
    ("POST", "/v1/transactions", b"[" * 20_000),
    ("POST", "/v1/transactions", b'{"participants": [], "id": "x"}'),
    ("POST", "/v1/transactions", b'{"participants": {"name": 1}, "id": "x"}'),
    (
        "POST",
        "/v1/transactions",
        b'{"participants": [{"name": "a", "url": "file:///"}], "id": "x"}',
    ),
    ("POST", "/v1/transactions", b'{"id": 7, "participants": [{"name": "a"}]}'),
    ("POST", "/v1/transactions", b'{"id": "x", "timeout_ms": 1e400, "participants": []}'),
    ("POST", "/v1/transactions", b'{"transactions": 7}'),
    ("POST", "/v1/transactions/x/resolve", b'{"outcome": "commit"}'),
    ("POST", "/v1/transactions/x/resolve", b'{"outcome": ["abort"], "actor": 1, "reason": null}'),
    ("POST", "/v1/transactions/x/commit", b"{}"),
    ("GET", "/v1/transactions/x?wait_ms=-1", None),
    ("GET", "/v1/transactions/x/decision", None),
    ("GET", "/v1/transactions?limit=abc", None),
    ("POST", "/v1/transactions", _OF_TOMORROW),
    ("GET", f"/v1/transactions/{_ID_AHEAD}/decision?branch_id=1&fingerprint=x", None),
    ("GET", "/v1/nothing", None),
    ("DELETE", "/v1/transactions/x", None),
)
"""Method, path and body of requests without sense."""


class RawRequests(Session):
    """As `Session`, but by hand."""

    async def read(self) -> None:
        """Ask one node, rather another than the leader, and wait for its own answer: about one
        transaction as it is, or as it is when it has ended or a while is over, or when it is called
        again at once; or for the latest.

        One that was asleep, or cut off, and believes that it leads, must not answer from the past.
        """
        told, known = self.load.told, [*self.load.bodies, *self.load.opened]
        if not told:
            return
        id = self._draw.choice(told[-3:] if self._draw.random() < 0.5 else known[-6:])
        nodes = self.world.nodes
        if self._draw.random() < 0.7:
            nodes = [node for node in nodes if node.settings.api.url != self.library.leader]
        node = self._draw.choice(nodes)
        if self.world.asleep is not None and self._draw.random() < 0.7:
            id, node = told[-1], self.world.asleep
        await self.read_at(node, id)

    async def read_at(self, node: NodeHost, id: str) -> None:
        call = self.invoke("get", id, stale=False, node=node.name)
        hows = (f"/{id}", f"/{id}?wait_ms=300", "?limit=20", f"/{id}/retry")
        how = self.world.draw("how to read").choice(hows)
        url = f"{node.settings.api.url}/v1/transactions{how}"
        method, body = ("POST", b"{}") if how == hows[-1] else ("GET", None)
        try:
            answer = await self.library._exchange.send(method, url, body, READ_S)
        except NoAnswer as error:
            call.end("info", error=str(error)[:80])
            return
        call.read(answer)

    async def nonsense(self) -> None:
        """A request that no node can obey (I18)."""
        draw = self._draw
        node = draw.choice(self.world.nodes)
        method, path, body = draw.choice(NONSENSE)
        url = node.settings.api.url + path
        try:
            answer = await self.library._exchange.send(method, url, body, 5.0)
        except NoAnswer:
            return
        # Who does not lead may send everything on to who does, looked at or not.
        if answer.status not in (307, 503) and VIA not in answer.headers:
            where = f"{method} {path}"
            self.record("bad_input", node=node.name, to=where, status=answer.status, alive=True)

    async def submit_nameless(self) -> None:
        """A transaction without an id, which may be asked for once only: what is not answered may
        run or not. An answer, or a 503 that knows the id, names it.
        """
        body = self.load.new_body(self._draw, "")
        del body["id"]
        call = self.invoke("submit", None, **told_of(body))
        self.world.count("submits without an id")
        url = f"{self._draw.choice(self.world.nodes).settings.api.url}/v1/transactions"
        encoded = json.dumps(body).encode()
        try:
            answer = await self.followed("POST", url, encoded)
        except NoAnswer as error:
            call.end("info", error=str(error)[:80])
            return
        if VIA in answer.headers:
            call.end("info", error="no node said that")
            return
        told = json.loads(answer.body)
        if answer.status in (200, 202):
            self._learn(call, body, told["id"])
            call.end("ok", outcome=told["outcome"], state=told["state"])
            return
        code, id = told["error"]["code"], told["error"]["details"].get("id")
        if id is None:
            call.end("fail", error=code)
            return
        self._learn(call, body, id)
        self.load.unknown.append(id)
        call.end("info", error=code)

    def _learn(self, call: Call, body: Body, id: str) -> None:
        self.load.bodies[id] = {**body, "id": id}
        call.id = id

    async def followed(
        self, method: str, url: str, body: bytes, timeout_s: float = READ_S
    ) -> HttpAnswer:
        """Raises NoAnswer."""
        for _ in range(HOPS):
            answer = await self.library._exchange.send(method, url, body, timeout_s)
            if answer.status != 307:
                return answer
            url = answer.headers["Location"]
        raise NoAnswer(f"{HOPS} redirects in a row")
