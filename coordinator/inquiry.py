"""What a participant in doubt is answered (PROTOCOL, section 5). Pure.

The answer is only safe from state that is current (after a barrier), and of an id that nobody knows
only after a `Refuse` of it has been applied: both are the driver's part.
"""

from __future__ import annotations

from coordinator.facts import Outcome, Transaction, is_ended_by_hand, outstanding
from participants.contract import Decision


def answer_inquiry(transaction: Transaction, branch_id: str, fingerprint: str) -> Decision:
    """The answer for one branch of a transaction that is on record."""
    positions = [i for i, b in enumerate(transaction.branches) if b.branch_id == branch_id]
    if transaction.fingerprint != fingerprint or not positions:
        return Decision.ABORT  # other work under the same id: whatever is prepared is not ours
    match transaction.outcome:
        case None:
            return Decision.PENDING
        case Outcome.ABORT:
            return Decision.ABORT
        case Outcome.COMMIT:
            if is_ended_by_hand(transaction, branch_id):
                return Decision.COMMIT  # for ever: such a record is never forgotten
            # Acknowledged, or read-only: its part is over, so what is prepared now is the ghost of
            # a late prepare, and to commit it would do the work twice.
            waits = outstanding(transaction) >> positions[0] & 1
            return Decision.COMMIT if waits else Decision.ABORT
