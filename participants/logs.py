"""What a process of participants writes about itself, to standard error: lines for people.

    2026-01-31 12:00:00,123 INFO assent.participant: prepare 0190...e1/1: yes

What is replied within a hundredth of a second is one record (`Lines`) of a line each. A record of
its own for each costs 12 us, a third of all that a participant does for a message of a batch; a
line of a record costs one.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterable

from participants.log_output import non_blocking

WRITE_WITHIN_S = 0.01
"""A process that is killed takes with it what it has said since."""


def one_line(text: str) -> str:
    """The text with whatever cannot be printed escaped: what others sent may stand in it, and must
    neither look like a line of ours nor give orders to the terminal that shows it."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


class Lines(tuple[str, ...]):
    """The message of a record that is several lines, each as `one_line` gives it.

    `configure_logs` writes each of them with time, level and logger; elsewhere they follow upon
    each other.
    """

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(one_line, self))


class Gathered:
    """Lines at INFO that are written together, on the event loop: soon after the first of them, or
    when they are to be."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lines: list[str] = []

    def add(self, lines: Iterable[str]) -> None:
        if not self._lines:
            asyncio.get_running_loop().call_later(WRITE_WITHIN_S, self.write)
        self._lines += lines

    def write(self) -> None:
        if self._lines:
            lines, self._lines = Lines(self._lines), []
            self._log.info(lines)


def configure_logs(level: str) -> None:
    """Set up the root logger of this process, which writes from `level` on."""
    output = logging.StreamHandler(non_blocking(sys.stderr))
    output.setFormatter(_Text())
    logging.basicConfig(level=level, handlers=(output,))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        head = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        said = record.msg if isinstance(record.msg, Lines) else (record.getMessage(),)
        text = "\n".join([head + one_line(line) for line in said])
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
