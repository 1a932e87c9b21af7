"""The API's calls about the cluster: how its nodes are, and which of them leads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from coordinator import api_fields
from coordinator.api_errors import bad_field, not_handed_over
from coordinator.api_leadership import Leadership
from coordinator.api_requests import (
    Answer,
    Endpoint,
    Request,
    json_answer,
    read_query,
    require_json,
)
from coordinator.log import LogError, NotHandedOver, NotLeader, ReplicatedLog

CLUSTER = "/v1/cluster"

HAND_OVER_S = 1.5
"""How long a transfer may take, and what is proposed may wait for it: an election takes a tenth of
that, and the client library, which takes 2 s of silence for a dead node, hears what came of it."""

ClusterStatus = Mapping[str, Any]
"""The answer of these calls: cluster, self, leader, term, nodes."""

LOG = logging.getLogger("assent.api")

_TRANSFER_FIELDS: api_fields.Known = {"node": None}


class Cluster:
    """The calls about the cluster. `nodes`: the ids of all; `body_bytes`: of a body, at most."""

    def __init__(
        self,
        leadership: Leadership,
        log: ReplicatedLog,
        node: str,
        nodes: Collection[str],
        status: Callable[[], ClusterStatus],
        body_bytes: int,
    ) -> None:
        self._leadership = leadership
        self._log = log
        self._node = node
        self._nodes = nodes
        self._status = status
        self._body_bytes = body_bytes

    def endpoints(self) -> tuple[Endpoint, ...]:
        admit, most = self.admit_transfer, self._body_bytes
        return (
            Endpoint("GET", CLUSTER, self.status),
            Endpoint("POST", CLUSTER + "/leader", self.transfer, admit, most),
        )

    def status(self, request: Request, _: str) -> Answer:
        """GET /v1/cluster: every node answers for itself."""
        read_query(request, ())
        return json_answer(200, self._status())

    def admit_transfer(self, request: Request, _: str) -> None:
        read_query(request, ())
        self._leadership.require(request)
        require_json(request)

    async def transfer(self, request: Request, _: str) -> Answer:
        """POST /v1/cluster/leader: have another node lead, and tell which one does.

        Once another leads than the one that was named, the call is that one's: 307.
        """
        body = api_fields.decode_json(request.body) if request.body else {}
        to = read_transfer(body, self._nodes)
        await self._leadership.barrier(request)  # a deposed leader must not say that it leads
        if to != self._node:
            await self._hand_over(request, to)
        return json_answer(200, self._status())

    async def _hand_over(self, request: Request, to: str | None) -> None:
        whom, asks = to or "whoever lacks least", request.address or "somebody"
        LOG.info("leadership goes from %s to %s: %s asks for it", self._node, whom, asks)
        try:
            leader = await self._log.transfer_leadership(to, HAND_OVER_S)
            LOG.info("leadership went from %s to %s", self._node, leader)
            if to not in (None, leader):
                raise NotLeader(f"{leader} leads, and not {to}")
        except NotHandedOver as error:
            LOG.warning("leadership stays at %s: %s", self._node, error)
            raise not_handed_over(error, self._node) from error
        except LogError as error:
            self._leadership.lost(request, error)


def read_transfer(value: Any, nodes: Collection[str]) -> str | None:
    """Who is to lead, by the decoded body; None: whoever lacks least. Raises ApiError."""
    to = api_fields.object_of(value, "body", _TRANSFER_FIELDS).get("node")
    if to is None or (isinstance(to, str) and to in nodes):
        return to
    raise bad_field("node", f"must be one of {api_fields.listed(nodes)}, or null for any of them")
