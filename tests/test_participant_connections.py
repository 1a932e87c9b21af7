"""Who is connected, for how long, and where to."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Mapping

import pytest

from coordinator import participant_connections as module
from coordinator.participant_connection import Connection, NoReply, Origin, target_of
from coordinator.participant_connections import Connections, NoConnection
from coordinator.resolver import Resolver
from tests.stubs import Stub, answer, bound_socket, url_of


def connections(most: int = 100) -> Connections:
    return Connections(Resolver(), most=most)


class Asker:
    def __init__(self) -> None:
        self.told: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

    def replied(self, _status: int, _headers: Mapping[str, str], body: bytes | None) -> None:
        self.told.set_result(body)

    def failed(self, error: NoReply) -> None:
        self.told.set_exception(error)


async def exchange(connection: Connection, url: str) -> None:
    asker = Asker()
    connection.ask(target_of(url), None, b"{}", 100, math.inf, asker)
    assert await asker.told == b"true"


def test_a_connection_is_kept_after_use_the_last_one_first_and_only_for_a_moment() -> None:
    async def scene() -> None:
        every = connections()
        async with Stub(answer(b"true")) as stub:
            origin = target_of(stub.url).origin
            assert every.kept(origin) is None
            first, second = await every.made(origin), await every.made(origin)
            assert every.kept(origin) is None, "it is its maker's until an exchange is over"
            await exchange(first, stub.url)
            await exchange(second, stub.url)
            assert every.kept(origin) is second
            assert every.kept(origin) is first
            assert every.kept(origin) is None
            await exchange(first, stub.url)
            first.idle_since_s -= module.IDLE_S + 0.001
            assert every.kept(origin) is None
            assert not first.is_open
        await every.close()

    asyncio.run(scene())


def test_who_finds_no_place_is_given_the_connection_that_gets_free() -> None:
    async def scene() -> None:
        every = connections(most=4)
        async with Stub(answer(b"true")) as stub:
            origin = target_of(stub.url).origin
            first = await every.made(origin)
            second = asyncio.create_task(every.made(origin))
            third = asyncio.create_task(every.made(origin))
            await asyncio.sleep(0)
            await exchange(first, stub.url)
            assert await second is first
            assert not third.done()
            first.abort()  # the call was given up
            fourth = await third
            assert fourth is not first
            assert stub.connections <= 2
            fourth.abort()
        await every.close()
        assert every._places.taken == 0

    asyncio.run(scene())


def test_who_gives_up_while_it_waits_takes_no_place_with_it() -> None:
    async def scene() -> None:
        every = connections(most=4)
        async with Stub(answer(b"true")) as stub:
            origin = target_of(stub.url).origin
            held = await every.made(origin)
            for gets_free in (False, True):
                waits = asyncio.create_task(every.made(origin))
                await asyncio.sleep(0)
                if gets_free:
                    await exchange(held, stub.url)  # and goes to who waits
                waits.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waits
            assert every.kept(origin) is held
            left = asyncio.create_task(every.made(origin))
            await asyncio.sleep(0)
            held.abort()
            for _ in range(10):
                if every._places.taken == 1 and held not in every._open:
                    break
                await asyncio.sleep(0)
            left.cancel()  # it has been given the place
            with pytest.raises(asyncio.CancelledError):
                await left
            (await every.made(origin)).abort()
        await every.close()
        assert every._places.taken == 0

    asyncio.run(scene())


def test_a_connection_that_nobody_uses_makes_room_for_another_origin() -> None:
    async def scene() -> None:
        every = connections(most=1)
        async with Stub(answer(b"true")) as stub, Stub(answer(b"true")) as other:
            idle = await every.made(target_of(stub.url).origin)
            await exchange(idle, stub.url)
            made = await every.made(target_of(other.url).origin)
            assert not idle.is_open
            await exchange(made, other.url)
        await every.close()

    asyncio.run(scene())


def test_a_connection_that_gets_free_makes_room_for_who_waits_for_another_origin() -> None:
    async def scene() -> None:
        every = connections(most=1)
        async with Stub(answer(b"true")) as stub, Stub(answer(b"true")) as other:
            held = await every.made(target_of(stub.url).origin)
            waits = asyncio.create_task(every.made(target_of(other.url).origin))
            await asyncio.sleep(0)
            await exchange(held, stub.url)
            assert not held.is_open
            await exchange(await waits, other.url)
        await every.close()

    asyncio.run(scene())


def test_what_could_not_be_connected_holds_no_place() -> None:
    async def scene() -> None:
        every = connections(most=1)
        with bound_socket() as held:
            for _ in range(2):
                with pytest.raises(NoConnection, match="no connection"):
                    await every.made(target_of(url_of(held)).origin)
        assert every._places.taken == 0
        await every.close()

    asyncio.run(scene())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_only_so_many_begin_in_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        loop, turns = asyncio.get_running_loop(), [0]

        async def dialed(_: Connections, origin: Origin) -> Connection:
            turns[-1] += 1
            raise NoConnection(origin.host)

        def turn() -> None:
            turns.append(0)
            loop.call_soon(turn)

        monkeypatch.setattr(Connections, "_dialed", dialed)
        every = connections(most=4_000)
        turn()
        origins = [target_of(f"http://127.0.{n // 250}.{n % 250}:1/").origin for n in range(1_000)]
        for _ in range(2):
            tasks = [asyncio.create_task(every.made(origin)) for origin in origins]
            await asyncio.sleep(0)
            for given_up in tasks[500:600]:
                given_up.cancel()
            await asyncio.wait(tasks)
            assert max(turns) == module.DIALS_A_TURN
            assert sum(turns) == 900
            turns[:] = [0]
        lone = asyncio.create_task(every.made(origins[0]))
        await asyncio.sleep(0)
        assert lone.done(), "who is alone waits for nothing"
        await asyncio.wait([lone])
        lone.exception()

    asyncio.run(scene())


def test_the_kernel_notices_a_machine_that_is_gone() -> None:
    async def scene() -> None:
        every = connections()
        async with Stub(answer(b"true")) as stub:
            connection = await every.made(target_of(stub.url).origin)
            assert connection.transport is not None
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            given = [
                sock.getsockopt(socket.IPPROTO_TCP, option)
                for option in (
                    socket.TCP_KEEPIDLE,
                    socket.TCP_KEEPINTVL,
                    socket.TCP_KEEPCNT,
                    socket.TCP_USER_TIMEOUT,
                )
            ]
            assert given == [10, 5, 4, 30_000]
        await every.close()

    asyncio.run(scene())


def test_what_nobody_uses_is_closed_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)
    free = Connections._free

    async def scene() -> None:
        every = connections()
        lost: set[Connection] = set()
        ended = asyncio.Event()

        def freed(self: Connections, connection: Connection) -> None:
            free(self, connection)
            if not connection.is_open:
                lost.add(connection)
            if len(lost) == 3:
                ended.set()

        monkeypatch.setattr(Connections, "_free", freed)
        async with Stub(answer(b"true")) as stub:
            for _ in range(3):
                await exchange(await every.made(target_of(stub.url).origin), stub.url)
            async with asyncio.timeout(10):
                await ended.wait()
            assert every._idle == {}
        await every.close()

    asyncio.run(scene())


def test_what_was_used_a_moment_ago_is_closed_by_a_later_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.01)

    async def scene() -> None:
        every = connections()
        async with Stub(answer(b"true")) as stub:
            connection = await every.made(target_of(stub.url).origin)
            await exchange(connection, stub.url)
            connection.idle_since_s += 0.05  # at the first look it is not idle for long enough
            async with asyncio.timeout(10):
                while every._open:  # noqa: ASYNC110 - looks from outside; nothing tells
                    await asyncio.sleep(0)
        assert every._idle == {}
        await every.close()

    asyncio.run(scene())


def test_what_is_closed_keeps_nothing_more() -> None:
    async def scene() -> None:
        every = connections()
        async with Stub(answer(b"true")) as stub:
            connection = await every.made(target_of(stub.url).origin)
            idle = await every.made(target_of(stub.url).origin)
            await exchange(idle, stub.url)
            await every.close()
            assert not idle.is_open
            assert not connection.is_open
            assert every._open == {}

    asyncio.run(scene())


def test_why_there_is_no_connection_is_told_in_words() -> None:
    async def scene() -> None:
        every = connections()
        with bound_socket() as held:
            refused = target_of(url_of(held)).origin
            with pytest.raises(NoConnection, match="no connection"):
                await every.made(refused)
            with pytest.raises(NoConnection, match=r"'participant\.invalid' cannot be resolved"):
                await every.made(Origin("participant.invalid", 80, False))
        await every.close()

    asyncio.run(scene())
