"""Planted bugs: each takes one rule away from production code while a seed runs.

A checker is believed when it has caught these. `hunt` runs seeds, the same for every mutant, until
one of them shows a violation, and says which invariant noticed it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import coordinator.machine
import coordinator.records
import participants.branch
from cluster.raft.core import RaftCore
from cluster.raft.replica import Replica
from cluster.storage.journal import Journal
from cluster.storage.journal_segments import Segments
from coordinator.commands import Acknowledge, Command, Decide, Epoch
from coordinator.facts import Transaction
from coordinator.machine import Machine, Result
from coordinator.moves import MOVES, Move, Phase
from participants.contract import Vote
from participants.store import BranchRecord
from tests.model import mutants as model
from tests.simulation.cli import results
from tests.simulation.run import Result as Outcome_
from tests.simulation.run import run_seed
from tests.simulation.services import SimStore

Take = Callable[[ExitStack], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`what`: the rule that is missing."""

    name: str
    what: str
    take: Take

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        with ExitStack() as taken:
            self.take(taken)
            yield


def run_mutant(name: str, seed: int, *, verbose: bool = False) -> Outcome_:
    """One seed with one bug planted."""
    with MUTANTS[name].switched_on():
        return run_seed(seed, verbose=verbose)


def hunt(names: Sequence[str], seeds: Sequence[int], jobs: int) -> int:
    """Print, for each mutant, the first seed that catches it; 1 if one is not caught."""
    missed = 0
    print(f"{'mutant':32} {'seeds':>6}  noticed by")
    for name in names or MUTANTS:
        tried = 0
        noticed: str | None = None
        for result in results(functools.partial(_bare, name), seeds, jobs):
            tried += 1
            if result.violations:
                kinds = dict.fromkeys(v.invariant for v in result.violations)
                noticed = f"{', '.join(kinds)} (seed {result.seed}: {result.violations[0].text})"
                break
        missed += noticed is None
        print(f"{name:32} {tried:6}  {noticed or 'NOT CAUGHT'}"[:160], flush=True)
    return 1 if missed else 0


def _bare(name: str, seed: int) -> Outcome_:
    return replace(run_mutant(name, seed), history=())


# --- how they are made ----------------------------------------------------------------------------


def _on(owner: object, name: str, instead: Callable[..., Any]) -> Take:
    """`instead` is called with the original, and then as the original is."""

    def take(taken: ExitStack) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def called(*arguments: Any, **named: Any) -> Any:
            return instead(original, *arguments, **named)

        taken.enter_context(patch.object(owner, name, called))

    return take


def _move(command: type[Command], phases: tuple[Phase, ...], move: Move) -> Take:
    def take(taken: ExitStack) -> None:
        taken.enter_context(patch.dict(MOVES[command], dict.fromkeys(phases, move)))

    return take


def _all(*parts: Take) -> Take:
    def take(taken: ExitStack) -> None:
        for part in parts:
            part(taken)

    return take


# --- the disk -------------------------------------------------------------------------------------


def _sync_is_a_lie(original: Any, self: Any, sync: Any) -> None:
    del original
    self._watermark.advance(sync.position)
    sync.done = True


def _forgetful_vote(original: Any, journal: Journal, term: int, vote: str | None) -> None:
    """The vote is kept in memory and never written."""
    before = len(journal._buffer)
    original(journal, term, vote)
    del journal._buffer[before:]


# --- Raft -----------------------------------------------------------------------------------------


def _commit_at_once(original: Any, core: RaftCore) -> None:
    """The leader counts entries as committed when they are in its own journal."""
    if core.role.name == "LEADER":
        core.set_commit(core.durable_index)
    original(core)


def _truncate_always(original: Any, core: Any, peer: str, message: Any) -> int:
    """A follower cuts its log at the leader's previous entry, whatever it holds."""
    first = core.journal.first_index
    if message.previous_index + 1 > max(first, 1) and core.journal.last_index > (
        message.previous_index
    ):
        core.truncate_from(message.previous_index + 1)
    return int(original(core, peer, message))


def _never_truncate(original: Any, core: Any, peer: str, message: Any) -> int:
    """A follower keeps what it has where the leader has something else."""
    del original, peer
    verified: int = message.previous_index
    for command, index, term in message.entries:
        if index > core.journal.last_index:
            core.append_entry(command, index, max(term, core.journal.last_term))
        verified = index
    return verified


def _trust_the_leader(original: Any, core: Any, message: Any) -> int | None:
    """Entries are taken without looking whether the logs meet."""
    hint = original(core, message)
    return hint if message.previous_index > core.journal.last_index else None


def _commit_uncompared(original: Any, core: Any, peer: str, message: Any) -> None:
    """A follower commits as far as the leader says, not as far as it has compared."""
    original(core, peer, message)
    core.set_commit(max(core.commit, min(message.commit, core.journal.last_index)))


def _vote_for_all(original: Any, core: Any, peer: str, message: Any) -> None:
    """Votes are given again and again in one term."""
    vote = core.journal._log.vote
    if message.term == core.term and vote not in (None, peer):
        core.journal._log.vote = None
        original(core, peer, message)
        core.journal._log.vote = vote
    else:
        original(core, peer, message)


def _vote_for_less(original: Any, *_: Any) -> bool:
    del original
    return True


def _install_anything(original: Any, core: Any, verified: Any, error: Any) -> None:
    """A snapshot is installed although the log is further."""
    commit = core._SyncObj__raftCommitIndex
    core._SyncObj__raftCommitIndex = 0
    try:
        original(core, verified, error)
    finally:
        if core.commit == 0:
            core._SyncObj__raftCommitIndex = commit


def _old_pieces(original: Any, core: Any, peer: str, message: Any) -> None:
    commit = core._SyncObj__raftCommitIndex
    core._SyncObj__raftCommitIndex = 0
    try:
        original(core, peer, message)
    finally:
        if core.commit == 0:
            core._SyncObj__raftCommitIndex = commit


def _barrier_at_once(original: Any, replica: Replica) -> Any:
    """Reads do not ask a quorum whether this node still leads."""
    future = original(replica)
    if not future.done():
        future.set_result(None)
    return future


# --- the machine ----------------------------------------------------------------------------------


def _any_epoch(original: Any, machine: Machine, command: Command) -> Result:
    if not isinstance(command, Epoch):
        command = command._replace(epoch=machine.epoch)
    return original(machine, command)  # type: ignore[no-any-return]


def _last_decision_wins(taken: ExitStack) -> None:
    def put(machine: Machine, before: Transaction | None, after: Transaction) -> Any:
        machine._store(before, after)
        return coordinator.machine.Applied(after, changed=True)

    taken.enter_context(patch.object(Machine, "_put", put))
    decided = (Phase.COMMITTING, Phase.ABORTING)
    taken.enter_context(patch.dict(MOVES[Decide], dict.fromkeys(decided, Move.DECIDE)))


def _acknowledged_all(original: Any, command: Acknowledge, standing: Any) -> Any:
    """The first acknowledgement is taken for all of them."""
    everybody = (1 << len(standing.branches)) - 1
    return original(command._replace(branches=everybody), standing)


def _silence_is_consent(original: Any, votes: Any, *rest: Any) -> bool:
    del original, rest
    return Vote.NO not in tuple(votes)


# --- participants ---------------------------------------------------------------------------------


def _no_tombstones(original: Any, store: SimStore, record: BranchRecord) -> None:
    """What has ended is forgotten at once."""
    original(store, record)
    key = (record.transaction_id, record.branch_id)
    if record.branch.state in participants.branch.ENDED:
        store._others.pop(key, None)
        store._ended.clear()


def _mutants() -> Iterator[Mutant]:
    yield Mutant(
        "sync-is-a-lie",
        "what is acknowledged is synced",
        _on(Segments, "_make_durable", _sync_is_a_lie),
    )
    yield Mutant("vote-not-written", "a vote is durable", _on(Journal, "set_vote", _forgetful_vote))
    yield Mutant("commit-alone", "a quorum commits", _on(RaftCore, "tick", _commit_at_once))
    yield Mutant(
        "truncate-always", "only conflicts are cut", _on(RaftCore, "_take", _truncate_always)
    )
    yield Mutant("never-truncate", "conflicts are cut", _on(RaftCore, "_take", _never_truncate))
    yield Mutant(
        "logs-need-not-meet", "logs meet first", _on(RaftCore, "_mismatch", _trust_the_leader)
    )
    yield Mutant("vote-twice", "one vote a term", _on(RaftCore, "on_request_vote", _vote_for_all))
    yield Mutant(
        "vote-for-less", "votes for whole logs", _on(RaftCore, "_is_up_to_date", _vote_for_less)
    )
    yield Mutant(
        "commit-uncompared",
        "commit what was compared",
        _on(RaftCore, "on_append", _commit_uncompared),
    )
    yield Mutant(
        "snapshot-over-newer-log",
        "a snapshot is installed only ahead",
        _all(
            _on(RaftCore, "on_snapshot_piece", _old_pieces),
            _on(RaftCore, "_snapshot_received", _install_anything),
        ),
    )
    yield Mutant("barrier-at-once", "reads ask a quorum", _on(Replica, "barrier", _barrier_at_once))
    yield Mutant(
        "no-epoch-check", "commands of old epochs are refused", _on(Machine, "step", _any_epoch)
    )
    yield Mutant("last-decision-wins", "the first decision stands", _last_decision_wins)
    yield Mutant(
        "acknowledged-by-one",
        "all acknowledge",
        _on(coordinator.machine, "acknowledged", _acknowledged_all),
    )
    yield Mutant(
        "silence-is-consent",
        "all vote",
        _on(coordinator.records, "everyone_can_commit", _silence_is_consent),
    )
    yield Mutant(
        "no-tombstones", "ended branches are remembered", _on(SimStore, "keep", _no_tombstones)
    )


OF_THE_MODEL = (
    "abort-told-before-durable",
    "commit-told-before-durable",
    "forget-before-acknowledged",
    "unknown-not-refused",
    "refusal-does-not-stick",
    "acknowledged-answered-commit",
    "prepared-expires",
    "fingerprint-ignored",
    "begin-overwrites",
    "plain-prepared-before-begin",
    "plain-prepared-again",
    "plain-rollback-counts-at-once",
    "unheard-is-unsent",
)
"""Bugs that `tests/model` plants in the same code: here the whole of it must show them."""


def _from_model(name: str) -> Mutant:
    planted = model.MUTANTS[name]

    def take(taken: ExitStack) -> None:
        taken.enter_context(planted.switched_on())

    return Mutant(name, f"PROTOCOL, section {planted.section}", take)


MUTANTS = {mutant.name: mutant for mutant in _mutants()}
"""By name."""
MUTANTS |= {name: _from_model(name) for name in OF_THE_MODEL if name in model.MUTANTS}
