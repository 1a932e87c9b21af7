"""Transactions leave nothing to Python's collector of garbage, so it has next to nothing to do."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tests.api_rig import ApiNode, api_node, run

PATH = "/v1/transactions"


@pytest.mark.parametrize(
    "services", [("yes", "yes"), ("yes", "read_only"), ("yes", "no")], ids=",".join
)
def test_a_transaction_leaves_no_circles_behind(services: tuple[str, ...]) -> None:
    """What is in circles waits for a collection, which the loop stands still for."""

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
