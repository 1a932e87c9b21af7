"""coordinator/bodies.py, as connections use it: what is held of bodies, and whose turn it is."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from coordinator import http_connection
from tests.connection_rig import BODIES, LIMIT, Rig, read, run
from tests.test_http_connection import GZIP, post


def test_all_bodies_together_have_a_bound() -> None:
    """Or as many clients as like would have a node hold 16 MiB for each, for half a minute."""

    async def test(rig: Rig) -> None:
        most = BODIES // (LIMIT - 1)
        others = []
        for _ in range(most):
            rig.connection, rig.wire = rig.connect()
            others.append((rig.connection, rig.wire))
            rig.feed(post(b"x" * LIMIT)[:-1])
            assert not rig.answers()
        assert rig.common.bodies.held == most * (LIMIT - 1)
        rig.connection, rig.wire = rig.connect()
        rig.feed(post(b"x" * LIMIT)[:-1])
        (refused,) = rig.answers()
        assert (refused.status, refused.code) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        rig.feed(b"x" + post(b"whole"))  # which is not held
        assert [answer.status for answer in rig.answers()] == [429, 200]
        (_, first), (second, wire) = others[:2]
        first.abort()  # it goes away
        await rig.turn()
        second.data_received(b"x")  # it ends
        assert [answer.status for answer in read(wire.written)] == [200]
        assert rig.common.bodies.held == (most - 2) * (LIMIT - 1)
        rig.feed(post(b"x" * LIMIT)[:-1])
        rig.feed(b"x")
        assert rig.answers()[-1].status == 200

    run(test)


def test_a_packed_body_counts_as_what_it_is_unpacked() -> None:
    async def test(rig: Rig) -> None:
        assert rig.common.bodies.take(BODIES - LIMIT)
        rig.feed(post(gzip.compress(b" " * LIMIT), "/now", GZIP))
        await rig.turn()
        assert [answer.code for answer in rig.answers()] == ["overloaded"]
        rig.common.bodies.give_back(LIMIT)
        rig.feed(post(gzip.compress(b" " * LIMIT), "/now", GZIP))
        await rig.turn()
        assert rig.answers()[-1].status == 200
        rig.common.bodies.give_back(BODIES - 2 * LIMIT)

    run(test)


def test_a_batch_is_held_until_its_answer_and_what_is_smaller_only_until_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(rig: Rig) -> None:
        for size in (100, 101):
            rig.feed(post(b"x" * size, "/later")[:-1])
            rig.feed(b"x")
            assert rig.common.bodies.held == (101 if size == 101 else 0)
            rig.api.go_on()
            await rig.turn()
            assert rig.answers()[-1].status == 200
            assert rig.common.bodies.held == 0

    monkeypatch.setattr(http_connection, "BATCH_BYTES", 100)
    run(test)


@pytest.mark.parametrize(("packed", "together"), [(True, True), (True, False), (False, False)])
def test_of_packed_and_large_bodies_one_is_looked_at_in_a_turn(
    monkeypatch: pytest.MonkeyPatch, *, packed: bool, together: bool
) -> None:
    """Whether they come over one connection or many. Large ones over one do not come at once."""

    async def test(rig: Rig) -> None:
        body = b"x" * 101
        request = post(gzip.compress(body), "/now", GZIP) if packed else post(body)
        for _ in range(5):
            if not together:
                rig.connection, rig.wire = rig.connect()
            rig.feed(request[:-1])
            rig.feed(request[-1:])
        asked = []
        while len(rig.api.asked) < 5:
            before = len(rig.api.asked)
            await asyncio.sleep(0)
            asked.append(len(rig.api.asked) - before)
            assert len(asked) < 100
        assert max(asked) == 1

    monkeypatch.setattr(http_connection, "LARGE_BYTES", 100)
    run(test)


def test_a_client_that_goes_away_before_its_body_s_turn_is_not_served() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(gzip.compress(b"x"), "/now", GZIP))
        rig.wire.abort()
        await rig.turn()
        assert not rig.api.asked

    run(test)
