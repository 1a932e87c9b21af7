"""The API's calls of interactive transactions: enlist a participant, commit, roll back.

All are answered by the leader, and may be repeated: an answer that was lost is given again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from coordinator import api_fields
from coordinator.api_errors import log_refusal
from coordinator.api_fields import object_of, one_of
from coordinator.api_leadership import Leadership
from coordinator.api_requests import Answer, Endpoint, Request, text_answer
from coordinator.api_shapes import read_participant
from coordinator.api_show import show, show_branch
from coordinator.api_transactions import ONE, WAIT_MARGIN_MS
from coordinator.bodies import LARGE_BYTES
from coordinator.driver import Driver
from coordinator.errors import unknown
from coordinator.facts import Transaction
from coordinator.live import is_reached
from coordinator.log import LogError
from coordinator.machine import Machine
from coordinator.patience import Patience
from coordinator.plan import Wait
from coordinator.settings import Limits

Asked = TypeVar("Asked")

_END_FIELDS = dict.fromkeys(("wait",))


class InteractiveCalls:
    """See the file's docstring."""

    def __init__(
        self,
        driver: Driver,
        machine: Machine,
        leadership: Leadership,
        limits: Limits,
        now_ms: Callable[[], int],
    ) -> None:
        self._driver = driver
        self._machine = machine
        self._leadership = leadership
        self._limits = limits
        self._now_ms = now_ms
        self._patience = Patience()

    def endpoints(self) -> tuple[Endpoint, ...]:
        body = self._limits.body_bytes
        return (
            Endpoint("POST", ONE + "/branches", self.enlist, self._leadership.admit, body),
            Endpoint("POST", ONE + "/commit", self.commit, self._leadership.admit, body),
            Endpoint("POST", ONE + "/rollback", self.rollback, self._leadership.admit, body),
        )

    async def enlist(self, request: Request, transaction_id: str) -> Answer:
        """POST /v1/transactions/{id}/branches: 201 with the branch, which may work from now on."""
        value = api_fields.decode_json(request.body)
        if len(request.body) > LARGE_BYTES:
            await asyncio.sleep(0)  # read in the next turn: see `bodies`
        place, payload = read_participant(value)
        del value  # which may take sixty times the memory of its JSON
        enlisting = self._driver.interactive.enlist(transaction_id, place, payload)
        where = request.path, request.query
        transaction, position = await self._asked(where, transaction_id, enlisting)
        return text_answer(201, show_branch(transaction, position))

    def commit(self, request: Request, transaction_id: str) -> Coroutine[Any, Any, Answer]:
        """POST /v1/transactions/{id}/commit: 200 with the outcome, whatever it is."""
        where = request.path, request.query  # who waits holds no body, which may be large
        ask = self._driver.interactive.commit
        return self._end(where, transaction_id, _read_wait(request), ask)

    def rollback(self, request: Request, transaction_id: str) -> Coroutine[Any, Any, Answer]:
        """POST /v1/transactions/{id}/rollback: likewise; of a committed one nothing is undone."""
        where, ask = (request.path, request.query), self._driver.interactive.rollback
        return self._end(where, transaction_id, _read_wait(request), ask)

    async def _end(
        self,
        where: tuple[str, str],
        transaction_id: str,
        wait: Wait,
        ask: Callable[[str], Coroutine[Any, Any, Transaction]],
    ) -> Answer:
        """When its outcome is known, as far as `wait` says; 202 where that takes too long."""
        transaction = await self._asked(where, transaction_id, ask(transaction_id))
        if wait is not Wait.NONE and not is_reached(transaction, wait):
            left_s = (max(0, transaction.deadline_ms - self._now_ms()) + WAIT_MARGIN_MS) / 1000
            del transaction  # who waits holds no payloads
            future = self._driver.wait_for(transaction_id, wait)
            waiting = self._patience.settled(future, left_s)
            present = await self._asked(where, transaction_id, waiting)
            present = present or self._machine.get(transaction_id)
            if present is None:  # it ended, and was forgotten meanwhile
                raise unknown(transaction_id)
            transaction = present
        status = 200 if wait is not Wait.NONE and is_reached(transaction, wait) else 202
        is_finished = transaction.finished_ms is not None
        progress = None if is_finished else self._driver.progress(transaction_id)
        return text_answer(status, show(transaction, progress))

    async def _asked(
        self, where: tuple[str, str], transaction_id: str, asked: Awaitable[Asked]
    ) -> Asked:
        try:
            return await asked
        except LogError as error:
            # What is asked again happens once.
            self._leadership.redirect(*where)
            raise log_refusal(error, transaction_id) from error


def _read_wait(request: Request) -> Wait:
    if not request.body:
        return Wait.DECISION
    fields = object_of(api_fields.decode_json(request.body), "body", _END_FIELDS)
    return one_of(fields, "wait", Wait, Wait.DECISION)
