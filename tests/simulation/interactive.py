"""Interactive transactions of the load: opened, filled and ended at any node, by hand.

As a program without the library would: it follows redirects, and repeats under the same id what
was not answered. It asks twice now and then, also at two nodes at once, and it looks on meanwhile.
It ends some of them, has two connections end others differently, and leaves the rest to the
deadline. Others meddle with what is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from cluster.client.answers import ClientError, read_json
from cluster.client.calls import HttpAnswer, NoAnswer
from participants.contract import fingerprint
from tests.simulation.astray import VIA
from tests.simulation.services import ACCOUNTS
from tests.simulation.sessions import Body, Call
from tests.simulation.world import ServiceHost

if TYPE_CHECKING:
    from tests.simulation.workload import User

TRIES = 10
PATH = "/v1/transactions"

_NOTHING_DONE = ("no_leader", "draining", "at_capacity", "overloaded", "clock_unsettled")
"""Codes of answers after which what was asked for may be asked for again, and was not done."""


@dataclass(slots=True)
class Opened:
    """One of them, as whoever opened it knows it. `moves_money`: it may commit only as a whole."""

    id: str
    work: str
    moves_money: bool
    numbers: dict[str, str] = field(default_factory=dict)
    """Of the branches that are enlisted, by participant."""


class Part(NamedTuple):
    """What a participant is to do. `by_hand`: its client has it do that before its prepare; who is
    built on the SDK enlists itself then.
    """

    service: ServiceHost
    payload: Body
    by_hand: bool


class Told(NamedTuple):
    """What a node said. `perhaps_before`: of an earlier try nobody knows."""

    status: int
    body: Any
    perhaps_before: bool

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


_ASKED = ("account", "amount", "vote")
_WAITS = (None, "decision", "completion", "none")


class Interaction:
    """What a client does with one of them."""

    def __init__(self, user: User, draw: Random) -> None:
        self._user = user
        self._draw = draw
        self._world = user.world
        self._load = user.load

    async def run(self) -> None:
        draw, environment = self._draw, self._world.environment
        if self._load.opened and draw.random() < 0.15:
            await self._meddle(draw.choice(list(self._load.opened.values())[-4:]))
            return
        opened = Opened(self._user.new_id(), self._load.new_work(), draw.random() < 0.5)
        parts = self._parts(opened)
        self._load.opened[opened.id] = opened
        others: list[Coroutine[Any, Any, Any]] = [self._look_on(opened)]
        if draw.random() < environment.other_body:
            other = self._load.new_body(draw, opened.id)
            others.append(self._user.submit(other, after_s=draw.random() / 5))
        if draw.random() < environment.operator:
            others.append(self._user.abort_by_hand(opened.id, after_s=draw.random()))
            others.append(self._user.retry(opened.id, after_s=draw.random()))
        await asyncio.gather(self._go_through(opened, parts), *others)

    async def _go_through(self, opened: Opened, parts: list[Part]) -> None:
        draw = self._draw
        if draw.random() < 0.04:
            await self._inquire(opened)
        if draw.random() < 0.2:
            is_open = any(await asyncio.gather(self._open(opened), self._open(opened)))
        else:
            is_open = await self._open(opened)
        if not is_open and draw.random() < 0.7:
            return
        if draw.random() < 0.4:
            whole = all(await asyncio.gather(*(self._take_in(opened, part) for part in parts)))
        else:
            whole = all([await self._take_in(opened, part) for part in parts])
        await self._pause()
        spare = self._part(opened, draw.choice(self._world.services), 0)._replace(by_hand=False)
        if draw.random() < 0.3:
            late = self._enlist(opened, spare, after_s=draw.random() / 10)
            await asyncio.gather(self._end(opened, whole=whole), late)
        else:
            await self._end(opened, whole=whole)
        if draw.random() < 0.5:
            await self._enlist(opened, spare)

    async def _end(self, opened: Opened, *, whole: bool) -> None:
        draw = self._draw
        may_commit = whole or not opened.moves_money
        kind = draw.random()
        if kind < 0.55:
            await self._ask_for(opened, "commit" if may_commit else "rollback")
        elif kind < 0.7:
            await self._ask_for(opened, "rollback")
        elif kind < 0.85 and may_commit:
            calls = [self._ask_for(opened, how) for how in ("commit", "rollback")]
            draw.shuffle(calls)
            await asyncio.gather(*calls)
        elif kind < 0.92 and may_commit:  # it changes its mind, too late
            await self._ask_for(opened, "rollback", waits=("none",))
            await self._ask_for(opened, "commit")
        # Else it is left open, until its deadline.

    async def _meddle(self, opened: Opened) -> None:
        """Somebody else who knows the id."""
        draw = self._draw
        kind = draw.random()
        if kind < 0.3:
            await self._ask_for(opened, "rollback")
        elif kind < 0.6 and not opened.moves_money:
            await self._ask_for(opened, "commit")
        elif kind < 0.7:
            await self._open(opened)
        elif kind < 0.8:
            await self._inquire(opened)
        else:
            await self._look_on(opened)

    # --- what it is to do

    def _parts(self, opened: Opened) -> list[Part]:
        draw, environment = self._draw, self._world.environment
        services = draw.sample(self._world.services, draw.randint(0, len(self._world.services)))
        amounts = [draw.randint(-30, 30) if opened.moves_money else 0 for _ in services[1:]]
        amounts = [-sum(amounts), *amounts][: len(services)]
        refuses = draw.random() < environment.vote_no
        parts = []
        for service, amount in zip(services, amounts, strict=True):
            vote = "no" if refuses and service is services[-1] else "yes"
            if amount == 0 and service.kind == "sdk" and draw.random() < environment.read_only:
                vote = "read_only" if vote == "yes" else vote
            parts.append(self._part(opened, service, amount, vote))
        return parts

    def _part(self, opened: Opened, service: ServiceHost, amount: int, vote: str = "yes") -> Part:
        accounts = ACCOUNTS[:1] if self._world.environment.contended else ACCOUNTS[:-1]
        account = self._draw.choice(accounts)
        payload = {"account": account, "amount": amount, "vote": vote, "work": opened.work}
        by_hand = self._draw.random() < {"sdk": 0.4, "plain": 0.7, "forgetful": 0.0}[service.kind]
        return Part(service, payload, by_hand)

    # --- calls

    async def _open(self, opened: Opened) -> bool:
        draw, environment = self._draw, self._world.environment
        call = self._user.invoke("open", opened.id, work=opened.work)
        self._world.count("interactive transactions")
        timeout_ms = 45_000 if environment.brief else draw.choice((400, 1_500, 3_000))
        body = {"id": opened.id, "mode": "interactive", "timeout_ms": timeout_ms}
        told = await self._asked(call, PATH, json.dumps(body).encode())
        if told is None:
            return False
        if told.status in (200, 201):
            call.end("ok", outcome=told.body["outcome"], state=told.body["state"])
            return told.status == 201
        self._refused(call, told)
        return False

    async def _take_in(self, opened: Opened, part: Part) -> bool:
        """Whether it is enlisted, as it should be, for all that is known."""
        draw = self._draw
        await self._pause()
        take_in = self._enlist
        if part.by_hand and part.service.kind == "sdk":
            take_in = self._have_it_enlist
        calls = [take_in(opened, part)]
        if draw.random() < 0.25:
            after_s = draw.choice((0.0, 0.3)) * draw.random()
            calls.append(take_in(opened, part, after_s=after_s))
        asked = asyncio.gather(*calls)
        if draw.random() < 0.2:
            payload = {**part.payload, "account": ACCOUNTS[0], "amount": 0}
            other = Part(part.service, payload, by_hand=False)
            await self._enlist(opened, other, after_s=draw.choice((0.0, 0.3)) * draw.random())
        is_in = any(await asked)
        if is_in and part.by_hand and part.service.kind == "plain":
            await self._have_it_work(opened, part)
        return is_in

    async def _enlist(self, opened: Opened, part: Part, *, after_s: float = 0.0) -> bool:
        await asyncio.sleep(after_s)
        service, payload = part.service, part.payload
        asked = [payload[name] for name in _ASKED]
        call = self._user.invoke(
            "enlist", opened.id, participant=service.name, asked=asked, work=opened.work
        )
        body: Body = {"name": service.name, "url": service.url}
        if not part.by_hand:
            body["payload"] = payload
        told = await self._asked(call, f"{PATH}/{opened.id}/branches", json.dumps(body).encode())
        if told is None:
            return False
        if told.status == 201:
            branch = told.body
            named = {"participant": branch["name"], "branch": branch["branch_id"]}
            call.end("ok", outcome=None, state=branch["state"], **named)
            opened.numbers[service.name] = branch["branch_id"]
            return True
        self._refused(call, told)
        return False

    async def _have_it_enlist(self, opened: Opened, part: Part, *, after_s: float = 0.0) -> bool:
        """It asks a coordinator itself, before it works."""
        await asyncio.sleep(after_s)
        name = part.service.name
        asked = [part.payload[name] for name in _ASKED]
        call = self._user.invoke("work", opened.id, participant=name, asked=asked, work=opened.work)
        try:
            answer = await self._send_work(opened, part, {})
        except NoAnswer as error:
            call.end("info", error=str(error)[:80])
            return False
        told = read_json(answer.body) if answer.status == 200 else None
        if not isinstance(told, dict) or told.get("transaction_id") != opened.id:
            # It may be enlisted, and its work have been refused.
            call.end("info", error=str(answer.status))
            return False
        number = told["branch_id"]
        call.end("ok", outcome=None, state="active", participant=name, branch=number)
        opened.numbers[name] = number
        self._world.count("interactive work of the SDK")
        return True

    async def _have_it_work(self, opened: Opened, part: Part) -> None:
        """It says itself whether that was done: by its vote."""
        number = opened.numbers[part.service.name]
        with contextlib.suppress(NoAnswer):
            await self._send_work(opened, part, {"branch_id": number})

    async def _send_work(self, opened: Opened, part: Part, more: Body) -> HttpAnswer:
        body = {"transaction_id": opened.id, "payload": part.payload, **more}
        url, encoded = f"{part.service.url}/work", json.dumps(body).encode()
        return await self._user.library._exchange.send("POST", url, encoded, 5.0)

    async def _ask_for(
        self, opened: Opened, how: str, waits: tuple[str | None, ...] = _WAITS
    ) -> None:
        """`commit` or `rollback`, until its outcome is told."""
        for wait in self._draw.sample(waits, len(waits)):
            call = self._user.invoke(how, opened.id, work=opened.work)
            body = b"" if wait is None else json.dumps({"wait": wait}).encode()
            told = await self._asked(call, f"{PATH}/{opened.id}/{how}", body)
            if told is None:
                continue
            if told.status not in (200, 202):
                self._refused(call, told)
                return
            outcome = told.body["outcome"]
            call.end("ok", outcome=outcome, state=told.body["state"])
            if outcome is not None:
                self._world.count(
                    "interactive " + ("commits" if outcome == "committed" else "aborts")
                )
                self._load.told.append(opened.id)
                return
            await self._pause()

    async def _inquire(self, opened: Opened) -> None:
        """What a participant that is in doubt would ask."""
        if not opened.numbers and self._draw.random() < 0.5:
            return
        name, number = self._draw.choice(list(opened.numbers.items()) or [("nobody", "1")])
        call = self._user.invoke("decision", opened.id, participant=name, work=opened.work)
        digest = fingerprint("interactive", (), opened.id)
        try:
            decision = await self._user.library.decision(opened.id, number, digest, deadline=5.0)
        except ClientError as error:
            call.unknown(error)
        else:
            call.end("ok", decision=decision)

    async def _look_on(self, opened: Opened) -> None:
        draw = self._draw
        for _ in range(draw.choice((0, 1, 3))):
            await self._pause()
            if draw.random() < 0.5:
                await self._user.ask(opened.id)
            else:
                await self._user.read_at(draw.choice(self._world.nodes), opened.id)

    async def _asked(self, call: Call, path: str, body: bytes) -> Told | None:
        """What a node answers in the end; None if none does, and then the call has ended."""
        user, draw = self._user, self._draw
        patience_s = self._world.environment.client_timeout_s
        perhaps, last = False, ""
        for tries in range(TRIES):
            if tries:
                await asyncio.sleep(0.3 * draw.random())
            node = draw.choice(self._world.nodes).settings.api.url
            if draw.random() < 0.5:
                node = user.library.leader or node
            try:
                timeout_s = patience_s * draw.choice((1, 1, 4))
                answer = await user.followed("POST", node + path, body, timeout_s)
            except NoAnswer as error:
                perhaps, last = True, str(error)[:80]
                continue
            if VIA in answer.headers:
                perhaps, last = True, "no node said that"
                continue
            told = Told(answer.status, json.loads(answer.body), perhaps)
            if answer.status < 500 and answer.status != 429:
                return told
            if answer.status == 500:
                user.failed_at(answer)
            last = told.code
            perhaps = perhaps or last not in _NOTHING_DONE
        call.end("info", error=last)
        return None

    def _refused(self, call: Call, told: Told) -> None:
        """Surely not done, if no earlier try was perhaps."""
        call.end("info" if told.perhaps_before else "fail", error=told.code)

    async def _pause(self) -> None:
        draw = self._draw
        await asyncio.sleep(draw.choice((0.0, 0.0, 0.05, 0.3)) * draw.random())
