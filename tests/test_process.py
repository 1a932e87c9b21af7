"""What every process that serves does at its start."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from cluster.bench import load
from cluster.node import run_node
from cluster.settings import parse_settings
from cluster.storage.directory import Identity, open_directory
from cluster.storage.disk import PosixDisk
from cluster.storage.journal import Journal
from coordinator import api_http
from participants import __main__ as participants_main
from participants import event_loop, process

PROGRAM = """
import gc, json, resource, sys
from participants import event_loop, process
files = resource.RLIMIT_NOFILE
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(files, (soft, hard))
process.prepare_to_serve()
print(json.dumps([*resource.getrlimit(files), gc.get_threshold()[0], gc.get_freeze_count() > 0]))
"""
SETTINGS = '[nodes.n1]\napi = "127.0.0.1:1"\nraft = "127.0.0.1:2"\n'


def started_with(soft: int, hard: int) -> tuple[list[int], str]:
    """What a process has after its start with these limits, and what it said."""
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(ended.stdout), ended.stderr


def test_as_many_files_may_be_open_as_the_hard_limit_allows_and_garbage_is_looked_for_seldom() -> (
    None
):
    has, said = started_with(256, process.FEW_FILES)
    assert has == [process.FEW_FILES, process.FEW_FILES, 50_000, True]
    assert said == ""


def test_a_low_hard_limit_is_one_line_of_warning() -> None:
    has, said = started_with(256, 1_024)
    assert has[:2] == [1_024, 1_024]
    assert said.count("\n") == 1
    assert said.startswith("1024 open files are allowed")


@pytest.mark.parametrize(("soft", "wanted"), [(256, 10_240), (20_000, 20_000)])
def test_where_there_is_no_hard_limit_the_soft_one_is_raised_and_never_lowered(
    soft: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = resource.RLIM_INFINITY
    limits = [(soft, unlimited)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    process.allow_many_connections()
    assert limits[-1] == (wanted, unlimited)


class Serves(Exception):
    """Raised in the place of the event loop."""


def a_node(directory: Path) -> None:
    run_node(parse_settings(SETTINGS), "n1", data_dir=directory, bootstrap=True, fsync=False)


def participants(_: Path) -> None:
    participants_main.main(["simulated", "--port", "0"])


def the_load_of_a_measurement(_: Path) -> None:
    load.main()


@pytest.mark.parametrize("start", [a_node, participants, the_load_of_a_measurement])
def test_every_process_that_serves_does_it_before_it_serves(
    start: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(main: Coroutine[Any, Any, Any]) -> None:
        main.close()
        raise Serves

    prepared: list[str] = []
    monkeypatch.setattr(process, "prepare_to_serve", lambda: prepared.append("once"))
    monkeypatch.setattr(event_loop, "run", run)
    monkeypatch.setattr(sys, "stdin", StringIO('{"nodes": [], "participants": []}\n'))
    with pytest.raises(Serves):
        start(tmp_path)
    assert prepared == ["once"]


def test_a_node_whose_host_has_no_address_says_which_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def listen(_: api_http.Server, host: str, port: int) -> NoReturn:
        assert (host, port) == ("nowhere", 1)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(process, "prepare_to_serve", lambda: None)
    monkeypatch.setattr(api_http.Server, "listen", listen)
    settings = parse_settings(SETTINGS.replace("127.0.0.1:1", "nowhere:1"))
    assert run_node(settings, "n1", data_dir=tmp_path, bootstrap=True, fsync=False) == 2
    said = capsys.readouterr().err
    assert "n1: the API cannot listen on nowhere:1: Name or service not known; give api" in said


def test_a_node_whose_snapshot_is_missing_refuses_to_start_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = PosixDisk()
    identity = Identity("assent", "n1", ("n1",))
    open_directory(tmp_path, identity, bootstrap=True, disk=disk, random=Random(1)).close()
    journal = Journal.open(tmp_path / "journal", cluster="assent", node="n1", disk=disk)
    journal.reset([(b"", 11, 1), (b"", 12, 1)])
    journal.close()

    async def listen(*_: object) -> NoReturn:
        raise AssertionError("its API is open")

    monkeypatch.setattr(process, "prepare_to_serve", lambda: None)
    monkeypatch.setattr(api_http.Server, "listen", listen)
    settings = parse_settings(SETTINGS)
    assert run_node(settings, "n1", data_dir=tmp_path, bootstrap=False, fsync=False) == 2
    said = capsys.readouterr().err
    snapshot = tmp_path / "snapshots" / "snapshot"
    assert (
        f"{snapshot} is damaged at byte 0: it is missing, and the journal begins at entry 11"
        in said
    )
    assert "Keep this directory aside" in said
