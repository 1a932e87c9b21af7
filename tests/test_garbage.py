"""Collections stay small beside a large state, and transactions leave nothing for them."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from cluster.garbage import THRESHOLDS, collected_in_steps
from tests.api_rig import ApiNode, api_node, run

PATH = "/v1/transactions"


class Circle:
    """A container that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_survives_is_not_looked_at_again() -> None:
    state: list[Any] = [[number] for number in range(50_000)]
    with collected_in_steps():
        assert gc.get_threshold() == THRESHOLDS
        assert len(gc.get_objects()) < 10_000, "what is there at the start is set aside"
        state += [[number] for number in range(50_000)]
        assert len(gc.get_objects()) < 10_000, "and so is what came since"
    assert len(gc.get_objects()) > 100_000


def test_circles_that_are_given_up_between_are_still_found() -> None:
    with collected_in_steps():
        circles = [Circle() for _ in range(5)]
        given_up = [weakref.ref(circle) for circle in circles]
        del circles
        kept = [[number] for number in range(20_000)]  # until collections come by themselves
        assert [ref() for ref in given_up] == [None] * 5
        del kept


def test_all_is_as_before_at_the_end() -> None:
    before = gc.get_threshold(), list(gc.callbacks)
    with pytest.raises(KeyError), collected_in_steps():
        raise KeyError
    assert (gc.get_threshold(), gc.callbacks) == before
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    "services", [("yes", "yes"), ("yes", "read_only"), ("yes", "no")], ids=",".join
)
def test_a_transaction_leaves_no_circles_behind(services: tuple[str, ...]) -> None:
    """What is in a circle when a collection comes is set aside with it, and never found again."""

    async def left_by(node: ApiNode, count: int) -> int:
        """How many containers `count` transactions leave to the collector."""
        gc.collect()
        gc.disable()
        try:
            for _ in range(count // 8):
                bodies = [node.body(*services, wait="completion") for _ in range(8)]
                await asyncio.gather(*[node.post(PATH, body) for body in bodies])
            return gc.collect()
        finally:
            gc.enable()

    async def test() -> None:
        async with api_node() as node:
            await left_by(node, 32)  # connections are made, caches filled
            left = await left_by(node, 160)
            assert left < 32, f"160 transactions left {left} containers in circles"

    run(test())
