"""The tables and plots of docs/performance.md, made of what the campaigns wrote. Pure.

A page holds, for each campaign, two lines between which everything is made anew:

    <!-- figures: growth -->
    <!-- end of figures -->

What stands between them is never edited by hand; what stands outside is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cluster.bench.campaign import Row
from cluster.bench.plot import Line, Plot, svg
from cluster.bench.verdicts import number

_MARKED = re.compile(r"(<!-- figures: ([a-z]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


Lines = Sequence[tuple[str, str, Mapping[str, Any]]]
"""(name, figure, labels of the rows that belong to it) of each."""


class Drawing(NamedTuple):
    """A plot of a table."""

    file: str
    title: str
    table: str
    across: str
    up: str
    lines: Lines
    log_up: bool = False


_LATENCIES: Lines = (("p50", "p50_ms", {}), ("p99", "p99_ms", {}))
_RATE: Lines = (("transactions/s", "per_second", {}),)

DRAWINGS: dict[str, Sequence[Drawing]] = {
    "growth": (
        Drawing("participants-throughput", "Throughput by participants, 64 clients",
                "participants", "participants", "transactions/s",
                [("transactions/s", "per_second", {"clients": 64})], log_up=True),
        Drawing("participants-latency", "Latency by participants, one client", "participants",
                "participants", "ms", [(n, f, {"clients": 1}) for n, f, _ in _LATENCIES], True),
        Drawing("concurrency-throughput", "Throughput by clients", "concurrency", "clients",
                "transactions/s", _RATE),
        Drawing("concurrency-latency", "Latency by clients", "concurrency", "clients", "ms",
                _LATENCIES, log_up=True),
        Drawing("in-flight-throughput", "Throughput by transactions in flight", "in flight",
                "in_flight", "transactions/s", _RATE),
        Drawing("in-flight-latency", "Latency by transactions in flight", "in flight",
                "in_flight", "ms", _LATENCIES, log_up=True),
        Drawing("remembered-throughput", "Throughput by transactions remembered", "remembered",
                "remembered", "transactions/s", _RATE),
        Drawing("remembered-latency", "Latency by transactions remembered", "remembered",
                "remembered", "ms", _LATENCIES, log_up=True),
    ),
    "overload": (
        Drawing("overload-throughput", "Throughput by what is offered", "open loop",
                "offered_per_second", "transactions/s", _RATE),
        Drawing("overload-latency", "Latency by what is offered", "open loop",
                "offered_per_second", "ms", (*_LATENCIES, ("429, p99", "refused_p99_ms", {})),
                log_up=True),
    ),
    "failover": (
        Drawing("failover", "Each kill of the leader", "kills", "kill", "s",
                (("next commit", "next_commit_s", {}), ("slowest call", "slowest_call_s", {}),
                 ("in doubt resolved", "resolved_s", {}))),
    ),
}  # fmt: skip

_LINEAR = {"kill", "offered_per_second"}
_HIDDEN = {"failover": {"kills"}}
"""Tables too long for a page: they are in the plot, and in the JSON."""


def plots(result: Mapping[str, Any]) -> dict[str, str]:
    """SVG by file name, of one campaign's result."""
    drawn = {}
    for drawing in DRAWINGS.get(result["campaign"], ()):
        rows = result["tables"].get(drawing.table, [])
        lines = [
            Line(name, _points(rows, drawing.across, figure, labels))
            for name, figure, labels in drawing.lines
        ]
        lines = [line for line in lines if line.points]
        if lines:
            drawn[f"{drawing.file}.svg"] = svg(
                Plot(
                    drawing.title,
                    drawing.across.replace("_", " "),
                    drawing.up,
                    lines,
                    log_across=drawing.across not in _LINEAR,
                    log_up=drawing.log_up,
                )
            )
    return drawn


def _points(
    rows: Sequence[Row], across: str, figure: str, labels: Mapping[str, Any]
) -> list[tuple[float, float]]:
    return [
        (row[across], row[figure])
        for row in rows
        if row.get(figure) is not None
        and all(row.get(name) == value for name, value in labels.items())
    ]


def table(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown; figures to the right."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    words = {name for row in rows for name in names if isinstance(row.get(name), str)}
    head = "| " + " | ".join(_heading(name) for name in names) + " |"
    line = "|" + "|".join("---" if name in words else "---:" for name in names) + "|"
    body = ["| " + " | ".join(number(row.get(name)) for name in names) + " |" for row in rows]
    return "\n".join([head, line, *body])


_UNITS = {"ms": "ms", "s": "s", "us": "us", "mb": "MB"}


def _heading(name: str) -> str:
    """`p50_ms` is "p50, ms"; `leader_cpu_us` is "leader cpu, us"."""
    words = name.split("_")
    if len(words) > 1 and words[-1] in _UNITS:
        return f"{' '.join(words[:-1])}, {_UNITS[words[-1]]}"
    if words[-2:-1] == ["s"]:  # next_commit_s_p50
        return f"{' '.join(words[:-2])} {words[-1]}, s"
    return " ".join(words).replace("per second", "/s")


def section(result: Mapping[str, Any], folder: str) -> str:
    """What a page says of one campaign. `folder`: where the plots lie, seen from the page."""
    machine = result["machine"]
    load = ", ".join(f"{one:.1f}" for one in machine["load_average"])
    parts = [
        f"`{result['command']}`, {result['measured_on']}, commit {result['commit'] or 'unknown'},"
        f" {machine['processors']} x {machine['processor']}, Python {machine['python']},"
        f" load average at the end {load}; it took {result['took_s']:.0f} s."
    ]
    hidden = _HIDDEN.get(result["campaign"], set())
    for name, rows in result["tables"].items():
        if name not in hidden:
            parts.append(f"**{name[0].upper()}{name[1:]}**\n\n{table(rows)}")
    shown = [
        f"![{drawing.title}]({folder}/{drawing.file}.svg)"
        for drawing in DRAWINGS.get(result["campaign"], ())
        if f"{drawing.file}.svg" in plots(result)
    ]
    if shown:
        parts.append("\n".join(shown))
    verdicts = [
        {
            "meant to be": f"{one['what']} {'>=' if one['at_least'] else '<='}"
            f" {number(one['bound'])}{one['unit']}",
            "is": f"{number(one['value'])}{one['unit']}",
            "held": "yes" if one["held"] else "**no**",
        }
        for one in result["verdicts"]
    ]
    parts.append(table(verdicts))
    parts += [f"WRONG: {what}" for what in result["wrong"]]
    return "\n\n".join(parts) + "\n"


def renewed(text: str, results: Mapping[str, Mapping[str, Any]], folder: str) -> str:
    """The page with what stands between its marks made anew; `results` by campaign.

    A campaign that has no result yet says so.
    """

    def made(match: re.Match[str]) -> str:
        result = results.get(match[2])
        told = "Not measured yet.\n" if result is None else section(result, folder)
        return f"{match[1]}\n{told}\n{match[3]}"

    return _MARKED.sub(made, text)
