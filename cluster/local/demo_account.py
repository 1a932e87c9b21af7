"""The account at the end of the demo: what clients were told, and what services hold. Pure.

Every check compares figures that come from different places, and says them; a check that could not
be made has not held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_SHOWN_IDS = 3


@dataclass(frozen=True, slots=True)
class Check:
    """One claim, whether it held, and the figures."""

    claim: str
    held: bool
    figures: str


@dataclass(slots=True)
class Account:
    """What the demo knows. `told`: outcome by id, None where the client did not learn it.

    `found`: what the cluster answered later for those. `quantity`: by id, what was ordered.
    `effects`: by service, how each transaction's branch ended there (`committed`, `rolled_back`).
    """

    told: dict[str, str | None] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)
    quantity: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    effects: dict[str, dict[str, str]] = field(default_factory=dict)
    stock_taken: int = -1
    log_entries: int = -1
    orders_counted: int = -1
    prepared_now: int = -1
    unfinished_now: int = -1
    old_leader: str = ""
    new_leader: str = ""
    killed_pid: int = 0
    leader_was_dead: bool = False
    next_commit_s: float | None = None
    nodes_asked: int = 0
    transactions_asked: int = 0
    disagreements: list[str] = field(default_factory=lambda: ["the nodes were not asked"])

    def ids(self, outcome: str) -> list[str]:
        """The transactions that ended so, as told or as found later."""
        return [id for id, told in self.told.items() if (told or self.found.get(id)) == outcome]

    def figures(self) -> dict[str, Any]:
        """For people and machines."""
        return {
            "committed": len(self.ids("committed")),
            "aborted": len(self.ids("aborted")),
            "abort_reasons": dict(sorted(self.reasons.items())),
            "unknown_to_the_client": sum(told is None for told in self.told.values()),
            "in_doubt_now": self.prepared_now,
            "unfinished_now": self.unfinished_now,
            "stock_taken": self.stock_taken,
            "log_entries": self.log_entries,
            "orders_counted": self.orders_counted,
            "leader_killed": self.old_leader,
            "leader_after": self.new_leader,
            "next_commit_after_kill_s": self.next_commit_s,
        }

    def checks(self) -> list[Check]:
        committed = self.ids("committed")
        aborted = self.ids("aborted")
        sold = sum(self.quantity[id] for id in committed)
        failed = [id for id, told in self.told.items() if told is None] + self.failures
        return [
            Check(
                "the leader was killed, and another leads",
                self.leader_was_dead and self.old_leader != self.new_leader != "",
                f"{self.old_leader} (pid {self.killed_pid}), then {self.new_leader}",
            ),
            Check("transactions committed after it", *_next_commit(self.next_commit_s)),
            Check("some committed and some had to abort", *_both(len(committed), len(aborted))),
            Check("no client call failed", not failed, _some(failed)),
            Check("nothing is in doubt", *_nothing(self.prepared_now, self.unfinished_now)),
            _equal("stock taken = quantities committed", self.stock_taken, sold),
            _equal("log entries = transactions committed", self.log_entries, len(committed)),
            _equal("orders counted = transactions committed", self.orders_counted, len(committed)),
            *(
                _as_told(service, effects, committed, aborted)
                for service, effects in self.effects.items()
            ),
            Check(
                "all nodes agree",
                not self.disagreements,
                _some(self.disagreements)
                if self.disagreements
                else f"{self.nodes_asked} asked for {self.transactions_asked:,} transactions each",
            ),
        ]


@dataclass(frozen=True, slots=True)
class Report:
    """How the demo ended."""

    figures: Mapping[str, Any]
    checks: Sequence[Check]

    @property
    def held(self) -> bool:
        return all(check.held for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        checks = [
            {"claim": check.claim, "held": check.held, "figures": check.figures}
            for check in self.checks
        ]
        return {"held": self.held, "figures": dict(self.figures), "checks": checks}


def _next_commit(seconds: float | None) -> tuple[bool, str]:
    return (False, "none") if seconds is None else (True, f"the next one after {seconds:.2f} s")


def _both(committed: int, aborted: int) -> tuple[bool, str]:
    return committed > 0 and aborted > 0, f"{committed:,} and {aborted:,}"


def _nothing(prepared: int, unfinished: int) -> tuple[bool, str]:
    figures = f"{prepared} branches prepared, {unfinished} transactions unfinished"
    return (prepared, unfinished) == (0, 0), figures


def _equal(claim: str, one: int, other: int) -> Check:
    return Check(claim, one == other, f"{one:,} {'=' if one == other else 'is not'} {other:,}")


def _as_told(
    service: str, effects: Mapping[str, str], committed: Sequence[str], aborted: Sequence[str]
) -> Check:
    """Every transaction has at this service the outcome that it has, and none but ours is there."""
    known = {*committed, *aborted}
    wrong = [id for id in committed if effects.get(id) != "committed"]
    wrong += [id for id in aborted if effects.get(id) == "committed"]
    wrong += [id for id, effect in effects.items() if effect == "committed" and id not in known]
    figures = _some(wrong) if wrong else f"{len(known):,} transactions"
    return Check(f"{service}: every outcome is as told", not wrong, figures)


def _some(entries: Sequence[str]) -> str:
    shown = ", ".join(entries[:_SHOWN_IDS])
    more = f" and {len(entries) - _SHOWN_IDS} more" if len(entries) > _SHOWN_IDS else ""
    return f"{shown}{more}" if entries else "none did"
