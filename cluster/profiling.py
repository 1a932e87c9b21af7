"""A profile by function of one node, for whoever asks where its time goes.

Where the environment variable ASSENT_PROFILE names a directory, a node that ends in order (SIGTERM)
leaves `ID.pstats` in it, for `python -m pstats` and its like. A profiled node is about half as
fast; without the variable nothing is done and nothing is slower.
"""

from __future__ import annotations

import contextlib
import cProfile
import os
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "ASSENT_PROFILE"


@contextlib.contextmanager
def profiled(name: str) -> Iterator[None]:
    """What is done within, in the file `NAME.pstats`, if that is asked for."""
    directory = os.environ.get(VARIABLE)
    if not directory:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(Path(directory) / f"{name}.pstats")
