"""One node's API on a free port: the real driver, machine and gateway over a log in memory.

    async with api_node() as node:
        status, answer = await node.post("/v1/transactions", {...})

`node.services` has participants at `/yes`, `/no`, `/read_only`, `/down` (whose commit and rollback
fail) and `/slow` (whose prepare waits for `node.services.go_on()`). A `ScriptedDriver` may take the
driver's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from random import Random
from typing import Any, cast

import aiohttp
from aiohttp import web
from prometheus_client import CollectorRegistry
from yarl import URL

from coordinator import api_http
from coordinator.admission import Admission, WaitingLine, WayIn
from coordinator.api import Api, Check
from coordinator.api_requests import Answer, Later
from coordinator.api_shapes import read_submission
from coordinator.driver import Driver, Figures
from coordinator.facts import Effect, Transaction
from coordinator.gateway import Gateway
from coordinator.live import Progress
from coordinator.log import LogError, NotHandedOver, NotLeader
from coordinator.machine import Machine
from coordinator.metrics import LogFigures, Metrics
from coordinator.plan import Plan, Wait
from coordinator.settings import Limits, Timings
from coordinator.steps import Steps
from tests.memory_log import MemoryLog

PATIENCE_S = 30.0
ERROR_KEYS = {"code", "message", "details"}


def now_ms() -> int:
    return int(time.time() * 1000)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run an async test; one that hangs fails."""
    asyncio.run(asyncio.wait_for(test, PATIENCE_S * 2))


class Services:
    """Participants, and what they were asked."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[tuple[str, str, str]] = []
        self.arrived = asyncio.Condition()
        self._go = asyncio.Event()

    def go_on(self) -> None:
        self._go.set()

    async def until_called(self, kind: str, operation: str) -> None:
        async with self.arrived:
            await self.arrived.wait_for(
                lambda: any(call[:2] == (kind, operation) for call in self.calls)
            )

    async def answer(self, request: web.Request) -> web.Response:
        kind, operation = request.match_info["kind"], request.match_info["operation"]
        body = await request.json()
        self.calls.append((kind, operation, body["transaction_id"]))
        async with self.arrived:
            self.arrived.notify_all()
        if operation != "prepare":
            return web.json_response({}, status=503 if kind == "down" else 200)
        if kind == "slow":
            await self._go.wait()
        if kind == "no":
            return web.json_response({"vote": "no", "reason": "out of stock"})
        return web.json_response({"vote": "read_only" if kind == "read_only" else "yes"})


class SwitchedLog(MemoryLog):
    """A log in memory whose barriers may be made to fail, and which counts them.

    Leadership goes to `successor` (None: nobody that is known), however often it is asked for.
    """

    barriers = 0
    barrier_error: LogError | None = None
    successor: str | LogError | None = NotHandedOver("no other node answers")

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.handed_to: list[str | None] = []

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str:
        del timeout_s
        self.handed_to.append(to)
        if isinstance(self.successor, LogError):
            raise self.successor
        self.follow(self.successor)
        if self.successor is None:
            raise NotLeader("nobody is known to lead")
        return self.successor

    def barrier(self) -> asyncio.Future[None]:
        self.barriers += 1
        if self.barrier_error is None:
            return super().barrier()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(self.barrier_error)
        return future

    def follow(self, leader: str | None) -> None:
        """This node does not lead; `leader` was heard of."""
        if self.epoch is not None:
            self.stop_leading()
        self.leader = leader


class Closed(Admission):
    """Nobody begins, and nobody may wait for it."""

    def has_room(self) -> bool:
        return False

    def may_wait(self, others: int, now_s: float) -> bool:  # noqa: ARG002
        return False


class ScriptedDriver:
    """Says what it is told to: `outcome` is a transaction, an error, or None for no answer ever."""

    def __init__(self) -> None:
        self.outcome: Callable[[Plan], Transaction | Exception | None] = lambda _plan: None
        self.submitted: list[tuple[Plan, Wait]] = []
        self.futures: list[asyncio.Future[Transaction]] = []
        self.asked = asyncio.Event()
        self.line = WaitingLine(Admission())

    def way_in(self, _transaction_id: object, address: str | None) -> WayIn:
        return WayIn.REFUSED if address is None else WayIn.AT_ONCE

    def submit(self, plan: Plan, wait: Wait) -> asyncio.Future[Transaction]:
        self.submitted.append((plan, wait))
        return self._future(self.outcome(plan))

    def knows(self, _transaction_id: str) -> bool:
        return False

    def wait_for_end(self, transaction_id: str) -> asyncio.Future[Transaction]:
        return self._future(self.outcome(cast(Plan, transaction_id)))

    def progress(self, _transaction_id: str) -> tuple[Progress, ...] | None:
        return None

    async def inquire(self, transaction_id: str, _branch_id: str, _fingerprint: str) -> str:
        self._raise(transaction_id)
        return "pending"

    async def resolve(
        self,
        transaction_id: str,
        *,
        branch_id: str | None,
        effect: Effect | None,
        actor: str,
        reason: str,
    ) -> Transaction:
        del branch_id, effect, actor, reason
        return self._raise(transaction_id)

    def retry_now(self, transaction_id: str) -> Transaction:
        return self._raise(transaction_id)

    def figures(self) -> Figures:
        return Figures(False, 0, 0, 0, 0, 0, 0, 0, 0, {})

    def _raise(self, transaction_id: str) -> Transaction:
        outcome = self.outcome(cast(Plan, transaction_id))
        if isinstance(outcome, Exception):
            raise outcome
        return cast(Transaction, outcome)

    def _future(self, outcome: Transaction | Exception | None) -> asyncio.Future[Transaction]:
        future: asyncio.Future[Transaction] = asyncio.get_running_loop().create_future()
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        elif outcome is not None:
            future.set_result(outcome)
        self.futures.append(future)
        self.asked.set()
        return future


class ApiNode:
    """A node under test."""

    def __init__(self, limits: Limits, timings: Timings, scripted: ScriptedDriver | None) -> None:
        self.limits = limits
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.machine = Machine()
        self.log = SwitchedLog(self.machine)
        self.services = Services()
        self.gateway = Gateway(limits=limits, timings=timings, random=Random(1))
        self.gateway.on_answers = self.metrics.answered
        self.driver = Driver(
            self.log,
            self.machine,
            self.gateway,
            now_ms=now_ms,
            random=Random(2),
            limits=limits,
            timings=timings,
            coordinators=("http://127.0.0.1:8101",),
            steps=Steps(self.metrics),
        )
        self.log.on_leadership = self.driver.lead
        self.metrics.watch(self.driver.figures, lambda: LogFigures(3, 7, 7, 4096, 5))
        self.apis = {"n1": "http://127.0.0.1:8101", "n2": "http://127.0.0.1:8102"}
        self.clock_is_settled = True
        self.checks = {"leader": Check(True, "n1 leads")}
        self.api = Api(
            self.driver if scripted is None else cast(Driver, scripted),
            self.machine,
            self.log,
            node="n1",
            apis=self.apis,
            limits=limits,
            timings=timings,
            now_ms=now_ms,
            clock_is_settled=lambda: self.clock_is_settled,
            random=Random(3),
            status=self.status,
            checks=lambda: self.checks,
            registry=self.registry,
        )
        self.url = ""
        self.session: aiohttp.ClientSession

    def status(self) -> dict[str, Any]:
        return {
            "cluster": "c-1", "self": "n1", "leader": self.log.leader, "term": 3, "nodes": []
        }  # fmt: skip

    def service(self, kind: str = "yes", **more: Any) -> dict[str, Any]:
        """A participant for a body."""
        return {"url": f"{self.services.url}/{kind}", **more}

    def body(self, *kinds: str, **more: Any) -> dict[str, Any]:
        """A body with these participants."""
        return {"participants": [self.service(kind) for kind in kinds or ("yes",)], **more}

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """(status, decoded JSON, headers) of a call whose path is sent as it is."""
        url = URL(self.url + path, encoded=True)
        async with self.session.request(
            method,
            url,
            data=None if body is None else io.BytesIO(body),
            headers=headers,
            allow_redirects=False,
        ) as response:
            text = await response.read()
            return response.status, json.loads(text) if text else None, response.headers

    async def post(self, path: str, value: Any) -> tuple[int, Any]:
        status, answer, _ = await self.request(
            "POST",
            path,
            body=json.dumps(value).encode(),
            headers={"Content-Type": "application/json"},
        )
        return status, answer

    async def get(self, path: str) -> tuple[int, Any]:
        status, answer, _ = await self.request("GET", path)
        return status, answer

    async def begin(self, body: dict[str, Any]) -> None:
        """Have the real driver begin this, also where a scripted one has its place."""
        plan = read_submission(body, limits=self.limits, timings=Timings(), make_id=str).plan
        await self.driver.submit(plan, Wait.NONE)

    async def passes(self) -> None:
        """A good transaction passes."""
        status, answer = await self.post("/v1/transactions", self.body("yes", "read_only"))
        assert (status, answer["outcome"]) == (200, "committed"), answer


@contextlib.asynccontextmanager
async def api_node(
    *,
    limits: Limits | None = None,
    timings: Timings | None = None,
    scripted: ScriptedDriver | None = None,
) -> AsyncIterator[ApiNode]:
    """A node that leads."""
    node = ApiNode(limits or Limits(), timings or Timings(), scripted)
    services = web.Application()
    services.router.add_post("/{kind}/{operation}", node.services.answer)
    async with (
        _served(
            web.AppRunner(services, access_log=None, shutdown_timeout=0.1)
        ) as node.services.url,
        _api_served(node.api) as node.url,
        aiohttp.ClientSession() as node.session,
    ):
        await node.gateway.start()
        node.log.lead(now_ms())
        try:
            yield node
        finally:
            node.services.go_on()
            node.driver.stop()
            await node.gateway.stop()


@contextlib.asynccontextmanager
async def _served(runner: web.BaseRunner) -> AsyncIterator[str]:
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    try:
        await web.SockSite(runner, listening).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        await runner.cleanup()
        listening.close()


@contextlib.asynccontextmanager
async def _api_served(api: Api) -> AsyncIterator[str]:
    server = api_http.Server(api, shutdown_timeout_s=0.1)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


async def answered(answer: Answer | Later) -> Answer:
    """The answer, waited for where it must be."""
    if isinstance(answer, Answer):
        return answer
    await asyncio.wait([answer.future])
    return answer.made(answer.future)


def error_of(answer: Any) -> dict[str, Any]:
    """The error in an answer, which has the one shape."""
    assert set(answer) == {"error"}, answer
    error: dict[str, Any] = answer["error"]
    assert set(error) == ERROR_KEYS, answer
    assert isinstance(error["message"], str)
    assert isinstance(error["details"], dict)
    return error
