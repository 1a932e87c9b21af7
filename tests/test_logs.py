"""Log lines for people and for machines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TextIO

import pytest

from cluster.logs import LogFormat, configure_logs
from coordinator import steps as coordinator_steps
from coordinator.steps import WRITE_WITHIN_S, Steps
from participants import logs as participants_logs


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_what_cannot_be_printed_is_escaped_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogFormat.TEXT, node="n1")
    log = logging.getLogger("coordinator.driver")
    log.info("decided %s", "commit")
    log.debug("not shown")
    log.warning("first\nsecond \x1b[31m\u2028\ud800 é")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("Z INFO  n1 coordinator.driver: decided commit")
    assert second.endswith("coordinator.driver: first\\nsecond \\x1b[31m\\u2028\\ud800 é")


def test_a_machine_reads_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogFormat.JSON, "WARNING", node="n1")
    log = logging.getLogger("coordinator.driver")
    log.info("not shown")
    log.warning("first\n%s", "second")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "first\nsecond"
    assert (first["level"], first["node"], first["logger"]) == (
        "WARNING",
        "n1",
        "coordinator.driver",
    )
    assert first["time"].endswith("Z")
    assert "ValueError: broken" in second["trace"]


@pytest.mark.parametrize("log_format", LogFormat)
def test_what_is_said_within_a_moment_is_a_line_each_in_its_order_and_with_its_time(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logs(log_format, node="n1")
    said_at = (1_770_000_000_000_999_999 + ms * 1_000_000 for ms in range(1, 5))
    monkeypatch.setattr(coordinator_steps, "_now_ns", lambda: next(said_at))

    async def moment() -> str:
        steps = Steps()
        steps.retry_planned("t-1", "a\nforged line", 0.5)
        steps.retry_planned("t-2", "b", 0.25)
        await asyncio.sleep(0)
        assert capsys.readouterr().err == ""
        steps.resolved("t-3", "aborted", "ada", "stuck")  # a warning does not wait
        steps.retry_planned("t-4", "c", 1.0)
        at_once = capsys.readouterr().err
        assert len(at_once.splitlines()) == 3
        later = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(WRITE_WITHIN_S, later.set_result, None)
        await later
        return at_once + capsys.readouterr().err

    lines = asyncio.run(moment()).splitlines()
    said = (
        ("INFO", "t-1", "a\\nforged line is called again in 0.500 s"),
        ("INFO", "t-2", "b is called again in 0.250 s"),
        ("WARNING", "t-3", "aborted by hand by ada: stuck"),
        ("INFO", "t-4", "c is called again in 1.000 s"),
    )
    assert len(lines) == len(said)
    for number, (level, transaction_id, text) in enumerate(said, 1):
        line, time = lines[number - 1], f"2026-02-02T02:40:00.00{number}Z"
        if log_format is LogFormat.JSON:
            entry = json.loads(line)
            assert (entry["level"], entry["transaction"]) == (level, transaction_id)
            assert entry["message"] == text.replace("\\n", "\n")
            assert (entry["node"], entry["logger"]) == ("n1", "assent.transaction")
            assert entry["time"] == time
        else:
            assert line == f"{time} {level:<5} n1 assent.transaction: {transaction_id} {text}"


def test_nothing_is_kept_of_what_nobody_listens_to() -> None:
    configure_logs(LogFormat.TEXT, "WARNING")
    steps = Steps()
    steps.retry_planned("t-1", "a", 0.5)  # outside of any loop: nothing may be planned


def test_each_reply_of_a_participant_is_a_line_with_its_head_and_forges_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    participants_logs.configure_logs("INFO")
    log = logging.getLogger("assent.participant")
    log.debug("not shown")
    log.info(participants_logs.Lines(["prepare t-1/1: no (a\nforged line)", "commit t-2/1: yes"]))
    log.error("commit t-3/1: %s", "another\rforged line")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    first, second, third, fourth, *trace = capsys.readouterr().err.splitlines()
    for line, said in (
        (first, "INFO assent.participant: prepare t-1/1: no (a\\nforged line)"),
        (second, "INFO assent.participant: commit t-2/1: yes"),
        (third, "ERROR assent.participant: commit t-3/1: another\\rforged line"),
        (fourth, "ERROR assent.participant: failed"),
    ):
        time, head, rest = line[:23], line[23:24], line[24:]
        assert (head, rest) == (" ", said)
        assert datetime.strptime(time, "%Y-%m-%d %H:%M:%S,%f")
    assert trace[-1] == "ValueError: broken"


def test_what_a_participant_says_within_a_moment_is_one_record(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(participants_logs, "WRITE_WITHIN_S", 0.0)

    async def scenario() -> None:
        said = participants_logs.Gathered(logging.getLogger("assent.participant"))
        said.add(["prepare t-1/1: yes"])
        said.add(["prepare t-2/1: yes", "commit t-1/1: committed"])
        assert not caplog.records
        while not caplog.records:  # noqa: ASYNC110
            await asyncio.sleep(0)
        said.add(["commit t-2/1: committed"])
        said.write()
        said.write()

    with caplog.at_level("INFO", logger="assent.participant"):
        asyncio.run(scenario())
    assert [len(record.getMessage().splitlines()) for record in caplog.records] == [3, 1]


# --- where lines go


def pipe() -> tuple[int, TextIO]:
    """A pipe: its end to read from, and a stream that waits where there is no room in it."""
    reads, writes = os.pipe()
    return reads, os.fdopen(writes, "w", encoding="utf-8")


def terminal() -> tuple[int, TextIO]:
    reads, writes = os.openpty()
    return reads, os.fdopen(writes, "w", encoding="utf-8")


def sockets() -> tuple[int, TextIO]:
    reads, writes = socket.socketpair()
    return reads.detach(), os.fdopen(writes.detach(), "w", encoding="utf-8")


def read_all(descriptor: int) -> str:
    """What is there to be read now."""
    os.set_blocking(descriptor, False)
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
    return b"".join(pieces).decode()


def say_much() -> None:
    log = logging.getLogger("coordinator.driver")
    for number in range(10_000):
        log.info("line %d %s", number, "é" * 100)


def within_10_s(work: Callable[[], None]) -> bool:
    """Whether it ended; what waits for ever waits in a thread that keeps nobody else."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    return not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe is opened again under /proc")
@pytest.mark.parametrize("configure", ["node", "participant"])
@pytest.mark.parametrize("output", [pipe, sockets])
def test_a_reader_that_stands_still_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, configure: str, output: Callable[[], tuple[int, TextIO]]
) -> None:
    reads, stream = output()
    monkeypatch.setattr(sys, "stderr", stream)
    if configure == "node":
        configure_logs(LogFormat.TEXT)
    else:
        root = logging.getLogger()
        root.handlers.clear()
        participants_logs.configure_logs("INFO")
    log = logging.getLogger("coordinator.driver")
    assert within_10_s(say_much)
    before = read_all(reads)
    assert "line 0 " in before
    assert "line 9999" not in before
    assert os.get_blocking(stream.fileno())  # whoever shares it has nothing of this
    log.info("the last")
    text = before + read_all(reads)
    lines = text.splitlines()
    assert lines[-1].endswith("the last")
    told = re.fullmatch(r"(\d+) lines were lost here: there was no room for them", lines[-2])
    assert told is not None
    assert int(told[1]) + len(lines) - 2 == 10_000
    assert all("line" in line for line in lines[:-1])
    stream.close()
    os.close(reads)


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal is opened again under /proc")
def test_a_terminal_that_shows_nothing_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, stream = terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logs(LogFormat.TEXT)
    assert within_10_s(say_much)
    assert "line 0 " in read_all(reads)
    stream.close()
    os.close(reads)


def test_a_log_without_standard_error_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    configure_logs(LogFormat.TEXT)
    logging.getLogger("coordinator.driver").info("nobody hears it")
