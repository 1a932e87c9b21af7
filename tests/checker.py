"""One checker for histories of simulations, of tests with real processes, of production logs. Pure.

    violations = check(json.loads(line) for line in history)      # [] is what one hopes for
    python -m tests.checker FILE.jsonl                            # 1, and what is violated

A history is a sequence of events, JSON objects, in the order in which they happened. What they are
and which fields each has stands in `docs/reliability.md`, "Histories".

The invariants are numbered as everywhere in this project's tests:

    I1  never committed here and rolled back there      I10 states never go back, for a client
    I2  committed only after every vote                 I11 ... nor for anybody (current reads)
    I3  one outcome, whoever tells it, whenever         I12 exactly once by id, one body
    I4  what was told survives                          I13 money is neither made nor lost
    I5  everything prepared is resolved in time         I14 one leader per term, one log
    I6  what nobody knew and was refused never commits  I15 replicas agree in the end
    I7  an effect happens once                          I16 nothing is invented
    I8  a prepare that comes too late prepares nothing  I17 it serves, and does not stop by itself
    I9  no lock without a transaction                   I18 nonsense does no harm
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checked import (
    ABORTED,
    COMMITTED,
    Event,
    Nameless,
    Transaction,
    contradicting,
    wrong_money,
)

PROBE_LIMIT_S = 15.0
WIPED = "wipe"
"""The fault after which a node has nothing, and may take no part under its old id."""
DAMAGE = ("full disk", "rot", "lost write", "misdirected write", "failing reads", WIPED)
"""Faults after which the node that they hit may stop by itself, in order: it says why."""
FAILING = "failing syncs"
"""Another one: but it may stop for nothing else than the operation that failed."""
PLAIN_KINDS = ("plain", "forgetful")
EXPIRED = "transaction_id_expired"
UNKNOWN = "unknown_transaction"
CRASHED = 70
"""The exit code of a program that something surprised which it does not foresee (EX_SOFTWARE)."""
_RANK = {"unknown": 0, "active": 1, "refused": 2, "preparing": 2}
_CLOSED, _DECIDED, _FINISHED = 2, 3, 4
_BEGIN = ("submit", "open")
"""Calls that begin a transaction, with all that it is to do or to be filled by and by."""
_ENLIST = ("enlist", "work")
"""Calls after which a participant is in: the client enlists it, or has it do work, and it enlists
itself before."""
_CURRENT = ("get", "retry", "enlist", "commit", "rollback")
"""Calls whose answers tell no less than was told to anybody before they were made."""
_CALLS = {"commit": COMMITTED, "rollback": ABORTED}


@dataclass(frozen=True, slots=True)
class Violation:
    """What must not be. `about`: the transaction, node or participant."""

    invariant: str
    about: str
    at: float
    text: str

    def __str__(self) -> str:
        return f"{self.invariant} at {self.at:.3f} {self.about}: {self.text}"


class BadHistory(ValueError):
    """An event that has not the shape that its name promises."""


def check(history: Iterable[Event]) -> list[Violation]:
    """Every violation in a history; raises BadHistory."""
    checker = Checker()
    for number, event in enumerate(history, 1):
        try:
            checker.feed(event)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise BadHistory(f"event {number} is not as it should be: {error!r}") from error
    return checker.finish()


_NOTHING_SAID: Event = {
    "participants": {},
    "forgets": False,
    "kept_s": 0.0,
    "complete": False,
    "ordered": False,
}


class Checker:
    """Takes events one by one; `violations` grows, `finish` adds what only the end shows."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self._at = 0.0
        self._run: Event = _NOTHING_SAID
        self._transactions: dict[str, Transaction] = {}
        self._nameless = Nameless()
        self._calls: dict[tuple[str, int], tuple[Event, int, int]] = {}
        self._leaders: dict[int, str] = {}
        self._led_s = -math.inf  # when a leader began to lead last
        self._is_quiet = False  # all has settled, and nothing has struck since
        self._entries: dict[int, tuple[int, str]] = {}
        self._applied: dict[tuple[str, int], int] = {}
        self._excused: dict[str, None] = {}
        self._wiped: dict[str, None] = {}
        self._failing: dict[str, None] = {}
        self._participants: dict[str, Event] = {}
        self._nodes: dict[str, Event] = {}
        self._unsettled = False

    def feed(self, event: Event) -> None:
        """The next event; one that is not known is passed over."""
        self._at = event["at"]
        take = getattr(self, f"_on_{event['event']}", None)
        if take is not None:
            take(event)

    def finish(self) -> list[Violation]:
        """No more events; all violations."""
        if self._run["complete"] and not self._unsettled:
            for id, transaction in self._transactions.items():
                self._check_end_of(id, transaction)
            for id in self._nameless.too_many():
                self._found("I16", id, "a participant is asked, nobody began it")
            self._check_money()
            self._check_replicas()
            self._check_all_read()
        return self.violations

    def _found(self, invariant: str, about: str, text: str) -> None:
        self.violations.append(Violation(invariant, about, self._at, text))

    def _of(self, id: str) -> Transaction:
        return self._transactions.setdefault(id, Transaction(self._at))

    def _on_run(self, event: Event) -> None:
        self._run = {**_NOTHING_SAID, **event}

    # --- clients

    def _on_invoke(self, event: Event) -> None:
        if event["id"] is None:
            self._nameless.submitted(event["work"], event["participants"])
            self._calls[event["client"], event["op"]] = (event, 0, 0)
            return
        transaction = self._of(event["id"])
        if event["call"] == "resolve" and event.get("participant") is not None:
            transaction.resolving[event["participant"]] = None
        work = event.get("work")
        if event["call"] == "submit":
            transaction.bodies[work] = event["participants"]
        elif event["call"] == "open":
            transaction.bodies.setdefault(work, {})
            transaction.enlisting.works[work] = None
        elif event["call"] in _ENLIST:
            transaction.enlisting.offer(event["participant"], event["asked"])
        elif event["call"] == "commit":
            transaction.enlisting.commits += 1
        if event["call"] in _BEGIN:
            transaction.asking[work] = transaction.asking.get(work, 0) + 1
            transaction.refused.pop(work, None)
        own = transaction.rank_by_client.get(event["client"], 0)
        self._calls[event["client"], event["op"]] = (event, transaction.rank, own)

    def _on_ok(self, event: Event) -> None:
        id, outcome, client = event["id"], event.get("outcome"), event["client"]
        transaction = self._of(id)
        invoked, rank, own = self._calls.pop((client, event["op"]), (event, 0, 0))
        self._claimed(invoked.get("work"), id)
        if event["call"] == "resolve" and event.get("kept"):
            transaction.resolved.setdefault(invoked["branch"], {})[invoked["effect"]] = None
        if outcome is not None:
            self._told(id, outcome, f"{event['call']} of {client}")
        if event["call"] == "submit" and outcome is not None:
            self._answered(id, transaction, invoked.get("work"), outcome)
        if event["call"] == "decision":
            self._inquired(transaction, invoked, event)
            return
        self._check_shown(id, transaction, event)
        if event["call"] in _ENLIST:
            self._enlisted(id, transaction, invoked, event)
        elif event["call"] == "rollback":
            self._rolled_back(id, transaction, event)
        now = _rank(event)
        if now == _FINISHED and outcome == COMMITTED:
            self._check_done(id, transaction, invoked.get("work"))
        if event["call"] in _CURRENT and not invoked.get("stale"):
            self._check_current(event, now, rank, own)
        self._seen(transaction, client, now)

    def _check_current(self, event: Event, now: int, rank: int, own: int) -> None:
        """`rank`, `own`: what anybody, and this client, had been told when it asked."""
        id, client, state = event["id"], event["client"], event.get("state", "unknown")
        forgotten = now == 0 and self._run["forgets"] and not self._is_young(self._of(id))
        if now < own and not forgotten:
            self._found("I10", id, f"{client} saw rank {own} before, now {state}")
        elif now < rank and not forgotten:
            self._found("I11", id, f"{client} reads {state}, told before: rank {rank}")

    def _rolled_back(self, id: str, transaction: Transaction, event: Event) -> None:
        """What is answered is in the log: what is only proposed may be lost with its leader."""
        if event["outcome"] is None and event["state"] != "refused":
            self._found("I4", id, f"a rollback was answered, and it is {event['state']}")
        if not transaction.enlisting.commits:
            transaction.enlisting.rolls_back = event["client"]

    def _enlisted(self, id: str, transaction: Transaction, invoked: Event, event: Event) -> None:
        name, asked = invoked["participant"], invoked["asked"]
        body = transaction.bodies.setdefault(invoked["work"], {})
        before = body.setdefault(name, asked)
        if before != asked:
            self._found("I12", id, f"{name} is enlisted for {asked}, and was for {before}")
        if event["state"] != "active":
            self._found("I10", id, f"{name} is enlisted, and it is {event['state']}")
        if event["participant"] != name:
            self._found("I12", id, f"{name} is told to be {event['participant']}")
        if (wrong := transaction.enlisting.number(name, event["branch"])) is not None:
            self._found("I12", id, wrong)

    def _is_young(self, transaction: Transaction) -> bool:
        """It has ended lately, or not at all: its end is behind its beginning."""
        return bool(self._at - transaction.named_at < self._run["kept_s"])

    def _inquired(self, transaction: Transaction, invoked: Event, event: Event) -> None:
        """Who is answered "abort" may let go of the branch: it was no part of a commit to come."""
        name, work = invoked.get("participant"), invoked.get("work")
        if event.get("decision") != "abort" or name is None or work is None:
            return
        if not any(e["participant"] == name and e["work"] == work for e in transaction.committed()):
            transaction.ended[name, work] = f"{event['call']} of {event['client']}"

    def _check_shown(self, id: str, transaction: Transaction, event: Event) -> None:
        """An answer does not contradict itself, nor say of a branch what it has not done."""
        branches, state = event.get("branches", {}), event["state"]
        for name in contradicting(state, branches):
            self._found("I3", id, f"told to be {state}, and {name} to be {branches[name]}")
        if not self._run["ordered"]:
            return
        done = {event["participant"] for event in transaction.committed()}
        for name, shown in branches.items():
            if shown == COMMITTED and name not in done and not transaction.is_by_hand(name):
                self._found("I4", id, f"{name} is told to have committed, and has not")

    def _check_done(self, id: str, transaction: Transaction, work: str | None) -> None:
        """It is told to be finished: every participant has done its part."""
        if not self._run["ordered"]:
            return
        if work is None or work not in transaction.bodies:
            if len(transaction.bodies) != 1:
                return  # asked for with several bodies: which of them is it?
            (work,) = transaction.bodies
        done = {event["participant"] for event in transaction.committed()}
        for name, asked in transaction.bodies[work].items():
            if name in transaction.resolving or transaction.is_by_hand(name):
                continue  # that it is over somebody else has said
            if name not in done and _changes(asked):
                self._found("I4", id, f"told to be finished, and {name} has not committed")

    def _seen(self, transaction: Transaction, client: str, rank: int) -> None:
        transaction.rank = max(transaction.rank, rank)
        own = transaction.rank_by_client.get(client, 0)
        transaction.rank_by_client[client] = max(own, rank)

    def _on_fail(self, event: Event) -> None:
        """Surely not done; only "the id is too old" says nothing of that."""
        invoked, rank, own = self._calls.pop((event["client"], event["op"]), (event, 0, 0))
        if event["call"] not in _BEGIN:
            self._not_done(event, invoked, rank, own)
            return
        if event["error"] == EXPIRED:
            if event["id"] is not None and self._is_young(self._of(event["id"])):
                kept_s = self._run["kept_s"]
                self._found("I4", event["id"], f"refused as too old, and not {kept_s:.1f} s old")
            return
        if event["id"] is None:
            if (id := self._nameless.refused(invoked["work"])) is not None:
                self._found("I3", id, f"{invoked['work']} was refused ({event['error']}), and runs")
            return
        transaction, work = self._of(event["id"]), invoked.get("work")
        transaction.asking[work] = transaction.asking.get(work, 1) - 1
        if not transaction.asking[work]:
            by = f"{event['call']} of {event['client']} was refused ({event['error']})"
            transaction.refused[work] = by
            if any(e.get("work") == work for e in transaction.committed()):
                self._found("I3", event["id"], f"{by}, and {work} has committed")

    def _not_done(self, event: Event, invoked: Event, rank: int, own: int) -> None:
        """Of a call to what was begun before."""
        if event["call"] in ("enlist", "commit", "rollback"):
            if event["error"] == UNKNOWN:
                self._check_current(event, 0, rank, own)
            enlisting = self._of(event["id"]).enlisting
            if event["call"] == "enlist":
                enlisting.offers[invoked["participant"]] -= 1
            enlisting.commits -= event["call"] == "commit"

    def _on_info(self, event: Event) -> None:
        invoked, _, _ = self._calls.pop((event["client"], event["op"]), (event, 0, 0))
        self._claimed(invoked.get("work"), event["id"])

    def _claimed(self, work: str | None, id: str | None) -> None:
        """This work goes by this id: of what was asked for without one that is news."""
        if id is None:
            return
        asked = self._nameless.claim(work, id)
        if asked is not None:
            transaction = self._of(id)
            transaction.bodies[work] = asked
            transaction.asking[work] = 1
        elif (other := self._nameless.other_id(work, id)) is not None:
            self._found("I12", id, f"{work} was asked for once, without an id, and is {other}, too")

    def _check_refused(self, event: Event, transaction: Transaction) -> None:
        by = transaction.refused.get(event.get("work"))
        if by is not None:
            self._found("I3", event["id"], f"{by}, and {event['participant']} commits it")

    def _answered(self, id: str, transaction: Transaction, work: str | None, outcome: str) -> None:
        others = [w for w, o in transaction.answered.items() if o == COMMITTED and w != work]
        if outcome == COMMITTED and others:
            self._found("I12", id, f"{work} and {others[0]} are both answered committed")
        transaction.answered[work] = outcome

    def _told(self, id: str, outcome: str, by: str) -> None:
        transaction = self._of(id)
        if outcome in transaction.told:
            return
        for other, first in transaction.told.items():
            self._found("I3", id, f"{by} says {outcome}, {first} said {other}")
        transaction.told[outcome] = by
        enlisting = transaction.enlisting
        if outcome == COMMITTED and transaction.is_interactive and not enlisting.commits:
            self._found("I16", id, f"{by} says committed, nobody asked for that")
        if outcome == COMMITTED and transaction.is_interactive and enlisting.rolls_back:
            first = f"the rollback of {enlisting.rolls_back} was answered before that was asked for"
            self._found("I4", id, f"{by} says committed, {first}")

    # --- participants

    def _on_prepare(self, event: Event) -> None:
        self._claimed(event.get("work"), event["id"])
        self._check_asked_once(event)
        self._check_somebody_began(event)
        transaction = self._of(event["id"])
        if not transaction.is_interactive:
            return
        transaction.enlisting.prepared[event["participant"], event["branch"]] = None
        transaction.rank = max(transaction.rank, _CLOSED)
        if not transaction.enlisting.commits:
            text = f"{event['participant']} is asked to prepare, nobody asked for the end"
            self._found("I16", event["id"], text)

    def _check_somebody_began(self, event: Event) -> None:
        name, transaction = event["participant"], self._of(event["id"])
        if not self._is_begun(event["id"]):
            self._found("I16", event["id"], f"{name} is asked, nobody began it")
        elif transaction.is_interactive and not transaction.enlisting.offers.get(name):
            self._found("I16", event["id"], f"{name} is asked, nobody enlisted it")

    def _check_asked_once(self, event: Event) -> None:
        """Who does not say that asking again is safe, nor asks for it, is asked for one vote."""
        name, asked = event["participant"], self._of(event["id"]).asked
        if "again" not in event or self._run["participants"].get(name) not in PLAIN_KINDS:
            return
        key = (name, event["branch"])
        if asked.get(key) is False:
            self._found("I7", event["id"], f"{name} is asked again for its vote")
        asked[key] = event["again"]

    def _on_commit(self, event: Event) -> None:
        self._claimed(event.get("work"), event["id"])
        self._check_somebody_began(event)
        self._told(event["id"], _CALLS[event["event"]], f"the call to {event['participant']}")
        transaction = self._of(event["id"])
        transaction.rank = max(transaction.rank, _DECIDED)
        transaction.enlisting.heard[event["participant"], event["branch"]] = None

    _on_rollback = _on_commit

    def _on_vote(self, event: Event) -> None:
        votes = self._of(event["id"]).votes
        key = (event["participant"], event["branch"])
        if votes.get(key) in (None, "no"):
            votes[key] = event["vote"]

    def _on_effect(self, event: Event) -> None:
        id, name = event["id"], event["participant"]
        transaction = self._of(id)
        key = (name, event["branch"])
        self._claimed(event.get("work"), id)
        if event.get("by_hand"):
            transaction.by_hand[key] = None
        by_hand = key in transaction.by_hand
        before = transaction.effects.setdefault(key, [])
        ended = [e["effect"] for e in before if e["effect"] != "prepared"]
        match event["effect"]:
            case "prepared":
                remembers = self._run["participants"].get(name) != "forgetful"
                if ended and remembers and self._run["ordered"]:
                    self._found("I8", id, f"{name} prepares what has ended as {ended[-1]}")
                self._check_invented(event, transaction)
            case "committed":
                if COMMITTED in ended:
                    self._found("I7", id, f"{name} commits twice")
                elif not event.get("held", True):
                    self._found("I7", id, f"{name} commits what it does not hold")
                self._check_begun(event)
                if not by_hand:
                    self._check_inquiry(event, transaction)
                    self._check_refused(event, transaction)
                    self._check_votes(event, transaction)
        before.append(event)
        self._check_split(event, transaction)

    def _is_begun(self, id: str) -> bool:
        """Whether somebody has asked for it, or may have."""
        return bool(self._of(id).bodies) or not self._run["complete"] or self._nameless.may_be(id)

    def _check_begun(self, event: Event) -> None:
        if not self._is_begun(event["id"]):
            self._found("I16", event["id"], f"{event['participant']} commits it, nobody began it")

    def _check_inquiry(self, event: Event, transaction: Transaction) -> None:
        by = transaction.ended.get((event["participant"], event.get("work", "")))
        if by is not None and self._run["ordered"]:
            text = f"{event['participant']} commits it, and {by} was answered abort before"
            self._found("I6", event["id"], text)

    def _check_invented(self, event: Event, transaction: Transaction) -> None:
        if event.get("work") is None:
            return
        if event["work"] not in transaction.bodies:
            if self._run["complete"]:
                self._found("I16", event["id"], f"work {event['work']} was never asked for")
            return
        asked = transaction.asked_of(event["work"], event["participant"])
        done = [event["account"], event["amount"]]
        if not any(each is not None and list(each[:2]) == done for each in asked):
            what = f"{event['amount']} on {event['account']}"
            self._found("I16", event["id"], f"{event['participant']} does {what}, asked: {asked}")

    def _check_votes(self, event: Event, transaction: Transaction) -> None:
        body = transaction.bodies.get(event.get("work"))
        if body is None or not self._run["ordered"]:
            return
        willing = {name for (name, _), vote in transaction.votes.items() if vote != "no"}
        silent = [name for name in body if name not in willing]
        if silent:
            text = f"{event['participant']} commits without the vote of {', '.join(silent)}"
            self._found("I2", event["id"], text)

    def _check_split(self, event: Event, transaction: Transaction) -> None:
        """Of one body: another one's branches under the same id end for themselves (I12)."""
        id, work = event["id"], event.get("work")
        committed, undone = [], []
        for (name, branch), events in transaction.effects.items():
            if (name, branch) in transaction.by_hand:
                continue
            ends = [e for e in events if e["effect"] != "prepared" and e.get("held", True)]
            ends = [e for e in ends if e.get("work") == work]
            if any(e["effect"] == COMMITTED for e in ends):
                committed.append(name)
            # What was committed first and is prepared again is a ghost (I8): that goes.
            if ends and ends[0]["effect"] == "rolled_back":
                undone.append(name)
        if committed and undone:
            both = f"committed at {', '.join(committed)}, rolled back at {', '.join(undone)}"
            if not any(v.invariant == "I1" and v.about == id for v in self.violations):
                self._found("I1", id, both)

    # --- nodes

    def _on_settled(self, _: Event) -> None:
        self._is_quiet = True

    def _on_leader(self, event: Event) -> None:
        self._led_s = event["at"]
        if self._is_quiet:
            self._found("I17", event["node"], f"leads term {event['term']}, and nothing had struck")
        self._takes_part(event["node"])
        other = self._leaders.setdefault(event["term"], event["node"])
        if other != event["node"]:
            self._found("I14", event["node"], f"leads term {event['term']}, as {other} did")

    def _on_applied(self, event: Event) -> None:
        index, node = event["index"], event["node"]
        digest, first = self._entries.setdefault(index, (event["digest"], node))
        if digest != event["digest"]:
            self._found("I14", node, f"applies another entry {index} than {first}")
        quorum = len(self._run.get("nodes", ())) // 2 + 1
        if event.get("synced_on", quorum) < quorum:
            self._found("I4", node, f"applies entry {index}, synced on {event['synced_on']} nodes")
        life = (node, event["start"])
        if index <= self._applied.get(life, 0):
            self._found("I14", node, f"applies {index} after {self._applied[life]}")
        self._applied[life] = index
        self._takes_part(node)

    def _on_uncommitted(self, event: Event) -> None:
        text = f"its commit index goes back, from {event['before']} to {event['index']}"
        self._found("I14", event["node"], text)

    def _takes_part(self, node: str) -> None:
        if node in self._wiped:
            del self._wiped[node]  # told once
            self._found("I14", node, "takes part though its directory was lost")

    def _on_recovered(self, event: Event) -> None:
        node, last = event["node"], event["last"]
        if node in self._wiped:
            return
        applied = max((i for (n, _), i in self._applied.items() if n == node), default=0)
        if last < applied:
            self._found("I4", node, f"comes back with {last} entries, {applied} were applied")

    def _on_fault(self, event: Event) -> None:
        self._is_quiet = False
        if event["kind"] in DAMAGE:
            node = event["target"].split()[0]
            self._excused[node] = None
            if event["kind"] == WIPED:
                self._wiped[node] = None
        elif event["kind"] == FAILING:
            self._failing[event["target"]] = None

    def _on_exited(self, event: Event) -> None:
        host = event["host"]
        excused = host in self._excused or (
            host in self._failing and "cannot sync " in event["why"]
        )
        excused &= event["code"] != CRASHED
        if event["code"] and not excused:
            self._found("I17", host, f"stopped with {event['code']}: {event['why']}")

    def _on_unhandled(self, event: Event) -> None:
        self._found("I18", "a program", f"{event['message']}: {event['error']}")

    def _on_bad_input(self, event: Event) -> None:
        status = event["status"]
        if not event["alive"]:
            self._found("I18", event["node"], f"died of nonsense to {event['to']}")
        elif status is not None and not 400 <= status < 500:
            self._found("I18", event["node"], f"answered nonsense to {event['to']} with {status}")

    def _on_lost(self, event: Event) -> None:
        text = f"{event['transactions']} unfinished transactions were in nobody's hands"
        self._found("I5", event["node"], text)

    def _on_unsettled(self, event: Event) -> None:
        self._unsettled = True
        self._found("I5", "the end", "; ".join(event["what"])[:500])

    def _on_probe(self, event: Event) -> None:
        led_on = event["at"] - event["took_s"] > self._led_s  # else plain branches may be aborted
        if (event["outcome"] != COMMITTED and led_on) or event["took_s"] > PROBE_LIMIT_S:
            text = f"a new transaction is {event['outcome']} after {event['took_s']} s"
            self._found("I17", event["id"], text)

    # --- the end

    def _on_participant_end(self, event: Event) -> None:
        name = event["participant"]
        self._participants[name] = event
        if event["in_doubt"] and not self._unsettled:
            self._found("I5", name, f"still in doubt: {event['in_doubt'][:3]}")
        if event["held"] and not event["in_doubt"]:
            self._found("I9", name, f"locks of nobody: {event['held'][:3]}")

    def _on_node_end(self, event: Event) -> None:
        self._nodes[event["node"]] = event

    def _check_end_of(self, id: str, transaction: Transaction) -> None:
        for outcome, by in transaction.told.items():
            for node, event in self._nodes.items():
                known = event["outcomes"].get(id)
                if known is None and not self._run["forgets"]:
                    self._found("I4", id, f"{by} said {outcome}, {node} knows nothing of it")
                elif known not in (None, outcome):
                    self._found("I4", id, f"{by} said {outcome}, {node} has {known}")
        self._check_by_hand(id, transaction)
        self._check_enlisted(id, transaction)
        committed = transaction.committed()
        works = sorted({event["work"] for event in committed if event.get("work") is not None})
        if len(works) > 1:
            self._found("I12", id, f"effects of {len(works)} bodies: {', '.join(works)}")
        if ABORTED in transaction.told and committed and COMMITTED not in transaction.told:
            by = transaction.told[ABORTED]
            self._found("I1", id, f"{by} said aborted, {committed[0]['participant']} committed")
        self._check_complete(id, transaction, committed)

    def _check_by_hand(self, id: str, transaction: Transaction) -> None:
        """What an operator was told of a branch is kept: the first word stands."""
        told = [(b, e) for b, effects in transaction.resolved.items() for e in effects]
        for node, event in self._nodes.items():
            if "by_hand" not in event:
                continue
            for branch, effect in told:
                kept = event["by_hand"].get(id, {}).get(branch)
                if kept != effect:
                    what = "knows nothing of it" if kept is None else f"has {kept}"
                    self._found("I4", id, f"branch {branch} was told to be {effect}, {node} {what}")

    def _check_enlisted(self, id: str, transaction: Transaction) -> None:
        """Whoever was told to be in is in the record, and has heard of the outcome; nobody else."""
        enlisting = transaction.enlisting
        for node, event in self._nodes.items():
            record = event.get("enlisted", {}).get(id)
            if record is None:
                continue
            for branch, name in enlisting.numbers.items():
                kept = record.get(branch, ["nobody"])[0]
                if kept != name:
                    self._found("I4", id, f"branch {branch} was told to be {name}, {node}: {kept}")
            for branch, (name, vote) in record.items():
                if not enlisting.offers.get(name):
                    self._found("I16", id, f"{node} has {name} enlisted, nobody enlisted it")
                if vote == "unsent" and (name, branch) in enlisting.prepared:
                    self._found("I8", id, f"{node}: {name} was never asked to prepare; it was")
                said = transaction.votes.get((name, branch))
                if event["outcomes"].get(id) == COMMITTED and said not in ("yes", "read_only"):
                    self._found("I2", id, f"{node} has it committed, and {name} voted {said}")
        for branch, name in enlisting.numbers.items():
            if self._run["participants"].get(name) not in PLAIN_KINDS:
                continue  # the SDK's branches may learn it by inquiry
            over = transaction.votes.get((name, branch)) == "read_only"
            over = over or name in transaction.resolving
            if (name, branch) not in enlisting.heard and not over:
                self._found("I5", id, f"{name} is enlisted, and has heard of no outcome")

    def _check_complete(self, id: str, transaction: Transaction, committed: list[Event]) -> None:
        """Committed anywhere, or told so: committed everywhere."""
        works = {event.get("work") for event in committed}
        works |= {work for work, outcome in transaction.answered.items() if outcome == COMMITTED}
        if COMMITTED in transaction.told and len(transaction.bodies) == 1:
            works |= set(transaction.bodies)
        for work in sorted(works, key=str):
            at = {e["participant"] for e in committed if e.get("work") == work}
            for name, asked in transaction.bodies.get(work, {}).items():
                if transaction.is_by_hand(name):
                    continue
                if name not in at and name in self._participants and _changes(asked):
                    self._found("I1", id, f"committed, and has no effect at {name}")

    def _check_money(self) -> None:
        for about, text in wrong_money(self._transactions.values(), self._participants):
            self._found("I13", about, text)

    def _check_replicas(self) -> None:
        by_digest: dict[str, str] = {}
        for node, event in self._nodes.items():
            if "digest" in event:
                by_digest.setdefault(event["digest"], node)
        if len(by_digest) > 1:
            self._found("I15", "the nodes", f"{', '.join(by_digest.values())} have other states")

    def _check_all_read(self) -> None:
        for name in self._run["participants"]:
            if name not in self._participants:
                self._found("I1", name, "what it did was not read")


def _rank(event: Event) -> int:
    if event.get("outcome") is not None:
        return _FINISHED if event["state"] in (COMMITTED, ABORTED) else _DECIDED
    return _RANK.get(event["state"], 1)


def _changes(asked: Sequence[Any] | None) -> bool:
    """Whether a participant that was asked for this has an effect if the transaction commits."""
    return asked is None or len(asked) < 3 or asked[2] != "read_only"


def main(arguments: Sequence[str]) -> int:
    """Check the histories in these files of JSON lines; 1 if one is violated, 2 if one is none."""
    if not arguments:
        print("usage: python -m tests.checker FILE.jsonl ...", file=sys.stderr)
        return 2
    worst = 0
    for name in arguments:
        try:
            history = [json.loads(line) for line in Path(name).read_text().splitlines()]
            violations = check(history)
        except (OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        for violation in violations:
            print(f"{name}: {violation}")
        print(f"{name}: {len(history)} events, {len(violations)} violations")
        worst = max(worst, 1 if violations else 0)
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
