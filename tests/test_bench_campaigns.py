"""The campaigns of `assent bench`: their figures, verdicts, tables, plots, and short real runs."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cluster.bench import failover, fairness, goals, growth, overload
from cluster.bench.callers import Called, Callers
from cluster.bench.campaign import Campaign, CampaignSettings, Row, of, row
from cluster.bench.page import plots, renewed, section, table
from cluster.bench.plot import HEIGHT, WIDTH, Line, Plot, scale_of, svg
from cluster.bench.verdicts import Verdict, number, rank, ratio, shown
from cluster.cli.main import main

HOUSE = Path(__file__).parent.parent
PAGE = HOUSE / "docs" / "performance.md"


def silent(_: str) -> None:
    """Nobody reads along."""


def campaign_of(**tables: list[Row]) -> Campaign:
    campaign = Campaign("tried", CampaignSettings(), silent)
    campaign.tables = {name.replace("_", " "): rows for name, rows in tables.items()}
    return campaign


def not_held(campaign: Campaign) -> list[str]:
    return [verdict.what for verdict in campaign.verdicts if not verdict.held]


# --- verdicts -------------------------------------------------------------------------------------


def test_a_verdict_is_held_up_to_its_bound() -> None:
    assert Verdict("x", 2.0, 2.0).held
    assert not Verdict("x", 2.1, 2.0).held
    assert Verdict("x", 2.0, 2.0, at_least=True).held
    assert not Verdict("x", 1.9, 2.0, at_least=True).held


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("at_least", [False, True])
def test_what_was_not_measured_is_not_held(missing: float | None, at_least: bool) -> None:
    verdict = Verdict("x", missing, 2.0, " s", at_least)
    assert not verdict.held
    assert "NOT HELD" in shown(verdict.told())


def test_a_verdict_is_one_line() -> None:
    line = shown(Verdict("slowest call", 1.234, 4.0, " s").told())
    assert line == "  held      slowest call: 1.23 s, <= 4.00 s"


@pytest.mark.parametrize(
    ("value", "said"),
    [(12_345, "12,345"), (12_345.6, "12,346"), (12.34, "12.3"), (1.234, "1.23"), (0.1234, "0.123"),
     (None, "-"), (math.inf, "-"), ("one", "one"), (0, "0"), (-55.04, "-55.0")],
)  # fmt: skip
def test_a_number_has_three_digits_that_say_something(value: Any, said: str) -> None:
    assert number(value) == said


def test_a_rank_is_a_value_that_occurred() -> None:
    values = [float(n) for n in range(1, 31)]
    assert (rank(values, 0.5), rank(values, 0.99), rank(values, 1.0)) == (15.0, 30.0, 30.0)
    assert rank([], 0.5) is None


def test_nothing_is_divided_by_nothing() -> None:
    assert ratio(3.0, 2.0) == 1.5
    assert ratio(3.0, 0.0) is None
    assert ratio(None, 2.0) is None


# --- failover -------------------------------------------------------------------------------------


def one_kill(**changed: Any) -> Row:
    usual: Row = {
        "kill": 1, "next_commit_s": 0.7, "slowest_call_s": 0.9, "in_doubt": 5, "resolved_s": 0.8,
        "failed": 0,
    }  # fmt: skip
    return {**usual, **changed}


def lean(*, failed: int = 0, longest_ms: float = 900.0) -> dict[str, Any]:
    counts = {"committed": 10, "aborted": 1, "failed": failed, "unsent": 0}
    return {"transactions": counts, "latency_ms": {"max": longest_ms}}


def judged_failover(*kills: Row, called: Called | None = None, **lean_fields: Any) -> list[str]:
    campaign = campaign_of(kills=list(kills))
    failover.judge(campaign, called or Called(calls=3), lean(**lean_fields))
    return not_held(campaign)


def test_a_quick_failover_holds_all() -> None:
    assert judged_failover(*[one_kill()] * 30) == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"next_commit_s": 2.1}, "kill to next commit, p99"),
        ({"slowest_call_s": 4.1}, "slowest call"),
        ({"resolved_s": 3.1}, "what was in doubt is resolved"),
        ({"resolved_s": None}, "what was in doubt is resolved"),
    ],
)
def test_one_slow_kill_of_thirty_is_noticed(changed: Row, what: str) -> None:
    assert judged_failover(*[one_kill()] * 29, one_kill(**changed)) == [what]


def test_kills_that_are_slow_as_a_rule_are_noticed() -> None:
    kills = [one_kill()] * 14 + [one_kill(next_commit_s=1.1)] * 16
    assert judged_failover(*kills) == ["kill to next commit, p50"]


def test_a_kill_without_a_next_commit_holds_nothing_about_it() -> None:
    found = judged_failover(one_kill(), one_kill(next_commit_s=None))
    assert found == ["kill to next commit, p50", "kill to next commit, p99"]


def test_a_failed_call_is_noticed_of_either_load() -> None:
    failed = Called(calls=3, failed=["OutcomeUnknown: x"])
    assert judged_failover(one_kill(), called=failed) == ["calls that failed"]
    assert judged_failover(one_kill(), failed=1) == ["calls that failed"]
    assert judged_failover(one_kill(), longest_ms=4_100.0) == ["slowest call"]


def test_no_kill_at_all_holds_nothing_but_that_none_failed() -> None:
    assert len(judged_failover()) == 4


def test_participants_that_committed_different_numbers_are_noticed() -> None:
    assert failover.uneven({"a": 3, "b": 3}) == []
    assert failover.uneven({}) == []
    assert "different numbers" in failover.uneven({"a": 3, "b": 2})[0]


Answer = Callable[[dict[str, Any]], Awaitable[web.Response]]


def called_against(
    answer: Answer, during: Callable[[Callers], Awaitable[Any]], *, deadline: float = 60.0
) -> Any:
    """(what came of `during`, what the calls came to), with a node that answers so."""

    async def run() -> Any:
        async def submit(request: web.Request) -> web.Response:
            return await answer(await request.json())

        application = web.Application()
        application.router.add_post("/v1/transactions", submit)
        async with TestServer(application) as server:
            url = str(server.make_url("")).rstrip("/")
            callers = Callers(
                [url], ["http://p/1", "http://p/2"], rate=20.0, no_share=0.5, deadline=deadline
            )
            async with callers:
                found = await during(callers)
            return found, callers.called

    return asyncio.run(run())


def transaction(body: dict[str, Any], outcome: str) -> web.Response:
    return web.json_response(
        {"id": body["id"], "state": outcome, "outcome": outcome, "branches": [], "metadata": {}}
    )


async def truthful(body: dict[str, Any]) -> web.Response:
    refused = any(one["payload"].get("vote") == "no" for one in body["participants"])
    return transaction(body, "aborted" if refused else "committed")


async def until_a_commit(callers: Callers) -> float | None:
    callers.mark(asyncio.get_running_loop().time())
    return await callers.recovered(10.0)


def test_calls_are_counted_by_what_came_of_them() -> None:
    async def until_both(callers: Callers) -> None:
        while not (callers.called.aborted and callers.called.committed):
            await until_a_commit(callers)

    _, called = called_against(truthful, until_both)
    assert called.calls == called.committed + called.aborted
    assert (called.failed, called.wrong) == ([], [])
    assert called.slowest_s > 0


def test_a_commit_that_the_votes_forbid_is_noted() -> None:
    async def commits_whatever(body: dict[str, Any]) -> web.Response:
        return transaction(body, "committed")

    async def until_wrong(callers: Callers) -> None:
        while not callers.called.wrong:
            await until_a_commit(callers)

    _, called = called_against(commits_whatever, until_wrong)
    assert "voted NO" in called.wrong[0]


def test_a_call_without_an_outcome_has_failed() -> None:
    async def broken(_: dict[str, Any]) -> web.Response:
        return web.Response(status=503)

    async def until_failed(callers: Callers) -> float | None:
        while not callers.called.failed:
            callers.mark(asyncio.get_running_loop().time())
            found = await callers.recovered(0.6)
        return found

    found, called = called_against(broken, until_failed, deadline=0.5)
    assert found is None
    assert called.failed
    assert called.failed[0].startswith("OutcomeUnknown")


def test_the_next_commit_is_of_a_call_begun_after_the_mark() -> None:
    """All calls from before the mark are answered late, and do not count, but are waited for."""
    came, gate = asyncio.Event(), asyncio.Event()
    held: list[str] = []
    kept: set[str] = set()

    async def first_are_held(body: dict[str, Any]) -> web.Response:
        if not gate.is_set():
            held.append(body["id"])
            came.set()
            await gate.wait()
            kept.add(body["id"])
        return await truthful(body)

    async def during(callers: Callers) -> float | None:
        await came.wait()
        callers.mark(asyncio.get_running_loop().time())
        recovered = asyncio.ensure_future(callers.recovered(10.0))
        await asyncio.sleep(0)
        assert not recovered.done()
        gate.set()
        return await recovered

    found, called = called_against(first_are_held, during)
    assert found is not None
    assert found > 0
    assert kept == set(held)
    assert called.failed == []


# --- fairness, overload, growth, goals ------------------------------------------------------------


def others(p99: float, *, steps: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "latency_ms": {"p50": p99 / 2, "p99": p99},
        "latency_steps": steps or {"700": 10},
        "transactions": {"refused": 1},
        "disturbance": {"committed": 6, "aborted": 4, "seconds": 2.0},
        "busy": {"n1": 0.5},
        "leader": "n1",
    }


def test_fairness_is_the_median_of_pairs() -> None:
    alone, beside = [others(10), others(20), others(5)], [others(11), others(60), others(10)]
    found = fairness.compared(alone, beside)
    assert found["p99_ratio"] == 2.0
    assert found["each_p99_ratio"] == "1.10 3.00 2.00"
    assert (found["refused"], found["disturbing_per_second"]) == (3, 5.0)


def test_where_nobody_was_answered_there_is_no_ratio() -> None:
    found = fairness.compared([others(10), others(10)], [others(10), others(0)])
    assert found["p99_ratio"] is None


def test_unfairness_is_noticed() -> None:
    rows = [{"disturbance": name, "p99_ratio": 1.05} for name in fairness.DISTURBANCES]
    fair = campaign_of(others=rows)
    fairness.judge(fair)
    assert not_held(fair) == []
    rows[1] = {**rows[1], "p99_ratio": 1.2}
    unfair = campaign_of(others=rows[:-1])
    fairness.judge(unfair)
    assert len(unfair.verdicts) == len(rows) - 1
    assert len(not_held(unfair)) == 2  # the worse one, and the one that was not measured


def offered(factor: float, **changed: Any) -> Row:
    usual: Row = {
        "factor": factor, "per_second": 950.0, "p99_ms": 300.0, "refused_p99_ms": 50.0,
        "growth_not_remembered_mb": 5.0,
    }  # fmt: skip
    return {**usual, **changed}


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({}, []),
        ({"per_second": 850.0}, ["throughput at 5 x, of the best"]),
        ({"p99_ms": 2_500.0}, ["p99 of the outcomes over capacity"]),
        ({"p99_ms": None}, ["p99 of the outcomes over capacity"]),
        ({"refused_p99_ms": 600.0}, ["p99 of the refusals"]),
        ({"growth_not_remembered_mb": 101.0}, ["memory growth beyond what is remembered"]),
    ],
)
def test_what_gives_way_under_overload_is_noticed(changed: Row, what: list[str]) -> None:
    rows = [offered(factor) for factor in overload.FACTORS[:-1]]
    rows.append(offered(overload.FACTORS[-1], **changed))
    campaign = campaign_of(open_loop=rows, closed_loop=[{"clients": 64, "per_second": 1_000.0}])
    overload.judge(campaign)
    assert not_held(campaign) == what


def test_an_overload_of_which_nothing_is_refused_is_noticed() -> None:
    rows = [offered(factor, refused_p99_ms=None) for factor in overload.FACTORS]
    campaign = campaign_of(open_loop=rows, closed_loop=[{"clients": 64, "per_second": 1_000.0}])
    overload.judge(campaign)
    assert not_held(campaign) == ["p99 of the refusals"]


def grown(p50_of_100: float = 3.9, rate_of_most: float = 901.0, each: int = 900) -> Campaign:
    by_participants: list[Row] = [
        {"participants": 3, "clients": 1, "p50_ms": 1.0},
        {"participants": 100, "clients": 1, "p50_ms": p50_of_100},
    ]
    tables: dict[str, list[Row]] = {
        name: [
            {name: 0, "per_second": 1_000.0, "bytes_each": None},
            {name: 1_000, "per_second": rate_of_most, "bytes_each": each},
        ]
        for name in ("in_flight", "remembered")
    }
    return campaign_of(participants=by_participants, **tables)


@pytest.mark.parametrize(
    ("changed", "count"),
    [({}, 0), ({"p50_of_100": 4.1}, 1), ({"rate_of_most": 890.0}, 2), ({"each": 1_100}, 1)],
)
def test_a_knee_is_noticed(changed: dict[str, Any], count: int) -> None:
    campaign = grown(**changed)
    growth.judge(campaign)
    assert len(not_held(campaign)) == count


def met(scale: float) -> Campaign:
    clients = [
        {"load": "one client", "p50_ms": 2.4 / scale, "per_second": 400.0},
        {"load": "256 clients", "per_second": 10_001 * scale},
        {"load": "16 clients, batches of 64", "per_second": 60_001 * scale},
    ]
    plain = [
        {"participants": count, "calls": "plain", "per_second": least * scale}
        for count, least in ((3, 1_201), (10, 401))
    ]
    against = [{"participants": 3, "throughput_ratio": 6.1 * scale}]
    floor = [{"what": f"transaction, {kind}", "p50_ms": 1.0} for kind in ("bare", "aiohttp")]
    campaign = campaign_of(clients=clients, plain=plain, floor=floor)
    campaign.tables["coalesced against plain"] = against
    return campaign


def test_each_goal_can_be_missed() -> None:
    good, bad = met(1.0), met(0.5)
    goals.judge(good)
    goals.judge(bad)
    assert not_held(good) == []
    assert len(not_held(bad)) == len(bad.verdicts) == 7


def test_a_median_is_of_all_or_of_none() -> None:
    assert goals.middle_of([3.0, 1.0, 2.0]) == 2.0
    assert goals.middle_of([3.0, None, 2.0]) is None
    assert goals.middle_of([]) is None


@pytest.mark.parametrize("ended", [0, 2])
def test_where_nothing_was_answered_there_is_no_latency(ended: int) -> None:
    result = {
        "per_second": float(ended),
        "latency_ms": {"p50": 1.0, "p99": 2.0, "max": 3.0},
        "cpu_us_per_transaction": {"n1": 5.0, "all": 6.0},
        "memory_bytes": {"n1": 7e6},
        "leader": "n1",
        "transactions": {"committed": ended, "aborted": 0},
    }
    found = row(result)
    assert found["p99_ms"] == (2.0 if ended else None)
    assert found["leader_cpu_us"] == (5.0 if ended else None)
    assert found["leader_mb"] == 7.0


def test_a_figure_is_found_by_its_labels() -> None:
    rows = [{"a": 1, "b": 2, "x": 3}, {"a": 1, "b": 3, "x": 4}]
    assert of(rows, "x", a=1, b=3) == 4
    assert of(rows, "x", a=2) is None


# --- the page -------------------------------------------------------------------------------------


def written(**changed: Any) -> dict[str, Any]:
    campaign = campaign_of(
        concurrency=[
            {"clients": count, "per_second": 100.0 * count, "p50_ms": 1.0, "p99_ms": 2.0}
            for count in (1, 16, 256)
        ]
    )
    campaign.judge("what is good", 1.0, 2.0, " s")
    campaign.judge("what is not", 3.0, 2.0, " s")
    result = {**campaign.result(), "campaign": "growth", "command": "assent bench growth"}
    return {**result, **changed}


def test_rows_are_a_table_with_figures_to_the_right() -> None:
    rows: list[Row] = [
        {"load": "one", "p50_ms": 1.5},
        {"load": "two", "p50_ms": None, "per_second": 1e4},
    ]
    assert table(rows).splitlines() == [
        "| load | p50, ms | /s |",
        "|---|---:|---:|",
        "| one | 1.50 | - |",
        "| two | - | 10,000 |",
    ]


def test_a_section_says_what_was_done_found_and_missed() -> None:
    text = section(written(wrong=["the sky fell"]), "performance")
    assert "`assent bench growth`" in text
    assert "| 256 | 25,600 | 1.00 | 2.00 |" in text
    assert "![Throughput by clients](performance/concurrency-throughput.svg)" in text
    assert "| what is not <= 2.00 s | 3.00 s | **no** |" in text
    assert "WRONG: the sky fell" in text


def test_only_what_stands_between_the_marks_is_made_anew() -> None:
    page = "before\n<!-- figures: growth -->\nold\n<!-- end of figures -->\nafter\n"
    page += "<!-- figures: failover -->\nold\n<!-- end of figures -->\n"
    results = {"growth": written()}  # made once: the load average and the time taken are in it
    once = renewed(page, results, "performance")
    assert once.startswith("before\n<!-- figures: growth -->\n")
    assert "old" not in once
    assert "\nafter\n" in once
    assert "Not measured yet." in once
    assert renewed(once, results, "performance") == once


def test_the_page_is_what_its_files_say(tmp_path: Path) -> None:
    """docs/performance.md and its plots are made by the command, of the JSON beside them."""
    shutil.copytree(PAGE.parent, tmp_path / "docs")
    page, folder = tmp_path / "docs" / PAGE.name, tmp_path / "docs" / "performance"
    for drawn in folder.glob("*.svg"):
        drawn.unlink()
    assert main(["bench", "page", str(folder), "--page", str(page)]) == 0
    assert page.read_text() == PAGE.read_text()
    made = {file.name: file.read_text() for file in folder.glob("*.svg")}
    there = {file.name: file.read_text() for file in (PAGE.parent / "performance").glob("*.svg")}
    assert made == there


def test_a_page_of_no_figures_is_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures: growth -->\nold\n<!-- end of figures -->\n")
    for folder in (tmp_path, page):
        assert main(["bench", "page", str(folder), "--page", str(page)]) == 2
        assert f"there are no figures in {folder}" in capsys.readouterr().err
    assert "old" in page.read_text()


# --- plots ----------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def test_a_plot_is_an_svg_whose_points_lie_where_they_belong() -> None:
    lines = [Line("p50 & co", [(1, 10), (10, 20), (100, 40)]), Line("p99", [(1, 30), (100, 50)])]
    root = ElementTree.fromstring(svg(Plot("a < b", "clients", "ms", lines)))
    drawn = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert [len(points) for points in drawn] == [3, 2]
    points = [tuple(float(part) for part in text.split(",")) for text in drawn[0]]
    (left, low), (middle, between), (right, high) = points
    assert 0 < left < right < WIDTH
    assert 0 < high < between < low < HEIGHT
    assert middle - left == pytest.approx(right - middle, abs=0.2)  # the axis is logarithmic
    assert (low - between) * 2 == pytest.approx(between - high, abs=0.2)  # this one is not
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"a < b", "clients", "ms", "p50 & co", "p99", "100"} <= texts


def test_zero_has_a_place_on_a_logarithmic_axis() -> None:
    root = ElementTree.fromstring(svg(Plot("t", "x", "y", [Line("l", [(0, 1), (1_000, 2)])])))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "0" in texts
    assert "1,000" in texts


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize(
    "values", [[0.0], [1.0], [0.0, 0.0], [3.0, 7_000.0], [0.02, 0.5], [1e6, 1e6], [0.0, 12.0]]
)
def test_every_value_has_room_on_its_scale(values: list[float], is_log: bool) -> None:
    scale = scale_of(values, 100.0, 200.0, is_log=is_log)
    for value in values:
        assert 100.0 <= scale.at(value) <= 200.0
    ticks = scale.ticks()
    assert len(ticks) >= 2
    assert ticks == sorted(ticks)
    assert all(scale.least <= tick <= scale.most * 1.001 for tick in ticks)


def test_a_campaign_without_rows_has_no_plot() -> None:
    assert plots({"campaign": "failover", "tables": {}}) == {}
    assert plots({"campaign": "goals", "tables": {}}) == {}


# --- the commands ---------------------------------------------------------------------------------


def run_campaign(tmp_path: Path, options: str, seconds: float = 0.3) -> dict[str, Any]:
    """A short real run; what it wrote."""
    file = tmp_path / "result.json"
    shared = f"--seconds-per-cell {seconds} --warm-up 0.2 --log-level warning"
    assert main(["bench", *options.split(), *shared.split(), "--json", str(file)]) == 0
    written: dict[str, Any] = json.loads(file.read_text())
    assert written["wrong"] == []
    assert written["verdicts"]
    return written


def test_a_leader_is_killed_and_no_call_fails(tmp_path: Path) -> None:
    written = run_campaign(tmp_path, "failover --kills 1 --rate 50")
    assert written["command"].startswith("assent bench failover --seconds-per-cell 0.3")
    (kill,) = written["tables"]["kills"]
    assert kill["failed"] == 0
    assert kill["next_commit_s"] > 0.1  # an election is wanted a heartbeat after the end, or later
    assert written["tables"]["summary"][0]["calls"] > 0
    assert "failover.svg" in plots(written)


def test_an_overload_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "FACTORS", (1.0, 2.0))
    monkeypatch.setattr(overload, "_CLOSED", (64,))
    written = run_campaign(tmp_path, "overload --connections 50 --node-count 1", seconds=0.5)
    first, second = written["tables"]["open loop"]
    assert second["offered_per_second"] == pytest.approx(2 * first["offered_per_second"], rel=0.01)
    assert set(plots(written)) == {"overload-throughput.svg", "overload-latency.svg"}


def test_one_disturbance_is_set_beside_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {name: fairness.DISTURBANCES[name] for name in ("slow",)}
    monkeypatch.setattr(fairness, "DISTURBANCES", chosen)
    written = run_campaign(tmp_path, "fairness --rounds 1 --rate 50 --node-count 1")
    (row,) = written["tables"]["others"]
    assert row["disturbance"] == "slow"
    assert row["refused"] == 0


def test_transactions_in_flight_stay_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "IN_FLIGHT", (0, 60))
    monkeypatch.setattr(growth, "TABLES", (growth.in_flight,))
    monkeypatch.setattr(growth, "judge", lambda campaign: campaign.judge("all", 1, 1))
    written = run_campaign(tmp_path, "growth --node-count 1")
    none, many = written["tables"]["in flight"]
    assert (none["in_flight"], many["in_flight"]) == (0, 60)
    assert (none["bytes_each"], many["bytes_each"] is None) == (None, False)
