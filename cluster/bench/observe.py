"""What a measurement reads of the system and of the nodes: CPU, memory, metrics, the machine."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from cluster.bench.report import Usage

LEADING = "assent_leading"
UNFINISHED = "assent_transactions_unfinished"
REMEMBERED_NOW = "assent_transactions_remembered"
_SYNCS = "assent_journal_syncs_total"
_LAG = re.compile(r'assent_loop_lag_seconds_bucket\{le="([^"]+)"\}')


def usage(pids: Mapping[str, int]) -> dict[str, Usage]:
    """CPU and memory of each process, as the system counts them; Linux only."""
    tick = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    found = {}
    for name, pid in pids.items():
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / tick if fields else 0.0
        memory = _read(f"/proc/{pid}/statm").split()
        found[name] = Usage(cpu_s, int(memory[1]) * page if memory else 0)
    return found


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program."""
    model = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return {
        "processors": os.cpu_count(),
        "processor": model[1] if model else platform.processor(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


def commit() -> str | None:
    """The commit of the source tree that this program runs from, with `+` if it was changed since;
    None where it is in no tree."""
    home = Path(__file__).parent
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = [
            subprocess.run(
                ["git", "-C", str(home), *arguments], capture_output=True, check=True, text=True
            ).stdout.strip()
            for arguments in (
                ("rev-parse", "--short=12", "HEAD"),
                ("status", "--porcelain", "-uno"),
            )
        ]
        return told[0] + ("+" if told[1] else "")
    return None


async def metrics(nodes: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """What each node says in /metrics, by name and labels."""
    told = {}
    async with aiohttp.ClientSession() as session:
        for name, url in nodes.items():
            async with session.get(f"{url}/metrics") as response:
                text = await response.text()
            lines = [line.rpartition(" ") for line in text.splitlines() if line[:1] != "#"]
            told[name] = {metric: float(value) for metric, _, value in lines}
    return told


async def leading(nodes: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """`metrics` of the node that leads; of none while none does."""
    told = await metrics(nodes)
    return {name: one for name, one in told.items() if one.get(LEADING)}


def node_figures(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Loop lag as the upper end of a bucket, in milliseconds; the number of journal syncs."""
    buckets = []
    for metric, value in after.items():
        if match := _LAG.fullmatch(metric):
            buckets.append((float(match[1]), value - before.get(metric, 0.0)))
    total = buckets[-1][1] if buckets else 0.0
    p99 = next((upper for upper, count in buckets if count >= 0.99 * total), 0.0)
    most = next((upper for upper, count in buckets if count >= total), 0.0)
    return {
        "loop_lag_p99_ms": p99 * 1000,
        "loop_lag_max_ms": most * 1000,
        "syncs": int(after.get(_SYNCS, 0.0) - before.get(_SYNCS, 0.0)),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
