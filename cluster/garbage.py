"""Python's collection of cyclic garbage, kept from looking at a million transactions.

Reference counts free nearly everything here; only objects that refer to each other in a circle wait
for the collector. It finds them by walking over every container that is alive, while the event loop
stands still. Measured with 100,000 finished transactions (`python -m tests.stalls --plain-gc`): 200
ms for a full collection, which comes whenever the number of containers has grown by a quarter; with
a million it is seconds.

So what has survived a full collection is set aside (`gc.freeze`, a splice of lists) and not looked
at again, and collections are frequent and small. Small matters: after a snapshot was begun a step
of the log copies shards of the table (`coordinator/table.py`), and a collection looks at every
entry of each shard that was copied since the last one. With 40,000 new containers between two
collections one took 90 to 140 ms, with 9,000 up to 50 ms.

What is set aside is still freed by its reference count, so the memory of a forgotten transaction
comes back. The price: a circle that is alive during a full collection, and given up later, is never
found. Transactions leave no circles behind (tests/test_garbage.py holds them to that); connections
and failures may leave a few, and only those under way at such a moment stay.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

THRESHOLDS = (700, 1, 1)
"""More new containers than the first make a collection of the youngest; more of these than the
second one of the middle generation (1,400 containers); more of those than the third a full one
(2,800).
"""

_FULL = 2


@contextmanager
def collected_in_steps() -> Iterator[None]:
    """For the time of a node's life. It is a setting of the process, which has one node."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.collect()  # of nothing: a full collection waits for a quarter of what the last one left
    gc.set_threshold(*THRESHOLDS)
    gc.callbacks.append(_set_aside)
    try:
        yield
    finally:
        gc.callbacks.remove(_set_aside)
        gc.set_threshold(*before)
        gc.unfreeze()


def _set_aside(phase: str, about: Mapping[str, int]) -> None:
    if phase == "stop" and about["generation"] == _FULL:
        gc.freeze()
