"""A participant over HTTP: what is wrong is refused in one shape, a batch is its messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from yarl import URL

from participants import endpoints
from participants.contract import (
    DECLARATION_HEADER,
    Acknowledged,
    Declaration,
    Failed,
    Operation,
    Vote,
    Voted,
    batch_body,
    encode_json,
    read_batch_answers,
    read_declaration,
)
from participants.messages import Received
from participants.sdk import Participant
from participants.sqlite_store import SqliteStore
from tests.participant_rig import (
    QUIET,
    Caller,
    Ledger,
    Rig,
    calling,
    end_message,
    prepare_message,
    run,
)

# --- what is wrong with a message ---------------------------------------------------------------

DEEP = b'{"transaction_id":"t1","branch_id":"1","payload":' + b"[" * 100_000


@pytest.mark.parametrize("path", ["prepare", "commit", "rollback"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"t1"',
        b"\xff\xfe",
        DEEP,
        b"1" * 5_000,
        b'{"transaction_id":"t1"}',
        b'{"transaction_id":1,"branch_id":"1"}',
        b'{"transaction_id":"\\ud800","branch_id":"1"}',
        b'{"transaction_id":"t1","branch_id":"\\u0000"}',
        json.dumps(prepare_message("t1") | {"transaction_id": ["t1"]}).encode(),
        json.dumps(prepare_message("x" * 300)).encode(),
    ],
)
def test_a_malformed_message_is_a_400_and_changes_nothing(
    path: str, body: bytes, tmp_path: Path
) -> None:
    async def scenario(r: Rig) -> None:
        refused = await r.call.post(path, body)
        assert (refused.status, refused.code) == (400, "bad_message")
        assert set(refused.body["error"]) == {"code", "message", "details"}
        assert await r.states() == {}
        assert r.resource.calls == []

    run(scenario, tmp_path)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_payload_that_json_cannot_say_again_is_a_400(number: bytes, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        body = json.dumps(prepare_message("t1", "HERE")).encode().replace(b'"HERE"', number)
        refused = await r.call.post("prepare", body)
        assert (refused.status, refused.code) == (400, "bad_message")
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_body_that_is_too_large_is_a_413_announced_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MAX_MESSAGE_BYTES", 10_000)

    async def scenario(r: Rig) -> None:
        large = json.dumps(prepare_message("t1", "x" * 20_000)).encode()

        async def unannounced() -> AsyncIterator[bytes]:
            yield large

        async def without_end() -> AsyncIterator[bytes]:
            yield large
            await asyncio.sleep(3600)

        for data in (large, unannounced(), without_end()):
            async with r.call.session.post(f"{r.call.url}/prepare", data=data) as response:
                assert response.status == 413
                assert (await response.json())["error"]["code"] == "too_large"
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_body_that_does_not_come_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "BODY_TIMEOUT_S", 0.05)

    async def scenario(r: Rig) -> None:
        async def half() -> AsyncIterator[bytes]:
            yield b'{"transaction_id":'
            await asyncio.sleep(3600)

        async with r.call.session.post(f"{r.call.url}/commit", data=half()) as response:
            assert response.status == 408
            assert (await response.json())["error"]["code"] == "body_timeout"

    run(scenario, tmp_path)


@pytest.mark.parametrize("reset", [True, False])
def test_a_body_that_breaks_off_is_no_error_of_the_service(
    reset: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(r: Rig) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", URL(r.call.url).port)
        writer.write(b"POST /prepare HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n1")
        await r.call.rollback("t1")  # in between it has been read
        if reset:
            writer.transport.abort()
        writer.close()
        await r.call.rollback("t1")
        assert await r.states() == {"rolled_back": 1}

    run(scenario, tmp_path)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_body_whose_encoding_is_damaged_is_a_400(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        async with r.call.session.post(
            f"{r.call.url}/prepare", data=b"none", headers={"Content-Encoding": "gzip"}
        ) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "bad_message"

    run(scenario, tmp_path)


def test_a_body_that_comes_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        body = json.dumps(prepare_message("t1", "x" * 300_000)).encode()

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 50_000):
                yield body[start : start + 50_000]
                await asyncio.sleep(0)

        async with r.call.session.post(f"{r.call.url}/prepare", data=pieces()) as response:
            assert (await response.json())["vote"] == "yes"

    run(scenario, tmp_path)


def test_another_method_is_a_405(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        for path in ("/prepare", "/commit", "/rollback", "/batch"):
            assert (await r.call.get(path))["error"]["code"] == "method_not_allowed"

    run(scenario, tmp_path)


def test_who_takes_no_batches_declares_none_and_a_busy_one_says_when_to_come_again() -> None:
    replies = [
        endpoints.Reply(200, {"vote": "yes"}),
        endpoints.Reply(503, endpoints.error_body("busy", "not now")),
    ]

    async def receive(received: Sequence[Received]) -> list[endpoints.Reply]:
        return [replies.pop(0) for _ in received]

    async def scenario() -> None:
        sdk = Declaration(repeatable_prepare=True, inquiry=True)
        application = endpoints.protocol_application(receive, sdk, batches=False)
        async with calling(application) as caller:
            heard = []
            for _ in range(2):
                async with caller.session.post(
                    f"{caller.url}/prepare", json=prepare_message("t1")
                ) as response:
                    assert read_declaration(response.headers[DECLARATION_HEADER]) == sdk
                    heard.append((response.status, response.headers.get("Retry-After")))
            assert heard == [(200, None), (503, "1")]
            async with caller.session.get(f"{caller.url}/prepare") as response:
                assert response.status == 405
            async with caller.session.post(f"{caller.url}/batch", data=b"") as response:
                assert response.status == 404

    asyncio.run(scenario())


# --- the batch call -----------------------------------------------------------------------------


def in_batch(*messages: tuple[Operation, dict[str, Any]]) -> bytes:
    return batch_body((operation, encode_json(message), None) for operation, message in messages)


PREPARE, COMMIT, ROLLBACK = Operation.PREPARE, Operation.COMMIT, Operation.ROLLBACK


def test_a_batch_answers_each_message_in_its_order(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t0")
        messages = [
            (PREPARE, prepare_message("t1", {"n": 1})),
            (COMMIT, end_message("t0")),
            (PREPARE, prepare_message("t2", "refuse")),
            (PREPARE, prepare_message("t3", "raise")),
            (COMMIT, end_message("unknown")),
            (ROLLBACK, end_message("t1")),
            (ROLLBACK, end_message("unknown")),
        ]
        answered = await r.call.post("batch", in_batch(*messages))
        asked = [(op, message["transaction_id"], message["branch_id"]) for op, message in messages]
        answers = read_batch_answers(answered.status, answered.text, asked)
        assert isinstance(answers, list)
        assert answers[:3] == [Voted(Vote.YES), Acknowledged(), Voted(Vote.NO, "sold out")]
        assert isinstance(answers[3], Failed)
        assert isinstance(answers[4], Failed)
        assert answers[5:] == [Acknowledged(), Acknowledged()]
        assert await r.states() == {"committed": 1, "rolled_back": 2}
        assert await r.ledger() == [
            "prepare t0/1",
            "prepare t1/1",
            "commit None t0/1",
            "rollback {'n': 1} t1/1",
        ]

    run(scenario, tmp_path)


def test_a_bad_message_in_a_batch_is_its_own_affair(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        body = {
            "messages": [
                {"operation": "prepare", **prepare_message("t1")},
                {"operation": "prepare", **prepare_message("t1")},
                {"operation": "begin", **prepare_message("t2")},
                {"operation": "prepare", **prepare_message("t3"), "expires_at": "soon"},
                None,
                {"operation": "rollback", **end_message("t4")},
            ]
        }
        answered = await r.call.post("batch", body)
        first, again, *bad, last = answered.body["answers"]
        assert (first, again, last) == ("yes t1/1", "yes t1/1", "rolled_back t4/1")
        assert [answer["status"] for answer in bad] == [400, 400, 400]
        assert await r.states() == {"prepared": 1, "rolled_back": 1}

    run(scenario, tmp_path)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages":{}}', b'{"messages":'])
def test_a_batch_that_is_none_is_a_400(body: bytes, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.post("batch", body)).code == "bad_message"

    run(scenario, tmp_path)


def test_an_empty_batch_has_no_answers(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.post("batch", b'{"messages":[]}')).body == {"answers": []}

    run(scenario, tmp_path)


def test_a_batch_that_is_too_large_is_a_413_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MAX_BATCH_BYTES", 1_000)

    async def scenario(r: Rig) -> None:
        large = in_batch((PREPARE, prepare_message("t1", "x" * 2_000)))
        assert (await r.call.post("batch", large)).status == 413
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_batch_of_too_many_messages_is_a_413_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MAX_BATCH_MESSAGES", 2)

    async def scenario(r: Rig) -> None:
        messages = [(PREPARE, prepare_message(f"t{n}")) for n in range(3)]
        assert (await r.call.post("batch", in_batch(*messages))).status == 413
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_store_that_cannot_write_says_so_to_each_message_of_a_batch(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        with contextlib.closing(sqlite3.connect(r.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            messages = [(PREPARE, prepare_message(f"t{n}")) for n in range(3)]
            answered = await r.call.post("batch", in_batch(*messages))
        assert [a["status"] for a in answered.body["answers"]] == [503] * 3
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_batch_is_synced_once(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        ends: list[str] = []

        def watch(local: Any) -> None:
            local.resource.set_trace_callback(
                lambda sql: ends.append(sql) if sql == "COMMIT" else None
            )

        await r.store.perform([watch])
        ends.clear()
        messages = [(PREPARE, prepare_message(f"t{n}")) for n in range(100)]
        await r.call.post("batch", in_batch(*messages))
        assert await r.states() == {"prepared": 100}
        assert len(ends) == 1

    run(scenario, tmp_path)


# --- where it is mounted ------------------------------------------------------------------------


def test_it_can_be_mounted_in_a_teams_own_application(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = SqliteStore(tmp_path / "ledger.sqlite", owner="ledger")
        application = web.Application()
        participant = Participant(Ledger(), store, QUIET)
        application.add_subapp("/seats", participant.application())
        async with calling(application) as caller:
            seats = Caller(caller.session, f"{caller.url}/seats")
            large = "x" * (web.Application()._client_max_size + 1)  # the outer one's limit
            assert (await seats.prepare("t1", large)).body["vote"] == "yes"
            assert (await seats.commit("t1")).status == 200
            async with caller.session.post(f"{caller.url}/seats/rollback", data=b"") as response:
                declared = read_declaration(response.headers[DECLARATION_HEADER])
            assert declared == Declaration(True, True, "/seats/batch")
            async with caller.session.post(
                f"{caller.url}{declared.batch_path}", data=b'{"messages":[]}'
            ) as response:
                assert response.status == 200

    asyncio.run(scenario())


def test_a_batch_call_whose_path_the_declaration_cannot_carry_is_not_declared() -> None:
    async def receive(_: Sequence[Received]) -> list[endpoints.Reply]:
        raise AssertionError

    async def scenario() -> None:
        sdk = Declaration(repeatable_prepare=True, inquiry=True)
        application = web.Application()
        mounted = endpoints.protocol_application(receive, sdk, batches=True)
        application.add_subapp("/seats;batch=", mounted)
        async with (
            calling(application) as caller,
            caller.session.post(f"{caller.url}/seats;batch=/commit", data=b"") as response,
        ):
            assert read_declaration(response.headers[DECLARATION_HEADER]) == sdk

    asyncio.run(scenario())
