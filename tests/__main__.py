"""Everything that must hold before a change lands: `python -m tests`.

Runs the linter, the formatter's check, the type checker and the tests, in this order, and stops at
the first that fails. Arguments go to pytest.
"""

from __future__ import annotations

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


def main(arguments: list[str]) -> int:
    for module, *rest in CHECKS:
        command = [sys.executable, "-m", module, *rest]
        if module == "pytest":
            command += arguments
        print("$ python -m", *command[2:], flush=True)
        code = subprocess.call(command, cwd=TOP)
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
