"""What the clients do: transfers between accounts, repeats, questions; all through the library.

Every call is two events of history: its beginning and its end, `ok` (answered), `fail` (surely not
done) or `info` (perhaps done, perhaps still to be done).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Any

from cluster.client.answers import (
    ClientError,
    Conflict,
    Expired,
    Refused,
    Transaction,
    UnknownTransaction,
)
from cluster.client.async_client import Client
from coordinator.api_shapes import read_submission
from tests.simulation.raw_requests import RawRequests
from tests.simulation.services import ACCOUNTS
from tests.simulation.sessions import Body, told_of
from tests.simulation.world import ClientHost, ServiceHost, World

MAX_PARALLEL = 4
MAX_READS = 6


class Load:
    """The load of all clients; they share what they know of ids, as one program's users do."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bodies: dict[str, Body] = {}
        self.unknown: list[str] = []
        """Ids of which a client was told nothing."""
        self.told: list[str] = []
        """Ids of which a client was told an outcome."""
        self.operations = 0
        self._numbers = 0

    async def client(self, host: ClientHost) -> None:
        """The program of one client machine, while faults last."""
        world, environment = self.world, self.world.environment
        draw = Random(f"{environment.seed} load {host.name} {host.starts}")
        async with self.library(host, draw) as library:
            user = User(self, host, library, draw)
            tasks: list[asyncio.Task[None]] = []
            reads: list[asyncio.Task[None]] = []
            await world.raging.wait()
            while world.faulty:
                await asyncio.sleep(draw.expovariate(1.0) * environment.think_s)
                tasks = [task for task in tasks if not task.done()]
                if len(tasks) < MAX_PARALLEL:
                    tasks.append(asyncio.create_task(user.act()))
                reads = [read for read in reads if not read.done()]
                if len(reads) < MAX_READS:
                    reads.append(asyncio.create_task(user.read()))
            await asyncio.gather(*tasks, *reads)

    def library(self, host: ClientHost, draw: Random) -> Client:
        nodes = [node.settings.api.url for node in self.world.nodes]
        return Client(
            nodes,
            timeout=self.world.environment.client_timeout_s,
            random=Random(draw.getrandbits(48)),
            now_ms=host.now_ms,
        )

    def new_body(self, draw: Random, id: str, chosen: list[ServiceHost] | None = None) -> Body:
        """A transfer between some of the services, or `chosen` ones."""
        environment = self.world.environment
        services = self.world.services
        if chosen is None:
            chosen = draw.sample(services, draw.randint(1, len(services)))
        accounts = ACCOUNTS[:1] if environment.contended else ACCOUNTS[:-1]
        self._numbers += 1
        work = f"w{self._numbers}"
        amounts = [draw.randint(-30, 30) for _ in chosen[1:]]
        amounts = [-sum(amounts), *amounts]
        refuses = draw.random() < environment.vote_no
        participants = []
        for position, (service, amount) in enumerate(zip(chosen, amounts, strict=True)):
            vote = "no" if refuses and position == len(chosen) - 1 else "yes"
            if amount == 0 and vote == "yes" and draw.random() < environment.read_only * 3:
                vote = "read_only" if service.kind == "sdk" else "yes"
            participants.append(
                {
                    "name": service.name,
                    "url": service.url,
                    "payload": {
                        "account": draw.choice(accounts),
                        "amount": amount,
                        "vote": vote,
                        "work": work,
                    },
                }
            )
        if draw.random() < environment.read_only:
            participants += self._bystander(draw, chosen, work)
        return {
            "id": id,
            "participants": participants,
            "timeout_ms": draw.choice(environment.timeouts_ms),
            "wait": draw.choice(("decision", "decision", "completion", "none")),
        }

    def fingerprint(self, body: Body) -> str:
        """What the coordinator tells participants of this body, to tell it from others."""
        settings = self.world.settings
        submission = read_submission(
            body,
            limits=settings.limits,
            timings=settings.timings,
            make_id=lambda: "",
        )
        return submission.plan.fingerprint

    def _bystander(self, draw: Random, chosen: list[ServiceHost], work: str) -> list[Body]:
        """A service that only looks."""
        idle = [s for s in self.world.services if s not in chosen and s.kind == "sdk"]
        if not idle:
            return []
        service = draw.choice(idle)
        payload = {"account": ACCOUNTS[0], "amount": 0, "vote": "read_only", "work": work}
        return [{"name": service.name, "url": service.url, "payload": payload}]


class User(RawRequests):
    """Whoever asks, at one client."""

    async def act(self) -> None:
        """One thing that clients do."""
        draw, environment = self._draw, self.world.environment
        known = list(self.load.bodies)
        kind = draw.random()
        if draw.random() < environment.nonsense:
            await self.nonsense()
        elif draw.random() < environment.other_body and self.load.unknown:
            await self.use_again(draw.choice(self.load.unknown[-3:]))
        elif draw.random() < environment.burst:
            await asyncio.gather(*(self.submit(self.new_body()) for _ in range(8)))
        elif kind < 0.15 and known:
            await self.ask(draw.choice(known[-20:]))
        elif kind < 0.2 and known:
            await self.ask_again(draw.choice(known))
        elif kind < 0.24:
            await self.inquire_and_begin()
        elif kind < 0.3:
            await self.submit_many([self.new_body() for _ in range(draw.randint(2, 4))])
        elif kind < 0.33:
            await self.list()
        elif kind < 0.38:
            await self.submit_nameless()
        else:
            await self.transfer()

    async def transfer(self) -> None:
        """A new transaction; perhaps asked for twice, perhaps with another body beside it."""
        draw, environment = self._draw, self.world.environment
        body = self.new_body()
        calls: list[Awaitable[Any]] = [self.submit_and_come_back(body)]
        if draw.random() < environment.repeat:
            calls.append(self.submit({**body, "wait": "decision"}, after_s=draw.random()))
        if draw.random() < environment.other_body:
            other = self.load.new_body(draw, body["id"])
            calls.append(self.submit(other, after_s=draw.random() / 5))
        if draw.random() < environment.operator:
            after_s = draw.choice((0.01, 0.1, 1.0)) * draw.random()
            calls.append(self.abort_by_hand(body["id"], after_s=after_s))
            after_s *= 2 * self.world.draw("retry").random()
            calls.append(self.retry(body["id"], after_s=after_s))
            if self.world.draw("transfer").random() < 0.5:
                calls.append(self.transfer_leadership(after_s=after_s))
        await asyncio.gather(*calls)

    def new_body(self) -> Body:
        body = self.load.new_body(self._draw, self.new_id())
        assert body["id"] not in self.load.bodies, "an id was made twice"
        self.load.bodies[body["id"]] = body
        return body

    def new_id(self) -> str:
        if not self.world.environment.forgets and self._draw.random() < 0.2:
            return f"own-{self._draw.getrandbits(40):x}"
        return self.library._new_id()

    # --- calls

    async def submit(
        self, body: Body, *, after_s: float = 0.0, deadline_s: float | None = None
    ) -> Transaction | None:
        if after_s:
            await asyncio.sleep(after_s)
        call = self.invoke("submit", body["id"], **told_of(body))
        try:
            deadline_s = deadline_s or self._deadline_s()
            answer = await self.library.submit_body(body, deadline=deadline_s)
        except Refused as error:
            call.failed(error)
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)
            return answer
        return None

    async def submit_many(self, bodies: list[Body]) -> None:
        calls = [self.invoke("submit", body["id"], **told_of(body)) for body in bodies]
        entries = [{k: v for k, v in body.items() if k != "wait"} for body in bodies]
        try:
            answers = await self.library.submit_many(entries, deadline=self._deadline_s())
        except Refused as error:
            for call in calls:
                call.failed(error)
            return
        except ClientError as error:
            for call in calls:
                call.unknown(error)
            return
        for call, answer in zip(calls, answers, strict=True):
            if isinstance(answer, Transaction):
                call.answered(answer)
            elif isinstance(answer, Refused):
                call.failed(answer)
            else:
                call.unknown(answer)

    async def ask(self, id: str, *, stale: bool = False) -> Transaction | None:
        stale = stale or self._draw.random() < 0.2
        call = self.invoke("get", id, stale=stale)
        try:
            wait_ms = self._draw.choice((None, None, 300))
            answer = await self.library.get(id, wait_ms=wait_ms, stale=stale, deadline=5.0)
        except (UnknownTransaction, Expired) as error:
            call.refused_to_say(error)
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)
            return answer
        return None

    async def submit_and_come_back(self, body: Body) -> None:
        """Hears nothing, and comes back: with the same, as it should, or with something else."""
        draw, environment = self._draw, self.world.environment
        answer = await self.submit(body)
        if answer is None and draw.random() < environment.other_body:
            await asyncio.sleep(draw.random() * 3.0)
            await self.use_again(body["id"])
        while answer is None and self.world.faulty and draw.random() < environment.comes_back:
            # When others come, too: a new leader is there, or participants ask what they are to do.
            after_s = draw.choice((0.1, 1.0, 2.0 * environment.inquiry_after_s)) * draw.random()
            answer = await self.submit(body, after_s=after_s)

    async def use_again(self, id: str) -> None:
        """Ask for other work under an id of which nothing was heard, perhaps of the same ones."""
        chosen: list[ServiceHost] | None = None
        if self._draw.random() < 0.7:
            before = [entry["name"] for entry in self.load.bodies[id]["participants"]]
            services = {service.name: service for service in self.world.services}
            chosen = [services[name] for name in before]
        await self.submit(self.load.new_body(self._draw, id, chosen))

    async def ask_again(self, id: str) -> None:
        """What was asked for long ago: the same body once more, or what a participant would ask."""
        if self._draw.random() < 0.6:
            await self.submit(self.load.bodies[id])
            return
        await self.inquire(self.load.bodies[id])
        await self.ask(id)

    async def inquire(self, body: Body) -> str | None:
        """Ask what a participant that holds its branch prepared would ask; the answer, if any."""
        number, entry = self._draw.choice(list(enumerate(body["participants"], 1)))
        call = self.invoke(
            "decision", body["id"], participant=entry["name"], work=entry["payload"]["work"]
        )
        try:
            decision = await self.library.decision(
                body["id"], str(number), self.load.fingerprint(body), deadline=5.0
            )
        except ClientError as error:
            call.unknown(error)
            return None
        call.end("ok", decision=decision)
        return decision

    async def abort_by_hand(self, id: str, *, after_s: float = 0.0) -> None:
        """An operator loses patience."""
        await asyncio.sleep(after_s)
        call = self.invoke("resolve", id)
        try:
            answer = await self.library.resolve(
                id, actor=self._session, reason="it takes too long", outcome="abort", deadline=5.0
            )
        except Refused as error:
            call.failed(error)
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)

    async def retry(self, id: str, *, after_s: float) -> None:
        """An operator has participants called at once, before and after somebody aborts it."""
        await asyncio.sleep(after_s)
        call = self.invoke("retry", id)
        try:
            answer = await self.library.retry(id, deadline=5.0)
        except UnknownTransaction as error:
            call.refused_to_say(error)
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)

    async def transfer_leadership(self, *, after_s: float) -> None:
        """An operator has another node lead, while his transaction is under way."""
        draw = self.world.draw("transfer")
        node = draw.choice((None, *(node.name for node in self.world.nodes)))
        await asyncio.sleep(after_s)
        try:
            status = await self.library.transfer_leadership(node, deadline=5.0)
        except Conflict:
            self.world.count("transfers refused")
        except ClientError:
            self.world.count("transfers unanswered")
        else:
            assert node in (None, status.leader), f"asked for {node}, told {status.leader}"
            self.world.count(
                "transfers" if status.leader != status.self_id else "transfers to self"
            )

    async def inquire_and_begin(self) -> None:
        """Presumed abort: what was answered "abort" because nobody knew it never commits.

        The question comes first, as from a participant that was asked by a leader who was lost
        before the log knew of it; or at the same time.
        """
        body = self.new_body()
        asked = asyncio.create_task(self.inquire(body))
        if self._draw.random() < 0.5:
            await asked
        else:
            await asyncio.sleep(self._draw.choice((0.01, 0.1, 1.0)) * self._draw.random())
        await asyncio.gather(asked, self.submit(body))

    async def list(self) -> None:
        try:
            await self.library.list(limit=5, deadline=3.0)
        except ClientError:
            return

    def _deadline_s(self) -> float:
        if self._draw.random() < self.world.environment.impatient:
            return self._draw.choice((0.05, 0.2, 0.5))
        return self._draw.choice((3.0, 10.0, 20.0))
