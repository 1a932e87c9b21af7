"""The figures of a measurement: computed of counts, printed, compared. Pure.

A latency is told as the upper end of a step of one hundredth, so at most 1 % too long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

GROWTH = 1.01
"""A latency is counted by steps (`bench.load`), each a hundredth above the one before."""

_COUNTS = (
    "committed", "aborted", "aborted_unasked", "accepted", "wrong", "refused", "failed",
    "asked_again", "unsent"
)  # fmt: skip

Result = dict[str, Any]
"""What one measurement leaves: `settings`, `machine`, and the figures of `figures`."""


class Usage(NamedTuple):
    """What a process had used: CPU in seconds since it began, memory resident in bytes."""

    cpu_s: float
    memory_bytes: int


def percentile(latencies: Mapping[int, int], share: float) -> float:
    """Milliseconds that `share` (0 to 1) of the requests did not exceed; 0 if there were none."""
    total = sum(latencies.values())
    seen = 0
    for step in sorted(latencies):
        seen += latencies[step]
        if seen >= share * total:
            return GROWTH ** (step + 1) / 1000
    return 0.0


def merge(tallies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tallies of several load processes as one."""
    whole: dict[str, Any] = {name: sum(tally[name] for tally in tallies) for name in _COUNTS}
    for name in ("seconds", "longest_ms", "loop_lag_ms"):
        whole[name] = max(tally[name] for tally in tallies)
    whole["first_wrong"] = next((t["first_wrong"] for t in tallies if t["first_wrong"]), "")
    for name in ("latencies", "refusals"):
        whole[name] = pooled([tally[name] for tally in tallies])
    return whole


def pooled(counts: Sequence[Mapping[Any, int]]) -> dict[int, int]:
    """Several counts by step as one; a step may be text, as in JSON."""
    whole: dict[int, int] = {}
    for one in counts:
        for step, count in one.items():
            whole[int(step)] = whole.get(int(step), 0) + count
    return whole


def figures(
    tally: Mapping[str, Any], before: Mapping[str, Usage], after: Mapping[str, Usage]
) -> Result:
    """Throughput, latency and what it cost. `before`, `after`: usage by process."""
    ended = tally["committed"] + tally["aborted"]
    latencies = tally["latencies"]
    cpu_us = {
        name: (after[name].cpu_s - before[name].cpu_s) * 1e6 / max(1, ended) for name in after
    }
    return {
        "per_second": ended / tally["seconds"],
        "latency_ms": {
            "p50": percentile(latencies, 0.50),
            "p90": percentile(latencies, 0.90),
            "p99": percentile(latencies, 0.99),
            "p999": percentile(latencies, 0.999),
            "max": tally["longest_ms"],
        },
        "refusal_ms": {
            "p50": percentile(tally["refusals"], 0.50),
            "p99": percentile(tally["refusals"], 0.99),
        },
        "transactions": {name: tally[name] for name in _COUNTS},
        "seconds": tally["seconds"],
        "cpu_us_per_transaction": {**cpu_us, "all": sum(cpu_us.values())},
        "busy": {
            name: (after[name].cpu_s - before[name].cpu_s) / tally["seconds"] for name in after
        },
        "memory_bytes": {name: usage.memory_bytes for name, usage in after.items()},
        "memory_growth_bytes": {
            name: usage.memory_bytes - before[name].memory_bytes for name, usage in after.items()
        },
        "load_loop_lag_ms": tally["loop_lag_ms"],
        "first_wrong": tally["first_wrong"],
        "latency_steps": {str(step): count for step, count in sorted(latencies.items())},
    }


def shown(result: Result) -> str:
    """A measurement for people."""
    latency = result["latency_ms"]
    counts = result["transactions"]
    lines = [
        f"{result['per_second']:,.0f} transactions/s,"
        f" {result['cpu_us_per_transaction']['all']:,.0f} us CPU each",
        "latency   " + "  ".join(f"{name} {value:.2f} ms" for name, value in latency.items()),
        "ended     " + "  ".join(f"{name} {count:,}" for name, count in counts.items() if count),
        "",
        f"  {'process':<16}{'CPU us/tx':>10}{'busy':>7}{'memory MB':>11}{'growth':>8}",
    ]
    for name, busy in result["busy"].items():
        lines.append(
            f"  {name:<16}{result['cpu_us_per_transaction'][name]:>10,.0f}{busy:>7.0%}"
            f"{result['memory_bytes'][name] / 1e6:>11,.0f}"
            f"{result['memory_growth_bytes'][name] / 1e6:>8,.0f}"
        )
    lines.append("")
    for name, node in result.get("nodes", {}).items():
        lines.append(
            f"  {name}: loop lag p99 {_limit(node['loop_lag_p99_ms'])},"
            f" max {_limit(node['loop_lag_max_ms'])};"
            f" {node['syncs']:,} journal syncs"
            f"{', leads' if name == result.get('leader') else ''}"
        )
    lines.append(f"  load: loop lag max {result['load_loop_lag_ms']:.1f} ms")
    lines += [f"WRONG: {what}" for what in result.get("wrong", ())]
    return "\n".join(lines)


def _limit(milliseconds: float) -> str:
    return "over 5 s" if milliseconds == float("inf") else f"<= {milliseconds:g} ms"


def floor_shown(floor: Mapping[str, Mapping[str, float]]) -> str:
    """The floor of latency for people."""
    lines = [f"  {what:<28}{one['p50']:>9.3f}{one['p99']:>9.3f}" for what, one in floor.items()]
    return "\n".join([f"  {'the floor, ms':<28}{'p50':>9}{'p99':>9}", *lines])


def compared(names: Sequence[str], rounds: Sequence[Sequence[Result]]) -> Result:
    """Medians of A and B and the median of the ratios B/A, pair by pair."""
    pairs = [(a, b) for a, b in rounds]
    rows: Result = {}
    for what, of in _COMPARED.items():
        values = [(of(a), of(b)) for a, b in pairs]
        ratios = [b / a for a, b in values if a]
        rows[what] = {
            "a": median(a for a, _ in values),
            "b": median(b for _, b in values),
            "ratio": median(ratios) if ratios else None,
            "ratios": ratios,
        }
    return {"a": names[0], "b": names[1], "rounds": len(pairs), "rows": rows}


_COMPARED: dict[str, Callable[[Result], float]] = {
    "transactions/s": lambda result: result["per_second"],
    "p50 ms": lambda result: result["latency_ms"]["p50"],
    "p99 ms": lambda result: result["latency_ms"]["p99"],
    "CPU us/transaction": lambda result: result["cpu_us_per_transaction"]["all"],
    "leader's CPU us": lambda result: _of_nodes(result, max),
    "follower's CPU us": lambda result: _of_nodes(result, min),
    "load's CPU us": lambda result: result["cpu_us_per_transaction"].get("load", 0.0),
}


def _of_nodes(result: Result, choose: Any) -> float:
    costs = result["cpu_us_per_transaction"]
    return float(choose([costs[name] for name in result.get("nodes", {})] or [0.0]))


def compared_shown(comparison: Result) -> str:
    """The comparison for people."""
    lines = [
        f"A: {comparison['a'] or '(as it is)'}",
        f"B: {comparison['b'] or '(as it is)'}",
        f"medians of {comparison['rounds']} rounds, A and B in turn",
        "",
        f"  {'':<20}{'A':>12}{'B':>12}{'B/A':>8}   each round",
    ]
    for what, row in comparison["rows"].items():
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        each = " ".join(f"{one:.2f}" for one in row["ratios"])
        lines.append(f"  {what:<20}{row['a']:>12,.2f}{row['b']:>12,.2f}{ratio:>8}   {each}")
    return "\n".join(lines)
