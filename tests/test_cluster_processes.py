"""The life of a node's process: what it refuses to start on, how it says so, and how it catches up.

What a person did wrong is one line on standard error and exit code 2.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.client import Client
from cluster.local.cluster import LocalCluster
from cluster.local.sample_order import order
from tests.bare_http import http_once
from tests.cluster_rig import all_ready, check, eventually, load, new_id
from tests.recording import Recording

pytestmark = pytest.mark.timeout(180)

PROJECT = Path(__file__).parent.parent
_SNAPSHOT_EVERY = 20


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    made = LocalCluster(
        tmp_path_factory.mktemp("processes"),
        find_ports=True,
        settings=f"[log]\nsnapshot_every = {_SNAPSHOT_EVERY}\n",
    )
    asyncio.run(made.up())
    try:
        yield made
    finally:
        asyncio.run(made.down())


def mistake(command: Sequence[str]) -> str:
    """The one line that the command says, and exit code 2."""
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=60, check=False)
    said = ended.stderr.decode()
    assert (ended.returncode, ended.stdout) == (2, b""), said
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def bootstrapped_anew(command: Sequence[str]) -> str:
    """What the node says that ends with exit code 2."""
    again = [*command, "--bootstrap"]
    ended = subprocess.run(again, cwd=PROJECT, capture_output=True, timeout=60, check=False)
    said = ended.stderr.decode()
    assert ended.returncode == 2, said
    assert "Traceback" not in said
    return said


def test_a_node_that_lags_catches_up_from_a_snapshot(local: LocalCluster) -> None:
    """What it lacks is in no journal any more when it comes back."""

    async def scenario() -> None:
        history = Recording(local.services, local.data_dir / "history.jsonl")
        leader = await all_ready(local)
        lagging = next(node for node in local.node_ids if node != leader)
        await local.kill(lagging)
        async with load(local, history) as orders:
            await orders.more(300)
        assert orders.failures == []
        await local.start(lagging)

        async def has_installed() -> bool:
            return "installed the leader's snapshot" in local.log(lagging).read_text()

        await eventually(has_installed, f"{lagging} installs a snapshot")
        await check(local, history)
        # And what it caught up with is on its disk: it comes back with it, by itself.
        await asyncio.gather(*(local.kill(node) for node in local.node_ids))
        await local.start(lagging, wait=False)
        id = next(iter(history.ids("committed")))
        url = f"{local.url(lagging)}/v1/transactions/{id}?stale=true"

        async def knows() -> bool:
            try:
                answer = await asyncio.to_thread(http_once, "GET", url)
            except OSError:
                return False
            return answer.status == 200 and answer.body["outcome"] == "committed"

        await eventually(knows, f"{lagging} alone knows what was committed")
        lonely = await asyncio.to_thread(http_once, "GET", url.removesuffix("?stale=true"))
        assert lonely.status == 503  # what it says to be current it cannot know alone
        await all_ready(local)

    asyncio.run(scenario())


def test_a_wiped_node_does_not_come_back_under_its_old_id(local: LocalCluster) -> None:
    async def scenario() -> None:
        await all_ready(local)
        wiped = local.node_ids[-1]
        await local.kill(wiped)
        directory, aside = local.data_dir / wiped, local.data_dir / "aside"
        directory.rename(aside)
        said = await asyncio.to_thread(mistake, local.command(wiped))
        assert f"{directory} is empty" in said
        assert "must not come back under its old id" in said
        said = await asyncio.to_thread(bootstrapped_anew, local.command(wiped))
        assert f"knows {wiped} by another data directory than this new one" in said
        assert "must not come back under its old id" in said
        async with Client(local.node_urls) as client:
            answer = await client.submit(order(local.url, new_id(), "A-1", 1))
            assert answer.committed
        if directory.exists():
            shutil.rmtree(directory)
        aside.rename(directory)
        await local.start(wiped)

    asyncio.run(scenario())


def test_a_second_process_on_the_same_directory_is_refused(local: LocalCluster) -> None:
    async def scenario() -> None:
        await all_ready(local)
        node = local.node_ids[0]
        said = await asyncio.to_thread(mistake, local.command(node))
        assert str(local.data_dir / node) in said
        assert "process" in said
        assert local.running(node)
        await local.wait_ready(node)

    asyncio.run(scenario())


def test_a_directory_of_another_node_is_refused(local: LocalCluster) -> None:
    async def scenario() -> None:
        await all_ready(local)
        one, two = local.node_ids[:2]
        await local.kill(one)
        await local.kill(two)
        command = [str(argument) for argument in local.command(two)]
        command[command.index(two)] = one
        said = await asyncio.to_thread(mistake, command)
        assert f"belongs to node {two}" in said
        await all_ready(local)

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["api", "raft"])
def test_a_busy_port_of_a_node_is_one_line(local: LocalCluster, what: str) -> None:
    async def scenario() -> None:
        await all_ready(local)
        node = local.node_ids[0]
        address = getattr(local.settings.node(node), what)
        await local.kill(node)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen()
            said = await asyncio.to_thread(last_line, local.command(node))
            assert str(address.port) in said
            assert "stop the program that listens there" in said
        await all_ready(local)

    asyncio.run(scenario())


def last_line(command: Sequence[str]) -> str:
    """Of a node that wrote its log before it met the mistake: the last line tells it."""
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=60, check=False)
    said = ended.stderr.decode()
    assert ended.returncode == 2, said
    assert "Traceback" not in said, said
    return said.strip().splitlines()[-1]


def test_a_busy_port_of_up_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        directory = tmp_path / "never"
        up = [sys.executable, "-m", "cluster", "up", "--base-port", str(port - 1)]
        said = mistake([*up, "--data-dir", str(directory)])
    assert f"port {port} (API of n1) is in use" in said
    assert not directory.exists()


def test_a_cluster_that_does_not_sync_works_and_survives_kill_9(tmp_path: Path) -> None:
    local = LocalCluster(tmp_path, find_ports=True, fsync=False)

    async def scenario() -> None:
        history = Recording(local.services, local.data_dir / "history.jsonl")
        async with local:
            assert all("--no-fsync" in local.command(node) for node in local.node_ids)
            async with load(local, history) as orders:
                await orders.more(50)
                await asyncio.gather(*(local.kill(node) for node in local.node_ids))
                await asyncio.gather(*(local.start(node) for node in local.node_ids))
                await orders.more(20)
            assert orders.failures == []
            await check(local, history)

    asyncio.run(scenario())


def test_a_single_node_keeps_what_it_promised_and_says_that_one_is_few(tmp_path: Path) -> None:
    local = LocalCluster(tmp_path, nodes=1, find_ports=True, settings="[log]\nsnapshot_every = 5\n")

    async def scenario() -> None:
        history = Recording(local.services, local.data_dir / "history.jsonl")
        async with local:
            async with load(local, history, submitters=4) as orders:
                await orders.more(30)
                await local.kill("n1")
                await local.start("n1")
                await orders.more(30)
                assert await local.terminate("n1") == 0
                await local.start("n1")
                await orders.more(10)
            assert orders.failures == []
            await check(local, history)
            assert "one node survives no failure" in local.log("n1").read_text()
            cluster = await local.ask("n1", "/v1/cluster")
            assert (cluster["leader"], len(cluster["nodes"])) == ("n1", 1)

    asyncio.run(scenario())
