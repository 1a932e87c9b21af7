"""Planted bugs, continued: what is shown of the past, what is lost between two groups, and a leader
that nobody answers, as it thinks."""

from __future__ import annotations

import math
from typing import Any

from cluster.raft.core import RaftCore
from cluster.raft.proposals import Proposals
from coordinator.api_requests import Answer, Request, text_answer
from coordinator.api_transactions import Transactions
from coordinator.facts import Transaction
from coordinator.log import LogError

# --- answers --------------------------------------------------------------------------------------


def branches_remembered(original: Any, transaction: Transaction) -> Transaction:
    """What is shown of branches is remembered by what was decided, whoever has acknowledged it."""
    standing: Transaction = original(transaction)
    return standing._replace(acknowledged=0)


async def retry_from_the_past(
    _original: Any, transactions: Transactions, request: Request, transaction_id: str
) -> Answer:
    """Who has led, and does not know better, tells an operator what was."""
    try:
        transaction = transactions._driver.retry_now(transaction_id)
    except LogError as error:
        transactions._leadership.lost(request, error)
    return text_answer(200, transactions._show(transaction))


# --- groups ---------------------------------------------------------------------------------------


def dropped_from_a_group(original: Any, proposals: Proposals, now_s: float) -> Any:
    """The command that shows that a group has bytes enough is in no group."""
    group = original(proposals, now_s)
    if group and proposals._waiting and sum(map(len, group[0])) >= proposals.limits.group_bytes:
        command, _ = proposals._waiting.popleft()
        proposals._waiting_bytes -= len(command)
        proposals.leave_by_s = 0.0 if proposals._waiting else math.inf
    return group


# --- Raft -----------------------------------------------------------------------------------------


def answers_not_noted(_original: Any, _core: RaftCore, _peer: str) -> None:
    """A leader does not note when it was answered, and steps down after a while."""
