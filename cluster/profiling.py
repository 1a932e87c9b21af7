"""A profile by function of one node, for whoever asks where its time goes.

Where the environment variable ASSENT_PROFILE names a directory, a node that ends in order (SIGTERM)
leaves `ID.stacks` in it: a line for each stack that it was found in, `outermost;...;innermost N`,
as flame graph programs read it, N in samples. A sample is taken every few milliseconds of the
node's own CPU time, so that waiting, and other programs on the machine, do not show, and the node
is hardly slower for it.

    python -m cluster.profiling DIR/n1.stacks       the functions, by what was spent in and below
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

VARIABLE = "ASSENT_PROFILE"
_EVERY_S = 0.001
"""Less often in fact: systems count CPU time in steps of 1 to 4 ms."""
_SHOWN = 45
"""Functions of a summary, by their own share and by that of all below them."""


@contextlib.contextmanager
def profiled(name: str) -> Iterator[None]:
    """Profile the block, if the variable asks for that: writes `NAME.stacks`. Main thread only."""
    directory = os.environ.get(VARIABLE)
    if not directory:
        yield
        return
    stacks: Counter[tuple[str, ...]] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        stack: list[str] = []
        while frame is not None:
            code = frame.f_code
            where = "/".join(code.co_filename.split("/")[-2:])
            stack.append(f"{where}:{code.co_name}")
            frame = frame.f_back
        stacks[tuple(reversed(stack))] += 1

    before = signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, _EVERY_S, _EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, before)
        lines = [f"{';'.join(stack)} {count}\n" for stack, count in stacks.items()]
        (Path(directory) / f"{name}.stacks").write_text("".join(lines))


def summary(text: str) -> str:
    """Of a file of stacks: percent of all samples in each function itself, and with those below."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        functions = stack.split(";")
        own[functions[-1]] += int(count)
        for function in dict.fromkeys(functions):
            whole[function] += int(count)
    total = max(1, sum(own.values()))
    lines = [f"{total} samples", "", f"{'itself':>8}{'below':>8}  function"]
    names = dict.fromkeys([name for name, _ in own.most_common(_SHOWN)])
    names |= dict.fromkeys([name for name, _ in whole.most_common(_SHOWN)])
    for name in sorted(names, key=lambda name: -whole[name]):
        lines.append(f"{own[name] / total:>8.1%}{whole[name] / total:>8.1%}  {name}")
    return "\n".join(lines)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader may have enough: `... | head`
    print(summary(Path(sys.argv[1]).read_text()))
