"""Entries of the log as bytes: one byte of kind, then what the kind carries.

An entry of commands carries a group: a version, the epoch under which they were proposed (the term
of the entry) and the commands, in order. `StateMachine.apply` gets them one by one.
"""

from __future__ import annotations

from typing import Final

import msgpack

from cluster.errors import FailStop

ENTRY_VERSION: Final = 1

COMMANDS: Final = b"\x00"
NOTHING: Final = b"\x01"
"""The first entry of every leadership, and of every log; it does nothing."""
MEMBERS: Final = b"\x02"


def encode_group(epoch: int, commands: list[bytes]) -> bytes:
    """The entry that carries `commands`, in order."""
    packed: bytes = msgpack.packb([ENTRY_VERSION, epoch, commands])
    return COMMANDS + packed


def decode_group(entry: bytes) -> tuple[int, list[bytes]]:
    """(epoch, commands) of an entry. Raises FailStop: such an entry was never written."""
    try:
        version, epoch, commands = msgpack.unpackb(entry[1:])
        if version != ENTRY_VERSION or type(epoch) is not int:
            raise ValueError(f"version {version!r}")
        return epoch, list(commands)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FailStop(
            f"an entry of the log cannot be read: {error}; start the program that wrote it"
        ) from error
