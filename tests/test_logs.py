"""Log lines for people and for machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from cluster.logs import LogFormat, configure_logs


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_what_a_message_carries_is_shown_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogFormat.TEXT, node="n1")
    log = logging.getLogger("coordinator.driver")
    log.info("decided %s", "commit", extra={"transaction_id": "t-1", "attempt": 2})
    log.debug("not shown")
    log.warning("first\nsecond \x1b[31m\u2028\ud800 é")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        "Z INFO  n1 coordinator.driver: decided commit  transaction_id=t-1 attempt=2"
    )
    assert second.endswith("coordinator.driver: first\\nsecond \\x1b[31m\\u2028\\ud800 é")


def test_a_machine_reads_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(LogFormat.JSON, "WARNING", node="n1")
    log = logging.getLogger("coordinator.driver")
    log.info("not shown")
    log.warning("first\nsecond", extra={"transaction_id": "t-1", "what": object})
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (first["message"], first["transaction_id"]) == ("first\nsecond", "t-1")
    assert (first["level"], first["node"], first["logger"]) == (
        "WARNING",
        "n1",
        "coordinator.driver",
    )
    assert first["time"].endswith("Z")
    assert "ValueError: broken" in second["trace"]
