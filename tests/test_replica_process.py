"""Replicas as processes, killed -9 under load: nothing that was acknowledged is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from cluster.local.ports import free_ports
from tests.test_replica import run, until

KILLS = 4
PROJECT = Path(__file__).parent.parent


class Processes:
    """Three processes, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = dict(free_ports(("n1", "n2", "n3"), ()).raft)
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.readers: list[asyncio.Task[None]] = []
        self.starts = 0
        self.leader: tuple[int, str] = (0, "")
        self.told: list[str] = []
        self.lines: dict[str, list[str]] = {}

    async def start(self, name: str) -> None:
        self.starts += 1
        settings = {
            "node": name,
            "ports": self.ports,
            "directory": str(self.directory / name),
            "start": self.starts,
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.replica_process", json.dumps(settings)),
            cwd=PROJECT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        self.running[name] = process
        self.readers.append(asyncio.create_task(self._read(name, process)))

    async def _read(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line.endswith(b"\n"):
                self._heard(name, json.loads(line))

    def _heard(self, name: str, words: list[Any]) -> None:
        match words:
            case ["leads", epoch]:
                self.leader = max(self.leader, (epoch, name))
            case ["told", text]:
                self.told.append(text)
            case ["lines", lines]:
                self.lines[name] = lines

    def ask(self, what: str) -> None:
        for process in self.running.values():
            assert process.stdin is not None
            process.stdin.write(f"{what}\n".encode())

    async def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        assert await process.wait() == -signal.SIGKILL

    async def more_is_told(self) -> None:
        before = len(self.told)
        await until(lambda: len(self.told) > before + 150)

    async def end(self) -> None:
        for process in self.running.values():
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
        for process in self.running.values():
            await process.wait()
        await asyncio.gather(*self.readers)


def test_kill_9_and_pauses_lose_nothing_acknowledged(tmp_path: Path) -> None:
    async def scenario() -> None:
        processes = Processes(tmp_path)
        try:
            for name in processes.ports:
                (tmp_path / name).mkdir()
                await processes.start(name)
            await processes.more_is_told()
            for _ in range(KILLS):
                epoch, leader = processes.leader
                await processes.kill(leader)
                await until(lambda epoch=epoch: processes.leader[0] > epoch)  # type: ignore[misc]
                await processes.start(leader)
                await processes.more_is_told()
            await pause_the_leader(processes)
            for name in processes.ports:
                await processes.kill(name)
            for name in processes.ports:
                await processes.start(name)
            await processes.more_is_told()
            await agree(processes)
        finally:
            await processes.end()

    async def pause_the_leader(processes: Processes) -> None:
        """SIGSTOP: it believes that it leads when it goes on, and may say nothing untrue."""
        epoch, leader = processes.leader
        paused = processes.running[leader]
        paused.send_signal(signal.SIGSTOP)
        await until(lambda: processes.leader[0] > epoch)
        await processes.more_is_told()
        paused.send_signal(signal.SIGCONT)
        await processes.more_is_told()

    async def agree(processes: Processes) -> None:
        processes.ask("quiet")
        while True:
            processes.lines.clear()
            told = set(processes.told)
            processes.ask("lines")
            await until(lambda: len(processes.lines) == 3)
            first, *others = processes.lines.values()
            longest: list[str] = max(processes.lines.values(), key=len)
            assert told <= set(longest), f"of {len(told)} told are lost: {told - set(longest)}"
            if all(lines == first for lines in others):
                assert len(first) == len(set(first)), "a line was applied twice"
                return
            await asyncio.sleep(0.1)

    run(scenario())
