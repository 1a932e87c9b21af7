"""The smallest state machine that shows what a replicated log did: a list of what was applied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgpack


class Ledger:
    """Commands are msgpack: ["epoch", number, node] or ["put", epoch, text].

    A put of another epoch is refused, as the coordinator's machine does it; it answers the length
    of the list after it.
    """

    def __init__(self) -> None:
        self._epoch = 0
        self.lines: list[str] = []
        self.founding = ""
        self.refused = 0

    @property
    def epoch(self) -> int:
        return self._epoch

    def apply(self, command: bytes) -> object:
        match msgpack.unpackb(command):
            case ["epoch", int(epoch), str(node), int(now_ms)]:
                self.founding = self.founding or f"{node}-{now_ms}"
                self._epoch = epoch
                return None
            case ["put", int(epoch), str(text)]:
                if epoch != self._epoch:
                    self.refused += 1
                    return "refused"
                if text == "poison":
                    raise ValueError("poison")
                self.lines.append(text)
                return len(self.lines)
        raise AssertionError(command)

    def epoch_command(self, epoch: int, node: str, now_ms: int) -> bytes:
        packed: bytes = msgpack.packb(["epoch", epoch, node, now_ms])
        return packed

    def view(self) -> object:
        return self._epoch, self.founding, tuple(self.lines)

    def chunks(self, view: object) -> Iterator[bytes]:
        assert isinstance(view, tuple)
        epoch, founding, lines = view
        yield msgpack.packb({"epoch": epoch, "founding": founding})
        for at in range(0, len(lines), 100):
            yield msgpack.packb(lines[at : at + 100])

    def restoring(self) -> LedgerRestoring:
        return LedgerRestoring(self)


class LedgerRestoring:
    """Implements `log.Restoring`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._chunks: list[Any] = []

    def feed(self, chunk: bytes) -> None:
        fields = msgpack.unpackb(chunk)
        if not isinstance(fields, list if self._chunks else dict):
            raise ValueError("not a ledger")
        self._chunks.append(fields)

    def finish(self) -> None:
        head, *pages = self._chunks
        self._ledger._epoch, self._ledger.founding = head["epoch"], head["founding"]
        self._ledger.lines = [line for page in pages for line in page]

    def release(self) -> Iterator[None]:
        self._chunks.clear()
        return iter(())


def put(epoch: int, text: str) -> bytes:
    """The command that adds a line."""
    packed: bytes = msgpack.packb(["put", epoch, text])
    return packed
