"""What became of many seeds: the row of a table, as a line for people and as JSON."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.simulation.run import Result

MAX_LISTED = 100
"""Violations that the JSON names; all of them are counted, and printed when they come."""
SAVE_EVERY_S = 30.0


class Campaign:
    """Takes results one by one; what it holds does not grow with them. `file`: where its JSON is
    kept up to date, so that a campaign that is ended early has its row, too."""

    def __init__(self, asked: str, jobs: int, file: Path | None) -> None:
        self.violated = 0
        self._asked = asked
        self._commit = _commit()  # now: what is checked out may be another when the row is written
        self._jobs = jobs
        self._file = file
        self._began = self._saved = time.perf_counter()
        self._seeds = self._callbacks = 0
        self._simulated_s = self._cpu_s = self._settled_s = 0.0
        self._counts: Counter[str] = Counter()
        self._violations: list[dict[str, Any]] = []

    def add(self, result: Result) -> None:
        self._seeds += 1
        self._callbacks += result.calls
        self._simulated_s += result.simulated_s
        self._cpu_s += result.cpu_s
        self._settled_s = max(self._settled_s, result.settled_s)
        self._counts.update(result.counts)
        if result.violations:
            self.violated += 1
            room = MAX_LISTED - len(self._violations)
            self._violations += [
                {"seed": result.seed, "invariant": v.invariant, "about": v.about, "text": v.text}
                for v in result.violations[: max(room, 0)]
            ]
        if time.perf_counter() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        self._saved = time.perf_counter()
        if self._file is not None:
            self._file.write_text(json.dumps(self.row(), indent=1) + "\n")

    def row(self) -> dict[str, Any]:
        """Everything, by name."""
        return {
            "commit": self._commit,
            "python": platform.python_version(),
            "asked": self._asked,
            "jobs": self._jobs,
            "seeds": self._seeds,
            "seeds with violations": self.violated,
            "violations": self._violations,
            "simulated s": round(self._simulated_s, 1),
            "wall s": round(self._saved - self._began, 1),
            "cpu s": round(self._cpu_s, 1),
            "longest settle s": self._settled_s,
            "callbacks": self._callbacks,
            "counts": dict(sorted(self._counts.items())),
        }

    def summary(self) -> str:
        """Three lines: how much and how fast; the row; all counts."""
        wall_s = time.perf_counter() - self._began
        cpu_s = self._cpu_s or 1e-9
        return (
            f"{self._seeds} seeds, {self.violated} with violations; {self._simulated_s:.0f} s "
            f"simulated in {wall_s:.1f} s, {self._cpu_s:.1f} s of CPU "
            f"({self._simulated_s / cpu_s:.0f} simulated a second of CPU, "
            f"{self._cpu_s / max(self._seeds, 1):.3f} s of CPU a seed), "
            f"{self._callbacks} callbacks\n"
            f"processes ended {self._counts['kills'] + self._counts['power losses']}, of them by "
            f"power loss {self._counts['power losses']}, at a disk operation "
            f"{self._counts['crash points']}; stopped {self._counts['stops']}; partitions "
            f"{self._counts['partitions']}; clock jumps {self._counts['clock jumps']}; answers "
            f"{self._counts['committed']} committed, {self._counts['aborted']} aborted, "
            f"{self._counts['unknown']} unknown; longest settle {self._settled_s:.1f} s\n"
            + ", ".join(f"{what} {count}" for what, count in sorted(self._counts.items()))
        )


def _commit() -> str:
    """Of the source that runs, with a + if it was changed since."""
    asked = ["git", "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(
            asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()
