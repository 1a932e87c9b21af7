"""What a node counts and measures, for Prometheus. Every name and its meaning is in this file.

Counters and durations are told by the driver (`Metrics` is its Observer) and the gateway, as things
happen; sizes and ages are asked for when /metrics is read. Each node has a registry of its own, so
that several nodes may live in one process. No label is unbounded: participants are named in the
backlog only, and there only the BACKLOG_PARTICIPANTS with most, of those that have at least
BACKLOG_NAMED; the rest is one sum, "(others)".
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.capacity import largest
from coordinator.counts import Counts, Durations, Labels
from coordinator.courier import Answer
from coordinator.driver import Figures
from coordinator.facts import Outcome
from coordinator.gateway import Call
from coordinator.steps import Observer
from participants.contract import Acknowledged, Failed, Operation, Voted, Working

BACKLOG_PARTICIPANTS = 50
BACKLOG_NAMED = 10
"""Branches. A service may have a URL for each order: that is 50 new names each time that somebody
looks, hundreds of thousands in a day, each a series that Prometheus keeps."""
OTHERS = "(others)"
LAG_EVERY_S = 0.25

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_RESULTS = ("yes", "no", "read_only", "working", "acknowledged", "failed")


class LogFigures(NamedTuple):
    """The replicated log of this node as /metrics shows it."""

    term: int
    commit_index: int
    applied_index: int
    journal_bytes: int
    journal_syncs: int


class Metrics(Observer):
    """The Observer of a node's driver."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        ProcessCollector(registry=registry)
        self._turned_away = self._counts(
            "transactions_turned_away", "Submissions refused because too many wait to begin."
        )
        self._begun = self._counts("transactions_begun", "Transactions begun by this node.")
        self._decided = self._counts(
            "transactions_decided",
            "Transactions whose outcome this node saw decided while it led.",
            Outcome,
        )
        self._finished = self._counts(
            "transactions_finished",
            "Transactions that all participants acknowledged while this node led.",
            Outcome,
        )
        self._decision_seconds = self._durations(
            "decision_seconds",
            "From begin (or takeover) to the durable decision; not what was waited for room, nor "
            "what an interactive transaction was open.",
            Outcome,
        )
        self._completion_seconds = self._durations(
            "completion_seconds",
            "From begin (or takeover) to the last acknowledgement; not what was waited for room, "
            "nor what an interactive transaction was open.",
            Outcome,
        )
        self._calls = Counts(
            registry,
            "assent_calls",
            "Calls to participants, by what they were answered.",
            ["operation", "result"],
            [(operation.value, result) for operation in Operation for result in _RESULTS],
        )
        self._call_seconds = self._durations(
            "call_seconds", "Calls to participants, from leaving to answer or timeout.", Operation
        )
        self._retries = self._counts("retries", "Calls planned again after a failure.", Operation)
        self._takeovers = self._counts("takeovers", "Leaderships that this node began.")
        self._taken_over = self._counts(
            "transactions_taken_over",
            "Unfinished transactions found when this node's leaderships began.",
        )
        self._loop_lag = Durations(
            registry,
            "assent_loop_lag_seconds",
            f"How late the event loop runs what is due, looked at every {LAG_EVERY_S} s.",
            _LAG_SECONDS,
        )

    def _counts(self, name: str, meaning: str, words: type[enum.StrEnum] | None = None) -> Counts:
        """One counter, or one for each value of the label, which is named after the enum."""
        labels, series = _series(words)
        return Counts(self._registry, f"assent_{name}", meaning, labels, series)

    def _durations(self, name: str, meaning: str, words: type[enum.StrEnum]) -> Durations:
        """A histogram for each value of the label, which is named after the enum."""
        labels, series = _series(words)
        return Durations(self._registry, f"assent_{name}", meaning, _SECONDS, labels, series)

    # --- the driver's Observer ---

    def turned_away(self) -> None:
        self._turned_away.add()

    def began(self) -> None:
        self._begun.add()

    def decided(self, outcome: Outcome, seconds: float) -> None:
        self._decided.add((outcome,))
        self._decision_seconds.observe(seconds, (outcome,))

    def finished(self, outcome: Outcome, seconds: float) -> None:
        self._finished.add((outcome,))
        self._completion_seconds.observe(seconds, (outcome,))

    def retried(self, operation: Operation) -> None:
        self._retries.add((operation,))

    def took_over(self, count: int) -> None:
        self._takeovers.add()
        self._taken_over.add((), count)

    # --- the gateway's `on_answers` ---

    def answered(self, calls: Sequence[Call], answers: Sequence[Answer], seconds: float) -> None:
        if len(calls) == 1:
            operation = calls[0].operation
            self._calls.add((operation, _result_of(answers[0])))
            self._call_seconds.observe(seconds, (operation,))
            return
        series = Counter((c.operation, _result_of(a)) for c, a in zip(calls, answers, strict=True))
        for (operation, result), count in series.items():
            self._calls.add((operation, result), count)
            self._call_seconds.observe(seconds, (operation,), count)

    # --- the event loop ---

    def lagged(self, seconds: float) -> None:
        self._loop_lag.observe(seconds)

    # --- what is asked for when it is read ---

    def watch(self, figures: Callable[[], Figures], log: Callable[[], LogFigures]) -> None:
        """Show these from now on; once for a registry."""
        self._registry.register(_Watched(figures, log))


class LoopLag:
    """Tells `lagged` four times a second how late the event loop is. Whoever starts it stops it."""

    def __init__(self, lagged: Callable[[float], None], every_s: float = LAG_EVERY_S) -> None:
        self._lagged = lagged
        self._every_s = every_s
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        assert self._timer is None, "started twice"
        self._plan(asyncio.get_running_loop())

    def stop(self) -> None:
        """May be called at any time, and again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self._every_s
        self._timer = loop.call_at(due, self._look, loop, due)

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._plan(loop)
        self._lagged(max(0.0, loop.time() - due))


class _Watched(Collector):
    """What has a value at any time and is not counted: read anew whenever /metrics is."""

    def __init__(self, figures: Callable[[], Figures], log: Callable[[], LogFigures]) -> None:
        self._figures = figures
        self._log = log

    def describe(self) -> list[Metric]:
        """Nothing is asked for before the first scrape: the node may not have started yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        figures, log = self._figures(), self._log()
        yield _gauge("assent_leading", "1 while this node leads, else 0.", figures.leading)
        yield _gauge(
            "assent_waiting_for_room",
            "Submissions that wait to begin, for as many begin as the node can; a batch is one.",
            figures.waiting_for_room,
        )
        yield _gauge(
            "assent_transactions_unfinished",
            "Transactions that are not finished, in the applied state.",
            figures.unfinished,
        )
        yield _gauge(
            "assent_conversations", "Transactions in this leader's hands.", figures.conversations
        )
        yield _gauge(
            "assent_undecided_bytes",
            "Payloads of undecided transactions, in memory; at the limit nothing more is begun.",
            figures.undecided_bytes,
        )
        yield _gauge(
            "assent_transactions_remembered",
            "Finished transactions whose answer is kept.",
            figures.remembered,
        )
        yield _gauge(
            "assent_remembered_bytes",
            "What is kept of them, packed; beyond the limit the oldest are forgotten.",
            figures.remembered_bytes,
        )
        yield _gauge(
            "assent_horizon_seconds",
            "Unix time before which finished transactions were forgotten; 0: none was.",
            figures.horizon_ms / 1000,
        )
        yield _gauge(
            "assent_oldest_in_doubt_seconds",
            "Age of the oldest unfinished transaction; 0: there is none.",
            figures.oldest_in_doubt_ms / 1000,
        )
        yield _backlog(figures.backlog)
        yield _gauge("assent_term", "The log's term, as in the Raft paper.", log.term)
        yield _gauge("assent_commit_index", "Entries known to be on a quorum.", log.commit_index)
        yield _gauge("assent_applied_index", "Entries applied on this node.", log.applied_index)
        yield _gauge("assent_journal_bytes", "Size of the journal's files.", log.journal_bytes)
        syncs = CounterMetricFamily(
            "assent_journal_syncs", "Times that the journal was synced to disk."
        )
        syncs.add_metric([], log.journal_syncs)
        yield syncs


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(name, meaning, value=float(value))


def _backlog(backlog: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily(
        "assent_backlog",
        "Branches of unfinished transactions, by participant: the largest, if they are at least "
        f"{BACKLOG_NAMED}, and the rest as one.",
        labels=["participant"],
    )
    named = {name: count for name, count in backlog.items() if count >= BACKLOG_NAMED}
    shown = largest(named, BACKLOG_PARTICIPANTS)
    for participant, count in shown:
        family.add_metric([participant], count)
    if len(backlog) > len(shown):
        rest = sum(backlog.values()) - sum(count for _, count in shown)
        family.add_metric([OTHERS], rest)
    return family


def _series(words: type[enum.StrEnum] | None) -> tuple[list[str], list[Labels]]:
    """The labels of a family, and their values; a member of a StrEnum is its value as a string."""
    if words is None:
        return [], [()]
    return [words.__name__.lower()], [(word.value,) for word in words]


_RESULT_OF = {Working: "working", Acknowledged: "acknowledged", Failed: "failed"}


def _result_of(answer: Answer) -> str:
    return answer.vote if isinstance(answer, Voted) else _RESULT_OF[type(answer)]
