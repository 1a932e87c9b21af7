"""The three sample services: what they show is what was committed, also after kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from participants import activity, inventory, profile
from participants.__main__ import main
from participants.inquiry import InquirySettings
from participants.sdk import ParticipantSettings
from tests.participant_rig import QUIET, Caller, Service, calling, serving, until


def run(scenario: Callable[[Caller], Awaitable[None]], application: web.Application) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), calling(application) as call:
            await scenario(call)

    asyncio.run(whole())


# --- inventory ----------------------------------------------------------------------------------


def item(available: int, reserved: int, sold: int, at_start: int = 10) -> dict[str, Any]:
    amounts = {"available": available, "reserved": reserved, "sold": sold}
    return {"sku": "A-1", "at_start": at_start, **amounts}


def take(quantity: Any, sku: Any = "A-1") -> dict[str, Any]:
    return {"sku": sku, "quantity": quantity}


def test_stock_is_reserved_then_sold_or_put_back(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        await call.prepare("t1", take(3))
        await call.prepare("t2", take(4))
        assert await call.get("/items/A-1") == item(3, 7, 0)
        await call.commit("t1")
        await call.rollback("t2")
        assert await call.get("/items/A-1") == item(7, 0, 3)
        assert await call.get("/items") == [item(7, 0, 3)]

    run(scenario, inventory.application(tmp_path, stock=10, settings=QUIET))


def test_what_is_reserved_cannot_be_had_by_another(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        assert (await call.prepare("t1", take(6))).body["vote"] == "yes"
        refused = await call.prepare("t2", take(5))
        assert (refused.body["vote"], refused.body["reason"]) == ("no", "out of stock: A-1")
        await call.rollback("t1")
        assert (await call.prepare("t3", take(5))).body["vote"] == "yes"

    run(scenario, inventory.application(tmp_path, stock=10, settings=QUIET))


def test_stock_is_never_oversold_by_many_at_once(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        votes = await asyncio.gather(*(call.prepare(f"t{n}", take(1)) for n in range(50)))
        assert sum(vote.body["vote"] == "yes" for vote in votes) == 10
        assert await call.get("/items/A-1") == item(0, 10, 0)

    run(scenario, inventory.application(tmp_path, stock=10, settings=QUIET))


def test_named_articles_have_their_own_stock(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        assert (await call.prepare("t1", take(3, "few"))).body["vote"] == "no"
        assert (await call.prepare("t1", take(2, "few"))).body["vote"] == "yes"
        assert (await call.get("/items/none"))["error"]["code"] == "not_found"

    run(scenario, inventory.application(tmp_path, items={"few": 2}, settings=QUIET))


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (None, "payload"),
        ([], "payload"),
        ({"sku": "A-1"}, "payload.quantity"),
        ({"quantity": 1}, "payload.sku"),
        (take(0), "payload.quantity"),
        (take(-1), "payload.quantity"),
        (take(1.5), "payload.quantity"),
        (take(True), "payload.quantity"),
        (take("2"), "payload.quantity"),
        (take(10**30), "payload.quantity"),
        (take(1, ""), "payload.sku"),
        (take(1, "\ud800"), "payload.sku"),
        (take(1, ["A-1"]), "payload.sku"),
        (take(1) | {"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_order_is_refused_naming_the_field(
    payload: Any, named: str, tmp_path: Path
) -> None:
    async def scenario(call: Caller) -> None:
        refused = await call.prepare("t1", payload)
        assert (refused.status, refused.body["vote"]) == (200, "no")
        assert named in refused.body["reason"]
        assert await call.get("/items") == []

    run(scenario, inventory.application(tmp_path, settings=QUIET))


# --- profile ------------------------------------------------------------------------------------


def test_a_profile_changes_when_it_is_committed(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        first = {"user": "u1", "set": {"city": "Rome"}, "add": {"orders": 1}}
        await call.prepare("t1", first)
        assert (await call.get("/users/u1"))["error"]["code"] == "not_found"
        await call.commit("t1")
        await call.prepare("t2", {"user": "u1", "add": {"orders": 2, "points": -5}})
        user = {"user": "u1", "fields": {"city": "Rome", "orders": 1}, "held_by": "t2"}
        assert await call.get("/users/u1") == user
        await call.commit("t2")
        fields = {"city": "Rome", "orders": 3, "points": -5}
        assert await call.get("/users") == [{"user": "u1", "fields": fields, "held_by": None}]

    run(scenario, profile.application(tmp_path, QUIET))


def test_a_user_is_held_by_one_transaction_at_a_time(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        one = {"user": "u1", "add": {"orders": 1}}
        assert (await call.prepare("t1", one)).body["vote"] == "yes"
        assert (await call.prepare("t1", one)).body["vote"] == "yes", "it holds it already"
        refused = await call.prepare("t2", one)
        assert (refused.body["vote"], refused.body["reason"]) == (
            "no",
            "user u1 is held by another transaction",
        )
        assert (await call.prepare("t1", one, branch_id="2")).body["vote"] == "no"
        assert (await call.prepare("t3", {"user": "u2"})).body["vote"] == "yes"
        await call.rollback("t1")
        assert (await call.prepare("t4", one)).body["vote"] == "yes"

    run(scenario, profile.application(tmp_path, QUIET))


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"user": 7}, "payload.user"),
        ({"set": {}}, "payload.user"),
        ({"user": "u1", "set": []}, "payload.set"),
        ({"user": "u1", "add": {"orders": "1"}}, "payload.add.orders"),
        ({"user": "u1", "add": {"orders": 1.0}}, "payload.add.orders"),
        ({"user": "u1", "add": {"city": 1}}, "payload.add.city"),
        ({"user": "u1", "set": {"x": 1}, "add": {"x": 1}}, "payload.add.x"),
        ({"user": "u1", "set": {"": 1}}, "payload.set"),
        ({"user": "u1", "drop": 1}, "drop"),
    ],
)
def test_a_wrong_change_is_refused_naming_the_field(
    payload: Any, named: str, tmp_path: Path
) -> None:
    async def scenario(call: Caller) -> None:
        await call.prepare("t1", {"user": "u1", "set": {"city": "Rome"}})
        await call.commit("t1")
        refused = await call.prepare("t2", payload)
        assert (refused.status, refused.body["vote"]) == (200, "no")
        assert named in refused.body["reason"]

    run(scenario, profile.application(tmp_path, QUIET))


# --- activity -----------------------------------------------------------------------------------


def test_an_entry_is_seen_once_it_is_committed(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        await call.prepare("t1", {"user": "u1", "text": "ordered 2 of A-1"})
        await call.prepare("t2", {"user": "u2", "text": "looked around"})
        await call.prepare("t3", {"user": "u1", "text": "changed its mind"})
        assert await call.get("/entries") == []
        await call.commit("t2")
        await call.commit("t1")
        await call.rollback("t3")
        entries = await call.get("/entries")
        assert [(e["transaction_id"], e["user"], e["text"]) for e in entries] == [
            ("t1", "u1", "ordered 2 of A-1"),
            ("t2", "u2", "looked around"),
        ]
        assert [e["user"] for e in await call.get("/entries?user=u2&limit=5")] == ["u2"]
        assert len(await call.get("/entries?limit=1")) == 1
        assert await call.get("/entries/count") == {"count": 2}
        assert await call.get("/entries/count?user=nobody") == {"count": 0}

    run(scenario, activity.application(tmp_path, QUIET))


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({"user": "u1"}, "payload.text"),
        ({"user": "u1", "text": ""}, "payload.text"),
        ({"user": "u1", "text": "x" * 2_001}, "payload.text"),
        ({"user": None, "text": "x"}, "payload.user"),
    ],
)
def test_a_wrong_entry_is_refused_naming_the_field(
    payload: Any, named: str, tmp_path: Path
) -> None:
    async def scenario(call: Caller) -> None:
        refused = await call.prepare("t1", payload)
        assert refused.body["vote"] == "no"
        assert named in refused.body["reason"]

    run(scenario, activity.application(tmp_path, QUIET))


# --- the shared pages ---------------------------------------------------------------------------


def test_the_pages_show_what_became_of_branches(tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        for name in ("t1", "t2", "t3"):
            await call.prepare(name, take(1), coordinators=["http://127.0.0.1:1"])
        await call.rollback("t2")
        await call.commit("t1")
        about = await call.get("/")
        assert about["service"] == "inventory"
        assert about["branches"] == {"prepared": 1, "committed": 1, "rolled_back": 1}
        (doubt,) = await call.get("/branches")
        assert doubt["age_ms"] >= 0
        assert (doubt["transaction_id"], doubt["state"]) == ("t3", "prepared")
        effects = await call.get("/effects")
        assert [(e["transaction_id"], e["branch_id"], e["effect"]) for e in effects] == [
            ("t2", "1", "rolled_back"),
            ("t1", "1", "committed"),
        ]
        assert await call.get(f"/effects?after={effects[0]['number']}&limit=5") == effects[1:]
        assert await call.get("/healthz") == {"status": "ok"}

    run(scenario, inventory.application(tmp_path, stock=10, settings=QUIET))


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/effects?after=x", "bad_query"),
        ("/effects?limit=0", "bad_query"),
        ("/effects?limit=99999999999999999999", "bad_query"),
        ("/branches?limit=-1", "bad_query"),
        ("/items?limit=%00", "bad_query"),
        ("/nowhere", "not_found"),
        ("/items/a/b", "not_found"),
        ("/items/%F0%9F%8D%8E", "not_found"),
    ],
)
def test_a_wrong_question_gets_the_one_error_shape(path: str, code: str, tmp_path: Path) -> None:
    async def scenario(call: Caller) -> None:
        assert (await call.get(path))["error"]["code"] == code

    run(scenario, inventory.application(tmp_path, settings=QUIET))


# --- real processes -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def service(*arguments: str) -> AsyncIterator[tuple[Service, Caller]]:
    running = await Service.start(*arguments)
    try:
        async with aiohttp.ClientSession() as session:
            yield running, Caller(session, running.url)
    finally:
        if running.process.returncode is None:
            assert await running.stop() == 0, "SIGTERM ends it cleanly"


def started(name: str, directory: Path) -> contextlib.AbstractAsyncContextManager[Any]:
    return service(name, "--port", "0", "--data-dir", str(directory))


PAYLOADS = {
    "inventory": take(3),
    "profile": {"user": "u1", "add": {"orders": 1}},
    "activity": {"user": "u1", "text": "ordered 3 of A-1"},
}


async def effect_of(name: str, call: Caller) -> int:
    """How often the payload of `name` has become real."""
    match name:
        case "inventory":
            return int((await call.get("/items/A-1"))["sold"]) // 3
        case "profile":
            return int((await call.get("/users/u1"))["fields"].get("orders", 0))
        case _:
            return int((await call.get("/entries/count"))["count"])


@pytest.mark.parametrize("name", sorted(PAYLOADS))
def test_a_prepared_branch_survives_kill_9_and_then_commits_once(name: str, tmp_path: Path) -> None:
    async def whole() -> None:
        async with started(name, tmp_path) as (first, call):
            assert (await call.prepare("t1", PAYLOADS[name])).body["vote"] == "yes"
            await first.kill()
        async with started(name, tmp_path) as (second, call):
            assert second.process.pid != first.process.pid
            assert (await call.get("/"))["branches"]["prepared"] == 1
            repeated = await call.prepare("t1", PAYLOADS[name])
            assert repeated.body["vote"] == "yes", "a new leader asks again"
            assert (await call.commit("t1")).status == 200
            assert await effect_of(name, call) == 1
            await second.kill()
        async with started(name, tmp_path) as (_, call):
            assert (await call.commit("t1")).status == 200, "the acknowledgement was lost"
            assert await effect_of(name, call) == 1
            assert (await call.prepare("t1", PAYLOADS[name])).body["vote"] == "no"

    asyncio.run(whole())


def test_after_kill_9_a_branch_can_be_rolled_back_and_its_stock_is_free(tmp_path: Path) -> None:
    async def whole() -> None:
        async with started("inventory", tmp_path) as (first, call):
            await call.prepare("t1", take(3))
            await first.kill()
        async with started("inventory", tmp_path) as (_, call):
            assert (await call.get("/items/A-1"))["reserved"] == 3
            assert (await call.rollback("t1")).status == 200
            assert (await call.get("/items/A-1"))["reserved"] == 0

    asyncio.run(whole())


def test_kill_9_in_the_middle_of_many_calls_keeps_every_promise(tmp_path: Path) -> None:
    """Whatever was answered before the kill holds after it; stock and tombstones agree."""

    async def whole() -> None:
        some_committed = asyncio.Event()
        promised: list[str] = []
        committed: list[str] = []

        async def transaction(call: Caller, name: str) -> None:
            with contextlib.suppress(aiohttp.ClientError):
                assert (await call.prepare(name, take(1))).body["vote"] == "yes"
                promised.append(name)
                assert (await call.commit(name)).status == 200
                committed.append(name)
                if len(committed) == 20:
                    some_committed.set()

        async with started("inventory", tmp_path) as (first, call):
            running = [asyncio.create_task(transaction(call, f"t{n}")) for n in range(400)]
            await some_committed.wait()
            await first.kill()
            await asyncio.gather(*running)
        assert len(committed) < 400, "it was killed in the middle"
        async with started("inventory", tmp_path) as (_, call):
            for name in promised:
                assert (await call.commit(name)).status == 200
            for branch in await call.get("/branches?limit=1000"):
                await call.rollback(branch["transaction_id"])  # its YES was never heard
            sold = [e for e in await call.get("/effects") if e["effect"] == "committed"]
            assert {e["transaction_id"] for e in sold} >= set(promised)
            stock = await call.get("/items/A-1")
            assert (stock["sold"], stock["reserved"]) == (len(sold), 0)
            assert stock["available"] + stock["sold"] == stock["at_start"]

    asyncio.run(whole())


def test_after_kill_9_a_service_finds_out_by_itself(tmp_path: Path) -> None:
    asked: list[str] = []

    async def decide(request: web.Request) -> web.Response:
        asked.append(request.match_info["id"])
        return web.json_response({"decision": "commit"})

    node = web.Application()
    node.router.add_get("/v1/transactions/{id}/decision", decide)

    async def whole() -> None:
        async with serving(node) as url:
            async with started("activity", tmp_path) as (first, call):
                await call.prepare("t1", PAYLOADS["activity"], coordinators=[url])
                await first.kill()
            asked.clear()
            async with started("activity", tmp_path) as (_, call):

                async def ended() -> bool:
                    return bool((await call.get("/entries/count"))["count"] == 1)

                await until(ended)
                assert asked == ["t1"]
                assert await call.get("/branches") == []

    asyncio.run(whole())


def test_a_port_that_is_taken_is_one_line_and_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["inventory", "--port", port, "--data-dir", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    ("host", "why"), [("a..b", "has no address"), ("192.0.2.1", "is another machine")]
)
def test_a_host_that_is_not_this_machine_is_one_line_and_exit_code_2(
    host: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulated", "--plain", "--host", host, "--port", "0"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert f"cannot listen on {host}:0: the host {why}; give --host" in line


def test_a_file_that_is_not_ours_is_one_line_and_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "profile.sqlite").write_text("a diary " * 1_000)
    assert main(["profile", "--port", "0", "--data-dir", str(tmp_path)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "not a sound SQLite database" in line


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["inventory", "--port", "0"],
        ["inventory", "--port", "70000", "--data-dir", "x"],
        ["inventory", "--port", "0", "--data-dir", "x", "--stock", "-1"],
        ["inventory", "--port", "0", "--data-dir", "x", "--item", "A-1"],
        ["inventory", "--port", "0", "--data-dir", "x", "--inquire-after", "soon"],
    ],
)
def test_a_mistake_on_the_command_line_is_exit_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_inquiry_begins_after_five_seconds_unless_told_otherwise() -> None:
    assert ParticipantSettings().inquiry == InquirySettings()
