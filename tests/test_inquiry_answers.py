"""coordinator/inquiry.py: each row of PROTOCOL section 5 that is about a transaction on record.

What nobody knows, and what has expired, is the driver's part: tests/test_driver.py.
"""

from __future__ import annotations

import pytest

from coordinator.commands import Command, Refuse
from coordinator.facts import Effect, Mode
from coordinator.inquiry import answer_inquiry
from participants.contract import Decision, Vote
from tests.builders import (
    BEGAN_MS,
    EPOCH,
    acknowledge,
    begin,
    decide,
    led_machine,
    record,
    resolve,
)

YES, NO, READ_ONLY, UNKNOWN = Vote.YES, Vote.NO, Vote.READ_ONLY, Vote.UNKNOWN
COMMIT, ABORT, PENDING = Decision.COMMIT, Decision.ABORT, Decision.PENDING

ROWS: dict[str, tuple[Decision, list[Command]]] = {
    "undecided": (PENDING, [begin()]),
    "open": (PENDING, [begin(mode=Mode.INTERACTIVE)]),
    "aborted, not acknowledged": (ABORT, [begin(), decide((YES, NO))]),
    "aborted, its vote was not heard": (ABORT, [begin(), decide((UNKNOWN, NO))]),
    "aborted and finished": (ABORT, [begin(), decide((YES, NO)), acknowledge(0b01)]),
    "aborted by hand": (ABORT, [begin(), resolve()]),
    "aborted, branch ended by hand": (ABORT, [begin(), decide((YES, NO)), resolve("1")]),
    "committed, not acknowledged": (COMMIT, [begin(), decide((YES, YES))]),
    "committed, only another acknowledged": (
        COMMIT,
        [begin(), decide((YES, YES)), acknowledge(0b10)],
    ),
    "committed and acknowledged": (ABORT, [begin(), decide((YES, YES)), acknowledge(0b01)]),
    "committed and finished": (ABORT, [begin(), decide((YES, YES)), acknowledge(0b11)]),
    "committed, voted read-only": (ABORT, [begin(), decide((READ_ONLY, YES))]),
    "committed, branch ended by hand": (COMMIT, [begin(), decide((YES, YES)), resolve("1")]),
    "committed, branch ended by hand, finished": (
        COMMIT,
        [begin(), decide((YES, YES)), resolve("1"), acknowledge(0b10)],
    ),
    "committed, branch said by hand to be rolled back": (
        COMMIT,
        [begin(), decide((YES, YES)), resolve("1", effect=Effect.ROLLED_BACK)],
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_answer_for_branch_1_is_the_one_that_the_protocol_gives(row: str) -> None:
    answer, commands = ROWS[row]
    assert answer_inquiry(record(led_machine(*commands)), "1", "f1") is answer


@pytest.mark.parametrize("row", ROWS)
def test_other_work_under_the_same_id_is_never_committed(row: str) -> None:
    transaction = record(led_machine(*ROWS[row][1]))
    assert answer_inquiry(transaction, "1", "f2") is ABORT
    assert answer_inquiry(transaction, "1", "") is ABORT
    assert answer_inquiry(transaction, "3", "f1") is ABORT


@pytest.mark.parametrize("fingerprint", ["f1", ""])
def test_a_refused_id_was_aborted_whoever_asks(fingerprint: str) -> None:
    refused = record(led_machine(Refuse(EPOCH, BEGAN_MS, "t")))
    assert answer_inquiry(refused, "1", fingerprint) is ABORT
