"""One child process that can be killed, stopped and started again, and never outlives us.

On Linux the child asks the kernel for SIGKILL when its parent dies, kill -9 included. A few lines
of Python do that in the child and then become the real program by exec, which keeps the process id
and the wish. (To do it between fork and exec would run Python in a copy of a process whose threads
may hold any lock.) The kernel means the *thread* that started the child: start children from one
that lives as long as they shall, such as the main thread.

A child is in a session of its own, so that Ctrl-C in a terminal reaches the parent only, which then
stops its children in order.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_LEASH = (
    "import ctypes, os, signal, sys\n"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"  # 1: PR_SET_PDEATHSIG
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"  # it died before the line above
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
_POLL_S = 0.01


class ChildProcess:
    """The program `command`, run again and again; its output is appended to the file `log`."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the last start; None before the first."""
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended (a stopped process has not)."""
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Of the last run; negative: the signal that ended it; None: not started, or running."""
        return None if self._process is None else self._process.poll()

    def start(self, *more: str) -> None:
        """Start it, with `more` arguments at the end of the command."""
        assert not self.running, f"{self.name} runs already"
        command = [*self.command, *more]
        if sys.platform == "linux":
            command = [sys.executable, "-S", "-c", _LEASH, str(os.getpid()), *command]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    async def ended(self, timeout: float) -> bool:
        """Wait until it has ended; False when `timeout` seconds pass first."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout
        while self.running:
            if loop.time() >= until:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def bound_log(self, most: int) -> None:
        """Once its output has more than `most` bytes, set it aside as `NAME.old`, in place of what
        was there, and let it begin anew. What is said in that moment may be lost."""
        with suppress(OSError):
            if self.log.stat().st_size > most:
                with suppress(OSError):  # on a full disk they are worth less than the room
                    shutil.copyfile(self.log, self.log.with_suffix(".old"))
                os.truncate(self.log, 0)

    def last_lines(self, count: int = 5) -> str:
        """The end of its output, for a message about why it ended."""
        try:
            text = self.log.read_bytes()[-4_000:].decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-count:])
