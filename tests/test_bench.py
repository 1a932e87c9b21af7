"""`assent bench`: that it measures what it says, and that it notices what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cluster.bench import observe, run
from cluster.bench import report as bench_report
from cluster.bench.floor import measure_floor
from cluster.bench.load import Tally, _Crowd, run_load
from cluster.bench.place import Place, committed_branches, open_before
from cluster.bench.requests import Load, RequestMaker
from cluster.cli.main import main
from cluster.profiling import VARIABLE, profiled, summary
from coordinator.ids import time_of
from participants import bench as bench_participants
from participants.contract import rfc3339

PARTICIPANTS = ("http://127.0.0.1:1/1", "http://127.0.0.1:1/2")

Answer = Callable[[dict[str, Any]], Awaitable[web.Response]]


# --- the load -------------------------------------------------------------------------------------


def outcome_of(body: dict[str, Any]) -> str:
    votes = [participant["payload"].get("vote") for participant in body["participants"]]
    return "aborted" if "no" in votes else "committed"


async def truthful(body: dict[str, Any]) -> web.Response:
    """A coordinator that derives the outcome from the votes, without asking anybody."""
    if "transactions" in body:
        answers = [{"id": one["id"], "outcome": outcome_of(one)} for one in body["transactions"]]
        return as_nodes_say({"transactions": answers})
    return as_nodes_say({"id": body["id"], "outcome": outcome_of(body)})


def as_nodes_say(value: dict[str, Any]) -> web.Response:
    return web.Response(body=json.dumps(value, separators=(",", ":")).encode())


def load_against(answer: Answer, **settings: Any) -> Tally:
    """Half a second of load on a node that answers so."""

    async def run() -> Tally:
        async def submit(request: web.Request) -> web.Response:
            return await answer(await request.json())

        application = web.Application()
        application.router.add_post("/v1/transactions", submit)
        async with TestServer(application) as server:
            url = str(server.make_url("")).rstrip("/")
            given = {"clients": 4, "warm_up_s": 0.05, "seconds": 0.25, **settings}
            return await run_load(Load((url,), PARTICIPANTS, **given))

    return asyncio.run(run())


def test_every_answer_is_counted_by_its_outcome() -> None:
    tally = load_against(truthful, no_share=0.3, read_only_share=0.3)
    assert tally.committed > 0
    assert tally.aborted > 0
    assert (tally.wrong, tally.failed, tally.refused) == (0, 0, 0)
    assert sum(tally.latencies.values()) == tally.committed + tally.aborted


def test_a_batch_counts_each_of_its_transactions() -> None:
    tally = load_against(truthful, batch=7, no_share=0.3)
    ended = tally.committed + tally.aborted
    assert ended == 7 * sum(tally.latencies.values()) > 0
    assert tally.wrong == 0


def test_the_load_ends_after_as_many_as_were_asked_for() -> None:
    tally = load_against(truthful, most=50, batch=5, warm_up_s=0.0)
    assert tally.committed == 49  # and the one that comes before all others


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_load_may_be_smaller_than_its_clients(most: int) -> None:
    tally = load_against(truthful, most=most, batch=5, warm_up_s=0.0)
    assert tally.committed == most - 1


def test_an_abort_that_no_vote_asked_for_is_counted_apart() -> None:
    async def aborts_whatever(body: dict[str, Any]) -> web.Response:
        return as_nodes_say({"id": body["id"], "outcome": "aborted"})

    tally = load_against(aborts_whatever)
    assert tally.aborted == tally.aborted_unasked > 0
    assert tally.wrong == 0


def test_a_commit_that_the_votes_forbid_is_noticed() -> None:
    async def commits_whatever(body: dict[str, Any]) -> web.Response:
        return as_nodes_say({"id": body["id"], "outcome": "committed"})

    tally = load_against(commits_whatever, no_share=0.5)
    assert tally.wrong > 0
    assert "committed" in tally.first_wrong


def test_an_answer_for_another_transaction_is_noticed() -> None:
    async def another(_: dict[str, Any]) -> web.Response:
        return as_nodes_say({"id": "another", "outcome": "committed"})

    tally = load_against(another)
    assert tally.wrong > 0
    assert tally.committed == 0


def test_a_batch_that_misses_one_answer_is_noticed() -> None:
    async def one_less(body: dict[str, Any]) -> web.Response:
        if "transactions" not in body:
            return await truthful(body)
        answers = [{"id": t["id"], "outcome": outcome_of(t)} for t in body["transactions"]]
        return as_nodes_say({"transactions": answers[1:]})

    assert load_against(one_less, batch=3).wrong > 0


def test_an_error_is_noticed() -> None:
    async def broken(_: dict[str, Any]) -> web.Response:
        return web.Response(status=500, text="broken")

    tally = load_against(broken)
    assert tally.wrong > 0
    assert tally.first_wrong.startswith("500")


def test_a_refusal_for_load_is_counted_apart() -> None:
    async def full(_: dict[str, Any]) -> web.Response:
        return web.Response(status=429, text="full")

    tally = load_against(full)
    assert tally.refused > 0
    assert (tally.wrong, tally.committed) == (0, 0)


def test_how_long_a_refusal_takes_is_counted_apart() -> None:
    async def full(_: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.02)
        return web.Response(status=429, text="full")

    tally = load_against(full)
    assert sum(tally.refusals.values()) == tally.refused > 0
    assert bench_report.percentile(tally.refusals, 0.0) >= 20
    assert tally.latencies == {}


@pytest.mark.parametrize("batch", [1, 3])
def test_a_connection_that_was_told_to_come_later_is_not_used_before(batch: int) -> None:
    """A single refusal says so, and an answer to a batch of which elements were refused."""
    asked = 0

    async def later(body: dict[str, Any]) -> web.Response:
        nonlocal asked
        asked += 1
        answer = await truthful(body) if batch > 1 else web.Response(status=429, text="full")
        answer.headers["Retry-After"] = "30"
        return answer

    tally = load_against(later, clients=3, batch=batch)
    assert asked <= 3
    assert tally.wrong == 0


def test_of_an_open_loop_who_finds_no_connection_in_time_is_given_up_unsent() -> None:
    """But for those that were sent once: what became of them is to be learnt."""

    async def give_up() -> None:
        crowd = _Crowd(Load(("http://127.0.0.1:1",), PARTICIPANTS, rate=1.0, patience_s=0.1))
        crowd._clock = lambda: 1.0
        crowd._measure_from = 0.0
        sent_once, late, in_time = (crowd._new(due) for due in (0.5, 0.8, 0.95))
        sent_once.sent = True
        crowd._waiting = deque([late, sent_once, late, in_time])
        crowd._pump()
        assert list(crowd._waiting) == [sent_once, late, in_time]
        crowd._waiting.popleft()
        crowd._pump()
        assert list(crowd._waiting) == [in_time]
        assert crowd.tally.unsent == 2

    asyncio.run(give_up())


def test_an_element_of_a_batch_may_be_refused_for_load() -> None:
    async def first_refused(body: dict[str, Any]) -> web.Response:
        if "transactions" not in body:
            return await truthful(body)  # the one that finds the leader
        answers: list[Any] = [{"id": t["id"], "outcome": "committed"} for t in body["transactions"]]
        answers[0] = {"error": {"code": "at_capacity", "message": "full", "details": {}}}
        return as_nodes_say({"transactions": answers})

    tally = load_against(first_refused, batch=3)
    assert tally.committed == 2 * tally.refused > 0
    assert (tally.wrong, tally.aborted_unasked) == (0, 0)


def test_a_batch_in_which_one_outcome_is_unknown_is_asked_again() -> None:
    seen: dict[str, int] = {}

    async def first_unknown(body: dict[str, Any]) -> web.Response:
        if "transactions" not in body:
            return await truthful(body)
        first = body["transactions"][0]["id"]
        seen[first] = seen.get(first, 0) + 1
        answers: list[Any] = [{"id": t["id"], "outcome": "committed"} for t in body["transactions"]]
        if seen[first] == 1:
            answers[0] = {"error": {"code": "outcome_unknown", "message": "", "details": {}}}
        return as_nodes_say({"transactions": answers})

    tally = load_against(first_unknown, batch=3)
    assert tally.committed > 0
    assert tally.asked_again > 0
    assert tally.wrong == 0
    assert set(seen.values()) == {2}


def test_an_error_in_a_batch_is_noticed() -> None:
    async def one_broken(body: dict[str, Any]) -> web.Response:
        if "transactions" not in body:
            return await truthful(body)
        answers: list[Any] = [{"id": t["id"], "outcome": "committed"} for t in body["transactions"]]
        answers[1] = {"error": {"code": "bad_request", "message": "no", "details": {}}}
        return as_nodes_say({"transactions": answers})

    assert load_against(one_broken, batch=3).wrong > 0


def test_what_was_accepted_is_counted_apart() -> None:
    seen: set[tuple[str, int]] = set()

    async def accepted(body: dict[str, Any]) -> web.Response:
        seen.add((body["wait"], body["timeout_ms"]))
        answer = as_nodes_say({"id": body["id"], "outcome": None})
        answer.set_status(202)
        return answer

    tally = load_against(accepted, wait="none", timeout_ms=5_000)
    assert tally.accepted > 0
    assert (tally.wrong, tally.committed, tally.aborted_unasked) == (0, 0, 0)
    assert seen == {("none", 5_000)}


def test_one_transaction_alone_comes_before_all_others() -> None:
    first: list[str] = []
    too_soon: list[str] = []

    async def slow_at_first(body: dict[str, Any]) -> web.Response:
        if not first:
            first.append("under way")
            await asyncio.sleep(0.05)
            first.append("answered")
        elif len(first) == 1:
            too_soon.append(body["id"])
        return await truthful(body)

    tally = load_against(slow_at_first, clients=8)
    assert first == ["under way", "answered"]
    assert too_soon == []
    assert tally.committed > 0


def test_a_load_without_an_end_ends_when_it_is_told_to() -> None:
    async def drive() -> Tally:
        enough = asyncio.Event()

        async def submit(request: web.Request) -> web.Response:
            numbers.append(1)
            if len(numbers) == 40:
                enough.set()
            return await truthful(await request.json())

        async def told_to_stop() -> None:
            await enough.wait()

        numbers: list[int] = []
        application = web.Application()
        application.router.add_post("/v1/transactions", submit)
        async with TestServer(application) as server:
            url = str(server.make_url("")).rstrip("/")
            load = Load((url,), PARTICIPANTS, clients=4, warm_up_s=0.0, seconds=0.0)
            return await run_load(load, told_to_stop=told_to_stop)

    tally = asyncio.run(drive())
    assert tally.committed >= 36
    assert tally.seconds > 0


def test_what_failed_in_an_unknown_way_is_asked_again_under_the_same_id() -> None:
    seen: dict[str, int] = {}

    async def first_unknown(body: dict[str, Any]) -> web.Response:
        seen[body["id"]] = seen.get(body["id"], 0) + 1
        if seen[body["id"]] == 1:
            return web.Response(status=503, text="unknown")
        return await truthful(body)

    tally = load_against(first_unknown)
    assert tally.committed > 0
    assert tally.asked_again > 0
    assert (tally.wrong, tally.failed) == (0, 0)
    assert set(seen.values()) == {2}


def test_an_open_loop_counts_from_the_intended_start() -> None:
    """One connection, answers after 0.1 s, fifty requests a second: the later ones have waited."""

    async def slow(body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.1)
        return await truthful(body)

    closed = load_against(slow, clients=1)
    opened = load_against(slow, clients=1, rate=50.0, seconds=1.0)
    assert bench_report.percentile(closed.latencies, 0.5) >= 99
    assert opened.longest_ms > 2 * bench_report.percentile(closed.latencies, 0.5)
    assert opened.unsent > 0


def test_the_load_follows_to_the_leader() -> None:
    async def run() -> Tally:
        async def submit(request: web.Request) -> web.Response:
            return await truthful(await request.json())

        leading = web.Application()
        leading.router.add_post("/v1/transactions", submit)
        async with TestServer(leading) as leader:
            there = str(leader.make_url("/v1/transactions"))

            async def refer(_: web.Request) -> web.Response:
                return web.Response(status=307, headers={"Location": there})

            following = web.Application()
            following.router.add_post("/v1/transactions", refer)
            async with TestServer(following) as follower:
                url = str(follower.make_url("")).rstrip("/")
                load = Load((url,), PARTICIPANTS, clients=3, warm_up_s=0.1, seconds=0.3)
                return await run_load(load)

    tally = asyncio.run(run())
    assert tally.committed > 0
    assert tally.wrong == 0


def test_requests_are_valid_and_carry_ids_with_their_time() -> None:
    make = RequestMaker(Load(("http://n",), PARTICIPANTS, payload_bytes=10))
    seen: set[str] = set()
    for _ in range(50):
        request = make(0.0, 3)
        for transaction in json.loads(request.body)["transactions"]:
            made_ms = time_of(transaction["id"])
            assert made_ms is not None
            assert abs(made_ms - time.time() * 1000) < 60_000
            assert transaction["participants"][1]["url"] == PARTICIPANTS[1]
            assert transaction["participants"][0]["payload"]["text"] == "x" * 10
            seen.add(transaction["id"])
    assert len(seen) == 150


# --- the figures ----------------------------------------------------------------------------------


def test_percentiles_are_at_most_a_hundredth_too_long() -> None:
    latencies = {int(step): 1 for step in range(100, 1100)}
    for share in (0.5, 0.9, 0.99):
        exact = bench_report.GROWTH ** (100 + 1000 * share - 1) / 1000
        assert exact <= bench_report.percentile(latencies, share) <= exact * 1.011
    assert bench_report.percentile({}, 0.5) == 0.0


def some_result(per_second: float) -> bench_report.Result:
    tally = {
        "committed": int(per_second),
        "aborted": 0,
        "aborted_unasked": 0,
        "accepted": 0,
        "wrong": 0,
        "refused": 0,
        "failed": 0,
        "asked_again": 0,
        "unsent": 0,
        "seconds": 1.0,
        "longest_ms": 9.0,
        "loop_lag_ms": 1.0,
        "first_wrong": "",
        "latencies": {"700": int(per_second)},
        "refusals": {},
    }
    before = {"n1": bench_report.Usage(1.0, 10), "load": bench_report.Usage(0.0, 5)}
    after = {"n1": bench_report.Usage(1.5, 30), "load": bench_report.Usage(0.1, 5)}
    result = bench_report.figures(bench_report.merge([tally]), before, after)
    result["nodes"] = {"n1": {"loop_lag_p99_ms": 5.0, "loop_lag_max_ms": 10.0, "syncs": 3}}
    return result


def test_cpu_is_told_for_each_transaction_and_process() -> None:
    result = some_result(1_000)
    assert result["cpu_us_per_transaction"]["n1"] == pytest.approx(500)
    assert result["cpu_us_per_transaction"]["all"] == pytest.approx(600)
    assert result["memory_growth_bytes"] == {"n1": 20, "load": 0}
    assert "1,000 transactions/s" in bench_report.shown(result)


def test_a_comparison_is_of_pairs() -> None:
    rounds = [(some_result(a), some_result(b)) for a, b in ((100, 150), (1_000, 2_000), (10, 30))]
    rows = bench_report.compared(("x", "y"), rounds)["rows"]
    assert rows["transactions/s"]["ratio"] == pytest.approx(2.0)
    assert rows["transactions/s"]["a"] == pytest.approx(100)
    assert "2.00" in bench_report.compared_shown(bench_report.compared(("x", "y"), rounds))


def test_usage_is_read_of_the_system() -> None:
    before = observe.usage({"me": os.getpid()})["me"]
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = observe.usage({"me": os.getpid()})["me"]
    assert after.cpu_s > before.cpu_s
    assert after.memory_bytes > 1_000_000


# --- participants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True])
def test_a_participant_votes_as_its_payload_says(plain: bool) -> None:
    async def run() -> None:
        async with (
            TestServer(bench_participants.application(2, plain=plain)) as server,
            aiohttp.ClientSession(server.make_url("")) as session,
        ):

            async def tell(path: str, number: int, payload: Any = None) -> Any:
                message = {
                    "transaction_id": f"t{number}",
                    "branch_id": "1",
                    "payload": payload,
                    "fingerprint": "f",
                    "expires_at": rfc3339(int(time.time() * 1000) + 10_000),
                    "coordinators": [],
                }
                async with session.post(path, json=message) as response:
                    assert response.status == 200
                    return await response.read()

            asked = ({"n": 1}, {"vote": "no"}, {"vote": "read_only"}, {"n": 1})
            votes = [
                json.loads(await tell("/2/prepare", number, payload))["vote"]
                for number, payload in enumerate(asked)
            ]
            assert votes == ["yes", "no", "read_only", "yes"]
            await tell("/2/commit", 0)
            await tell("/2/rollback", 3)
            async with session.get("/") as response:
                shown = (await response.json())["participants"]
            assert shown["2"] == {"prepared": 2, "committed": 1, "rolled_back": 1}
            assert shown["1"] == {"prepared": 0, "committed": 0, "rolled_back": 0}

            between = time.monotonic()
            await tell("/1/prepare", 5)
            url = str(server.make_url("")).rstrip("/")
            assert await open_before([url], between) == 0
            assert await open_before([url], time.monotonic()) == 1
            assert await committed_branches([url]) == {f"{url}/1": 0, f"{url}/2": 1}
            await tell("/1/commit", 5)
            assert await open_before([url], time.monotonic()) == 0

    asyncio.run(run())


def test_a_participant_that_hangs_answers_no_prepare() -> None:
    async def drive() -> None:
        async with (
            TestServer(bench_participants.application(1, hangs=True)) as server,
            aiohttp.ClientSession(server.make_url("")) as session,
        ):
            message = {"transaction_id": "t", "branch_id": "1", "payload": None}
            asked = asyncio.ensure_future(session.post("/1/prepare", json=message))
            async with session.post("/1/rollback", json=message) as response:
                assert response.status == 200
            async with session.get("/") as response:
                assert (await response.json())["participants"]["1"]["prepared"] == 0
            assert not asked.done()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    asyncio.run(drive())


# --- the whole ------------------------------------------------------------------------------------


def test_the_command_measures_a_real_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    options = "--seconds 0.5 --warm-up 0.5 --clients 4 --node-count 1 --no-share 0.3 --batch 2"
    options += f" --remembered 20 --profile {tmp_path} --json {file}"
    assert main(["bench", *options.split()]) == 0
    assert "transactions/s" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["settings"]["no_share"] == 0.3
    assert written["machine"]["processors"] >= 1
    assert written["transactions"]["committed"] > 0
    assert written["transactions"]["aborted"] > 0
    assert written["leader"] == "n1"
    assert written["nodes"]["n1"]["syncs"] > 0
    assert written["cpu_us_per_transaction"]["n1"] > 0
    assert written["wrong"] == []
    assert "run_node" in (tmp_path / "n1.stacks").read_text()


def test_two_settings_are_measured_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    shared = f"bench --seconds 0.3 --warm-up 0.3 --node-count 1 --rounds 1 --json {file}"
    code = main([*shared.split(), "--compare", "--clients 1", "--clients 2 --plain --no-fsync"])
    assert code == 0
    assert "B/A" in capsys.readouterr().out
    first, second = json.loads(file.read_text())["results"]
    assert (first["settings"]["clients"], first["settings"]["plain"]) == (1, False)
    assert (second["settings"]["clients"], second["settings"]["plain"]) == (2, True)
    assert second["nodes"]["n1"]["syncs"] == 0 < first["nodes"]["n1"]["syncs"]


def test_branches_left_prepared_fail_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_SETTLE_S", 0.2)

    async def look() -> list[str]:
        async def show(_: web.Request) -> web.Response:
            ends = {"prepared": 7, "committed": 4, "rolled_back": 1}
            return web.json_response({"participants": {"1": ends}})

        application = web.Application()
        application.router.add_get("/", show)
        async with TestServer(application) as server:
            url = str(server.make_url("")).rstrip("/")
            place = Place(Path(), {}, (), (url,), {}, None)
            return await run.wrongs(some_result(10), place)

    assert asyncio.run(look()) == ["2 branches are prepared and not ended after 0 s"]


def test_the_floor_is_more_than_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.bench.floor.ROUNDS", 20)
    floor = asyncio.run(measure_floor(tmp_path))
    assert all(0 < one["p50"] <= one["p99"] for one in floor.values())
    assert floor["transaction, bare"]["p50"] > floor["quorum round, synced"]["p50"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--clients 0", "--clients: 0 must be at least 1"),
        ("--participant-processes 0", "--participant-processes: 0 must be at least 1"),
        ("--seconds 0", "--seconds: '0' is not a number of seconds above 0"),
        ("--warm-up -1", "--warm-up: '-1' is not a number from 0 on"),
        ("--rate nan", "--rate: 'nan' is not a number from 0 on"),
        ("--no-share 2", "--no-share: '2' is not a share from 0 to 1"),
        ("--payload-bytes x", "--payload-bytes: 'x' is not a whole number"),
        ("--data-dir /nowhere", "--data-dir: /nowhere is not a directory"),
        ("--json /tmp", "--json: /tmp is a directory"),
        ("--compare '--batch 1' '--batch 2' --rounds 0", "--rounds: 0 must be at least 1"),
        ("--compare '--bogus 1' '--batch 2'", "--bogus is no option of bench"),
        ("--plain --store sqlite", "in memory only"),
        ("--baseline postgres", "--postgres DSN"),
        ("--json /nowhere/at/all.json", "is not a directory"),
        ("--compare '' --bogus", "'--bogus': --bogus is no option of bench"),
        ("--compare '' --no-fsync --rounds 0", "--rounds: 0 must be at least 1"),
        ("--compare --no-fsync", "--compare: expected 2 arguments"),
        ("--compare '--batch nine' '--batch 2'", "'--batch nine': argument --batch"),
        ("--nodes http://elsewhere:1", "--participants"),
        ("--clients 3 failover", "failover has no option --clients"),
        ("failover --kills 0", "--kills: 0 must be at least 1"),
        ("failover --rate 0", "--rate: '0' is not a number above 0"),
        ("all --to /nowhere --page /tmp", "--page: /tmp is a directory"),
        ("all --to /dev/null", "all: /dev/null: File exists"),
        ("growth --json /nowhere/at/all.json", "is not a directory"),
        ("failover --node-count 1", "three nodes"),
        ("page /nowhere --page /nowhere/page.md", "page.md"),
    ],
)
def test_a_mistake_is_one_line(options: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *shlex.split(options)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


# --- profiles -------------------------------------------------------------------------------------


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_a_profile_says_where_the_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    before = signal.getsignal(signal.SIGPROF)
    with profiled("n1"):
        burn(0.2)
    assert signal.getsignal(signal.SIGPROF) == before
    lines = summary((tmp_path / "n1.stacks").read_text()).splitlines()
    assert any(line.endswith(":burn") for line in lines)


def test_nobody_is_profiled_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    with profiled("n1"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_who_reads_a_profile_may_have_enough_of_it(tmp_path: Path) -> None:
    file = tmp_path / "n1.stacks"
    file.write_text("".join(f"main;f{number} 1\n" for number in range(100)))
    command = [sys.executable, "-m", "cluster.profiling", str(file)]
    whole = subprocess.run(command, capture_output=True, text=True, check=True)
    assert whole.stdout.startswith("100 samples\n")
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert gone.stderr == ""
