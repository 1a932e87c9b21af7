"""The simulated participant: keeps its contract until it is told not to, then does just that."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from participants.contract import (
    Acknowledged,
    Failed,
    Operation,
    Vote,
    Voted,
    Working,
    read_declaration,
    read_end_answer,
    read_prepare_answer,
)
from participants.simulated import CRASH_EXIT_CODE, Fault, Simulated
from tests.participant_rig import QUIET, Service, end_message, prepare_message, serving, until


class Coordinator:
    """Calls as a coordinator does, and reads the answers with the contract."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session = session
        self.url = url
        self.headers: list[str | None] = []

    async def call(self, operation: Operation, transaction_id: str) -> Any:
        """What the contract makes of the answer; Failed(broken=True) where there was none."""
        prepares = operation is Operation.PREPARE
        message = prepare_message(transaction_id) if prepares else end_message(transaction_id)
        try:
            async with self.session.post(
                f"{self.url}/{operation}", json=message, allow_redirects=False
            ) as response:
                body = await response.read()
        except aiohttp.ClientConnectionError:
            return Failed("no answer", broken=True)
        self.headers.append(response.headers.get("Assent-Participant"))
        branch = transaction_id, message["branch_id"]
        if prepares:
            return read_prepare_answer(response.status, body, branch)
        return read_end_answer(operation, response.status, body, branch)

    async def faults(self, *rules: dict[str, Any], seed: int = 1) -> None:
        message = {"seed": seed, "faults": list(rules)}
        async with self.session.put(f"{self.url}/faults", json=message) as response:
            assert response.status == 200, await response.text()

    async def get(self, path: str) -> Any:
        async with self.session.get(f"{self.url}{path}") as response:
            return await response.json()

    async def effects(self) -> dict[str, str]:
        return {e["transaction_id"]: e["effect"] for e in await self.get("/effects")}

    async def prepared(self) -> list[str]:
        return [b["transaction_id"] for b in await self.get("/branches")]


@contextlib.asynccontextmanager
async def simulated(sdk: bool, directory: Path | None = None) -> AsyncIterator[Coordinator]:
    participant = Simulated(sdk=sdk, directory=directory, settings=QUIET)
    async with serving(participant.application()) as url, aiohttp.ClientSession() as session:
        yield Coordinator(session, url)


def run(scenario: Callable[[Coordinator], Awaitable[None]], sdk: bool) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), simulated(sdk) as coordinator:
            await scenario(coordinator)

    asyncio.run(whole())


PREPARE, COMMIT, ROLLBACK = Operation.PREPARE, Operation.COMMIT, Operation.ROLLBACK
both_kinds = pytest.mark.parametrize("sdk", [True, False], ids=["sdk", "plain"])


@both_kinds
def test_without_faults_it_keeps_its_contract(sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        assert await c.call(PREPARE, "t1") == Voted(Vote.YES)
        assert await c.call(PREPARE, "t2") == Voted(Vote.YES)
        assert await c.prepared() == ["t1", "t2"]
        for _ in range(2):
            assert await c.call(COMMIT, "t1") == Acknowledged()
            assert await c.call(ROLLBACK, "t2") == Acknowledged()
            assert await c.call(ROLLBACK, "t3") == Acknowledged()
        assert isinstance(await c.call(COMMIT, "t2"), Failed)
        assert isinstance(await c.call(ROLLBACK, "t1"), Failed)
        assert isinstance(await c.call(COMMIT, "t4"), Failed)
        for ended in ("t1", "t2", "t3"):
            assert (await c.call(PREPARE, ended)).vote is Vote.NO
        assert await c.effects() == {
            "t1": "committed",
            "t2": "rolled_back",
            "t3": "rolled_back",
        }
        assert {read_declaration(h).is_plain for h in c.headers} == {not sdk}

    run(scenario, sdk)


AFTER_EFFECT = [
    Fault.ERROR_AFTER_EFFECT,
    Fault.LOST_ANSWER,
    Fault.GARBAGE,
    Fault.EMPTY,
    Fault.HTML,
    Fault.ANOTHER_TRANSACTION,
]
BEFORE_EFFECT = [Fault.ERROR, Fault.CLOSE, Fault.REDIRECT]


@both_kinds
@pytest.mark.parametrize("fault", [*AFTER_EFFECT, *BEFORE_EFFECT])
def test_a_fault_of_prepare_is_a_failure_with_or_without_effect(fault: Fault, sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults({"fault": fault, "operation": "prepare", "times": 1})
        assert isinstance(await c.call(PREPARE, "t1"), Failed)
        assert await c.prepared() == (["t1"] if fault in AFTER_EFFECT else [])
        assert await c.call(PREPARE, "t2") == Voted(Vote.YES), "the one time is used up"

    run(scenario, sdk)


@both_kinds
@pytest.mark.parametrize("fault", [Fault.LOST_ANSWER, Fault.ERROR_AFTER_EFFECT, Fault.CLOSE])
def test_a_fault_of_commit_is_mended_by_asking_again(fault: Fault, sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.call(PREPARE, "t1")
        await c.faults({"fault": fault, "operation": "commit", "times": 2})
        for _ in range(2):
            assert isinstance(await c.call(COMMIT, "t1"), Failed)
            done = fault is not Fault.CLOSE
            assert await c.effects() == ({"t1": "committed"} if done else {})
        assert await c.call(COMMIT, "t1") == Acknowledged()
        assert await c.effects() == {"t1": "committed"}

    run(scenario, sdk)


@both_kinds
def test_it_votes_as_it_is_told(sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults(
            {"fault": "no", "transaction_id": "t1"},
            {"fault": "read_only", "transaction_id": "t2"},
            {"fault": "still_working", "transaction_id": "t3", "times": 2},
            {"fault": "yes_then_no", "transaction_id": "t4"},
        )
        assert (await c.call(PREPARE, "t1")).vote is Vote.NO
        assert await c.call(PREPARE, "t2") == Voted(Vote.READ_ONLY)
        answers = [await c.call(PREPARE, "t3") for _ in range(3)]
        assert answers == [Working(), Working(), Voted(Vote.YES)]
        assert await c.call(PREPARE, "t4") == Voted(Vote.YES)
        assert (await c.call(PREPARE, "t4")).vote is Vote.NO
        assert await c.prepared() == ["t3", "t4"]

    run(scenario, sdk)


@both_kinds
def test_a_huge_answer_is_ten_megabytes(sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults({"fault": "huge"})
        async with c.session.post(f"{c.url}/prepare", json=prepare_message("t1")) as response:
            assert len(await response.read()) > 10 * 1024 * 1024

    run(scenario, sdk)


@both_kinds
@pytest.mark.parametrize("fault", [Fault.NEVER, Fault.NEVER_AFTER_EFFECT, Fault.DELAY])
def test_silence_does_not_hold_up_other_calls(fault: Fault, sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults({"fault": fault, "transaction_id": "t1", "delay_ms": 3_600_000})
        silent = asyncio.create_task(c.call(PREPARE, "t1"))

        async def arrived() -> bool:
            return len(await c.get("/calls")) == 1

        await until(arrived)
        assert await c.call(PREPARE, "t2") == Voted(Vote.YES)
        assert not silent.done()
        silent.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await silent

    run(scenario, sdk)


@both_kinds
def test_a_delay_ends(sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults({"fault": "delay", "delay_ms": 1})
        assert await c.call(PREPARE, "t1") == Voted(Vote.YES)
        await c.faults({"fault": "delay_after_effect", "delay_ms": 1})
        assert await c.call(COMMIT, "t1") == Acknowledged()

    run(scenario, sdk)


def test_throws_come_from_the_seed() -> None:
    async def throws(c: Coordinator, seed: int) -> list[bool]:
        await c.faults({"fault": "no", "probability": 0.5}, seed=seed)
        names = [f"s{seed}-{n}" for n in range(30)]
        return [(await c.call(PREPARE, name)).vote is Vote.NO for name in names]

    async def scenario(c: Coordinator) -> None:
        first = await throws(c, 7)
        assert 0 < sum(first) < 30
        await c.call(ROLLBACK, "between")  # which makes a throw of its own
        assert await throws(c, 7) == first
        assert await throws(c, 8) != first

    run(scenario, sdk=True)


@both_kinds
def test_every_call_is_recorded_with_its_fault(sdk: bool) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults({"fault": "error", "operation": "commit"})
        await c.call(PREPARE, "t1")
        await c.call(COMMIT, "t1")
        async with c.session.post(f"{c.url}/rollback", data=b"nonsense") as response:
            assert response.status == 400
        calls = await c.get("/calls")
        assert [(e["operation"], e["transaction_id"], e["fault"]) for e in calls] == [
            ("prepare", "t1", None),
            ("commit", "t1", "error"),
            ("rollback", None, None),
        ]
        assert await c.get("/calls?after=1&limit=1") == calls[1:2]

    run(scenario, sdk)


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        '{"faults": {}}',
        '{"faults": ["no"]}',
        '{"faults": [{"fault": "nonsense"}]}',
        '{"faults": [{"fault": "no", "operation": "begin"}]}',
        '{"faults": [{"fault": "no", "colour": "red"}]}',
        '{"seed": "x", "faults": []}',
    ],
)
def test_wrong_faults_are_a_400_and_change_nothing(message: str) -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults({"fault": "no"})
        async with c.session.put(f"{c.url}/faults", data=message) as response:
            assert response.status == 400
            assert (await response.json())["error"]["code"] == "bad_faults"
        assert len((await c.get("/faults"))["faults"]) == 1

    run(scenario, sdk=True)


# --- real processes: what a crash leaves --------------------------------------------------------


@pytest.mark.parametrize("kind", [[], ["--plain"]], ids=["sdk", "plain"])
@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.CRASH_AFTER_EFFECT])
def test_a_crash_ends_the_process_before_or_after_the_effect(
    fault: Fault, kind: list[str], tmp_path: Path
) -> None:
    arguments = ("simulated", "--port", "0", "--data-dir", str(tmp_path), *kind)

    async def whole() -> None:
        async with aiohttp.ClientSession() as session:
            first = await Service.start(*arguments)
            c = Coordinator(session, first.url)
            await c.faults({"fault": fault, "operation": "commit"})
            await c.call(PREPARE, "t1")
            assert await c.call(COMMIT, "t1") == Failed("no answer", broken=True)
            assert await first.process.wait() == CRASH_EXIT_CODE
            second = await Service.start(*arguments)
            c = Coordinator(session, second.url)
            done = fault is Fault.CRASH_AFTER_EFFECT
            assert await c.effects() == ({"t1": "committed"} if done else {})
            assert await c.prepared() == ([] if done else ["t1"])
            assert await c.call(COMMIT, "t1") == Acknowledged()
            assert await second.stop() == 0

    asyncio.run(whole())


def test_every_fault_can_be_set() -> None:
    async def scenario(c: Coordinator) -> None:
        await c.faults(*({"fault": fault.value} for fault in Fault))
        shown = (await c.get("/faults"))["faults"]
        assert [rule["fault"] for rule in shown] == json.loads(json.dumps(list(Fault)))

    run(scenario, sdk=True)
