"""coordinator/batch_json.py: a batch's elements, wherever they are cut, and in bounded steps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator import batch_json
from coordinator.api_errors import ApiError
from coordinator.api_fields import DECODER
from coordinator.batch_json import FEW_VALUES, SHORT_BYTES, elements_of, is_batch
from coordinator.settings import Limits

LIMITS = Limits()
VALUES = [
    {"id": "t-1", "participants": [{"url": "http://h:1", "payload": {"a": [1, 2.5, None]}}]},
    {},
    [[], [[]], {}],
    7,
    -1.5e300,
    "",
    'é\u20ac\U0001f600 \\ " , ] }',
    None,
    True,
]


class Watched:
    """In the place of the decoder: how much it is handed at once."""

    def __init__(self) -> None:
        self.handed: list[int] = []

    def raw_decode(self, text: str) -> tuple[Any, int]:
        self.handed.append(len(text))
        return DECODER.raw_decode(text)


@pytest.fixture(name="watched")
def _watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setattr(batch_json, "DECODER", watched)
    return watched


def batch(*elements: bytes) -> bytes:
    return b'{"transactions":[' + b",".join(elements) + b"]}"


def values(body: bytes, limits: Limits = LIMITS) -> list[Any]:
    return [element.value for element in elements_of(body, limits)]


def refused(body: bytes, limits: Limits = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        values(body, limits)
    return caught.value


def test_a_batch_is_told_by_its_first_field() -> None:
    assert is_batch(b' \n{ "transactions" : [')
    assert not is_batch(b'{"participants": [{"payload": {"transactions": []}}]}')
    assert not is_batch(b"[]")


@pytest.mark.parametrize("short", [1, 2, 3, 5, 8, 13, 21, 1_000])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_the_elements_are_those_of_the_whole_wherever_it_is_cut(
    monkeypatch: pytest.MonkeyPatch, short: int, *, ascii_only: bool
) -> None:
    monkeypatch.setattr(batch_json, "SHORT_BYTES", short)
    for indent in (None, 1):
        body = json.dumps({"transactions": VALUES}, ensure_ascii=ascii_only, indent=indent).encode()
        for most in (1, 7, LIMITS.body_bytes):
            assert values(body, Limits(body_bytes=most)) == VALUES
        assert values(b" \r\n\t" + body + b" \n") == VALUES


def test_the_size_of_an_element_is_that_of_its_json() -> None:
    parts = [json.dumps(value, ensure_ascii=False).encode() for value in VALUES]
    assert [element.size for element in elements_of(batch(*parts), LIMITS)] == list(map(len, parts))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"transactions":[{}', "Expecting ','"),
        (b'{"transactions":[{}]', "Expecting ','"),
        (b'{"transactions":[{}}', "Expecting ','"),
        (b'{"transactions":[{} {}]}', "Expecting ',' delimiter: byte 20"),
        (b'{"transactions":[{},]}', "Expecting value: byte 20"),
        (b'{"transactions":[{},', "Expecting value"),
        (b'{"transactions":[,{}]}', "Expecting value: byte 17"),
        ('{"transactions":["é",x]}'.encode(), "Expecting value: byte 22"),
        (b'{"transactions":[{"a":x}]}', "Expecting value: byte 22"),
        (b'{"transactions":[{}]} {}', "Extra data: byte 22"),
        (b'{"transactions":[{}],}', "Expecting value: byte 21"),
        (b'{"transactions":[{}],7:8}', "property name"),
        (b'{"transactions":[{}],"transactions":[]}', "twice"),
        (b'{"transactions":[{"a":1,"a":2}]}', "twice"),
        (b'{"transactions":["\xff"]}', "byte 18 is not UTF-8"),
        (b'{"transactions":[NaN]}', "NaN"),
        (b'{"transactions":[' + b"[" * 30_000 + b"]" * 30_000 + b"]}", "too deeply"),
        (b'{"transactions":["' + b"x" * 3 * SHORT_BYTES, "Unterminated string"),
    ],
)
def test_what_is_no_json_is_told_with_its_place(body: bytes, says: str) -> None:
    error = refused(body)
    assert (error.status, error.code) == (400, "malformed_json")
    assert says in error.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"transactions":5}', "transactions"),
        (b'{"transactions":[ ]}', "transactions"),
        (b'{"transactions":[{}], "wait": "none"}', "wait"),
    ],
)
def test_what_is_no_batch_names_the_field(body: bytes, field: str) -> None:
    error = refused(body)
    assert (error.status, error.details) == (400, {"field": field})


def test_no_more_elements_are_decoded_than_are_taken(watched: Watched) -> None:
    error = refused(batch(*[b"{}"] * 100_000))
    assert (error.status, error.details) == (400, {"field": "transactions"})
    assert len(watched.handed) == LIMITS.batch_size
    assert len(values(batch(*[b"{}"] * LIMITS.batch_size))) == LIMITS.batch_size


@pytest.mark.parametrize("unit", [b"{}", b"[]", b"1", b'{"a":0}'])
def test_no_step_decodes_more_than_the_largest_transaction(watched: Watched, unit: bytes) -> None:
    most = 100_000
    dense = b"[" + b",".join([unit] * (most // (len(unit) + 1) - 1)) + b"]"
    assert len(values(batch(*[dense] * 10), Limits(body_bytes=most))) == 10
    assert max(watched.handed) <= most
    assert len(watched.handed) == 20  # what is large is tried twice
    error = refused(batch(b"[" + b",".join([dense] * 10) + b"]"), Limits(body_bytes=most))
    assert (error.status, error.details) == (413, {"limit_bytes": most})
    assert "transactions[0]" in error.message
    assert max(watched.handed) <= most


def test_an_element_too_large_but_simple_has_its_own_place() -> None:
    text = b'"' + b"x" * 200_000 + b'"'
    assert values(batch(b"1", text, b"2"), Limits(body_bytes=50_000))[::2] == [1, 2]
    commas = b'"' + b"," * (FEW_VALUES + 1) + b'"'
    assert refused(batch(commas), Limits(body_bytes=FEW_VALUES)).status == 413
