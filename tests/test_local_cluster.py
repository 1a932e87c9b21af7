"""A cluster of real processes on this machine: started, hurt, stopped, started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client
from cluster.local import cluster as local_cluster
from cluster.local.child_process import ChildProcess
from cluster.local.cluster import SERVICES, LocalCluster, LocalClusterError
from cluster.local.directory import take_lock
from cluster.local.ports import PortBusyError, free_ports, ports_at, refuse_busy
from cluster.local.sample_order import order
from cluster.settings import load_settings
from tests.cluster_rig import check, new_id
from tests.recording import Recording

PROJECT = Path(__file__).parent.parent


def exists(pid: int) -> bool:
    """Whether the process is there and has not ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


# --- processes ------------------------------------------------------------------------------------


def sleeper(path: Path) -> ChildProcess:
    return ChildProcess("sleeper", [sys.executable, "-c", "import time; time.sleep(600)"], path)


def test_a_child_is_killed_stopped_and_started_again(tmp_path: Path) -> None:
    async def test() -> None:
        child = sleeper(tmp_path / "log")
        assert (child.pid, child.running, child.exit_code) == (None, False, None)
        child.start()
        first = child.pid
        assert first is not None
        child.signal(signal.SIGSTOP)
        assert child.running
        child.signal(signal.SIGCONT)
        child.signal(signal.SIGKILL)
        assert await child.ended(10)
        assert child.exit_code == -signal.SIGKILL
        assert not exists(first)
        child.start()
        assert child.pid != first
        child.signal(signal.SIGTERM)
        assert await child.ended(10)

    asyncio.run(test())


def test_what_a_child_says_is_kept(tmp_path: Path) -> None:
    async def test() -> None:
        child = ChildProcess("talker", [sys.executable, "-c", "print('a\\nb')"], tmp_path / "log")
        child.start()
        assert await child.ended(10)
        child.start()
        assert await child.ended(10)
        assert child.last_lines(3) == "b\na\nb"

    asyncio.run(test())


def test_what_a_child_says_is_bounded(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "print('before ' * 1_000, flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\n"
        "print('after', flush=True)\n"
    )

    async def test() -> None:
        log, go_on = tmp_path / "log", tmp_path / "go on"
        child = ChildProcess("talker", [sys.executable, "-c", program, str(go_on)], log)
        child.start()
        wait_until(lambda: log.stat().st_size == 7_001)
        child.bound_log(7_001)
        assert not (tmp_path / "log.old").exists()
        child.bound_log(7_000)
        assert log.read_bytes() == b""
        go_on.touch()
        assert await child.ended(10)
        assert log.read_text() == "after\n"
        assert (tmp_path / "log.old").read_text().startswith("before")

    asyncio.run(test())


def test_a_local_cluster_bounds_the_logs_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_cluster, "_LOG_BYTES", 10)
    local = LocalCluster(tmp_path, nodes=1, find_ports=True, services=("activity",))

    async def test() -> None:
        async with local:
            local.bound_logs()
            assert {path.stem for path in (tmp_path / "logs").glob("*.old")} == {"n1", "activity"}

    asyncio.run(test())


def test_a_service_is_ready_however_much_it_has_to_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first page counts all that ended in seven days: with four million branches that took
    longer than the answer is waited for, and the cluster did not start again."""
    asked: list[str] = []
    ask = local_cluster._ask

    async def noted(session: Any, url: str, *more: Any, **named: Any) -> tuple[int | None, Any]:
        asked.append(url)
        return await ask(session, url, *more, **named)

    monkeypatch.setattr(local_cluster, "_ask", noted)
    local = LocalCluster(tmp_path, nodes=1, find_ports=True, services=("activity",))

    async def test() -> None:
        async with local:
            assert f"{local.url('activity')}/healthz" in asked
            assert f"{local.url('activity')}/" not in asked

    asyncio.run(test())


@pytest.mark.skipif(sys.platform != "linux", reason="the wish to die with the parent is Linux's")
def test_children_do_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cluster.local.child_process import ChildProcess\n"
        "child = ChildProcess('c', [sys.executable, '-c',"
        " \"print('up', flush=True); import time; time.sleep(600)\"], Path(sys.argv[1]))\n"
        "child.start()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(log)], stdout=subprocess.PIPE, cwd=PROJECT
    )
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    wait_until(lambda: log.exists() and "up" in log.read_text())
    assert exists(pid)
    parent.kill()
    parent.wait()
    wait_until(lambda: not exists(pid))


# --- before anything runs -------------------------------------------------------------------------


def refused(local: LocalCluster, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        asyncio.run(local.up())
    return str(caught.value)


def test_a_busy_port_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    base = free_base_port()
    port = base + 202
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        said = refused(LocalCluster(tmp_path, base_port=base), PortBusyError)
    assert said.startswith(f"port {port} (inventory service) is in use")
    assert not (tmp_path / "cluster.toml").exists()


def test_free_ports_are_free_and_differ() -> None:
    ports = free_ports(("n1", "n2", "n3"), ("profile",))
    refuse_busy(ports)
    numbers = [port for _, port in ports]
    assert len(set(numbers)) == len(numbers) == 7


def free_base_port() -> int:
    for base in range(11_000, 30_000, 300):
        try:
            refuse_busy(ports_at(base, ("n1", "n2", "n3"), SERVICES))
        except PortBusyError:
            continue
        return base
    raise AssertionError("no free range of ports")


class Prepared(LocalCluster):
    """Everything that `up` does before it starts a process."""

    async def up(self) -> None:
        self._lock = take_lock(self.data_dir)
        self._prepare()


def prepared(directory: Path, **options: Any) -> LocalCluster:
    local = Prepared(directory, **options)
    asyncio.run(local.up())
    return local


def test_a_directory_has_one_owner_at_a_time(tmp_path: Path) -> None:
    local = prepared(tmp_path, find_ports=True)
    said = refused(LocalCluster(tmp_path), LocalClusterError)
    assert "is in use by another `assent up`" in said
    assert str(os.getpid()) in said
    asyncio.run(local.down())
    asyncio.run(prepared(tmp_path).down())


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = refused(LocalCluster(tmp_path / "file"), LocalClusterError)
    assert said == f"cannot use {tmp_path / 'file'}: File exists"


def test_the_number_of_nodes_of_a_directory_is_kept(tmp_path: Path) -> None:
    asyncio.run(prepared(tmp_path, nodes=5, find_ports=True).down())
    assert len(load_settings(tmp_path / "cluster.toml").nodes) == 5
    said = refused(LocalCluster(tmp_path, nodes=3), LocalClusterError)
    assert "holds a cluster of 5 nodes, not 3" in said
    asyncio.run(prepared(tmp_path).down())


def test_name_and_ports_and_what_people_wrote_are_kept_and_ports_can_be_moved(
    tmp_path: Path,
) -> None:
    first = prepared(tmp_path, find_ports=True, settings="[limits]\nbranches = 7\n")
    asyncio.run(first.down())
    again = prepared(tmp_path)
    asyncio.run(again.down())
    assert again.settings == first.settings
    assert again.url("inventory") == first.url("inventory")

    base = free_base_port()
    moved = prepared(tmp_path, base_port=base)
    asyncio.run(moved.down())
    assert moved.settings.name == first.settings.name
    assert moved.settings.limits.branches == 7
    assert [node.api.port for node in moved.settings.nodes] == [base + 1, base + 2, base + 3]
    assert [node.raft.port for node in moved.settings.nodes] == [base + 101, base + 102, base + 103]
    assert moved.url("activity") == f"http://127.0.0.1:{base + 203}"
    last = prepared(tmp_path)
    asyncio.run(last.down())
    assert last.settings == moved.settings


def test_two_new_clusters_have_two_names(tmp_path: Path) -> None:
    names = set()
    for directory in ("a", "b"):
        local = prepared(tmp_path / directory, find_ports=True)
        asyncio.run(local.down())
        names.add(local.settings.name)
    assert len(names) == 2


# --- real nodes and services ----------------------------------------------------------------------


def with_cluster(
    directory: Path, test: Callable[[LocalCluster, Client], Awaitable[None]]
) -> LocalCluster:
    """Run `test` with a cluster that is up; it is down afterwards."""
    local = LocalCluster(directory, find_ports=True)

    async def body() -> None:
        async with local, Client(local.node_urls) as client:
            await test(local, client)

    asyncio.run(body())
    return local


async def commit_one(local: LocalCluster, client: Client, user: str, history: Recording) -> None:
    id = new_id()
    history.begun(id)
    answer = await client.submit(order(local.url, user, "A-1", 1), id=id, wait="completion")
    assert answer.committed, answer
    history.told(id, answer.outcome)


def test_a_cluster_survives_what_a_bad_day_does_to_it(tmp_path: Path) -> None:
    history = Recording(SERVICES, tmp_path / "history.jsonl")

    async def bad_day(local: LocalCluster, client: Client) -> None:
        await commit_one(local, client, "ada", history)

        killed = await local.wait_leader()
        pid = local.pid(killed)
        await local.kill(killed)
        assert not exists(pid)
        assert local.exit_code(killed) == -signal.SIGKILL
        await commit_one(local, client, "bob", history)
        assert await local.wait_leader(other_than=killed) != killed
        await local.start(killed)
        assert local.pid(killed) != pid

        stopped = await local.wait_leader()
        local.stop(stopped)
        assert await local.wait_leader(other_than=stopped) != stopped
        await commit_one(local, client, "cy", history)
        local.cont(stopped)
        await local.wait_ready(stopped)

        await local.kill("inventory")
        assert local.ended_unasked() == []
        await local.start("inventory")
        await commit_one(local, client, "dee", history)

        os.kill(local.pid("n1"), signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: not local.running("n1"))
        assert local.ended_unasked() == ["n1"]
        assert local.ended_unasked() == []

    async def next_day(local: LocalCluster, client: Client) -> None:
        for id in history.ids("committed"):
            assert (await client.get(id)).committed
        item = await local.ask("inventory", "/items/A-1")
        assert (item["sold"], item["reserved"]) == (4, 0)
        await check(local, history)
        assert await local.terminate(await local.wait_leader()) == 0

    first = with_cluster(tmp_path, bad_day)
    assert not any(first.running(name) for name in (*first.node_ids, *first.services))
    second = with_cluster(tmp_path, next_day)
    assert second.settings == first.settings


def test_up_from_the_command_line_tells_what_runs_and_stops_cleanly(tmp_path: Path) -> None:
    directory = tmp_path / "fresh"
    asyncio.run(prepared(directory, find_ports=True).down())
    command = [sys.executable, "-m", "cluster", "up", "--json", "--data-dir", str(directory)]
    up = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=PROJECT)
    assert up.stdout is not None
    try:
        line = up.stdout.readline()
        if not line:
            pytest.fail(up.communicate()[1].decode())
        told = json.loads(line)
        assert [node["id"] for node in told["nodes"]] == ["n1", "n2", "n3"]
        assert [service["name"] for service in told["services"]] == [
            "profile",
            "inventory",
            "activity",
        ]
        pids = [entry["pid"] for entry in told["nodes"] + told["services"]]
        assert all(exists(pid) for pid in pids)
        second = subprocess.run(command, capture_output=True, cwd=PROJECT, check=False)
        assert second.returncode == 2
        assert second.stderr.count(b"\n") == 1
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=60)
        assert (up.returncode, errors) == (0, b"")
        assert not any(exists(pid) for pid in pids)
    finally:
        up.kill()
        up.communicate()
