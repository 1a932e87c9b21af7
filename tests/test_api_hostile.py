"""Every route under hostile input: a 4xx in the one shape, nothing begun, and the node goes on."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.settings import Limits
from tests.api_rig import ApiNode, api_node, error_of, run

PATH = "/v1/transactions"
ONE = PATH + "/t-1"
LEADER = "/v1/cluster/leader"
BODY_ROUTES = (PATH, ONE + "/resolve", ONE + "/retry", LEADER)

NESTED = b'{"participants":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BODIES: dict[str, bytes] = {
    "malformed": b'{"participants": [',
    "two values": b"{}{}",
    "a list": b"[]",
    "a string": b'"x"',
    "null": b"null",
    "a number": b"17",
    "nested lists": NESTED,
    "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "NaN": b'{"participants": [{"url": "http://h", "payload": NaN}]}',
    "infinity": b'{"participants": [{"url": "http://h", "payload": -Infinity}]}',
    "overflow": b'{"participants": [{"url": "http://h", "payload": 1e999}]}',
    "overflow in metadata": b'{"participants": [{"url": "http://h"}], "metadata": {"a": 1e999}}',
    "huge integer": b'{"timeout_ms": ' + b"9" * 5_000 + b"}",
    "NUL bytes": b'{"id": "\x00"}',
    "only NUL": b"\x00\x00\x00",
    "invalid UTF-8": b'{"id": "\xff\xfe"}',
    "UTF-16": '{"id": "a"}'.encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf{}",
    "a name twice": b'{"id": "a", "id": "b"}',
    "half a surrogate pair": b'{"participants": [{"url": "http://h", "name": "\\ud800"}]}',
    "unknown field": b'{"particpants": []}',
    "unknown field, half a pair": b'{"\\udfff": 1}',
    "2 MB": b'{"participants": "' + b"x" * 2_000_000 + b'"}',
    "2 MB of spaces": b" " * 2_000_000,
    "a form": b"participants=x&wait=none",
}
WRONG_TYPES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 10**30, "", "x", "\x00", "\ud800", [], [None], [[]], {}, {"a": 1}
)  # fmt: skip


@pytest.mark.parametrize("what", BODIES)
def test_hostile_bodies(what: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            takes_body = {e.path.format(id="t-1") for e in node.api.endpoints if e.body_bytes}
            assert takes_body == set(BODY_ROUTES)
            for route in BODY_ROUTES:
                status, answer, headers = await node.request("POST", route, body=BODIES[what])
                assert 400 <= status < 500, (route, answer)
                assert headers["Content-Type"] == "application/json"
                error_of(answer)
            assert node.machine.unfinished_count == node.machine.remembered_count == 0
            assert node.log.handed_to == []
            await node.passes()

    run(test())


def test_nesting_of_any_depth_is_taken_or_refused() -> None:
    """What could be read must be shown again, by a call stack that may be deeper."""

    async def test() -> None:
        async with api_node() as node:
            statuses: dict[str, set[int]] = {"metadata": set(), "payload": set()}
            for depth in (*range(28, 36), 100, 101, *range(300, 1_020, 10)):
                nested = b"[" * depth + b"]" * depth
                participant = b'{"url": "%s/yes"' % node.services.url.encode()
                for name, body in (
                    ("payload", participant + b', "payload": ' + nested + b"}]}"),
                    ("metadata", participant + b'}], "metadata": {"a": ' + nested + b"}}"),
                ):
                    body = b'{"participants": [' + body  # noqa: PLW2901
                    status, answer, _ = await node.request("POST", PATH, body=body)
                    assert status in (200, 400), (name, depth, answer)
                    statuses[name].add(status)
            assert statuses == {"metadata": {200, 400}, "payload": {200, 400}}
            await node.passes()

    run(test())


def test_every_field_with_every_wrong_type() -> None:
    async def test() -> None:
        async with api_node() as node:
            refused = 0
            for path, allowed, body in field_cases(node):
                status, answer = await node.post(PATH, body)
                if status == 200:
                    assert allowed, body
                    continue
                refused += 1
                assert status == 400, (body, answer)
                error = error_of(answer)
                assert error["details"]["field"].startswith(path), (body, answer)
                assert error["message"].startswith(path)
            assert refused > 100
            await node.passes()

    run(test())


def field_cases(node: ApiNode) -> Iterator[tuple[str, bool, dict[str, Any]]]:
    """(the field's path, whether this value is a right one, the body)."""
    right: dict[str, tuple[Any, ...]] = {
        "id": ("x",),
        "metadata": ({}, {"a": 1}),
        "participants[0].name": ("x",),
        "participants[0].payload": WRONG_TYPES,  # any JSON
    }
    for value in WRONG_TYPES:
        for name in ("id", "participants", "timeout_ms", "wait", "metadata", "mode"):
            yield name, _among(value, right.get(name, ())), {**node.body(), name: value}
        yield "participants[0]", False, {"participants": [value]}
        for name in ("name", "url", "payload"):
            path = f"participants[0].{name}"
            body = {"participants": [{**node.service(), name: value}]}
            yield path, _among(value, right.get(path, ())), body
        for name in ("prepare", "commit", "rollback"):
            explicit = {
                n: f"{node.services.url}/yes/{n}" for n in ("prepare", "commit", "rollback")
            }
            yield f"participants[0].{name}", False, {"participants": [{**explicit, name: value}]}


def _among(value: Any, values: tuple[Any, ...]) -> bool:
    """`in`, but True is not 1."""
    return any(type(value) is type(v) and value == v for v in values)


def test_every_field_of_a_resolve_with_every_wrong_type() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("down", id="t-1"))
            good = {"branch_id": "1", "effect": "committed", "actor": "ada", "reason": "why"}
            for value in WRONG_TYPES:
                for name in ("branch_id", "effect", "actor", "reason", "outcome", "other"):
                    if value == "x" and name in ("actor", "reason"):
                        continue
                    status, answer = await node.post(ONE + "/resolve", {**good, name: value})
                    assert status in (400, 409), (name, value, answer)
                    error_of(answer)
            for missing in good:
                partial = {name: value for name, value in good.items() if name != missing}
                status, answer = await node.post(ONE + "/resolve", partial)
                assert status == 400
                error_of(answer)
            transaction = node.machine.get("t-1")
            assert transaction is not None
            assert transaction.resolutions == ()
            await node.passes()

    run(test())


def test_every_field_of_a_transfer_with_every_wrong_type() -> None:
    async def test() -> None:
        async with api_node() as node:
            for value in WRONG_TYPES:
                if value is not None:
                    status, answer = await node.post(LEADER, {"node": value})
                    assert (status, error_of(answer)["details"]) == (400, {"field": "node"}), value
                    assert error_of(answer)["message"] == (
                        "node: must be one of n1, n2, or null for any of them"
                    )
                status, answer = await node.post(LEADER, {"nodes": value})
                assert (status, error_of(answer)["details"]) == (400, {"field": "nodes"})
                if value != {}:
                    status, answer = await node.post(LEADER, value)
                    assert status == 400
                    error_of(answer)
            assert node.log.handed_to == []
            await node.passes()

    run(test())


BAD_IDS = (
    "%00",
    "a%2Fb",
    "..%2f..%2fetc",
    "a%20b",
    "%C3%A9",
    "%FF",
    "a;b",
    "a,b",
    "{id}",
    "x" * 65,
    "x" * 5_000,
    "%ED%A0%80",
    "*",
)


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_ids_in_the_path(bad: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            one = f"{PATH}/{bad}"
            for call in ("", "?stale=true", "/decision?branch_id=1&fingerprint=ab"):
                status, answer, _ = await node.request("GET", one + call)
                assert status == 400, (call, answer)
                assert error_of(answer)["details"] == {"field": "id"}
            for call in ("/resolve", "/retry", "/commit", "/rollback", "/branches"):
                status, answer, _ = await node.request("POST", one + call, body=b"{}")
                assert status == 400, (call, answer)
                assert error_of(answer)["details"] == {"field": "id"}
            await node.passes()

    run(test())


QUERIES = [
    (PATH, "limit", "0", "-1", "1001", "x", "1.5", "", "1e3", "%D9%A3", "9" * 400, "0x10", "+1"),
    (PATH, "older_than_ms", "-1", "x", "", "9" * 400, "1_000"),
    (PATH, "after", "-1", "x", "", "t-1", "9" * 400),
    (PATH, "state", "", "lost", "preparing,lost", "PREPARING", "%00"),
    (PATH, "stale", "1", "True", "", "yes"),
    (PATH, "unknown", "1", ""),
    (PATH, "wait_ms", "1"),
    (ONE, "wait_ms", "-1", "x", "3600001", "", "%00", "9" * 400),
    (ONE, "stale", "1", ""),
    (ONE, "limit", "1"),
    (ONE + "/decision?fingerprint=ab", "branch_id", "", "a%20b", "x" * 65),
    (ONE + "/decision?branch_id=1", "fingerprint", "", "%00", "x" * 65),
    (ONE + "/decision?branch_id=1&fingerprint=ab", "unknown", "1"),
    ("/v1/cluster", "unknown", "1"),
]


@pytest.mark.parametrize("case", QUERIES, ids=lambda case: f"{case[0]} {case[1]}")
def test_bad_queries(case: tuple[str, ...]) -> None:
    async def test() -> None:
        async with api_node() as node:
            path, name, *values = case
            joined = "&" if "?" in path else "?"
            for value in values:
                status, answer, _ = await node.request("GET", f"{path}{joined}{name}={value}")
                assert status == 400, (value, answer)
                assert error_of(answer)["details"] == {"field": name}, value
                assert error_of(answer)["message"].startswith(name)
            await node.passes()

    run(test())


def test_parameters_given_twice_or_to_the_wrong_call() -> None:
    async def test() -> None:
        async with api_node() as node:
            for path in (PATH + "?limit=1&limit=1", ONE + "?stale=true&stale=false"):
                status, answer, _ = await node.request("GET", path)
                assert status == 400
                assert "twice" in error_of(answer)["message"]
            status, answer, _ = await node.request("GET", ONE + "?stale=true&wait_ms=5")
            assert (status, error_of(answer)["details"]) == (400, {"field": "wait_ms"})
            for path in (PATH, LEADER, *(f"{ONE}/{c}" for c in ("resolve", "retry", "commit"))):
                status, answer, _ = await node.request("POST", path + "?wait=none", body=b"{}")
                assert (status, error_of(answer)["details"]) == (400, {"field": "wait"})
            for path in ("", "?branch_id=1", "?fingerprint=ab"):
                status, answer, _ = await node.request("GET", f"{ONE}/decision{path}")
                assert (status, error_of(answer)["code"]) == (400, "bad_request")
            await node.passes()

    run(test())


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "text/html", "application/xml", "multipart/form-data; boundary=x", "", "\xff"],
)
def test_bodies_that_say_that_they_are_something_else(kind: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            body = json.dumps(node.body()).encode()
            for route in (PATH, ONE + "/resolve", LEADER):
                status, answer, _ = await node.request(
                    "POST", route, body=body, headers={"Content-Type": kind}
                )
                assert (status, error_of(answer)["code"]) == (415, "unsupported_media_type")
            await node.passes()

    run(test())


RAW = {
    "a body that is not what it is encoded as": b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\n"
    b"Content-Encoding: gzip\r\nContent-Length: 10\r\n\r\n0123456789",
    "chunks that are none": b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\nhello\r\n",
    "a length that is none": b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\n"
    b"Content-Length: -5\r\n\r\n{}",
    "a target beyond ASCII": "GET /v1/transactions/é HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "a target with a strange query": b"GET /v1/transactions?%ff=%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "a head that is too long": b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("what", RAW)
@pytest.mark.parametrize("leader", ["n1", "n2"])
def test_broken_requests_are_answered_4xx(what: str, leader: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            if leader != "n1":
                node.log.follow(leader)
            answer = await exchange(node, RAW[what])
            assert re.match(rb"HTTP/1\.[01] (307|4\d\d) ", answer), answer[:100]
            if leader != "n1":
                node.log.lead()
            await node.passes()

    run(test())


async def exchange(node: ApiNode, raw: bytes) -> bytes:
    """The head of the answer to these bytes; empty if the server closes without one."""
    host, port = node.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(raw)
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()


def test_a_body_that_breaks_off_begins_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with api_node() as node:
            host, port = node.url.removeprefix("http://").split(":")
            body = json.dumps(node.body()).encode()
            for size in (0, 1, len(body) - 1, len(body)):
                _, writer = await asyncio.open_connection(host, int(port))
                head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
                writer.write(head.encode() + body[:size])
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            await node.passes()
            assert node.machine.unfinished_count + node.machine.remembered_count == 1

    run(test())
    assert "defect" not in caplog.text


def test_a_small_body_that_unpacks_to_a_large_one_is_measured_unpacked() -> None:
    async def test() -> None:
        limits = Limits(body_bytes=10_000, batch_body_bytes=50_000)
        async with api_node(limits=limits) as node:
            for size, code in ((20_000_000, "body_too_large"), (20_000, "body_too_large")):
                packed = gzip.compress(b" " * size)
                status, answer, _ = await node.request(
                    "POST", PATH, body=packed, headers={"Content-Encoding": "gzip"}
                )
                assert (status, error_of(answer)["code"]) == (413, code)
            packed = gzip.compress(b'{"branch_id": "1", "effect": "unknown"' + b" " * 20_000 + b"}")
            status, answer, _ = await node.request(
                "POST", ONE + "/resolve", body=packed, headers={"Content-Encoding": "gzip"}
            )
            assert (status, error_of(answer)["code"]) == (413, "body_too_large")
            await node.passes()

    run(test())


def test_every_route_refuses_every_other_method_in_the_one_shape() -> None:
    async def test() -> None:
        async with api_node() as node:
            paths = {endpoint.path for endpoint in node.api.endpoints}
            assert len(paths) > 10
            for path in sorted(paths):
                for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
                    status, answer, headers = await node.request(method, path.format(id="t-1"))
                    assert (status, error_of(answer)["code"]) == (405, "method_not_allowed")
                    assert headers["Allow"] in ("GET, HEAD", "POST", "GET, HEAD, POST")
                status, answer, _ = await node.request("GET", path.format(id="t-1") + "/")
                assert (status, error_of(answer)["code"]) == (404, "not_found")
            await node.passes()

    run(test())
