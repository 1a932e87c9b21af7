"""Which ports the processes of a local cluster use, and whether they are free.

default          API 8101..., Raft 7101..., services 9001...
at base N        API N+1..., Raft N+101..., services N+201...
free             found at random: for tests and the demo
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HOST = "127.0.0.1"
_RANDOM_RANGE = range(10_000, 32_000)
"""Below the range from which systems take ports for outgoing connections (Linux: from 32,768): a
port in there could be gone when a killed process is started again."""


class PortBusyError(Exception):
    """Another program listens on a port that is needed."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports by name of node or service."""

    api: Mapping[str, int]
    raft: Mapping[str, int]
    services: Mapping[str, int]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """(what, port) of each, in the order in which people expect them."""
        yield from ((f"API of {name}", port) for name, port in self.api.items())
        yield from ((f"Raft port of {name}", port) for name, port in self.raft.items())
        yield from ((f"{name} service", port) for name, port in self.services.items())


def default_ports(nodes: tuple[str, ...], services: tuple[str, ...]) -> Ports:
    return Ports(_count(nodes, 8101), _count(nodes, 7101), _count(services, 9001))


def ports_at(base: int, nodes: tuple[str, ...], services: tuple[str, ...]) -> Ports:
    return Ports(_count(nodes, base + 1), _count(nodes, base + 101), _count(services, base + 201))


def free_ports(nodes: tuple[str, ...], services: tuple[str, ...]) -> Ports:
    """Ports that were free a moment ago."""
    taken: set[int] = set()
    return Ports(
        *({name: _free_port(taken) for name in names} for names in (nodes, nodes, services))
    )


def refuse_busy(ports: Ports) -> None:
    """Raises PortBusyError naming the first port that cannot be listened on."""
    for what, port in ports:
        if not _is_free(port):
            raise PortBusyError(
                f"port {port} ({what}) is in use by another program; stop it, or choose other ports"
                " with --base-port"
            )


def _count(names: tuple[str, ...], first: int) -> dict[str, int]:
    return {name: first + index for index, name in enumerate(names)}


def _free_port(taken: set[int]) -> int:
    chance = random.SystemRandom()
    for _ in range(1_000):
        port = chance.choice(_RANDOM_RANGE)
        if port not in taken and _is_free(port):
            taken.add(port)
            return port
    raise PortBusyError(f"no free port between {_RANDOM_RANGE.start} and {_RANDOM_RANGE.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port whose old connections are still in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
