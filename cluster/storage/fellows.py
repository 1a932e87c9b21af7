"""By which data directory a node knows each of its fellows, for ever.

A directory is given its birth, random bytes, at its bootstrap. Every node keeps those of the other
nodes as it first heard them, durably, before anything else that they say counts. So a node whose
directory was lost, and that was bootstrapped once more, is a stranger to all who had ever reached
it: it has forgotten its votes and what it acknowledged, and must not come back under its old id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgpack

from cluster.storage.disk import Disk
from cluster.storage.small_file import put_small_file, read_small_file

BIRTH_BYTES: Final = 16

_KIND: Final = 1
"""The number of this file's record; the identity's is 0."""


class Fellows:
    """The other nodes by their directories, and the `birth` of this node's own."""

    def __init__(self, path: Path, disk: Disk, birth: bytes) -> None:
        """Reads the file, which is made when the first is heard of. Raises Damaged, DiskFailed."""
        self.birth = birth
        self._path = path
        self._disk = disk
        self._births: dict[str, bytes] = {}
        if disk.exists(path):
            self._births = msgpack.unpackb(read_small_file(path, _KIND, disk))

    def knows(self, node: str) -> bool:
        """Whether this node has ever reached that one."""
        return node in self._births

    def is_another(self, node: str, birth: bytes) -> bool:
        """Whether that node is known by another directory than this one."""
        return self._births.get(node, birth) != birth

    def learn(self, node: str, birth: bytes) -> None:
        """The first directory of a node is the one it is known by; it is durable when this returns.

        Raises DiskFailed.
        """
        if node not in self._births:
            births = {**self._births, node: birth}
            put_small_file(self._path, _KIND, msgpack.packb(births), self._disk)
            self._births = births
