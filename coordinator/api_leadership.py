"""Who answers what needs the leader: this node, or the one that a 307 names.

Rule: what needs the leader is answered by the leader; another node answers 307 towards a leader
that it has heard of within an election timeout, else 503.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from coordinator.api_errors import log_refusal, no_leader, not_leader
from coordinator.api_requests import Request, read_query, require_id, require_json
from coordinator.log import LogError, ReplicatedLog


class Leadership:
    """What the calls ask before, and while, they are answered here.

    `apis`: node id to the URL of its API, read anew each time.
    """

    def __init__(self, log: ReplicatedLog, node: str, apis: Mapping[str, str]) -> None:
        self._log = log
        self._node = node
        self._apis = apis

    def require(self, request: Request) -> None:
        """Raises the 307 or 503 of a node that does not lead."""
        if self._log.epoch is None:
            self.redirect(request.path, request.query)
            raise no_leader()

    def admit(self, request: Request, transaction_id: str) -> None:
        """What can be said of a call that is to change a transaction before its body is read."""
        read_query(request, ())
        require_id(transaction_id)
        self.require(request)
        require_json(request)

    def redirect(self, path: str, query: str) -> None:
        """Raises the 307 to another node that leads, if one was heard of."""
        leader = self._log.leader
        if leader is None or leader == self._node or leader not in self._apis:
            return
        asked = f"?{query}" if query else ""
        raise not_leader(f"{self._apis[leader].rstrip('/')}{path}{asked}", leader)

    def lost(self, request: Request, error: LogError) -> NoReturn:
        """For requests that change nothing, or may be repeated at will."""
        self.redirect(request.path, request.query)
        raise log_refusal(error, None) from error

    async def barrier(self, request: Request) -> None:
        """What is read after this is current. The log ends every barrier when leadership goes."""
        self.require(request)
        try:
            await self._log.barrier()
        except LogError as error:
            self.lost(request, error)
