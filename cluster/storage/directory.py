"""The node's data directory: one process at a time, one node for ever.

Rules:
- a node starts only on the directory that it was bootstrapped on. An empty directory is refused
  without `bootstrap`: a node whose disk was wiped has forgotten its votes and what it
  acknowledged, and must not come back under its old id;
- on a directory that holds an identity `bootstrap` changes nothing;
- a directory that is bootstrapped has a birth of its own, by which the other nodes tell it from one
  that was lost (`cluster/storage/fellows.py`);
- the cluster has the nodes that it was bootstrapped with. Settings that name others would make
  majorities of nodes that know nothing: two new ones elected the one old one that had missed what
  the others acknowledged, and that was lost;
- what is not ours is refused before anything is written into it.

The identity file is the commit point of a bootstrap. Before it there may be an empty journal and
nothing else, so a bootstrap that a crash interrupted is simply done again; a journal that holds
anything without an identity, or an identity without a journal, was tampered with and is refused.

    LOCK                    held by the process
    identity                format, cluster, node, all nodes, birth: one checksummed record
    fellows                 `cluster/storage/fellows.py`
    journal/                `cluster/storage/journal.py`
    snapshots/              `cluster/storage/snapshots.py`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgpack

from cluster.errors import IS_LOST, Damaged, DiskFailed, Foreign, NoDirectory, NotBootstrapped
from cluster.storage.disk import Disk, File
from cluster.storage.fellows import BIRTH_BYTES
from cluster.storage.journal import Journal
from cluster.storage.journal_recovery import segment_numbers
from cluster.storage.small_file import ASIDE, put_small_file, read_small_file

FORMAT = 3
"""Goes up when the layout of the directory changes; a directory of another format is refused."""

LOCK_NAME, IDENTITY_NAME, FELLOWS_NAME = "LOCK", "identity", "fellows"
JOURNAL_NAME, SNAPSHOTS_NAME = "journal", "snapshots"

_OURS = {LOCK_NAME, IDENTITY_NAME, FELLOWS_NAME, JOURNAL_NAME, SNAPSHOTS_NAME}
_OURS |= {IDENTITY_NAME + ASIDE, FELLOWS_NAME + ASIDE}
_IDENTITY_KIND = 0
_TOLERATED = {"lost+found"}
"""What a file system puts at the root of a volume."""


class Identity(NamedTuple):
    """Whose a directory is. `nodes`: the ids of all nodes of the cluster, sorted."""

    cluster: str
    node: str
    nodes: tuple[str, ...]

    @classmethod
    def of(cls, cluster: str, node: str, nodes: Iterable[str]) -> Identity:
        """As settings name them, in any order."""
        return cls(cluster, node, tuple(sorted(nodes)))


@dataclass(frozen=True, slots=True)
class Directory:
    """An open data directory; its lock is held until `close`."""

    path: Path
    bootstrapped: bool
    """True if this very call made the directory's identity: the node has never run before."""
    birth: bytes
    """Drawn when it was bootstrapped: no other directory has it."""
    lock: File

    @property
    def journal(self) -> Path:
        """The directory of the journal."""
        return self.path / JOURNAL_NAME

    @property
    def snapshots(self) -> Path:
        """The directory of the snapshot."""
        return self.path / SNAPSHOTS_NAME

    @property
    def fellows(self) -> Path:
        """The file of the other nodes' births."""
        return self.path / FELLOWS_NAME

    def close(self) -> None:
        """Give the lock up."""
        self.lock.close()


def open_directory(
    path: Path, identity: Identity, *, bootstrap: bool, disk: Disk, random: Random
) -> Directory:
    """Lock a data directory and make sure that it is this node's; `random` gives it its birth.

    Raises NotBootstrapped, Foreign, InUse, NoDirectory, Damaged, DiskFailed.
    """
    names = _our_names(path, disk)
    if not bootstrap and not names - {LOCK_NAME}:
        raise NotBootstrapped(
            f"{path} is empty. If this is the first start of a new cluster, start node "
            f"{identity.node} with --bootstrap. If its disk was lost: {IS_LOST}"
        )
    try:
        _make(path, disk)
        lock = disk.lock(path / LOCK_NAME)
    except DiskFailed as error:
        raise NoDirectory(path, error) from error
    try:
        names = _our_names(path, disk)
        made = IDENTITY_NAME not in names
        if made:
            birth = random.randbytes(BIRTH_BYTES)
            _bootstrap(path, identity, birth, bootstrap=bootstrap, disk=disk)
        else:
            birth = _check_identity(path, identity, disk)
            disk.sync_directory(path)  # what a process that was killed had only begun to
        return Directory(path, made, birth, lock)
    except BaseException:
        lock.close()
        raise


def _our_names(path: Path, disk: Disk) -> set[str]:
    """What stands in the directory; Foreign if anything of it is not ours."""
    names = set(disk.names(path)) - _TOLERATED if disk.exists(path) else set()
    if strangers := sorted(names - _OURS):
        raise Foreign(
            f"{path} is not a data directory: it holds {', '.join(strangers[:3])}. "
            "Give the node an empty directory of its own"
        )
    return names


def _make(path: Path, disk: Disk) -> None:
    """Make a directory and those above it, durably."""
    if not disk.exists(path):
        _make(path.parent, disk)
        disk.make_directory(path)
        disk.sync_directory(path.parent)


def _bootstrap(
    path: Path, identity: Identity, birth: bytes, *, bootstrap: bool, disk: Disk
) -> None:
    """Make a journal and then the identity, unless something tells of a life before."""
    cluster, node, nodes = identity
    journal = path / JOURNAL_NAME
    if _is_used(path, cluster, node, disk):
        what = "it is missing, but there is a journal or a snapshot"
        raise Damaged(path / IDENTITY_NAME, 0, what)
    if not bootstrap:
        raise NotBootstrapped(
            f"the bootstrap of {path} was interrupted: start node {node} with --bootstrap again"
        )
    Journal.open(journal, cluster=cluster, node=node, disk=disk).close()
    _make(path / SNAPSHOTS_NAME, disk)
    fields = {"format": FORMAT, "cluster": cluster, "node": node, "nodes": nodes, "birth": birth}
    put_small_file(path / IDENTITY_NAME, _IDENTITY_KIND, msgpack.packb(fields), disk)


def _is_used(path: Path, cluster: str, node: str, disk: Disk) -> bool:
    """Does a directory without an identity hold more than an interrupted bootstrap leaves?"""
    snapshots, journal = path / SNAPSHOTS_NAME, path / JOURNAL_NAME
    if disk.exists(snapshots) and disk.names(snapshots):
        return True
    if not disk.exists(journal) or not segment_numbers(journal, disk):
        return False
    found = Journal.open(journal, cluster=cluster, node=node, disk=disk)
    try:
        return len(found) > 0 or found.term > 0
    finally:
        found.close()


def read_identity(path: Path, disk: Disk) -> tuple[Identity, bytes]:
    """Whose a data directory is, and its birth. Raises Damaged, Foreign, DiskFailed."""
    fields = msgpack.unpackb(read_small_file(path / IDENTITY_NAME, _IDENTITY_KIND, disk))
    if fields["format"] != FORMAT:
        raise Foreign(
            f"{path} has format {fields['format']}, this program writes {FORMAT}: "
            "start the program that wrote it"
        )
    return Identity(fields["cluster"], fields["node"], tuple(fields["nodes"])), fields["birth"]


def _check_identity(path: Path, identity: Identity, disk: Disk) -> bytes:
    """The directory's birth, if it is this node's."""
    owner, birth = read_identity(path, disk)
    if owner[:2] != identity[:2]:
        raise Foreign(
            f"{path} belongs to node {owner.node} of cluster {owner.cluster}, not to node "
            f"{identity.node} of cluster {identity.cluster}: give each node its own directory"
        )
    if owner.nodes != identity.nodes:
        raise Foreign(
            f"{path} belongs to a cluster of {', '.join(owner.nodes)}, and the settings name "
            f"{', '.join(identity.nodes)}: this version cannot change which nodes a cluster has; "
            "name the same ones, at other addresses if need be"
        )
    journal = path / JOURNAL_NAME
    if not disk.exists(journal) or not segment_numbers(journal, disk):
        raise Damaged(journal, 0, "the journal is missing, and with it what this node promised")
    return birth
