"""Everything that must hold before a change lands: `python -m tests`.

Runs the linter, the formatter's check, the type checker, then the tests, and stops at the first
that fails. 2,000 seeds of the simulation run beside the tests, with what these leave of the
processors: a third of their time they wait. Arguments go to pytest; then the seeds are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)
SEEDS = ("tests.simulation", "run", "--seeds", "0-1999", "--jobs", str(os.cpu_count() or 1))
LEAST_PRIORITY = 19


def main(arguments: list[str]) -> int:
    for check in CHECKS:
        code = subprocess.call(_command(*check), cwd=TOP)
        if code:
            return code
    if arguments:
        return subprocess.call(_command("pytest", *arguments), cwd=TOP)
    return _tests_and_seeds()


def _tests_and_seeds() -> int:
    with tempfile.TemporaryFile("w+") as said:
        command = _command(*SEEDS, "--quiet")
        with subprocess.Popen(command, cwd=TOP, stdout=said, stderr=subprocess.STDOUT) as seeds:
            os.setpriority(os.PRIO_PROCESS, seeds.pid, LEAST_PRIORITY)
            try:
                code = subprocess.call(_command("pytest"), cwd=TOP)
                code = code or seeds.wait()
            finally:
                seeds.terminate()
        said.seek(0)
        print(said.read(), end="", flush=True)
    return code


def _command(module: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", module, *arguments]
    print("$ python -m", *command[2:], flush=True)
    return command


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
