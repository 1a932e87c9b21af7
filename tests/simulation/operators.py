"""An operator beside the load: ends branches by hand, one by one, and says what became of them.

Of a branch in doubt at a service of the SDK he may say so without having done anything: the
coordinator lets go of it, and the branch inquires. Or he ends it at the service itself, as he sees
fit, against the outcome even; then he goes on until the coordinator knows, or has nothing left to
ask there, for a service that has undone its branch never acknowledges a commit.
"""

from __future__ import annotations

import asyncio

from cluster.client.answers import ClientError, Refused, UnknownTransaction
from tests.simulation.sessions import shown
from tests.simulation.workload import Load, User
from tests.simulation.world import ClientHost, ServiceHost

EFFECTS = ("committed", "rolled_back", "unknown")
DEADLINE_S = 5.0


class Operator:
    """His program never ends: what he has done has to be told after the faults, too."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._world = load.world
        self._draw = load.world.draw("operator")
        self._told: set[tuple[str, str, str]] = set()
        self._user: User

    async def program(self, host: ClientHost) -> None:
        pause_s = self._world.environment.operator_s
        async with self._load.library(host, self._draw) as library:
            self._user = User(self._load, host, library, self._draw)
            while True:
                await asyncio.sleep(self._draw.expovariate(1.0) * pause_s)
                if self._world.faulty:
                    await self._meddle()
                await self._tell()

    async def _meddle(self) -> None:
        doubtful = [(s, doubt) for s in self._world.services for doubt in s.store.in_doubt_now()]
        if not doubtful:
            return
        draw = self._draw
        service, doubt = draw.choice(doubtful)
        id, _, branch = doubt.rpartition("/")
        if service.kind == "sdk" and draw.random() < 0.7:
            await self._say(service, id, branch, draw.choice(EFFECTS))
        elif draw.random() < 0.5:
            service.end_by_hand(id, branch, commit=draw.random() < 0.5)

    async def _tell(self) -> None:
        """What he has done at the services, and the coordinator does not know."""
        for service in self._world.services:
            for (id, branch), effect in list(service.store.deeds.items()):
                key = (service.name, id, branch)
                if key not in self._told and await self._say(service, id, branch, effect):
                    self._told.add(key)

    async def _say(self, service: ServiceHost, id: str, branch: str, effect: str) -> bool:
        """Whether there is nothing left to say."""
        call = self._user.invoke(
            "resolve", id, branch=branch, participant=service.name, effect=effect
        )
        try:
            answer = await self._user.library.resolve(
                id,
                actor="the operator",
                reason="it takes too long",
                branch_id=branch,
                effect=effect,
                deadline=DEADLINE_S,
            )
        except UnknownTransaction as error:
            call.failed(error)
            return not self._world.faulty
        except Refused as error:  # it is not decided yet, or it is finished
            call.failed(error)
            return await self._is_finished(id)
        except ClientError as error:
            call.unknown(error)
            return False
        states = {each.branch_id: each.state for each in answer.branches}
        kept = states.get(branch) == "resolved"
        if kept:
            self._world.count("branches resolved by hand")
        told = {"outcome": answer.outcome, "state": answer.state, "branches": shown(answer)}
        call.end("ok", **told, kept=kept)
        return kept

    async def _is_finished(self, id: str) -> bool:
        try:
            answer = await self._user.library.get(id, deadline=DEADLINE_S)
        except ClientError:
            return False
        return answer.finished
