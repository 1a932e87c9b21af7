"""coordinator/batches.py: a batch waits for its turn, gives others theirs, and is refused early."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from coordinator import batches, errors, turn
from coordinator.admission import LEAST, Admission, Queued, WaitingLine
from coordinator.api_errors import bad_field
from coordinator.api_requests import Answer, Later, Request
from coordinator.api_shapes import Submission, read_submission
from coordinator.batch_json import SHORT_BYTES
from coordinator.batches import BRANCHES_BEGUN, BRANCHES_SHOWN, Batches, pieces
from coordinator.plan import Plan
from coordinator.settings import Limits, Timings
from tests.api_rig import ApiNode, ScriptedDriver, answered, api_node, error_of, run

PATH = "/v1/transactions"
ADDRESS = "10.0.0.1"


class Door(Admission):
    """Batches have room while it is open; `pieces_left`: so often."""

    def __init__(self, *, open_for: int = 0) -> None:
        super().__init__()
        self.pieces_left = open_for

    def has_room_in_turn(self, now_s: float, promised: int = 0) -> bool:  # noqa: ARG002
        return self.pieces_left > 0 and not promised


def shut(node: ApiNode) -> Door:
    """From now on a batch of this node begins nothing."""
    door = Door()
    node.driver.line = WaitingLine(door)
    return door


def let_in(node: ApiNode, door: Door) -> None:
    """One piece."""
    door.pieces_left = 1
    node.driver.line.call(0.0)
    door.pieces_left = 0


def request_of(node: ApiNode, ids: list[str]) -> Request:
    elements = [node.body("yes", "yes-2", "yes-3", id=one) for one in ids]
    body = json.dumps({"transactions": elements}).encode()
    return Request("POST", PATH, "", {}, body, ADDRESS)


def ask(node: ApiNode, ids: list[str]) -> asyncio.Future[Answer]:
    return asyncio.ensure_future(answered(node.api.respond(request_of(node, ids))))


async def until(is_so: Callable[[], bool]) -> None:
    """Within so many turns of the loop."""
    for _ in range(10_000):
        if is_so():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


def outcomes(answer: Answer) -> list[Any]:
    elements = json.loads(answer.body)["transactions"]
    return [one.get("outcome") or error_of(one)["code"] for one in elements]


def test_a_batch_begins_when_it_is_told_that_there_is_room() -> None:
    async def test() -> None:
        async with api_node() as node:
            door = shut(node)
            asking = ask(node, ["a-1", "a-2"])
            await until(lambda: len(node.driver.line) == 1)
            assert node.machine.get("a-1") is None
            let_in(node, door)
            assert outcomes(await asking) == ["committed", "committed"]
            assert len(node.driver.line) == 0

    run(test())


def test_batches_take_turns_a_piece_each() -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _plan: errors.AtCapacity("full")
        async with api_node(scripted=driver) as node:
            door = Door()
            driver.line = WaitingLine(door)
            piece = BRANCHES_BEGUN // 3
            first = ask(node, [f"a-{n}" for n in range(2 * piece)])
            await until(lambda: len(driver.line) == 1)
            second = ask(node, [f"b-{n}" for n in range(2 * piece)])
            await until(lambda: len(driver.line) == 2)
            door.pieces_left = 1
            driver.line.call(0.0)
            await asyncio.gather(first, second)
            begun = [plan.id[0] for plan, _ in driver.submitted]
            assert "".join(begun) == "a" * piece + "b" * piece + "a" * piece + "b" * piece

    run(test())


def test_a_batch_that_finds_the_line_too_long_is_refused_at_once_but_for_its_repeats() -> None:
    async def test() -> None:
        async with api_node() as node:
            assert outcomes(await ask(node, ["a-1"])) == ["committed"]
            shut(node)
            node.driver.line.wait(Queued(ADDRESS, 1, LEAST, lambda: None), 0.0)
            answer = await ask(node, ["a-2", "a-1", "a b"])
            assert outcomes(answer) == ["at_capacity", "committed", "bad_request"]
            assert answer.rests
            assert node.machine.get("a-2") is None
            async with node.session.get(node.url + "/metrics") as response:
                text = await response.text()
            assert "assent_transactions_turned_away_total 1.0" in text

    run(test())


def test_a_batch_does_not_wait_for_a_log_that_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        monkeypatch.setattr(batches, "ROOM_WITHIN_S", 0.0)
        async with api_node() as node:
            shut(node)
            answer = await ask(node, ["a-1", "a-2"])
            assert outcomes(answer) == ["at_capacity", "at_capacity"]
            assert answer.rests
            assert len(node.driver.line) == 0

    run(test())


def test_what_a_client_that_left_was_promised_goes_to_the_next() -> None:
    async def test() -> None:
        async with api_node() as node:
            door = shut(node)
            gone = node.api.respond(request_of(node, ["a-1"]))
            assert isinstance(gone, Later)
            await until(lambda: len(node.driver.line) == 1)
            stays = ask(node, ["b-1"])
            await until(lambda: len(node.driver.line) == 2)
            door.pieces_left = 1
            node.driver.line.call(0.0)
            gone.future.cancel()
            assert outcomes(await stays) == ["committed"]
            assert node.machine.get("a-1") is None

    run(test())


def test_a_batch_in_line_is_told_when_leadership_ends() -> None:
    async def test() -> None:
        async with api_node() as node:
            door = shut(node)
            asking = ask(node, ["a-1"])
            await until(lambda: len(node.driver.line) == 1)
            door.pieces_left = 1
            node.log.stop_leading()
            assert outcomes(await asking) == ["no_leader"]

    run(test())


def test_what_came_in_a_batch_says_so_and_what_came_alone_says_from_where() -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _plan: errors.AtCapacity("full")
        async with api_node(scripted=driver) as node:
            await ask(node, ["a-1"])
            await node.post(PATH, node.body(id="b-1"))
            assert [plan.address for plan, _ in driver.submitted] == [None, "127.0.0.1"]

    run(test())


def test_an_idle_node_lets_a_batch_of_the_largest_size_in() -> None:
    async def test() -> None:
        async with api_node() as node:
            assert node.limits.batch_size < LEAST
            answer = await ask(node, [f"t-{n}" for n in range(node.limits.batch_size)])
            assert set(outcomes(answer)) == {"committed"}

    run(test())


@pytest.mark.parametrize("is_full", [False, True])
def test_a_large_batch_lets_others_have_their_turn(*, is_full: bool) -> None:
    """While it begins, or is refused, and while it is shown."""

    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _plan: errors.AtCapacity("full")
        async with api_node(scripted=driver) as node:
            if is_full:
                driver.line = WaitingLine(Door())
                driver.line.wait(Queued(ADDRESS, 1, LEAST, lambda: None), 0.0)
            answering = ask(node, [f"t-{n}" for n in range(1_000)])
            turns, most, before = 0, 0, 0
            while not answering.done():
                await asyncio.sleep(0)
                turns += 1
                most = max(most, len(driver.submitted) - before)
                before = len(driver.submitted)
            assert outcomes(answering.result()) == ["at_capacity"] * 1_000
            assert most <= BRANCHES_BEGUN // 3
            assert turns >= 3_000 // BRANCHES_BEGUN + 1_000 // BRANCHES_SHOWN

    run(test())


def test_a_large_answer_is_shown_in_several_turns() -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        async with api_node() as real:
            await ask(real, ["t-1"])
            shown = real.machine.get("t-1")
            assert shown is not None

        def ended(_plan: Plan) -> Any:
            return shown

        driver.outcome = ended
        async with api_node(scripted=driver) as node:
            answering = ask(node, ["t-1"] * 400)
            await until(lambda: len(driver.submitted) == 400)
            turns = 0
            while not answering.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns >= 400 * 3 // BRANCHES_SHOWN - 1

    run(test())


def submission(branches: int) -> Submission:
    body = {"participants": [{"url": f"http://h/{n}"} for n in range(branches)]}
    return read_submission(body, limits=Limits(), timings=Timings(), make_id=lambda: "t")


def sizes(*branches: int) -> list[list[int]]:
    elements = [submission(count) for count in branches]
    return [[len(one.plan.branches) for one in piece] for piece in pieces(elements)]  # type: ignore[union-attr]


def test_a_piece_is_bounded_by_branches_and_one_huge_element_is_a_piece() -> None:
    half = BRANCHES_BEGUN // 2
    assert sizes(half, half, 1) == [[half, half], [1]]
    assert sizes(1, 256, 1, 1) == [[1], [256], [1, 1]]
    assert sizes(3) == [[3]]


def test_what_is_no_transaction_is_counted_as_one_branch() -> None:
    elements = [bad_field("id", "is wrong")] * 4 * BRANCHES_BEGUN
    found = list(pieces(elements))
    assert [len(piece) for piece in found] == [BRANCHES_BEGUN] * 4
    assert [one for piece in found for one in piece] == elements


def test_batches_are_read_one_at_a_time_and_little_in_a_turn() -> None:
    """Or a few kilobytes, packed, would keep the leader from its followers."""

    async def test() -> None:
        async with api_node(scripted=ScriptedDriver()) as node:
            reading = Batches(node.driver, Limits(), lambda _: None, lambda _: None)  # type: ignore
            reads: list[tuple[str, int]] = []
            turn = 0

            async def ask(name: str, size: int) -> None:
                element = {"participants": [node.service(payload="x" * size)]}
                body = json.dumps({"transactions": [element] * 8}).encode()

                def read(value: Any) -> Submission:
                    assert value == element
                    reads.append((name, turn))
                    return submission(1)

                assert len(await reading.read(body, read)) == 8

            asking = asyncio.gather(ask("large", 50_000), ask("small", 15_000))
            while not asking.done():
                await asyncio.sleep(0)
                turn += 1
            await asking
            assert [name for name, _ in reads] == ["large"] * 8 + ["small"] * 8
            together = Counter(turn for _, turn in reads)
            assert max(together.values()) == SHORT_BYTES // 15_000
            assert {together[turn] for name, turn in reads if name == "large"} == {1}

    run(test())


# --- one that came alone, from a crowd ------------------------------------------------------------


def ask_alone(node: ApiNode, transaction_id: str) -> Answer | Later:
    body = json.dumps(node.body("yes", id=transaction_id)).encode()
    return node.api.respond(Request("POST", PATH, "", {}, body, ADDRESS))


def crowd(node: ApiNode) -> Door:
    """`ADDRESS` is one from now on, and begins nothing."""
    door = shut(node)
    door._crowds[ADDRESS] = door._address_changed_s = math.inf
    return door


def test_one_of_a_crowd_begins_when_its_turn_has_come() -> None:
    async def test() -> None:
        async with api_node() as node:
            door = crowd(node)
            asking = asyncio.ensure_future(answered(ask_alone(node, "a-1")))
            await asyncio.sleep(0)
            assert len(node.driver.line) == 1
            assert node.driver.line._bytes > 50  # what was sent
            assert node.driver.live_count == 0
            let_in(node, door)
            answer = await asking
            assert (answer.status, json.loads(answer.body)["outcome"]) == (200, "committed")
            assert (len(node.driver.line), node.driver.line._bytes) == (0, 0)

    run(test())


def test_a_repeat_from_a_crowd_stands_in_no_line() -> None:
    async def test() -> None:
        async with api_node() as node:
            assert outcomes(await ask(node, ["a-1"])) == ["committed"]
            crowd(node)
            elements = [node.body("yes", "yes-2", "yes-3", id="a-1")]
            request = Request("POST", PATH, "", {}, json.dumps(elements[0]).encode(), ADDRESS)
            assert (await answered(node.api.respond(request))).status == 200

    run(test())


def test_one_of_a_crowd_is_refused_at_once_where_the_line_is_too_long() -> None:
    async def test() -> None:
        async with api_node() as node:
            crowd(node)
            node.driver.line.wait(Queued(ADDRESS, 1, LEAST, lambda: None), 0.0)
            refused = ask_alone(node, "a-1")
            assert isinstance(refused, Answer)
            assert (refused.status, refused.rests) == (429, True)
            body = json.dumps(node.body("yes", id="b-1")).encode()
            other = Request("POST", PATH, "", {}, body, "10.0.0.2")
            assert (await answered(node.api.respond(other))).status == 200

    run(test())


def test_one_of_a_crowd_does_not_wait_for_a_log_that_stands_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        monkeypatch.setattr(turn, "ROOM_WITHIN_S", 0.0)
        async with api_node() as node:
            crowd(node)
            answer = await answered(ask_alone(node, "a-1"))
            assert (answer.status, error_of(json.loads(answer.body))["code"]) == (
                429,
                "at_capacity",
            )
            assert len(node.driver.line) == 0
            assert node.machine.get("a-1") is None

    run(test())


def test_one_of_a_crowd_that_has_gone_is_not_begun_and_takes_no_turn() -> None:
    async def test() -> None:
        async with api_node() as node:
            door = crowd(node)
            gone = ask_alone(node, "a-1")
            assert isinstance(gone, Later)
            stays = asyncio.ensure_future(answered(ask_alone(node, "a-2")))
            await asyncio.sleep(0)
            gone.future.cancel()
            door.pieces_left = 1
            node.driver.line.call(0.0)  # its promise goes to the next
            assert json.loads((await stays).body)["outcome"] == "committed"
            assert node.machine.get("a-1") is None
            assert len(node.driver.line) == 0

    run(test())


def test_one_of_a_crowd_is_told_when_leadership_ends() -> None:
    async def test() -> None:
        async with api_node() as node:
            door = crowd(node)
            asking = asyncio.ensure_future(answered(ask_alone(node, "a-1")))
            await asyncio.sleep(0)
            door.pieces_left = 1
            node.log.stop_leading()
            answer = await asking
            assert (answer.status, error_of(json.loads(answer.body))["code"]) == (503, "no_leader")

    run(test())


# --- who comes alone, and finds no room -----------------------------------------------------------


class Full(Admission):
    """There is room for as many as it is told."""

    room = 0

    def has_room(self) -> bool:
        self.room -= 1
        return self.room >= 0


def full(node: ApiNode) -> Full:
    """From now on nobody finds room."""
    admission = Full()
    node.driver.line = WaitingLine(admission)
    return admission


def test_who_finds_no_room_begins_when_there_is_some() -> None:
    async def test() -> None:
        async with api_node() as node:
            admission = full(node)
            first, second = (
                asyncio.ensure_future(answered(ask_alone(node, name))) for name in ("a-1", "a-2")
            )
            await asyncio.sleep(0)
            assert (len(node.driver.line), node.driver.live_count) == (2, 0)
            assert node.driver.line._bytes > 100  # two bodies
            admission.room = 1
            node.driver.line.call(0.0)
            assert json.loads((await first).body)["outcome"] == "committed"
            assert node.machine.get("a-2") is None
            admission.room = 1
            node.driver.line.call(0.0)
            assert json.loads((await second).body)["outcome"] == "committed"
            assert len(node.driver.line) == 0

    run(test())


def test_who_has_gone_before_there_was_room_is_not_begun() -> None:
    async def test() -> None:
        async with api_node() as node:
            admission = full(node)
            gone = ask_alone(node, "a-1")
            assert isinstance(gone, Later)
            gone.future.cancel()
            admission.room = 1
            node.driver.line.call(0.0)
            await asyncio.sleep(0)
            assert (len(node.driver.line), node.driver.live_count) == (0, 0)
            assert node.machine.get("a-1") is None

    run(test())


def test_who_waits_for_room_is_told_when_leadership_ends() -> None:
    async def test() -> None:
        async with api_node() as node:
            admission = full(node)
            asking = asyncio.ensure_future(answered(ask_alone(node, "a-1")))
            await asyncio.sleep(0)
            admission.room = 1
            node.log.stop_leading()
            answer = await asking
            assert (answer.status, error_of(json.loads(answer.body))["code"]) == (503, "no_leader")

    run(test())
