"""The coordinator's HTTP API, which every node serves: routes, leadership, waiting, errors.

Transactions are `api_transactions`; what is asked and answered is read and made by `api_shapes`;
all that is done is done by the driver. One middleware, in `api_http`, makes every error one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from coordinator import openapi
from coordinator.api_errors import ApiError
from coordinator.api_http import (
    JSON_HEADERS,
    Routes,
    answer_errors,
    encode,
    expect,
    json_answer,
    read_query,
)
from coordinator.api_transactions import Transactions
from coordinator.driver import Driver
from coordinator.ids import IdMaker
from coordinator.log import ReplicatedLog
from coordinator.machine import Machine
from coordinator.settings import Limits, Timings

ClusterStatus = Mapping[str, Any]
"""The answer of GET /v1/cluster: cluster, self, leader, term, nodes."""


class Check(NamedTuple):
    """One line of the readiness checklist. `detail` says what was found, for people."""

    ok: bool
    detail: str


def build_application(
    driver: Driver,
    machine: Machine,
    log: ReplicatedLog,
    *,
    node: str,
    apis: Mapping[str, str],
    limits: Limits,
    timings: Timings,
    now_ms: Callable[[], int],
    random: Random,
    status: Callable[[], ClusterStatus],
    checks: Callable[[], Mapping[str, Check]],
    registry: CollectorRegistry,
) -> web.Application:
    """The application of one node, ready for a runner.

    `apis`: node id to the URL of its API, read anew each time; `checks`: the readiness checklist,
    by name; `registry`: what /metrics shows.
    """
    application = web.Application(
        middlewares=[answer_errors], client_max_size=limits.batch_body_bytes
    )
    transactions = Transactions(
        driver, machine, log, node, apis, limits, timings, now_ms, IdMaker(now_ms, random)
    )
    about = _About(status, checks, registry)
    router = application.router
    for method, path, answer in (*transactions.routes(), *about.routes()):
        if method == "GET":
            router.add_get(path, answer, expect_handler=expect)
        else:
            router.add_route(method, path, answer, expect_handler=expect)
    return application


class _About:
    """The calls about the node and the cluster; every node answers for itself."""

    def __init__(
        self,
        status: Callable[[], ClusterStatus],
        checks: Callable[[], Mapping[str, Check]],
        registry: CollectorRegistry,
    ) -> None:
        self._status = status
        self._checks = checks
        self._registry = registry
        self._openapi = encode(openapi.document()).encode("ascii")

    def routes(self) -> Routes:
        return (
            ("GET", "/v1/cluster", self.cluster),
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
            ("GET", "/openapi.json", self.openapi),
        )

    async def cluster(self, request: web.Request) -> web.Response:
        read_query(request, ())
        return json_answer(200, self._status())

    async def healthz(self, _: web.Request) -> web.Response:
        """The process lives and its event loop turns."""
        return json_answer(200, {"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """200 if every line of the checklist is ticked, else 503."""
        found = self._checks()
        failing = [name for name, check in found.items() if not check.ok]
        checklist = {n: {"ok": c.ok, "detail": c.detail} for n, c in found.items()}
        answer = {"ready": not failing, "checks": checklist}
        if not failing:
            return json_answer(200, answer)
        error = ApiError(
            503, "not_ready", f"Not ready: {', '.join(failing)}; see checks.", failing=failing
        )
        return json_answer(503, {**answer, **error.body()})

    async def metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._registry)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def openapi(self, _: web.Request) -> web.Response:
        return web.Response(body=self._openapi, headers=JSON_HEADERS)
