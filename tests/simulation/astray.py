"""What stands before a node, and has lost its way to it: what such a proxy answers in its place.

It has not passed the request on, and answers as web servers do, with a status that a node gives,
too; or it has, and not waited for what the node said. Its answers have a `Via`, as a proxy's have,
which nothing but the simulation looks at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from multidict import CIMultiDict

if TYPE_CHECKING:
    from tests.simulation.network import Endpoint

VIA = "Via"
_NOT_PASSED_ON = (200, 400, 403, 404, 404, 404, 409, 410, 429, 500, 502, 503)
_NO_ANSWER = (500, 502, 503, 504)
_PAGES = (b"<html>nothing here</html>", b'{"message": "no Route matched"}', b"")

Told = tuple[int, CIMultiDict[str], bytes]
"""Status, headers, body."""


def is_struck(endpoint: Endpoint) -> bool:
    """Whether it happens to what goes over this connection now."""
    world = endpoint.process.owner.world
    share = world.environment.astray
    return bool(share) and world.faulty and world.draw("astray").random() < share


def lost_its_way(endpoint: Endpoint) -> Told:
    """In the place of an answer to what no node has heard."""
    return _told(endpoint, "requests that found no node", _NOT_PASSED_ON)


def passed_no_answer_on(endpoint: Endpoint) -> Told:
    """In the place of a node's answer."""
    return _told(endpoint, "nodes' answers that a proxy gave up", _NO_ANSWER)


def _told(endpoint: Endpoint, what: str, statuses: tuple[int, ...]) -> Told:
    world = endpoint.process.owner.world
    draw = world.draw("astray")
    world.count(what)
    return draw.choice(statuses), CIMultiDict({VIA: "1.1 front"}), draw.choice(_PAGES)
