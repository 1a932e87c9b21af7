"""Every rule that carries safety, broken in the project's own code while a small world is explored.

How they are broken is in `broken_rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import coordinator.conversation
import coordinator.driver
import coordinator.machine
import coordinator.records
import participants.branch
from coordinator.commands import Begin, Decide, Refuse
from coordinator.conversation import Conversation
from coordinator.driver import Driver
from coordinator.facts import Outcome
from coordinator.machine import Machine
from coordinator.moves import Move, Phase
from coordinator.talks import Talks
from participants.sdk import ParticipantSettings
from tests.model.broken_rules import (
    Taken,
    always_counts,
    any_fingerprint,
    before_durable,
    begin_overwrites,
    begin_whatever_stands,
    begun_before_begin,
    commit_for_ever,
    converse_as_the_first,
    counts_once_fate_is_known,
    error_ends_the_work,
    fate_known_while_working,
    finished_at_once,
    go_on_once_begun,
    inquire_though_expired,
    inquire_without_barrier,
    no_epoch_check,
    nothing_expires,
    only_prepare,
    other_move,
    perform_before_synced,
    prepared_expires,
    put_whatever,
    refuse_nothing,
    replaced,
    row_of_any,
    silence_is_consent,
    store_over,
    together,
    tombstones_kept_for,
    unsent_unless_voted,
)
from tests.model.cases import (
    ANY_VOTE,
    FORGETTING,
    LATE_SDK,
    ONE,
    ONE_PLAIN,
    ONE_SLOW,
    OTHER_WORK,
    THREE_LEADERSHIPS,
    TOMBSTONES,
    Case,
)
from tests.model.explorer import Explored, explore
from tests.model.services import CrashingStore
from tests.model.world import World


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken rule. `section`: of PROTOCOL; `case`: the smallest world in which it is noticed;
    `says`: how what goes wrong begins.
    """

    name: str
    section: int
    case: Case
    says: str
    take: Taken
    stale_views: bool = False

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        with ExitStack() as taken:
            self.take(taken)
            yield

    def explored(self) -> Explored:
        with self.switched_on():
            return explore(World(self.case, stale_views=self.stale_views))


_DECIDED = (Phase.COMMITTING, Phase.ABORTING, Phase.FINISHED)

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "abort-told-before-durable",
            3,
            ANY_VOTE,
            "I4",
            before_durable(Outcome.ABORT),
        ),
        Mutant(
            "commit-told-before-durable",
            3,
            ANY_VOTE,
            "I5",
            before_durable(Outcome.COMMIT),
        ),
        Mutant(
            "last-decision-wins",
            2,
            THREE_LEADERSHIPS,
            "I2",
            together(
                other_move(Decide, _DECIDED, Move.DECIDE),
                replaced(Machine, "_put", put_whatever),
                replaced(Machine, "_store", store_over),
            ),
        ),
        Mutant(
            "silence-is-consent",
            2,
            ANY_VOTE,
            "I3",
            replaced(coordinator.records, "everyone_can_commit", silence_is_consent),
        ),
        Mutant(
            "forget-before-acknowledged",
            9,
            FORGETTING,
            "I1",
            replaced(coordinator.records, "_finished_if_done", finished_at_once),
        ),
        Mutant(
            "begin-after-forgetting",
            9,
            TOMBSTONES,
            "I6",
            together(
                other_move(Begin, (Phase.EXPIRED,), Move.RECORD),
                replaced(Driver, "_begin", nothing_expires),
            ),
        ),
        Mutant(
            "expired-id-recorded-as-refused",
            5,
            FORGETTING,
            "I4",
            together(
                other_move(Refuse, (Phase.EXPIRED,), Move.RECORD_REFUSAL),
                replaced(Driver, "inquire", inquire_though_expired),
            ),
        ),
        Mutant(
            "unknown-not-refused",
            5,
            THREE_LEADERSHIPS,
            "I1",
            replaced(Driver, "_refuse", refuse_nothing),
        ),
        Mutant(
            "refusal-does-not-stick",
            2,
            THREE_LEADERSHIPS,
            "I4",
            together(
                other_move(Begin, (Phase.REFUSED,), Move.RECORD),
                replaced(Machine, "_store", store_over),
            ),
        ),
        Mutant(
            "stale-leader-answers",
            5,
            TOMBSTONES,
            "I7",
            replaced(Driver, "inquire", inquire_without_barrier),
            stale_views=True,
        ),
        Mutant(
            "no-epoch-check",
            1,
            ONE,
            "I10",
            replaced(Machine, "step", no_epoch_check),
        ),
        Mutant(
            "acknowledged-answered-commit",
            5,
            TOMBSTONES,
            "I7",
            replaced(coordinator.driver, "answer_inquiry", commit_for_ever),
        ),
        Mutant("prepared-expires", 4, LATE_SDK, "I1", prepared_expires),
        Mutant(
            "yes-before-durable",
            4,
            ANY_VOTE,
            "I1",
            replaced(CrashingStore, "perform", perform_before_synced),
        ),
        Mutant(
            "tombstone-dropped-at-once",
            4,
            TOMBSTONES,
            "I7",
            replaced(ParticipantSettings, "__init__", tombstones_kept_for),
        ),
        Mutant(
            "fingerprint-ignored",
            4,
            OTHER_WORK,
            "I7",
            together(
                replaced(coordinator.driver, "answer_inquiry", any_fingerprint),
                replaced(participants.branch, "row_of", row_of_any),
            ),
        ),
        Mutant(
            "begin-overwrites",
            2,
            OTHER_WORK,
            "I6",
            together(
                begin_overwrites,
                replaced(Machine, "_store", store_over),
                replaced(Driver, "_submit", begin_whatever_stands),
            ),
        ),
        Mutant(
            "plain-prepared-before-begin",
            3,
            ONE_PLAIN,
            "I7",
            together(
                replaced(Driver, "_begin", begun_before_begin),
                replaced(Driver, "_begun", go_on_once_begun),
            ),
        ),
        Mutant(
            "plain-prepared-again",
            7,
            ONE_PLAIN,
            "I7",
            replaced(Talks, "begin", converse_as_the_first),
        ),
        Mutant(
            "plain-rollback-counts-at-once",
            6,
            ONE_PLAIN,
            "I10",
            replaced(Conversation, "_counts", always_counts),
        ),
        # Beyond PROTOCOL's table: how a plain branch's fate is known.
        Mutant(
            "working-counts-as-answered",
            6,
            ONE_SLOW,
            "I10",
            replaced(Conversation, "_learn_fate", fate_known_while_working),
        ),
        Mutant(
            "error-ends-the-work",
            6,
            ONE_SLOW,
            "I10",
            replaced(Conversation, "_learn_fate", error_ends_the_work),
        ),
        Mutant(
            "rollback-before-prepare-counts",
            6,
            ONE_PLAIN,
            "I10",
            replaced(Conversation, "_counts", counts_once_fate_is_known),
        ),
        Mutant(
            "unheard-is-unsent",
            2,
            ONE_PLAIN,
            "I10",
            replaced(coordinator.conversation, "_vote_of", unsent_unless_voted),
        ),
        Mutant(
            "unreachable-the-second-time-is-unsent",
            2,
            ONE_SLOW,
            "I10",
            replaced(Conversation, "_is_only_prepare", only_prepare),
        ),
    )
}
"""The table of PROTOCOL, section 12, and a few more."""
