"""coordinator/api_interactive.py and interactive.py: enlisting participants, and ending."""

from __future__ import annotations

import asyncio
import json
import weakref
from typing import Any

import pytest

from coordinator.api_requests import Later, Request
from coordinator.facts import Mode
from coordinator.interactive import ROLLED_BACK
from coordinator.log import NotLeader
from coordinator.settings import Limits, Timings
from tests.api_rig import ApiNode, api_node, run

PATH = "/v1/transactions"


async def opened(node: ApiNode, id_: str = "t", **more: Any) -> dict[str, Any]:
    status, answer = await node.post(PATH, {"id": id_, "mode": "interactive", **more})
    assert status == 201, answer
    return dict(answer)


async def enlisted(node: ApiNode, kind: str, id_: str = "t", **more: Any) -> dict[str, Any]:
    status, answer = await node.post(f"{PATH}/{id_}/branches", node.service(kind, **more))
    assert status == 201, answer
    return dict(answer)


async def ended(node: ApiNode, how: str, id_: str = "t", **body: Any) -> dict[str, Any]:
    status, answer = await node.post(f"{PATH}/{id_}/{how}", body)
    assert status == 200, answer
    return dict(answer)


def asked_of(node: ApiNode, kind: str) -> list[str]:
    """What the participants of this kind were asked, in order."""
    return [operation for each, operation, _ in node.services.calls if each == kind]


def code_of(answer: Any) -> str:
    return str(answer["error"]["code"])


async def until_finished(node: ApiNode, id_: str = "t") -> dict[str, Any]:
    _, answer = await node.get(f"{PATH}/{id_}?wait_ms=10000")
    assert answer["finished_at"] is not None, answer
    return dict(answer)


def test_it_is_open_until_its_client_commits_it() -> None:
    async def test() -> None:
        async with api_node() as node:
            answer = await opened(node, metadata={"action": "order"})
            assert (answer["state"], answer["mode"], answer["branches"]) == (
                "active", "interactive", []
            )  # fmt: skip
            first = await enlisted(node, "yes", payload={"sku": "A"})  # to be done at prepare
            assert (first["branch_id"], first["state"], first["transaction_id"]) == (
                "1", "active", "t"
            )  # fmt: skip
            assert first["expires_at"] == answer["expires_at"]
            assert (await enlisted(node, "read_only", name="reader"))["branch_id"] == "2"
            await asyncio.sleep(0.05)
            assert node.services.calls == []
            done = await ended(node, "commit")
            assert done["outcome"] == "committed"
            assert [b["vote"] for b in done["branches"]] == ["yes", "read_only"]
            assert (await until_finished(node))["state"] == "committed"
            assert await ended(node, "commit") == await ended(node, "rollback")
            asked = {kind: asked_of(node, kind) for kind in ("yes", "read_only")}
            assert asked == {"yes": ["prepare", "commit"], "read_only": ["prepare"]}
            said = {p["branch_id"]: p.get("interactive") for p in node.services.prepares}
            assert said == {"1": None, "2": True}, "who has worked already votes on that"

    run(test())


def test_without_participants_it_commits_and_there_is_nothing_to_do() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            assert (await ended(node, "commit", wait="completion"))["state"] == "committed"

    run(test())


def test_its_client_rolls_it_back_and_everybody_hears_of_it_without_being_asked() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "yes")
            await enlisted(node, "no")
            done = await ended(node, "rollback", wait="completion")
            assert (done["state"], done["reason"]) == ("aborted", ROLLED_BACK)
            assert asked_of(node, "yes") == asked_of(node, "no") == ["rollback"]
            assert (await ended(node, "commit"))["outcome"] == "aborted"

    run(test())


def test_who_votes_no_hears_the_rollback_too_for_it_has_worked() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "yes")
            await enlisted(node, "no")
            done = await ended(node, "commit", wait="completion")
            assert done["state"] == "aborted"
            assert "voted no" in done["reason"]
            assert asked_of(node, "yes") == asked_of(node, "no") == ["prepare", "rollback"]

    run(test())


def test_a_participant_is_enlisted_once_however_often_it_is_asked() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            answers = await asyncio.gather(*(enlisted(node, "yes", payload=1) for _ in range(5)))
            assert [a["branch_id"] for a in answers] == ["1"] * 5
            others = await asyncio.gather(*(enlisted(node, "yes", name=f"n{i}") for i in range(5)))
            assert sorted(a["branch_id"] for a in others) == ["2", "3", "4", "5", "6"]
            for other in (node.service("yes", payload=2), node.service("no", name="n1")):
                status, answer = await node.post(f"{PATH}/t/branches", other)
                assert (status, code_of(answer)) == (409, "not_allowed")
            _, shown = await node.get(f"{PATH}/t")
            assert len(shown["branches"]) == 6

    run(test())


def test_nobody_is_enlisted_once_the_end_has_begun() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "slow")
            ending = asyncio.ensure_future(ended(node, "commit"))
            await node.services.until_called("slow", "prepare")
            for again in (node.service("yes"), node.service("slow")):
                status, answer = await node.post(f"{PATH}/t/branches", again)
                assert (status, code_of(answer)) == (409, "not_allowed"), answer
            status, answer = await node.post(f"{PATH}/t/commit", {"wait": "none"})
            assert (status, answer["state"]) == (202, "preparing")
            node.services.go_on()
            assert (await ending)["outcome"] == "committed"

    run(test())


def test_a_rollback_while_it_is_being_prepared_aborts_it() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "slow")
            ending = asyncio.ensure_future(ended(node, "commit"))
            await node.services.until_called("slow", "prepare")
            assert (await ended(node, "rollback"))["outcome"] == "aborted"
            assert (await ending)["reason"] == ROLLED_BACK
            node.services.go_on()
            assert (await until_finished(node))["state"] == "aborted"

    run(test())


def test_what_its_client_leaves_open_ends_with_its_deadline() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node, timeout_ms=300)
            await enlisted(node, "yes")
            done = await until_finished(node)
            assert (done["state"], done["branches"][0]["state"]) == ("aborted", "rolled_back")
            assert "deadline" in done["reason"]
            assert (await ended(node, "commit"))["outcome"] == "aborted"

    run(test())


def test_a_new_leader_keeps_it_open() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "yes")
            node.log.stop_leading()
            node.log.lead()
            await enlisted(node, "yes", name="second")
            assert (await ended(node, "commit", wait="completion"))["state"] == "committed"

    run(test())


def test_it_is_begun_once_under_its_id() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            assert await opened(node, timeout_ms=5_000) == (await node.get(f"{PATH}/t"))[1]
            status, answer = await node.post(PATH, node.body(id="t"))
            assert (status, code_of(answer)) == (409, "transaction_id_conflict")
            await ended(node, "rollback")
            status, answer = await node.post(PATH, {"id": "t", "mode": "interactive"})
            assert (status, answer["outcome"]) == (200, "aborted")

    run(test())


def test_an_id_that_was_refused_is_told_to_be_aborted_and_not_to_be_begun() -> None:
    async def test() -> None:
        async with api_node() as node:
            id_ = "01977420-e693-7610-99b8-40be64872b27"
            await node.get(f"{PATH}/{id_}/decision?branch_id=1&fingerprint=x")
            status, answer = await node.post(PATH, {"id": id_, "mode": "interactive"})
            assert (status, answer["outcome"]) == (200, "aborted")

    run(test())


@pytest.mark.parametrize("how", ["commit", "rollback", "branches"])
def test_what_is_no_interactive_transaction_is_said_to_be_none(how: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            body = node.service("yes") if how == "branches" else {}
            await node.post(PATH, node.body(id="one-shot"))
            for id_, status, code in (
                ("one-shot", 409, "not_interactive"),
                ("stranger", 404, "unknown_transaction"),
                ("a b", 400, "bad_request"),
            ):
                got, answer = await node.post(f"{PATH}/{id_.replace(' ', '%20')}/{how}", body)
                assert (got, code_of(answer)) == (status, code)
            assert node.log.barriers >= 2, "what is not there is said of what is current"

    run(test())


@pytest.mark.parametrize(
    ("how", "body", "field"),
    [
        ("commit", {"wait": "soon"}, "wait"),
        ("commit", {"reason": "x"}, "reason"),
        ("rollback", [], "body"),
        ("branches", {}, "url"),
        ("branches", {"url": 7}, "url"),
        ("branches", {"url": "http://h/a", "prepare": "http://h/p"}, "prepare"),
        ("branches", {"url": "http://h/a", "weight": 1}, "weight"),
        ("branches", {"url": "http://h/a", "name": ""}, "name"),
        ("branches", [], "body"),
    ],
)
def test_a_wrong_body_changes_nothing_and_the_field_is_named(
    how: str, body: Any, field: str
) -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            status, answer = await node.post(f"{PATH}/t/{how}", body)
            assert (status, answer["error"]["details"]) == (400, {"field": field})
            _, shown = await node.get(f"{PATH}/t")
            assert (shown["state"], shown["branches"]) == ("active", [])

    run(test())


def test_an_end_needs_no_body() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            status, answer, _ = await node.request("POST", f"{PATH}/t/commit")
            assert (status, answer["outcome"]) == (200, "committed")

    run(test())


def test_branches_and_payloads_are_bounded() -> None:
    async def test() -> None:
        async with api_node(limits=Limits(branches=2, body_bytes=300)) as node:
            await opened(node)
            await enlisted(node, "yes", payload="x" * 150)
            status, answer = await node.post(
                f"{PATH}/t/branches", node.service("no", payload="x" * 150)
            )
            assert (status, code_of(answer)) == (409, "not_allowed")
            await enlisted(node, "no")
            await enlisted(node, "no")  # it is there already
            status, answer = await node.post(f"{PATH}/t/branches", node.service("read_only"))
            assert (status, code_of(answer)) == (409, "not_allowed")
            assert "at most 2" in answer["error"]["message"]

    run(test())


def test_they_are_bounded_too_where_many_are_enlisted_at_once() -> None:
    async def test() -> None:
        async with api_node(limits=Limits(branches=3, body_bytes=300)) as node:
            for names, size, taken in (("aabcdef", 10, 3), ("aabc", 150, 1)):
                id_ = f"t-{size}"
                await opened(node, id_)
                bodies = [node.service("yes", name=name, payload="x" * size) for name in names]
                answers = await asyncio.gather(
                    *[node.post(f"{PATH}/{id_}/branches", body) for body in bodies]
                )
                assert [status for status, _ in answers[:2]] == [201, 201], "the same twice is one"
                record = node.machine.get(id_)
                assert record is not None
                assert len(record.branches) == taken
                refused = [code_of(answer) for status, answer in answers if status == 409]
                assert refused == ["not_allowed"] * (len(set(names)) - taken)
            assert node.driver.interactive._coming == {}

    run(test())


def test_a_participant_with_too_much_unfinished_is_not_enlisted() -> None:
    async def test() -> None:
        async with api_node(limits=Limits(unfinished_per_participant=1)) as node:
            await opened(node)
            await enlisted(node, "yes")
            await opened(node, "u")
            status, answer = await node.post(f"{PATH}/u/branches", node.service("yes"))
            assert (status, code_of(answer)) == (429, "at_capacity")
            await ended(node, "rollback")
            await until_finished(node)
            await enlisted(node, "yes", "u")

    run(test())


@pytest.mark.parametrize("how", ["commit", "rollback", "branches"])
def test_another_node_sends_it_on(how: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            node.log.follow("n2")
            status, answer, headers = await node.request(
                "POST", f"{PATH}/t/{how}", body=json.dumps(node.service("yes")).encode()
            )
            assert (status, code_of(answer)) == (307, "not_leader")
            assert headers["Location"] == f"{node.apis['n2']}{PATH}/t/{how}"

    run(test())


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_who_waits_for_an_end_holds_no_request(how: str) -> None:
    class Headers(dict[str, str]):
        pass

    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "slow")
            headers = Headers()
            held = weakref.ref(headers)
            request = Request("POST", f"{PATH}/t/{how}", "", headers, b'{"wait": "completion"}')
            answer = node.api.respond(request)
            del request, headers
            await node.services.until_called("slow", "prepare" if how == "commit" else "rollback")
            assert held() is None
            node.services.go_on()
            assert isinstance(answer, Later)
            assert (await answer.come()).status == 200

    run(test())


def test_leadership_lost_while_an_end_waits_is_no_outcome() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "slow")
            ending = asyncio.ensure_future(node.post(f"{PATH}/t/commit", {}))
            await node.services.until_called("slow", "prepare")
            node.log.follow(None)
            status, answer = await ending
            assert (status, code_of(answer)) == (503, "outcome_unknown")
            assert answer["error"]["details"]["id"] == "t"
            node.services.go_on()

    run(test())


@pytest.mark.parametrize("how", ["commit", "rollback"])
@pytest.mark.parametrize("wait", ["decision", "none"])
def test_an_end_that_may_be_in_the_log_is_not_accepted(
    how: str, wait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it is lost with its leader, the next one may end the transaction otherwise."""

    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            monkeypatch.setattr(node.log, "_drain", lambda: None)
            asking = asyncio.ensure_future(node.post(f"{PATH}/t/{how}", {"wait": wait}))
            await asyncio.sleep(0.05)
            node.log.follow(None)
            status, answer = await asking
            assert (status, code_of(answer)) == (503, "outcome_unknown")

    run(test())


def test_in_a_batch_it_is_refused() -> None:
    async def test() -> None:
        async with api_node() as node:
            _, answer = await node.post(PATH, {"transactions": [{"mode": "interactive"}]})
            refused = answer["transactions"][0]["error"]
            assert (refused["code"], refused["details"]) == ("bad_request", {"field": "mode"})

    run(test())


def test_when_an_operator_aborts_it_nobody_waits_for_prepares_that_were_never_sent() -> None:
    async def test() -> None:
        async with api_node(timings=Timings(grace_ms=60_000)) as node:
            await opened(node)
            await enlisted(node, "yes")
            status, _ = await node.post(
                f"{PATH}/t/resolve", {"outcome": "abort", "actor": "ann", "reason": "stuck"}
            )
            assert status == 200
            assert (await until_finished(node))["branches"][0]["state"] == "rolled_back"

    run(test())


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_what_it_was_open_is_not_the_coordinators_time(how: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await enlisted(node, "yes")
            await asyncio.sleep(0.3)
            await ended(node, how, wait="completion")
            outcome = {"outcome": "commit" if how == "commit" else "abort"}
            for name in ("decision", "completion"):
                spent_s = node.registry.get_sample_value(f"assent_{name}_seconds_sum", outcome)
                assert spent_s is not None
                assert spent_s < 0.3

    run(test())


def test_it_is_listed_while_it_is_open() -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            await asyncio.sleep(0.01)
            _, page = await node.get(f"{PATH}?state=active")
            assert [t["id"] for t in page["transactions"]] == ["t"]
            assert page["oldest_in_doubt_ms"] == 0, "it waits for its client"
            record = node.machine.get("t")
            assert record is not None
            assert record.mode is Mode.INTERACTIVE

    run(test())


def test_a_deposed_leader_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with api_node() as node:
            await opened(node)
            node.log.barrier_error = NotLeader("deposed")
            monkeypatch.setattr(node.machine, "get", lambda _id: None)
            status, answer = await node.post(f"{PATH}/t/commit", {})
            assert (status, code_of(answer)) == (503, "no_leader")

    run(test())
