"""Metrics: what is counted, what is asked for at reading, and that no label is unbounded."""

from __future__ import annotations

import asyncio
import time

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from coordinator.driver import Figures
from coordinator.facts import Outcome
from coordinator.gateway import Call
from coordinator.metrics import (
    BACKLOG_NAMED,
    BACKLOG_PARTICIPANTS,
    OTHERS,
    LogFigures,
    LoopLag,
    Metrics,
)
from coordinator.steps import Observer
from participants.contract import Acknowledged, Failed, Operation, Vote, Voted, Working

FIGURES = Figures(
    leading=True,
    waiting_for_room=5,
    unfinished=12,
    conversations=11,
    undecided_bytes=70_000,
    remembered=1_000,
    remembered_bytes=180_000,
    horizon_ms=1_750_000_000_500,
    oldest_in_doubt_ms=2_500,
    backlog={"http://a": BACKLOG_NAMED, "http://b": 90},
)
LOG = LogFigures(
    term=4, commit_index=120, applied_index=119, journal_bytes=65_536, journal_syncs=77
)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def call_of(operation: Operation) -> Call:
    return Call(
        participant="http://a",
        operation=operation,
        url="http://a/x",
        transaction_id="t-1",
        branch_id="1",
        body=b"{}",
        end_s=0.0,
        done=lambda _answer: None,
    )


def test_the_steps_of_a_transaction_are_counted() -> None:
    registry = CollectorRegistry()
    metrics: Observer = Metrics(registry)
    metrics.began()
    metrics.began()
    metrics.decided(Outcome.COMMIT, 0.004)
    metrics.finished(Outcome.COMMIT, 0.2)
    metrics.finished(Outcome.ABORT, 7.0)
    metrics.retried(Operation.COMMIT)
    metrics.took_over(5)
    for name, labels, expected in (
        ("assent_transactions_begun_total", {}, 2),
        ("assent_transactions_decided_total", {"outcome": "commit"}, 1),
        ("assent_transactions_decided_total", {"outcome": "abort"}, 0),
        ("assent_transactions_finished_total", {"outcome": "abort"}, 1),
        ("assent_decision_seconds_bucket", {"outcome": "commit", "le": "0.0025"}, 0),
        ("assent_decision_seconds_bucket", {"outcome": "commit", "le": "0.005"}, 1),
        ("assent_completion_seconds_sum", {"outcome": "abort"}, 7.0),
        ("assent_retries_total", {"operation": "commit"}, 1),
        ("assent_takeovers_total", {}, 1),
        ("assent_transactions_taken_over_total", {}, 5),
    ):
        assert value(registry, name, **labels) == expected, name


def test_calls_are_counted_by_what_they_were_answered() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    prepare, commit = call_of(Operation.PREPARE), call_of(Operation.COMMIT)
    for answer, result in (
        (Voted(Vote.YES), "yes"),
        (Voted(Vote.NO, "why"), "no"),
        (Voted(Vote.READ_ONLY), "read_only"),
        (Working(), "working"),
        (Failed("broke"), "failed"),
    ):
        metrics.answered([prepare], [answer], 0.01)
        labels = {"operation": "prepare", "result": result}
        assert value(registry, "assent_calls_total", **labels) == 1
    metrics.answered([commit] * 2, [Acknowledged()] * 2, 0.01)
    labels = {"operation": "commit", "result": "acknowledged"}
    assert value(registry, "assent_calls_total", **labels) == 2
    assert value(registry, "assent_call_seconds_count", operation="prepare") == 5
    assert value(registry, "assent_call_seconds_count", operation="commit") == 2
    assert value(registry, "assent_call_seconds_sum", operation="commit") == 0.02


def test_figures_are_asked_for_at_each_reading() -> None:
    registry = CollectorRegistry()
    asked: list[str] = []

    def figures() -> Figures:
        asked.append("figures")
        return FIGURES

    Metrics(registry).watch(figures, lambda: LOG)
    assert asked == []
    for name, expected in (
        ("assent_leading", 1),
        ("assent_waiting_for_room", 5),
        ("assent_transactions_unfinished", 12),
        ("assent_conversations", 11),
        ("assent_undecided_bytes", 70_000),
        ("assent_transactions_remembered", 1_000),
        ("assent_remembered_bytes", 180_000),
        ("assent_horizon_seconds", 1_750_000_000.5),
        ("assent_oldest_in_doubt_seconds", 2.5),
        ("assent_term", 4),
        ("assent_commit_index", 120),
        ("assent_applied_index", 119),
        ("assent_journal_bytes", 65_536),
        ("assent_journal_syncs_total", 77),
    ):
        assert value(registry, name) == expected, name
    assert value(registry, "assent_backlog", participant="http://b") == 90
    assert value(registry, "assent_backlog", participant=OTHERS) is None


def test_a_thousand_participants_are_not_a_thousand_series() -> None:
    registry = CollectorRegistry()
    backlog = {f"http://p{number}": number for number in range(1_000)}
    Metrics(registry).watch(lambda: FIGURES._replace(backlog=backlog), lambda: LOG)
    shown = next(m for m in registry.collect() if m.name == "assent_backlog").samples
    assert len(shown) == BACKLOG_PARTICIPANTS + 1
    assert value(registry, "assent_backlog", participant="http://p999") == 999
    assert value(registry, "assent_backlog", participant="http://p0") is None
    assert sum(sample.value for sample in shown) == sum(backlog.values())


def test_participants_that_come_once_are_no_series_that_stay() -> None:
    """A service may have a URL for each order."""
    registry = CollectorRegistry()
    few = {f"http://orders/{number}": BACKLOG_NAMED - 1 for number in range(30)}
    backlog = {**few, "http://p": BACKLOG_NAMED}
    Metrics(registry).watch(lambda: FIGURES._replace(backlog=backlog), lambda: LOG)
    shown = next(m for m in registry.collect() if m.name == "assent_backlog").samples
    assert {sample.labels["participant"]: sample.value for sample in shown} == {
        "http://p": BACKLOG_NAMED, OTHERS: 30 * (BACKLOG_NAMED - 1)
    }  # fmt: skip


def test_a_participant_s_name_cannot_forge_a_line() -> None:
    registry = CollectorRegistry()
    evil = 'http://h"} 1\nassent_leading 0\n'
    Metrics(registry).watch(lambda: FIGURES._replace(backlog={evil: BACKLOG_NAMED}), lambda: LOG)
    lines = generate_latest(registry).decode().splitlines()
    assert [line for line in lines if line.startswith("assent_leading")] == ["assent_leading 1.0"]


def test_every_metric_is_named_and_explained() -> None:
    registry = CollectorRegistry()
    Metrics(registry).watch(lambda: FIGURES, lambda: LOG)
    ours = [m for m in registry.collect() if not m.name.startswith("process_")]
    assert len(ours) > 15
    for metric in ours:
        assert metric.name.startswith("assent_")
        assert metric.documentation.endswith("."), metric.name


def test_nodes_in_one_process_count_apart() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    Metrics(first).began()
    Metrics(second)
    assert value(first, "assent_transactions_begun_total") == 1
    assert value(second, "assent_transactions_begun_total") == 0


def test_a_loop_that_is_held_up_shows_as_lag() -> None:
    async def test() -> list[float]:
        seen: list[float] = []
        looked = asyncio.Event()

        def lagged(seconds: float) -> None:
            seen.append(seconds)
            looked.set()

        lag = LoopLag(lagged, every_s=0.01)
        lag.start()
        time.sleep(0.1)  # noqa: ASYNC251 - the loop is held up on purpose
        await asyncio.wait_for(looked.wait(), 30)
        lag.stop()
        count = len(seen)
        await asyncio.sleep(0.05)
        assert len(seen) == count  # it has stopped
        lag.stop()
        return seen

    assert max(asyncio.run(test())) >= 0.05
