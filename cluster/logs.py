"""What a process writes about itself, to standard error: lines for people, or JSON for machines.

    2026-01-31T12:00:00.123Z INFO  n1 assent.transaction: 0190...e1 decided commit

A node writes seven lines for each transaction. They come many to a record (`coordinator/steps.py`),
each with its own time, and are made of as little as possible; a line for people begins with the
transaction's id, and in JSON that is the field `transaction`.
"""

from __future__ import annotations

import enum
import json
import logging
import sys
from typing import Any

from coordinator.steps import Lines
from participants.contract import rfc3339
from participants.log_output import non_blocking
from participants.logs import one_line

_encode = json.JSONEncoder().encode


class LogFormat(enum.StrEnum):
    TEXT = "text"
    JSON = "json"


def configure_logs(log_format: LogFormat, level: str = "INFO", *, node: str | None = None) -> None:
    """Set up the root logger of this process; what was set up before is replaced."""
    output = logging.StreamHandler(non_blocking(sys.stderr))
    output.setFormatter(_Json(node) if log_format is LogFormat.JSON else _Text(node))
    # The place in the source, thread and process are looked up for each record unless told not to
    # (logging HOWTO, "Optimization"); no line of ours shows them.
    logging._srcfile = None  # type: ignore[attr-defined,unused-ignore]
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(output)
    root.setLevel(level)


class _Text(logging.Formatter):
    def __init__(self, node: str | None) -> None:
        super().__init__()
        self._node = f"{node} " if node else ""

    def format(self, record: logging.LogRecord) -> str:
        head = f" {record.levelname:<5} {self._node}{record.name}: "
        if isinstance(record.msg, Lines):
            return "\n".join(
                [
                    f"{rfc3339(at // 1_000_000)}{head}{id} "
                    f"{text if text.isprintable() else one_line(text)}"
                    for at, id, text in record.msg
                ]
            )
        line = rfc3339(int(record.created * 1000)) + head + one_line(record.getMessage())
        trace = _trace(self, record)
        return f"{line}\n{trace}" if trace else line


class _Json(logging.Formatter):
    def __init__(self, node: str | None) -> None:
        super().__init__()
        self._node = {"node": node} if node else {}

    def format(self, record: logging.LogRecord) -> str:
        about: dict[str, Any] = {"level": record.levelname, **self._node, "logger": record.name}
        if isinstance(record.msg, Lines):
            rest = _encode(about)[1:-1]
            return "\n".join(
                [
                    f'{{"time": "{rfc3339(at // 1_000_000)}", {rest}, "message": {_encode(text)}, '
                    f'"transaction": "{id}"}}'
                    for at, id, text in record.msg
                ]
            )
        entry = {
            "time": rfc3339(int(record.created * 1000)),
            **about,
            "message": record.getMessage(),
        }
        trace = _trace(self, record)
        if trace:
            entry["trace"] = trace
        return _encode(entry)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""
