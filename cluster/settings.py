"""What `cluster.toml` says: one file, the same for every node of a cluster.

    [cluster]
    name = "assent"                  # a node refuses data and peers of another name

    [nodes.n1]
    api = "127.0.0.1:8101"           # where clients and participants reach it
    raft = "127.0.0.1:7101"          # where the other nodes reach it
    api_bind = "0.0.0.0:8101"        # only where it listens elsewhere than it is reached
    raft_bind = "127.0.0.1:7101"

    [limits]                         # coordinator.settings.Limits
    [timings]                        # coordinator.settings.Timings and RaftTimings
    [retention]                      # coordinator.settings.Retention
    [log]                            # LogSettings

Rules: the nodes are those of the first start, for ever (`cluster/storage/directory.py`); their
addresses may change. Every section but `nodes` may be left out, every key but `api` and `raft`.
What is not known is refused, so that a misspelt limit does not silently keep its default. Every
error is a SettingsError of one sentence which names the file and the key. `timings` is one section
for people and two classes for the program: the coordinator knows nothing of elections.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from coordinator.settings import Limits, Retention, Timings

__all__ = [
    "Address",
    "ClusterSettings",
    "Limits",
    "LogSettings",
    "NodeSettings",
    "RaftTimings",
    "Retention",
    "SettingsError",
    "Timings",
    "load_settings",
    "parse_settings",
    "read_address",
]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MAX_NODES = 9
"""More voters make every decision slower and none safer: nine survive the loss of four."""


class SettingsError(ValueError):
    """The file cannot be used; the text is one sentence for the person who wrote it."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name, IPv4, or IPv6 without brackets) and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self}"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """One node. `api` and `raft` are what others are told; `..._bind` is where it listens."""

    id: str
    api: Address
    raft: Address
    api_bind: Address
    raft_bind: Address


@dataclass(frozen=True, slots=True)
class RaftTimings:
    """How fast a dead leader is noticed, in milliseconds."""

    heartbeat_ms: int = 100
    """Five are lost before anybody calls an election; ten small messages a second cost nothing."""

    election_min_ms: int = 500
    """A leader must be able to sync its disk, or be paused for garbage, for so long and still
    lead."""

    election_max_ms: int = 1_000
    """Twice the least: two followers seldom wake together, and a leader is missed for a second at
    most."""

    def __post_init__(self) -> None:
        if self.heartbeat_ms < 1:
            raise ValueError("heartbeat_ms: must be at least 1")
        if self.election_min_ms < 3 * self.heartbeat_ms:
            raise ValueError("election_min_ms: must be at least three times heartbeat_ms")
        if self.election_max_ms <= self.election_min_ms:
            raise ValueError("election_max_ms: must be more than election_min_ms")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The journal on disk."""

    snapshot_every: int = 10_000
    """Log entries after which the state is written as a snapshot and older entries go. Where the
    snapshot is large, not before the entries have half its size: else a million remembered
    transactions would be written again and again. A restart reads one snapshot and what came since.
    """

    def __post_init__(self) -> None:
        if self.snapshot_every < 1:
            raise ValueError("snapshot_every: must be at least 1")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The whole file. `nodes` in the file's order; ids and addresses are unique."""

    name: str
    nodes: tuple[NodeSettings, ...]
    limits: Limits = field(default_factory=Limits)
    timings: Timings = field(default_factory=Timings)
    raft_timings: RaftTimings = field(default_factory=RaftTimings)
    retention: Retention = field(default_factory=Retention)
    log: LogSettings = field(default_factory=LogSettings)

    def node(self, node_id: str) -> NodeSettings:
        """The node of that id; raises SettingsError when there is none."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        known = ", ".join(node.id for node in self.nodes)
        raise SettingsError(f"no node {node_id!r} in cluster {self.name!r}; there are {known}")

    def warnings(self) -> tuple[str, ...]:
        """What is allowed and yet should be known, a sentence each."""
        if len(self.nodes) == 1:
            return ("one node survives no failure: for development only; have three",)
        return ()


def load_settings(path: Path) -> ClusterSettings:
    """The settings in the file at `path`; raises SettingsError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: not a text in UTF-8") from None
    try:
        return parse_settings(text)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def parse_settings(text: str) -> ClusterSettings:
    """The settings in a TOML text; raises SettingsError naming the key."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"not TOML: {error}") from None
    _refuse_unknown(
        document, {"cluster", "nodes", "limits", "timings", "retention", "log"}, at=None
    )
    cluster = _table(document, "cluster")
    _refuse_unknown(cluster, {"name"}, at="cluster")
    timings = _table(document, "timings")
    _refuse_unknown(timings, _names(Timings) | _names(RaftTimings), at="timings")
    return ClusterSettings(
        name=_name(cluster.get("name", "assent"), "cluster.name"),
        nodes=_nodes(_table(document, "nodes")),
        limits=_numbers(Limits, _table(document, "limits"), "limits"),
        timings=_numbers(Timings, _only(timings, _names(Timings)), "timings"),
        raft_timings=_numbers(RaftTimings, _only(timings, _names(RaftTimings)), "timings"),
        retention=_numbers(Retention, _table(document, "retention"), "retention"),
        log=_numbers(LogSettings, _table(document, "log"), "log"),
    )


def read_address(text: object, key: str) -> Address:
    """`host:port` or `[IPv6]:port`; raises SettingsError naming `key`."""
    example = 'an address such as "127.0.0.1:8101"'
    if not isinstance(text, str):
        raise SettingsError(f"{key}: must be {example}, not {text!r}")
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})", text)
    if match is None:
        raise SettingsError(f"{key}: {text!r} is not {example}")
    port = int(match[3])
    if not 1 <= port <= 65_535:
        raise SettingsError(f"{key}: the port of {text!r} is not between 1 and 65535")
    host = match[1] or match[2]
    try:
        host.encode("idna")
    except UnicodeError:
        raise SettingsError(f"{key}: {host!r} has a part that is empty or too long") from None
    return Address(host, port)


# --- the nodes ------------------------------------------------------------------------------------


def _nodes(table: Mapping[str, Any]) -> tuple[NodeSettings, ...]:
    nodes = tuple(_node(node_id, table) for node_id in table)
    count = len(nodes)
    if count == 0:
        raise SettingsError(
            "nodes: there are none; name three, each as [nodes.ID] with api and raft"
        )
    if count % 2 == 0:
        raise SettingsError(
            f"nodes: {count} nodes survive no more failures than {count - 1}; have 1 (for"
            f" development), 3 or 5"
        )
    if count > _MAX_NODES:
        raise SettingsError(f"nodes: {count} are too many; have at most {_MAX_NODES}")
    _refuse_duplicates(nodes)
    return nodes


def _node(node_id: str, table: Mapping[str, Any]) -> NodeSettings:
    key = f"nodes.{node_id}"
    _name(node_id, key)
    entry = table[node_id]
    if not isinstance(entry, dict):
        raise SettingsError(f"{key}: must be a section with api and raft")
    _refuse_unknown(entry, {"api", "raft", "api_bind", "raft_bind"}, at=key)
    for needed in ("api", "raft"):
        if needed not in entry:
            raise SettingsError(f"{key}.{needed}: is missing; give host:port")
    api = _told_address(entry["api"], f"{key}.api")
    raft = _told_address(entry["raft"], f"{key}.raft")
    return NodeSettings(
        id=node_id,
        api=api,
        raft=raft,
        api_bind=read_address(entry.get("api_bind", str(api)), f"{key}.api_bind"),
        raft_bind=read_address(entry.get("raft_bind", str(raft)), f"{key}.raft_bind"),
    )


def _told_address(text: object, key: str) -> Address:
    """An address at which others reach the node: none that only says where to listen."""
    address = read_address(text, key)
    try:
        reaches_nobody = ipaddress.ip_address(address.host).is_unspecified
    except ValueError:  # a name
        reaches_nobody = False
    if reaches_nobody:
        bind = f"{key.rpartition('.')[2]}_bind"
        raise SettingsError(
            f"{key}: at {address} nobody reaches the node; give the address that the others use,"
            f' and {bind} = "{address}" if it is to listen there'
        )
    return address


def _refuse_duplicates(nodes: tuple[NodeSettings, ...]) -> None:
    """No advertised address twice. Bound ones may repeat: `0.0.0.0:8101` in one container each."""
    owners: dict[Address, str] = {}
    for node in nodes:
        for name, address in (("api", node.api), ("raft", node.raft)):
            key = f"nodes.{node.id}.{name}"
            if address in owners:
                raise SettingsError(f"{key}: {address} is also {owners[address]}")
            owners[address] = key


# --- sections and keys ----------------------------------------------------------------------------

_Numbers = TypeVar("_Numbers", Limits, Timings, RaftTimings, Retention, LogSettings)


def _numbers(kind: type[_Numbers], table: Mapping[str, Any], section: str) -> _Numbers:
    """A section whose values are all whole numbers."""
    _refuse_unknown(table, _names(kind), at=section)
    for name, value in table.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise SettingsError(f"{section}.{name}: must be a whole number, not {value!r}")
    try:
        return kind(**table)
    except ValueError as error:
        raise SettingsError(f"{section}.{error}") from None


def _names(kind: type[_Numbers]) -> frozenset[str]:
    return frozenset(entry.name for entry in fields(kind))


def _only(table: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in table.items() if name in names}


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{name}: must be a section, [{name}]")
    return table


def _refuse_unknown(
    table: Mapping[str, Any], known: set[str] | frozenset[str], *, at: str | None
) -> None:
    for name in table:
        if name not in known:
            key = name if at is None else f"{at}.{name}"
            raise SettingsError(f"{key}: is not known; known are {', '.join(sorted(known))}")


def _name(value: object, key: str) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None:
        raise SettingsError(f"{key}: {value!r} is not 1 to 32 of A-Z a-z 0-9 _ -")
    return value
