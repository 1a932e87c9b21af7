"""What the clients do: transfers between accounts, repeats, questions; all through the library.

Every call is two events of history: its beginning and its end, `ok` (answered), `fail` (surely not
done) or `info` (perhaps done, perhaps still to be done).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from random import Random
from typing import Any

from cluster.client.answers import ClientError, Expired, Refused, Transaction, UnknownTransaction
from cluster.client.async_client import Client
from cluster.client.calls import HttpAnswer, NoAnswer
from coordinator.api_shapes import read_submission
from tests.simulation.services import ACCOUNTS
from tests.simulation.world import EPOCH_MS, ClientHost, ServiceHost, World

MAX_PARALLEL = 4
MAX_READS = 6
READ_S = 20.0
"""How long a direct read waits: longer than a node that was stopped sleeps."""
Body = dict[str, Any]


NONSENSE: tuple[tuple[str, str, bytes | None], ...] = (
    ("POST", "/v1/transactions", b"{"),
    ("POST", "/v1/transactions", b"\xff\x00"),
    ("POST", "/v1/transactions", b"[]"),
    ("POST", "/v1/transactions", b"null"),
    ("POST", "/v1/transactions", b"[" * 20_000),
    ("POST", "/v1/transactions", b'{"participants": [], "id": "x"}'),
    ("POST", "/v1/transactions", b'{"participants": {"name": 1}, "id": "x"}'),
    (
        "POST",
        "/v1/transactions",
        b'{"participants": [{"name": "a", "url": "file:///"}], "id": "x"}',
    ),
    ("POST", "/v1/transactions", b'{"id": 7, "participants": [{"name": "a"}]}'),
    ("POST", "/v1/transactions", b'{"id": "x", "timeout_ms": 1e400, "participants": []}'),
    ("POST", "/v1/transactions", b'{"transactions": 7}'),
    ("POST", "/v1/transactions/x/resolve", b'{"outcome": "commit"}'),
    ("POST", "/v1/transactions/x/resolve", b'{"outcome": ["abort"], "actor": 1, "reason": null}'),
    ("POST", "/v1/transactions/x/commit", b"{}"),
    ("GET", "/v1/transactions/x?wait_ms=-1", None),
    ("GET", "/v1/transactions/x/decision", None),
    ("GET", "/v1/transactions?limit=abc", None),
    ("GET", "/v1/nothing", None),
    ("DELETE", "/v1/transactions/x", None),
)
"""Method, path and body of requests without sense."""


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
            now_ms=EPOCH_MS,
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


class User:
    """Whoever asks, at one client."""

    def __init__(self, load: Load, host: ClientHost, library: Client, draw: Random) -> None:
        self._load = load
        self._world = load.world
        self._host = host
        self._library = library
        self._draw = draw
        self._session = f"{host.name}.{host.starts}"

    async def act(self) -> None:
        """One thing that clients do."""
        draw, environment = self._draw, self._world.environment
        known = list(self._load.bodies)
        kind = draw.random()
        if draw.random() < environment.nonsense:
            await self.nonsense()
        elif draw.random() < environment.other_body and self._load.unknown:
            await self.use_again(draw.choice(self._load.unknown[-3:]))
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
        else:
            await self.transfer()

    async def transfer(self) -> None:
        """A new transaction; perhaps asked for twice, perhaps with another body beside it."""
        draw, environment = self._draw, self._world.environment
        body = self.new_body()
        calls: list[Awaitable[Any]] = [self.submit_and_come_back(body)]
        if draw.random() < environment.repeat:
            calls.append(self.submit({**body, "wait": "decision"}, after_s=draw.random()))
        if draw.random() < environment.other_body:
            other = self._load.new_body(draw, body["id"])
            calls.append(self.submit(other, after_s=draw.random() / 5))
        if draw.random() < environment.operator:
            after_s = draw.choice((0.01, 0.1, 1.0)) * draw.random()
            calls.append(self.abort_by_hand(body["id"], after_s=after_s))
            after_s *= 2 * self._world.draw("retry").random()
            calls.append(self.retry(body["id"], after_s=after_s))
        await asyncio.gather(*calls)

    def new_body(self) -> Body:
        body = self._load.new_body(self._draw, self.new_id())
        self._load.bodies[body["id"]] = body
        return body

    def new_id(self) -> str:
        if not self._world.environment.forgets and self._draw.random() < 0.2:
            return f"own-{self._draw.getrandbits(40):x}"
        return self._library._new_id()

    # --- calls

    async def submit(
        self, body: Body, *, after_s: float = 0.0, deadline_s: float | None = None
    ) -> Transaction | None:
        if after_s:
            await asyncio.sleep(after_s)
        call = self._invoke("submit", body["id"], **_told(body))
        try:
            deadline_s = deadline_s or self._deadline_s()
            answer = await self._library.submit_body(body, deadline=deadline_s)
        except Refused as error:
            call.failed(error)
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)
            return answer
        return None

    async def submit_many(self, bodies: list[Body]) -> None:
        calls = [self._invoke("submit", body["id"], **_told(body)) for body in bodies]
        entries = [{k: v for k, v in body.items() if k != "wait"} for body in bodies]
        try:
            answers = await self._library.submit_many(entries, deadline=self._deadline_s())
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
        call = self._invoke("get", id, stale=stale)
        try:
            wait_ms = self._draw.choice((None, None, 300))
            answer = await self._library.get(id, wait_ms=wait_ms, stale=stale, deadline=5.0)
        except (UnknownTransaction, Expired):
            call.unheard_of()
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)
            return answer
        return None

    async def read(self) -> None:
        """Ask one node, rather another than the leader, and wait for its own answer: about one
        transaction as it is, or as it is when it has ended or a while is over, or for the latest.

        One that was asleep, or cut off, and believes that it leads, must not answer from the past.
        """
        told, known = self._load.told, list(self._load.bodies)
        if not told:
            return
        id = self._draw.choice(told[-3:] if self._draw.random() < 0.5 else known[-6:])
        nodes = self._world.nodes
        if self._draw.random() < 0.7:
            nodes = [node for node in nodes if node.settings.api.url != self._library.leader]
        node = self._draw.choice(nodes)
        call = self._invoke("get", id, stale=False, node=node.name)
        how = self._world.draw("how to read").choice((f"/{id}", f"/{id}?wait_ms=300", "?limit=20"))
        url = f"{node.settings.api.url}/v1/transactions{how}"
        try:
            answer = await self._library._exchange.send("GET", url, None, READ_S)
        except NoAnswer as error:
            call.end("info", error=str(error)[:80])
            return
        call.read(answer)

    async def submit_and_come_back(self, body: Body) -> None:
        """Hears nothing, and comes back: with the same, as it should, or with something else."""
        draw, environment = self._draw, self._world.environment
        answer = await self.submit(body)
        if answer is None and draw.random() < environment.other_body:
            await asyncio.sleep(draw.random() * 3.0)
            await self.use_again(body["id"])
        while answer is None and self._world.faulty and draw.random() < environment.comes_back:
            # When others come, too: a new leader is there, or participants ask what they are to do.
            after_s = draw.choice((0.1, 1.0, 2.0 * environment.inquiry_after_s)) * draw.random()
            answer = await self.submit(body, after_s=after_s)

    async def use_again(self, id: str) -> None:
        """Ask for other work under an id of which nothing was heard, perhaps of the same ones."""
        chosen: list[ServiceHost] | None = None
        if self._draw.random() < 0.7:
            before = [entry["name"] for entry in self._load.bodies[id]["participants"]]
            services = {service.name: service for service in self._world.services}
            chosen = [services[name] for name in before]
        await self.submit(self._load.new_body(self._draw, id, chosen))

    async def ask_again(self, id: str) -> None:
        """What was asked for long ago: the same body once more, or what a participant would ask."""
        if self._draw.random() < 0.6:
            await self.submit(self._load.bodies[id])
            return
        await self.inquire(self._load.bodies[id])
        await self.ask(id)

    async def inquire(self, body: Body) -> str | None:
        """Ask what a participant that holds its branch prepared would ask; the answer, if any."""
        number, entry = self._draw.choice(list(enumerate(body["participants"], 1)))
        call = self._invoke(
            "decision", body["id"], participant=entry["name"], work=entry["payload"]["work"]
        )
        try:
            decision = await self._library.decision(
                body["id"], str(number), self._load.fingerprint(body), deadline=5.0
            )
        except ClientError as error:
            call.unknown(error)
            return None
        call.end("ok", decision=decision)
        return decision

    async def abort_by_hand(self, id: str, *, after_s: float = 0.0) -> None:
        """An operator loses patience."""
        await asyncio.sleep(after_s)
        call = self._invoke("resolve", id)
        try:
            answer = await self._library.resolve(
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
        call = self._invoke("retry", id)
        try:
            answer = await self._library.retry(id, deadline=5.0)
        except UnknownTransaction:
            call.unheard_of()
        except ClientError as error:
            call.unknown(error)
        else:
            call.answered(answer)

    async def nonsense(self) -> None:
        """A request that no node can obey (I18)."""
        draw = self._draw
        node = draw.choice(self._world.nodes)
        method, path, body = draw.choice(NONSENSE)
        url = node.settings.api.url + path
        try:
            answer = await self._library._exchange.send(method, url, body, 5.0)
        except NoAnswer:
            return
        # Who does not lead may send everything on to who does, looked at or not.
        if answer.status not in (307, 503):
            where = f"{method} {path}"
            self.record("bad_input", node=node.name, to=where, status=answer.status, alive=True)

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
            await self._library.list(limit=5, deadline=3.0)
        except ClientError:
            return

    def _deadline_s(self) -> float:
        if self._draw.random() < self._world.environment.impatient:
            return self._draw.choice((0.05, 0.2, 0.5))
        return self._draw.choice((3.0, 10.0, 20.0))

    def _invoke(self, call: str, id: str, **fields: Any) -> _Call:
        self._load.operations += 1
        return _Call(self, self._load.operations, call, id, fields)

    def record(self, event: str, **fields: Any) -> None:
        process = self._host.process
        if process is not None and process.alive:
            self._world.record(event, client=self._session, **fields)


class _Call:
    """One call in the history."""

    def __init__(self, user: User, number: int, call: str, id: str, fields: Body) -> None:
        self._user = user
        self._number = number
        self._id = id
        self._call = call
        user.record("invoke", op=number, call=call, id=id, **fields)

    def answered(self, answer: Transaction) -> None:
        self.end("ok", outcome=answer.outcome, state=answer.state)
        if self._call == "submit" and answer.outcome is not None:
            self._user._world.count(answer.outcome)
            self._user._load.told.append(self._id)

    def failed(self, error: Refused) -> None:
        self.end("fail", error=error.code)
        self._user._world.count("refused")

    def unknown(self, error: ClientError) -> None:
        self.end("info", error=type(error).__name__)
        if self._call == "submit":
            self._user._world.count("unknown")
            self._user._load.unknown.append(self._id)

    def read(self, answer: HttpAnswer) -> None:
        """What one node said by itself; only 200 and 404 say anything."""
        if answer.status == 404:
            self.unheard_of()
        elif answer.status == 200:
            told = json.loads(answer.body)
            listed = {row["id"]: row for row in told.get("transactions", [told])}
            row = listed.get(self._id)
            if row is None:
                self.end("info", error="not on this page")
            else:
                self.end("ok", outcome=row["outcome"], state=row["state"])
        else:
            self.end("info", error=str(answer.status))

    def unheard_of(self) -> None:
        self.end("ok", outcome=None, state="unknown")

    def end(self, event: str, **fields: Any) -> None:
        self._user.record(event, op=self._number, call=self._call, id=self._id, **fields)


def _told(body: Body) -> Body:
    """What history keeps of a body."""
    participants = {
        entry["name"]: [entry["payload"][k] for k in ("account", "amount", "vote")]
        for entry in body["participants"]
    }
    work = body["participants"][0]["payload"]["work"]
    return {"participants": participants, "work": work}
