"""The coordinator's HTTP API, which every node serves, as an object that answers requests.

It knows no HTTP library, and no clock but that of the loop it waits on: a request goes in, an
answer comes out (`api_requests`). Transactions are `api_transactions`, the nodes and who leads them
`api_cluster`; what is asked and answered is read and made by `api_shapes`; all that is done is done
by the driver. Every failure becomes an answer here, in one place, and has the shape of
`api_errors`; an unforeseen one is logged with its traceback and told without it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Mapping
from random import Random
from typing import Any, NamedTuple
from urllib.parse import unquote

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from coordinator import openapi
from coordinator.api_cluster import Cluster, ClusterStatus
from coordinator.api_errors import ApiError, refusal, too_large
from coordinator.api_interactive import InteractiveCalls
from coordinator.api_leadership import Leadership
from coordinator.api_requests import (
    Answer,
    Endpoint,
    Later,
    Request,
    encode,
    error_answer,
    json_answer,
)
from coordinator.api_shapes import require_not_ahead
from coordinator.api_transactions import ONE, TRANSACTIONS, Transactions
from coordinator.driver import Driver
from coordinator.errors import CoordinatorError
from coordinator.ids import IdMaker
from coordinator.log import ReplicatedLog
from coordinator.machine import Machine
from coordinator.settings import Limits, Timings

LOG = logging.getLogger("assent.api")


class Check(NamedTuple):
    """One line of the readiness checklist. `detail` says what was found, for people."""

    ok: bool
    detail: str


class Api:
    """The API of one node.

    `apis`: node id to the URL of its API, read anew each time; `checks`: the readiness checklist,
    by name; `registry`: what /metrics shows; `clock_is_settled`: this node's clock may be believed.
    """

    def __init__(
        self,
        driver: Driver,
        machine: Machine,
        log: ReplicatedLog,
        *,
        node: str,
        apis: Mapping[str, str],
        limits: Limits,
        timings: Timings,
        now_ms: Callable[[], int],
        clock_is_settled: Callable[[], bool],
        random: Random,
        status: Callable[[], ClusterStatus],
        checks: Callable[[], Mapping[str, Check]],
        registry: CollectorRegistry,
    ) -> None:
        leadership = Leadership(log, node, apis)
        transactions = Transactions(
            driver,
            machine,
            leadership,
            limits,
            timings,
            now_ms,
            functools.partial(
                require_not_ahead, now_ms=now_ms, is_known=driver.knows, is_settled=clock_is_settled
            ),
            IdMaker(now_ms, random),
        )
        interactive = InteractiveCalls(driver, machine, leadership, limits, now_ms)
        cluster = Cluster(leadership, log, node, apis, status, limits.body_bytes)
        about = _About(checks, registry, limits, timings)
        self.bodies_bytes = limits.bodies_bytes
        """Of bodies together that may be held while they are read."""
        self.endpoints = (
            *transactions.endpoints(),
            *interactive.endpoints(),
            *cluster.endpoints(),
            *about.endpoints(),
        )
        self._fixed: dict[str, dict[str, Endpoint]] = {}
        """By path and method."""
        self._of_one: dict[str, dict[str, Endpoint]] = {}
        """Those about one transaction: by what follows its id in the path, and by method."""
        for endpoint in self.endpoints:
            rest = endpoint.path.removeprefix(ONE)
            calls = self._fixed if rest == endpoint.path else self._of_one
            by_method = calls.setdefault(rest, {})
            by_method[endpoint.method] = endpoint
            if endpoint.method == "GET":
                by_method["HEAD"] = endpoint

    def respond(self, request: Request) -> Answer | Later:
        """The answer to a request whose body is there, at once where nothing is waited for; what
        makes it later raises nothing but CancelledError, if the event loop ends.
        """
        try:
            endpoint, transaction_id = self._endpoint(request)
            if endpoint.admit is not None:
                endpoint.admit(request, transaction_id)
            if len(request.body) > endpoint.body_bytes > 0:
                raise too_large("The body", len(request.body), endpoint.body_bytes)
            answer = endpoint.answer(request, transaction_id)
        except Exception as error:
            return _answer_of(error, request.method, request.path)
        if isinstance(answer, Answer):
            return answer
        # What waits holds no body, which may be large.
        method, path = request.method, request.path
        if isinstance(answer, Later):
            return Later(answer.future, functools.partial(_made, answer.made, method, path))
        task = asyncio.get_running_loop().create_task(_awaited(answer, method, path))
        return Later(task, asyncio.Future.result)

    def admit(self, request: Request) -> Answer | int:
        """For a request whose body has not come: the answer if none of it is needed for that, or
        how many bytes of it may be read and handed to `respond`.
        """
        try:
            endpoint, transaction_id = self._endpoint(request)
            if endpoint.admit is not None:
                endpoint.admit(request, transaction_id)
        except Exception as error:
            return _answer_of(error, request.method, request.path)
        return endpoint.body_bytes

    def _endpoint(self, request: Request) -> tuple[Endpoint, str]:
        """What answers the request, and the id in its path."""
        transaction_id = ""
        by_method = self._fixed.get(request.path)
        if by_method is None:
            # Decoded part by part: a slash that is encoded belongs to an id, if to a bad one.
            parts = [unquote(part) for part in request.path.split("/")]
            if "/".join(parts[:3]) == TRANSACTIONS and len(parts) > 3 and parts[3]:
                transaction_id = parts[3]
                by_method = self._of_one.get("".join(f"/{part}" for part in parts[4:]))
        if by_method is None:
            what = f"There is nothing at {request.path[:200]}; /openapi.json lists what is there."
            raise ApiError(404, "not_found", what)
        endpoint = by_method.get(request.method)
        if endpoint is None:
            allowed = ", ".join(sorted(by_method))
            raise ApiError(
                405,
                "method_not_allowed",
                f"{request.path[:200]} takes {allowed}, not {request.method[:20]}.",
                headers={"Allow": allowed},
            )
        return endpoint, transaction_id


def _made(
    made: Callable[[asyncio.Future[Any]], Answer],
    method: str,
    path: str,
    future: asyncio.Future[Any],
) -> Answer:
    try:
        return made(future)
    except Exception as error:
        return _answer_of(error, method, path)


async def _awaited(answer: Coroutine[Any, Any, Answer], method: str, path: str) -> Answer:
    try:
        return await answer
    except Exception as error:
        return _answer_of(error, method, path)


def _answer_of(error: Exception, method: str, path: str) -> Answer:
    """The one place where a failure becomes an answer."""
    match error:
        case ApiError():
            return error_answer(error)
        case CoordinatorError():
            return error_answer(refusal(error))
    LOG.error("%s %s failed; this is a defect", method, path, exc_info=error)
    what = "The node failed on this request; its log says how."
    return error_answer(ApiError(500, "internal_error", what))


class _About:
    """The calls about the node; every node answers for itself."""

    def __init__(
        self,
        checks: Callable[[], Mapping[str, Check]],
        registry: CollectorRegistry,
        limits: Limits,
        timings: Timings,
    ) -> None:
        self._limits = limits
        self._timings = timings
        self._checks = checks
        self._registry = registry

    def endpoints(self) -> tuple[Endpoint, ...]:
        return (
            Endpoint("GET", "/healthz", self.healthz),
            Endpoint("GET", "/readyz", self.readyz),
            Endpoint("GET", "/metrics", self.metrics),
            Endpoint("GET", "/openapi.json", self.openapi),
        )

    def healthz(self, _: Request, __: str) -> Answer:
        """The process lives and its event loop turns."""
        return json_answer(200, {"status": "ok"})

    def readyz(self, _: Request, __: str) -> Answer:
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

    def metrics(self, _: Request, __: str) -> Answer:
        return Answer(200, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def openapi(self, _: Request, __: str) -> Answer:
        return Answer(200, _description(self._limits, self._timings))


@functools.lru_cache(maxsize=1)
def _description(limits: Limits, timings: Timings) -> bytes:
    """Made when it is first asked for: that takes milliseconds, which no start has to wait for."""
    return encode(openapi.document(limits, timings)).encode("ascii")
