"""The API's calls about transactions: beginning, waiting, reading, an operator's calls.

Rules:
- A request without an id gets one only from a node that leads at that moment. From then on it
  is never answered 307: the client would follow with a body that has no id, and run the work twice.
- Nobody's going away ends a transaction: a waiter may be cancelled, the transaction goes on.
- A read that claims to be current is made after a barrier (I8); one that does not says "stale".
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from coordinator import api_fields, api_shapes
from coordinator.admission import WayIn
from coordinator.api_errors import (
    ApiError,
    at_capacity,
    bad_field,
    log_refusal,
    outcome_unknown,
    refusal,
    too_large,
)
from coordinator.api_leadership import Leadership
from coordinator.api_requests import (
    Answer,
    Endpoint,
    Later,
    Request,
    encode,
    error_answer,
    json_answer,
    read_query,
    refuse_browsers,
    require_id,
    require_json,
    text_answer,
)
from coordinator.api_shapes import DEFAULT_PAGE, Submission
from coordinator.api_show import show
from coordinator.batch_json import is_batch
from coordinator.batches import Batches, Begun
from coordinator.bodies import LARGE_BYTES
from coordinator.capacity import largest
from coordinator.driver import Driver
from coordinator.errors import CoordinatorError, NotAllowed, unknown
from coordinator.facts import Mode, Outcome, Transaction
from coordinator.live import Waiting, is_reached
from coordinator.log import LogError
from coordinator.machine import Machine
from coordinator.patience import Patience
from coordinator.plan import Awaited, Wait
from coordinator.settings import Limits, Timings
from coordinator.turn import begun_in_turn
from participants.contract import read_traceparent

TRANSACTIONS = "/v1/transactions"
ONE = TRANSACTIONS + "/{id}"

WAIT_MARGIN_MS = 5_000
"""A POST waits until its transaction's deadline and this, to hear of the decision; then 202."""

MAX_WAIT_MS = 60_000
"""A GET waits no longer, whatever `wait_ms` asks: the client asks again. Proxies give up too."""

BACKLOG_SHOWN = 50
AT_CAPACITY = error_answer(at_capacity())._replace(rests=True)  # once: it must be cheap
BRANCHES_PER_TURN = 500
"""Branches shown in a list before the event loop gets a turn: some milliseconds."""

PAGE_CHARS = 4 * 1024 * 1024
"""A page ends with the transaction that reaches this: URLs may have 2,000 characters, a transaction
256 branches, and what a client does not take stays in memory as long as it takes a little."""

_LIST_QUERY = ("state", "participant", "older_than_ms", "limit", "after", "stale")


class Transactions:
    """The calls about transactions."""

    def __init__(
        self,
        driver: Driver,
        machine: Machine,
        leadership: Leadership,
        limits: Limits,
        timings: Timings,
        now_ms: Callable[[], int],
        require_not_ahead: Callable[[str], None],
        make_id: Callable[[], str],
    ) -> None:
        self._driver = driver
        self._machine = machine
        self._leadership = leadership
        self._limits = limits
        self._timings = timings
        self._now_ms = now_ms
        self._require_not_ahead = require_not_ahead
        self._make_id = make_id
        self._patience = Patience()
        self._batches = Batches(driver, limits, self._begin_element, self._answer_of)

    def endpoints(self) -> tuple[Endpoint, ...]:
        small, large = self._limits.body_bytes, self._limits.batch_body_bytes
        return (
            Endpoint("POST", TRANSACTIONS, self.submit, self.admit_submit, large),
            Endpoint("GET", TRANSACTIONS, self.page),
            Endpoint("GET", ONE, self.get),
            Endpoint("GET", ONE + "/decision", self.decision),
            Endpoint("POST", ONE + "/resolve", self.resolve, self._leadership.admit, small),
            Endpoint("POST", ONE + "/retry", self.retry, self._leadership.admit, small),
        )

    # --- beginning ---

    def admit_submit(self, request: Request, _: str) -> None:
        """Asked again when the body is there, for leadership may have gone while it came: the last
        moment to say 307, when no id is made yet.
        """
        read_query(request, ())
        self._leadership.require(request)
        require_json(request)

    def submit(self, request: Request, _: str) -> Answer | Later | Coroutine[Any, Any, Answer]:
        """POST /v1/transactions: one, or a batch."""
        body = request.body
        traceparent = read_traceparent(request.headers.get("traceparent"))
        if is_batch(body):
            return self._submit_batch(body, request.address, traceparent)
        if len(body) > self._limits.body_bytes:
            raise too_large("The body", len(body), self._limits.body_bytes)
        if len(body) > LARGE_BYTES:
            return self._submit_large(request, traceparent)
        return self._submit_one(request, api_fields.decode_json(body), traceparent)

    async def _submit_large(self, request: Request, traceparent: str | None) -> Answer:
        """Decoded in one turn of the event loop and read in the next: of the dearest JSON either
        takes most of a tenth of a second.
        """
        value = api_fields.decode_json(request.body)
        await asyncio.sleep(0)
        self._leadership.require(request)
        answer = self._submit_one(request, value, traceparent)
        del value, request  # the former may take sixty times the memory of its JSON
        return answer if isinstance(answer, Answer) else await answer.come()

    def _submit_one(self, request: Request, value: Any, traceparent: str | None) -> Answer | Later:
        given_id = value.get("id") if isinstance(value, dict) else None
        way = self._driver.way_in(given_id, request.address)
        if way is WayIn.REFUSED:
            return AT_CAPACITY
        size = len(request.body)
        if way is WayIn.AT_ONCE:
            submission = self._read(value, traceparent, request.address)
            future = self._driver.submit(submission.plan, submission.wait)
        elif way is WayIn.IN_ORDER:
            submission = self._read(value, traceparent, request.address)
            future = self._driver.submit_in_order(submission.plan, submission.wait, size)
        else:
            submission = self._read(value, traceparent)
            begin = functools.partial(self._driver.submit, submission.plan, submission.wait)
            line = self._driver.line
            future = begun_in_turn(line, request.address, size, self._patience, begin)
        self._patience.bound(future, _bound_s(submission))
        where, awaited = (request.path, request.query), submission.awaited
        return Later(future, functools.partial(self._submitted, *where, awaited))

    def _submitted(self, path: str, query: str, awaited: Awaited, future: Waiting) -> Answer:
        try:
            transaction = self._settled(awaited, future)
        except LogError as error:
            if awaited.named:
                self._leadership.redirect(path, query)
            raise log_refusal(error, awaited.id, named=awaited.named) from error
        status = _status_of(transaction, awaited.wait)
        if awaited.mode is Mode.INTERACTIVE:  # it may have ended, or its id be refused
            status = 200 if transaction.closed else 201
        return text_answer(status, self._show(transaction))

    async def _submit_batch(self, body: bytes, address: str, traceparent: str | None) -> Answer:
        def read(value: Any) -> Submission:
            submission = self._read(value, traceparent)
            if submission.plan.mode is Mode.INTERACTIVE:
                raise bad_field("mode", "interactive transactions are begun one by one")
            return submission

        reading = self._batches.read(body, read)
        del body
        return await self._batches.submit(await reading, address)

    def _begin_element(self, submission: Submission) -> Begun:
        until_s = asyncio.get_running_loop().time() + _bound_s(submission)
        future = self._driver.submit(submission.plan, submission.wait)
        return Begun(submission.awaited, len(submission.plan.branches), future, until_s)

    def _answer_of(self, begun: Begun) -> str:
        """The JSON in a batch's place. Never a 307: each element has an answer of its own."""
        awaited = begun.awaited
        try:
            return self._show(self._settled(awaited, begun.future))
        except ApiError as error:
            refused = error
        except CoordinatorError as error:
            refused = refusal(error)
        except LogError as error:
            refused = log_refusal(error, awaited.id, named=awaited.named)
        return encode(refused.body())

    def _read(self, value: Any, traceparent: str | None, address: str | None = None) -> Submission:
        submission = api_shapes.read_submission(
            value,
            limits=self._limits,
            timings=self._timings,
            make_id=self._make_id,
            traceparent=traceparent,
            address=address,
        )
        if submission.named:
            self._require_not_ahead(submission.plan.id)
        return submission

    def _settled(self, awaited: Awaited, future: Waiting) -> Transaction:
        """What was waited for, or, where the wait ran out, the transaction as it is."""
        if not future.cancelled():
            return future.result()
        present = self._machine.get(awaited.id)
        if present is None or present.fingerprint != awaited.fingerprint:
            raise outcome_unknown(awaited.id)
        return present

    # --- reading ---

    async def get(self, request: Request, transaction_id: str) -> Answer:
        """GET /v1/transactions/{id}: current, after `wait_ms` or its end; or `stale`, at once."""
        query = read_query(request, ("wait_ms", "stale"))
        require_id(transaction_id)
        wait_ms = api_fields.query_number(query, "wait_ms", 0, 0, self._timings.max_timeout_ms)
        if api_fields.query_flag(query, "stale"):
            if "wait_ms" in query:
                raise bad_field("wait_ms", "cannot be given together with stale")
            transaction = self._known(transaction_id)
            return text_answer(200, f'{self._show(transaction)[:-1]},"stale":true}}')
        await self._leadership.barrier(request)
        transaction = self._known(transaction_id)
        if transaction.finished_ms is None and wait_ms:
            transaction = await self._wait_for_end(request, transaction_id, wait_ms)
        return text_answer(200, self._show(transaction))

    async def _wait_for_end(
        self, request: Request, transaction_id: str, wait_ms: int
    ) -> Transaction:
        future = self._driver.wait_for(transaction_id, Wait.COMPLETION)
        try:
            settled = await self._patience.settled(future, min(wait_ms, MAX_WAIT_MS) / 1000)
        except LogError as error:
            self._leadership.lost(request, error)
        return settled or self._known(transaction_id)

    async def page(self, request: Request, _: str) -> Answer:
        """GET /v1/transactions: newest first, with the backlog of each participant."""
        query = read_query(request, _LIST_QUERY)
        states = api_fields.query_states(query)
        participant = query.get("participant")
        most = self._limits.page_size
        limit = api_fields.query_number(query, "limit", min(DEFAULT_PAGE, most), 1, most)
        older_than_ms = api_fields.query_number(query, "older_than_ms", 0, 0, 10**14)
        if "after" in query:
            api_fields.query_number(query, "after", 0, 0, 10**14)
        stale = api_fields.query_flag(query, "stale")
        if not stale:
            await self._leadership.barrier(request)
        page = self._machine.page(
            states=states,
            participant=participant,
            created_before_ms=self._now_ms() - older_than_ms if older_than_ms else None,
            after=query.get("after"),
            limit=limit,
        )
        figures = self._driver.figures()
        rows = await self._rows(page.transactions)
        next_after = page.next_after
        if len(rows) < len(page.transactions):
            next_after = str(page.transactions[len(rows) - 1].sequence)
        rest = {
            "next_after": next_after,
            "backlog": dict(largest(figures.backlog, BACKLOG_SHOWN)),
            "oldest_in_doubt_ms": figures.oldest_in_doubt_ms,
            **({"stale": True} if stale else {}),
        }
        text = '{"transactions":[' + ",".join(rows) + "]," + encode(rest)[1:]
        return text_answer(200, text)

    async def _rows(self, transactions: tuple[Transaction, ...]) -> list[str]:
        """Each transaction as JSON, as many as make a page, with turns for the event loop in
        between.
        """
        rows: list[str] = []
        shown, size = 0, 0
        for transaction in transactions:
            if size >= PAGE_CHARS:
                break
            rows.append(self._show(transaction))
            size += len(rows[-1])
            shown += 1 + len(transaction.branches)
            if shown > BRANCHES_PER_TURN:
                shown = 0
                await asyncio.sleep(0)
        return rows

    async def decision(self, request: Request, transaction_id: str) -> Answer:
        """GET /v1/transactions/{id}/decision: a participant in doubt (PROTOCOL, 5)."""
        refuse_browsers(request)
        query = read_query(request, ("branch_id", "fingerprint"))
        require_id(transaction_id)
        branch_id = api_fields.query_id(query, "branch_id")
        fingerprint = api_fields.query_id(query, "fingerprint")
        self._leadership.require(request)
        self._require_not_ahead(transaction_id)
        try:
            decision = await self._driver.inquire(transaction_id, branch_id, fingerprint)
        except LogError as error:
            self._leadership.lost(request, error)
        # Named, so that an answer that comes to the wrong one is known.
        named = {"id": transaction_id, "branch_id": branch_id}
        return json_answer(200, {"decision": decision, **named})

    # --- an operator's calls ---

    async def resolve(self, request: Request, transaction_id: str) -> Answer:
        """POST /v1/transactions/{id}/resolve: force an abort, or say what became of a branch."""
        asked = api_shapes.read_resolve(api_fields.decode_json(request.body))
        if asked.outcome is Outcome.COMMIT:
            await self._leadership.barrier(request)
            self._known(transaction_id)
            raise NotAllowed(
                f"Transaction {transaction_id} cannot be committed by hand: only the votes of all "
                "its participants commit; ask for abort, or for the effect of one branch.",
                id=transaction_id,
            )
        try:
            transaction = await self._driver.resolve(
                transaction_id,
                branch_id=asked.branch_id,
                effect=asked.effect,
                actor=asked.actor,
                reason=asked.reason,
            )
        except LogError as error:
            self._leadership.redirect(request.path, request.query)
            raise log_refusal(error, transaction_id) from error
        return text_answer(200, self._show(transaction))

    async def retry(self, request: Request, transaction_id: str) -> Answer:
        """POST /v1/transactions/{id}/retry: call its participants now, not after the pause."""
        if request.body and api_fields.decode_json(request.body) != {}:
            raise bad_field("body", "must be empty or {}")
        await self._leadership.barrier(request)  # a deposed leader must not say "unknown"
        try:
            transaction = self._driver.retry_now(transaction_id)
        except LogError as error:
            self._leadership.lost(request, error)
        return text_answer(200, self._show(transaction))

    # --- what is known ---

    def _known(self, transaction_id: str) -> Transaction:
        transaction = self._machine.get(transaction_id)
        if transaction is None:
            raise unknown(transaction_id)
        return transaction

    def _show(self, transaction: Transaction) -> str:
        progress = None
        if transaction.finished_ms is None:
            progress = self._driver.progress(transaction.id)
        return show(transaction, progress)


def _bound_s(submission: Submission) -> float:
    return (submission.plan.timeout_ms + WAIT_MARGIN_MS) / 1000


def _status_of(transaction: Transaction, wait: Wait) -> int:
    """200 if what was waited for is there, else 202."""
    return 200 if wait is not Wait.NONE and is_reached(transaction, wait) else 202
