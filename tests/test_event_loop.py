"""uvloop where it is installed and nobody says otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cluster.node import run_node
from cluster.settings import parse_settings
from participants import __main__ as participants_main
from participants import event_loop, process
from participants.event_loop import NoSuchLoop

SETTINGS = """
[nodes.n1]
api = "127.0.0.1:8101"
raft = "127.0.0.1:7101"
"""


async def module_of_the_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.split(".", maxsplit=1)[0]


@pytest.mark.parametrize(("wanted", "found"), [("", "uvloop"), ("asyncio", "asyncio")])
def test_uvloop_is_used_unless_asyncio_is_asked_for(
    wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, wanted)
    assert event_loop.run(module_of_the_loop()) == found


def test_without_uvloop_asyncio_serves_and_insisting_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uvloop", None)
    monkeypatch.delenv(event_loop.VARIABLE, raising=False)
    assert event_loop.run(module_of_the_loop()) == "asyncio"
    monkeypatch.setenv(event_loop.VARIABLE, "uvloop")
    with pytest.raises(NoSuchLoop, match="uvloop is not installed"):
        event_loop.run(module_of_the_loop())


def test_another_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, "trio")
    with pytest.raises(NoSuchLoop, match="'trio' is neither asyncio nor uvloop"):
        event_loop.run(module_of_the_loop())


@pytest.mark.parametrize("program", ["node", "participants"])
def test_another_word_is_one_line_and_exit_code_2(
    program: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv(event_loop.VARIABLE, "trio")
    monkeypatch.setattr(process, "prepare_to_serve", lambda: None)
    if program == "node":
        settings = parse_settings(SETTINGS)
        code = run_node(settings, "n1", data_dir=tmp_path, bootstrap=True, fsync=False)
    else:
        monkeypatch.setattr(participants_main, "configure_logs", lambda _: None)
        code = participants_main.main(["simulated", "--port", "0"])
    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1
