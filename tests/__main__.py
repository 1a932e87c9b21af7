"""Everything that must hold before a change lands: `python -m tests`.

Runs the linter, the formatter's check, the type checker, the tests, and 2,000 seeds of the
simulation, in this order, and stops at the first that fails. Arguments go to pytest; then the
seeds are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("pytest",),
)
SEEDS = "0-1999"


def main(arguments: list[str]) -> int:
    checks = [(*check, *arguments) if check == ("pytest",) else check for check in CHECKS]
    if not arguments:
        jobs = str(os.cpu_count() or 1)
        checks.append(("tests.simulation", "run", "--seeds", SEEDS, "--jobs", jobs, "--quiet"))
    for module, *rest in checks:
        command = [sys.executable, "-m", module, *rest]
        print("$ python -m", *command[2:], flush=True)
        code = subprocess.call(command, cwd=TOP)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
