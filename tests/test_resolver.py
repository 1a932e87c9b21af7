"""Where names lead, and which of them wait for whom."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable

import pytest

from coordinator import resolver
from coordinator.resolver import Address, Resolver


class Names:
    """Plays the name servers: names with `silent` in them are answered when `speak` is set."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.speak = threading.Event()

    def look_up(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        if "silent" in host:
            self.speak.wait(30)
        if "unknown" in host:
            raise socket.gaierror(socket.EAI_AGAIN, "not now")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("192.0.2.1", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(resolver, "_addresses", names.look_up)
    return names


def play(scene: Callable[[Resolver], Awaitable[None]], names: Names) -> None:
    async def whole() -> None:
        looks_up = Resolver()
        try:
            async with asyncio.timeout(20):
                await scene(looks_up)
        finally:
            names.speak.set()
            await looks_up.close()

    asyncio.run(whole())


def test_a_name_is_looked_up_once_for_all_who_ask_at_a_time_and_again_after_a_while(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(resolves: Resolver) -> None:
        both = asyncio.gather(resolves.addresses("silent", 80), resolves.addresses("silent", 80))
        await asyncio.sleep(0)
        names.speak.set()
        first, second = await both
        assert first == second == await resolves.addresses("silent", 80)
        assert names.asked == ["silent"]
        await resolves.addresses("b.example", 80)
        monkeypatch.setattr(resolver, "_REMEMBERED_S", 0.0)
        await resolves.addresses("silent", 80)
        assert names.asked == ["silent", "b.example", "silent"]

    play(scene, names)


def test_who_gives_up_waiting_for_a_name_takes_it_from_nobody_else(names: Names) -> None:
    async def scene(resolves: Resolver) -> None:
        impatient, patient = (
            asyncio.create_task(resolves.addresses("silent", 80)) for _ in range(2)
        )
        await asyncio.sleep(0)
        impatient.cancel()
        await asyncio.wait([impatient])
        names.speak.set()
        assert (await patient)[0][4] == ("192.0.2.1", 80)

    play(scene, names)


def test_a_name_that_was_not_found_is_asked_for_again(names: Names) -> None:
    async def scene(resolves: Resolver) -> None:
        for _ in range(2):
            with pytest.raises(OSError, match="not now"):
                await resolves.addresses("unknown", 80)
        assert len(names.asked) == 2
        assert resolves._lookups == {}

    play(scene, names)


def test_a_name_that_the_system_gave_no_thread_for_is_asked_for_again(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def scene(resolves: Resolver) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_more)
            for number in range(resolver._THREADS + 1):
                with pytest.raises(OSError, match="no thread"):
                    await resolves.addresses(f"b{number % 2}.example", 80)
        assert await resolves.addresses("b0.example", 80)

    play(scene, names)


def test_an_address_is_not_looked_up(names: Names) -> None:
    async def scene(resolves: Resolver) -> None:
        assert (await resolves.addresses("127.0.0.1", 80))[0][4] == ("127.0.0.1", 80)
        assert (await resolves.addresses("::1", 81))[0][4] == ("::1", 81, 0, 0)
        assert names.asked == []

    play(scene, names)


def test_however_many_strange_names_are_silent_names_in_use_are_looked_up(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "_REMEMBERED_S", 0.0)

    async def scene(resolves: Resolver) -> None:
        await resolves.addresses("in-use", 80)
        silent = [
            asyncio.create_task(resolves.addresses(f"silent{number}", 80)) for number in range(256)
        ]
        await asyncio.sleep(0)
        for _ in range(5):
            await resolves.addresses("in-use", 80)
        assert names.asked.count("in-use") == 6
        assert resolves._threads == resolves._threads_for_strangers == 32
        names.speak.set()
        await asyncio.gather(*silent)
        assert (resolves._threads, resolves._threads_for_strangers) == (0, 0)

    play(scene, names)


def test_what_nobody_waits_for_any_more_is_never_looked_up(names: Names) -> None:
    async def scene(resolves: Resolver) -> None:
        silent = [
            asyncio.create_task(resolves.addresses(f"silent{number}", 80)) for number in range(256)
        ]
        strange = asyncio.create_task(resolves.addresses("strange", 80))
        await asyncio.sleep(0)
        for each in silent:
            each.cancel()
        await asyncio.wait(silent)
        assert len(resolves._lookups) == 32 + 1
        names.speak.set()
        await strange
        assert set(names.asked) <= {"strange", *[f"silent{number}" for number in range(32)]}

    play(scene, names)


def test_only_so_much_is_remembered(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "_MOST_REMEMBERED", 3)

    async def scene(resolves: Resolver) -> None:
        waits = asyncio.create_task(resolves.addresses("silent", 80))
        await asyncio.sleep(0)
        for number in range(10):
            await resolves.addresses(f"name{number}", 80)
            assert len(resolves._lookups) <= 3
            assert len(resolves._were_found) <= 3
            assert ("silent", 80) in resolves._lookups, "somebody waits for it"
        names.speak.set()
        await waits

    play(scene, names)


def test_the_process_ends_without_waiting_for_a_name_server() -> None:
    program = """
import asyncio, time
from coordinator import resolver
resolver._addresses = lambda host, port: time.sleep(600)
async def main():
    resolves = resolver.Resolver()
    asks = asyncio.create_task(resolves.addresses("silent", 80))
    await asyncio.sleep(0)
    assert resolves._threads == 1
    await resolves.close()
    await asyncio.wait([asks])
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == 0
