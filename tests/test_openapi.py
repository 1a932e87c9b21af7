"""The API's description is true: the same routes, and real answers that fit the schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.openapi import document
from coordinator.settings import Limits, Timings
from tests.api_rig import ApiNode, api_node, run

DOCUMENT = document(Limits(), Timings())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]
PATH = "/v1/transactions"
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def misfits(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """What does not fit: as much of JSON Schema as the document uses."""
    if "$ref" in schema:
        yield from misfits(value, SCHEMAS[schema["$ref"].rsplit("/", 1)[1]], where)
    if "oneOf" in schema:
        fitting = [s for s in schema["oneOf"] if not list(misfits(value, s, where))]
        if len(fitting) != 1:
            yield f"{where}: fits {len(fitting)} of oneOf"
    kinds = schema.get("type", list(TYPES))
    allowed = [TYPES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    boolean_as_number = isinstance(value, bool) and (bool,) not in allowed
    if not isinstance(value, sum(allowed, ())) or boolean_as_number:
        yield f"{where}: {value!r} is no {kinds}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        yield f"{where}: {value!r} is not {schema['const']}"
    if isinstance(value, str):
        yield from _misfits_of_text(value, schema, where)
    elif isinstance(value, int) and not schema.get("minimum", value) <= value <= schema.get(
        "maximum", value
    ):
        yield f"{where}: {value} is out of range"
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where}: {len(value)} items"
        for position, item in enumerate(value):
            yield from misfits(item, schema.get("items", {}), f"{where}[{position}]")
    elif isinstance(value, dict):
        yield from _misfits_of_object(value, schema, where)


def _misfits_of_text(value: str, schema: dict[str, Any], where: str) -> Iterator[str]:
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{where}: {value!r} is not like {schema['pattern']}"
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{where}: {len(value)} characters"
    if schema.get("format") == "date-time" and not re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value
    ):
        yield f"{where}: {value!r} is no time"


def _misfits_of_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> Iterator[str]:
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", True)
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}.{name}: is missing"
    for name, part in value.items():
        if name in properties:
            yield from misfits(part, properties[name], f"{where}.{name}")
        elif rest is False:
            yield f"{where}.{name}: is not in the schema"
        elif isinstance(rest, dict):
            yield from misfits(part, rest, f"{where}.{name}")


def fits(value: Any, schema: dict[str, Any]) -> None:
    assert list(misfits(value, schema)) == []


def answer_schema(method: str, path: str, status: int) -> dict[str, Any]:
    """The schema of the answer to a call; `path` as in the document."""
    answer = DOCUMENT["paths"][path][method.lower()]["responses"][str(status)]
    schema: dict[str, Any] = answer["content"]["application/json"]["schema"]
    return schema


STRICT = {"type": "object", "additionalProperties": False}


@pytest.mark.parametrize(
    ("value", "schema", "misfit"),
    [
        ("", {"oneOf": [{"type": "integer"}, {"type": "null"}]}, ": fits 0 of oneOf"),
        ("", {"oneOf": [{"type": "string"}, {"enum": [""]}]}, ": fits 2 of oneOf"),
        ("1", {"type": "integer"}, ": '1' is no integer"),
        (True, {"type": ["integer", "null"]}, ": True is no ['integer', 'null']"),
        ("c", {"enum": ["a", "b"]}, ": 'c' is none of ['a', 'b']"),
        ("c", {"const": "a"}, ": 'c' is not a"),
        ("no", {"pattern": "^yes"}, ": 'no' is not like ^yes"),
        ("", {"minLength": 1}, ": 0 characters"),
        ("abc", {"maxLength": 2}, ": 3 characters"),
        ("2026-11-26", {"format": "date-time"}, ": '2026-11-26' is no time"),
        (0, {"minimum": 1}, ": 0 is out of range"),
        (3, {"maximum": 2}, ": 3 is out of range"),
        ([], {"minItems": 1}, ": 0 items"),
        ([1, 2], {"maxItems": 1}, ": 2 items"),
        ([1, "2"], {"items": {"type": "integer"}}, "[1]: '2' is no integer"),
        ({}, {"required": ["a"]}, ".a: is missing"),
        ({"a": 1}, STRICT, ".a: is not in the schema"),
        ({"a": 1}, {"properties": {"a": {"type": "null"}}}, ".a: 1 is no null"),
        ({"a": 1}, {"additionalProperties": {"type": "null"}}, ".a: 1 is no null"),
    ],
)
def test_what_does_not_fit_is_found(value: object, schema: dict[str, Any], misfit: str) -> None:
    assert list(misfits(value, schema)) == [misfit]


# --- the document ---------------------------------------------------------------------------------


def test_it_names_the_routes_that_are_served_and_no_others() -> None:
    async def test() -> None:
        async with api_node() as node:
            served = {(each.path, each.method.lower()) for each in node.api.endpoints}
            described = {(path, m) for path, calls in DOCUMENT["paths"].items() for m in calls}
            assert served == described
            status, answer = await node.get("/openapi.json")
            assert (status, answer) == (200, json.loads(json.dumps(DOCUMENT)))

    run(test())


def test_the_limits_it_names_are_those_that_are_set() -> None:
    async def test() -> None:
        limits = Limits(
            branches=3,
            body_bytes=2 * 1024 * 1024,
            batch_body_bytes=3_000_000,
            batch_size=7,
            metadata_bytes=512,
            page_size=5,
        )
        timings = Timings(min_timeout_ms=7, default_timeout_ms=8, max_timeout_ms=9)
        async with api_node(limits=limits, timings=timings) as node:
            _, answer = await node.get("/openapi.json")
            said = answer["components"]["schemas"]
            fields = said["Submission"]["properties"]
            assert said["Batch"]["properties"]["transactions"]["maxItems"] == 7
            assert fields["participants"]["maxItems"] == 3
            timeout = fields["timeout_ms"]
            assert (timeout["minimum"], timeout["default"], timeout["maximum"]) == (7, 8, 9)
            assert "at most 512 bytes" in fields["metadata"]["description"]
            calls = answer["paths"][PATH]
            assert "2 MiB; a batch 3000000 bytes" in calls["post"]["requestBody"]["description"]
            (limit,) = [p for p in calls["get"]["parameters"] if p["name"] == "limit"]
            assert (limit["schema"]["maximum"], limit["schema"]["default"]) == (5, 5)

    run(test())


def test_what_a_body_may_be_refused_for_is_said_of_every_call_that_takes_one() -> None:
    taking = (PATH, f"{PATH}/{{id}}/resolve", f"{PATH}/{{id}}/retry", "/v1/cluster/leader")
    for path in taking:
        said = DOCUMENT["paths"][path]["post"]["responses"]
        assert {"408", "413", "415", "417"} <= said.keys()
    assert "403" in DOCUMENT["paths"][f"{PATH}/{{id}}/decision"]["get"]["responses"]


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    used = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT)))
    assert used == set(SCHEMAS)


def test_operation_ids_are_unique() -> None:
    operations = [o["operationId"] for p in DOCUMENT["paths"].values() for o in p.values()]
    assert len(set(operations)) == len(operations)


def test_path_parameters_are_declared() -> None:
    for path, calls in DOCUMENT["paths"].items():
        names = re.findall(r"{(\w+)}", path)
        for call in calls.values():
            declared = [p["name"] for p in call.get("parameters", ()) if p["in"] == "path"]
            assert declared == names, path


@pytest.mark.parametrize("name", SCHEMAS)
def test_examples_fit_their_schemas(name: str) -> None:
    schema = SCHEMAS[name]
    shapes = schema.get("oneOf", [schema])
    for shape in shapes:
        for example in shape["examples"]:
            fits(example, schema)
            if "additionalProperties" in shape and shape["additionalProperties"] is False:
                assert list(misfits({**example, "more": 1}, schema))  # the check can fail


# --- real answers ---------------------------------------------------------------------------------


def test_real_answers_fit_their_schemas() -> None:
    async def test() -> None:
        async with api_node() as node:
            await _check(node, "POST", PATH, body=node.body("yes", "no", id="t-1"))
            explicit = {
                n: f"{node.services.url}/down/{n}" for n in ("prepare", "commit", "rollback")
            }
            await _check(
                node,
                "POST",
                PATH,
                202,
                body={"participants": [explicit], "id": "t-2", "wait": "none"},
            )
            await _check(node, "POST", PATH, body={"transactions": [node.body(), {}]})
            await _check(node, "POST", PATH, 400, body={})
            one, decision = PATH + "/{id}", PATH + "/{id}/decision"
            await _check(node, "GET", one, query="?wait_ms=1")
            await _check(node, "GET", one, query="?stale=true")
            await _check(node, "GET", one, 404, transaction_id="t-9")
            await _check(node, "GET", PATH)
            await _check(node, "GET", PATH, query="?stale=true")
            await _check(node, "GET", PATH, 400, query="?limit=x")
            await _check(node, "GET", decision, query="?branch_id=1&fingerprint=ab")
            await _check(
                node,
                "POST",
                PATH + "/{id}/resolve",
                body={"branch_id": "1", "effect": "unknown", "actor": "ada", "reason": "why"},
            )
            await _check(node, "POST", PATH + "/{id}/retry", body={})
            for call in ("branches", "commit", "rollback"):
                await _check(node, "POST", PATH + "/{id}/" + call, 409, body={})
            await _check(node, "GET", "/v1/cluster")
            await _check(node, "POST", "/v1/cluster/leader", body={"node": "n1"})
            await _check(node, "POST", "/v1/cluster/leader", 409, body={"node": None})
            await _check(node, "GET", "/healthz")
            await _check(node, "GET", "/readyz")
            node.log.follow("n2")
            await _check(node, "POST", PATH, 307, body={})
            node.log.follow(None)
            await _check(node, "GET", PATH, 503)

    run(test())


async def _check(
    node: ApiNode,
    method: str,
    path: str,
    expected: int = 200,
    *,
    body: Any = None,
    query: str = "",
    transaction_id: str = "t-2",
) -> None:
    """Call, and hold the answer (and the body that was accepted) against the document."""
    if body is not None and expected < 300 and path == PATH and "transactions" not in body:
        fits(body, SCHEMAS["Submission"])
    raw = None if body is None else json.dumps(body).encode()
    target = path.replace("{id}", transaction_id) + query
    status, answer, _ = await node.request(method, target, body=raw)
    assert status == expected, answer
    fits(answer, answer_schema(method, path, status))
