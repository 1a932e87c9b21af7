"""Many transactions in one request: begun piece by piece, so that others have their turn between.

Rules
- A batch stands in line (`admission.WaitingLine`) for each piece, and batches take turns. Within
  one the elements begin in their order, without waiting for each other's ends.
- One that finds the line too long, or for which there is no room for `ROOM_WITHIN_S`, is refused
  what is left of it, each element by itself; repeats of known transactions are let in all the same.
- No piece, and nothing else that is done for a batch in one turn of the event loop, takes longer
  than a millisecond or two, however large the batch is. An element that is large by itself is
  decoded in one turn and read in the next, which takes what a large transaction takes.
- One batch is read at a time, before anything of it begins, and each element as soon as it is
  decoded: JSON of 16 MiB may take 400 MB when all of it is decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from coordinator.admission import WayIn
from coordinator.api_errors import ApiError, at_capacity
from coordinator.api_requests import Answer, encode, text_answer
from coordinator.api_shapes import Submission
from coordinator.batch_json import SHORT_BYTES, elements_of
from coordinator.driver import Driver
from coordinator.live import Waiting
from coordinator.patience import Patience
from coordinator.plan import Awaited
from coordinator.settings import Limits
from coordinator.turn import ROOM_WITHIN_S, Turn

BRANCHES_BEGUN = 24
"""Of a batch in one turn, or those of one element: eight usual ones, about a millisecond."""

BRANCHES_SHOWN = 200
"""Of a batch's answer in one turn: about a millisecond."""


Element = Submission | ApiError
"""Of a batch, as it was read."""


class Begun(NamedTuple):
    """An element of a batch, and until when it is waited for, a time of the event loop."""

    awaited: Awaited
    branches: int
    future: Waiting
    until_s: float


class Batches:
    """`begin` begins an element; `answer` shows as JSON what is known when the wait is over."""

    def __init__(
        self,
        driver: Driver,
        limits: Limits,
        begin: Callable[[Submission], Begun],
        answer: Callable[[Begun], str],
    ) -> None:
        self._driver = driver
        self._limits = limits
        self._patience = Patience()
        self._begin = begin
        self._answer = answer
        self._reading = asyncio.Lock()

    async def read(self, body: bytes, read: Callable[[Any], Submission]) -> list[Element]:
        """The elements in a batch's body, each as `read` makes it of decoded JSON, or what is wrong
        with it; raises ApiError for what is wrong with the whole.
        """
        elements: list[Element] = []
        in_turn = 0
        async with self._reading:
            for value, size in elements_of(body, self._limits):
                in_turn += size
                if in_turn >= SHORT_BYTES:
                    in_turn = size
                    await asyncio.sleep(0)
                try:
                    elements.append(read(value))
                except ApiError as error:
                    elements.append(error.with_traceback(None))  # which knows the elements
                if size >= SHORT_BYTES:
                    in_turn = 0
                    await asyncio.sleep(0)
        return elements

    async def submit(self, elements: Sequence[Element], address: str) -> Answer:
        """The answer to the whole: 200, with an answer or an error for each element in order."""
        begun: list[Begun | ApiError] = []
        try:
            is_full = await self._begin_all(elements, address, begun)
            del elements  # their payloads
            answers = await self._answers(begun)
        finally:
            for each in begun:
                if not isinstance(each, ApiError) and not each.future.done():
                    each.future.cancel()
        answer = text_answer(200, f'{{"transactions":[{",".join(answers)}]}}')
        return answer._replace(rests=is_full)

    async def _begin_all(
        self, elements: Sequence[Element], address: str, begun: list[Begun | ApiError]
    ) -> bool:
        """Whether it was too much for the node, so that in the end only repeats were let in."""
        is_full = self._driver.line.is_too_long(asyncio.get_running_loop().time(), address)
        for piece in pieces(elements):
            if begun:
                await asyncio.sleep(0)
            if not is_full:
                is_full = not await self._has_room(address, len(piece), len(elements) - len(begun))
            for element in piece:
                if isinstance(element, ApiError):
                    begun.append(element)
                elif is_full and self._driver.way_in(_id_of(element), None) is WayIn.REFUSED:
                    begun.append(at_capacity())
                else:
                    begun.append(self._begin(element))
        return is_full

    async def _has_room(self, address: str, piece: int, left: int) -> bool:
        """Wait for this batch's turn; what it was promised is begun before anybody else runs."""
        turn = Turn(self._driver.line, address, piece, left)
        try:
            return await self._patience.settled(turn.has_come, ROOM_WITHIN_S) is not None
        finally:
            turn.leave()

    async def _answers(self, begun: Sequence[Begun | ApiError]) -> list[str]:
        answers: list[str] = []
        shown = 0
        for each in begun:
            if isinstance(each, ApiError):
                answers.append(encode(each.body()))
                shown += 1
            else:
                if not each.future.done():
                    await self._wait(each)
                answers.append(self._answer(each))
                shown += each.branches
            if shown >= BRANCHES_SHOWN:
                shown = 0
                await asyncio.sleep(0)
        return answers

    async def _wait(self, begun: Begun) -> None:
        """Until its future is done; it is cancelled when its time is over."""
        left_s = begun.until_s - asyncio.get_running_loop().time()
        self._patience.bound(begun.future, left_s)
        await asyncio.wait((begun.future,))


def pieces(elements: Sequence[Element]) -> Iterator[Sequence[Element]]:
    """What is begun in one turn: elements with `BRANCHES_BEGUN` branches, or one with more."""
    begins, branches = 0, 0
    for position, element in enumerate(elements):
        more = _branches_of(element)
        if branches and branches + more > BRANCHES_BEGUN:
            yield elements[begins:position]
            begins, branches = position, 0
        branches += more
    yield elements[begins:]


def _branches_of(element: Element) -> int:
    """What is no transaction costs something too."""
    return 1 if isinstance(element, ApiError) else len(element.plan.branches)


def _id_of(submission: Submission) -> str | None:
    """The one that the client gave."""
    return submission.plan.id if submission.named else None
