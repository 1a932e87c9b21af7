"""Replication: what a leader sends, what a follower does with it, what the answers mean.

Rules
- A follower removes an entry only when the leader's entry of the same index has another term, and
  never one below its commit index: that would contradict what was acknowledged, and stops the node.
- A follower commits only what it has compared with this leader's log.
- An answer counts in the term in which it was given, and claims no more than was compared.
- A refusal names where to go on, a whole conflicting term at a time. Refusals of what was sent
  before the last refusal was obeyed are old news.
- Every message carries the number of its round; the answers prove that this replica led after the
  round began (`round_confirmed`, for current reads).
"""

from __future__ import annotations

import logging
from typing import Final

from cluster.errors import FailStop
from cluster.raft.state import RaftState, Role
from cluster.raft.wire import MAX_ENTRIES, Append, AppendReply, RaftMessage
from cluster.storage.journal import Entry

log = logging.getLogger(__name__)

_MAX_MESSAGES: Final = 4
"""To one peer in one round; what is left goes when the answers come."""


class Replication(RaftState):
    """The rules of replication, for leader and follower."""

    round: int
    """Of the last time that this leader spoke to all."""
    confirmed: dict[str, int]
    """The latest round that each peer answered, in this leadership."""
    obeyed: dict[str, int]
    """The round in which a peer's last refusal was obeyed."""

    # --- leader

    def ship_snapshot(self, peer: str) -> None:
        raise NotImplementedError

    def speak(self) -> None:
        """A new round: to each peer the entries that it lacks, or a heartbeat."""
        self.round += 1
        shared: dict[tuple[int, bool], Append] = {}
        for peer in self.peers:
            if not self.is_connected(peer):
                self.stop_shipping(peer)
            elif self.next_index(peer) <= self.journal.first_index:
                self.ship_snapshot(peer)
            else:
                self._send_entries(peer, shared)

    def round_confirmed(self, number: int) -> bool:
        """Has a quorum answered a message that was sent in this round or later?"""
        answers = sum(self.confirmed.get(peer, 0) >= number for peer in self.peers)
        return self.role is Role.LEADER and 1 + answers >= self.quorum

    def _send_entries(self, peer: str, shared: dict[tuple[int, bool], Append]) -> None:
        """Peers that lack the same get the same message: it is encoded once."""
        for sent in range(_MAX_MESSAGES):
            following = self.next_index(peer)
            has_room = self._has_room(peer)
            message = shared.get((following, has_room))
            if message is None:
                message = shared[following, has_room] = self._message(following, has_room)
            if sent and not message.entries:
                return
            self.send(peer, message)
            if message.entries:
                self.set_next_index(peer, message.entries[-1][1] + 1)

    def _has_room(self, peer: str) -> bool:
        return self.backlog(peer) < self.limits.backlog_bytes

    def _message(self, following: int, has_room: bool) -> Append:
        previous = self.journal[following - 1 - self.journal.first_index]
        return Append(
            term=self.term,
            round=self.round,
            now_ms=self.now_ms(),
            commit=self.commit,
            previous_index=previous[1],
            previous_term=previous[2],
            entries=self._portion(following) if has_room else (),
        )

    def _portion(self, index: int) -> tuple[Entry, ...]:
        start = index - self.journal.first_index
        entries = self.journal[start : start + MAX_ENTRIES]
        size = 0
        for count, entry in enumerate(entries, start=1):
            size += len(entry[0])
            if size >= self.limits.append_bytes:
                return tuple(entries[:count])
        return tuple(entries)

    def is_answer(self, peer: str, term: int, number: int, now_ms: int) -> bool:
        """Was this said to the present leadership? A newer term in it ends that."""
        if term > self.term:
            self.step_down(term)
            return False
        if term != self.term or self.role is not Role.LEADER:
            return False
        self.set_last_reply(peer)
        self.heard_clock(peer, now_ms)
        self.confirmed[peer] = max(self.confirmed.get(peer, 0), min(number, self.round))
        return True

    def on_append_reply(self, peer: str, message: AppendReply) -> None:
        if not self.is_answer(peer, message.term, message.round, message.now_ms):
            return
        last = self.journal.last_index
        matched = message.next_index - 1
        if message.matched:
            if matched > last:
                log.error("%s acknowledges %d, the log ends at %d: ignored", peer, matched, last)
                return
            self.stop_shipping(peer)
            if matched > self.match_index(peer):
                self.set_match_index(peer, matched)
            if matched >= self.next_index(peer):
                self.set_next_index(peer, matched + 1)
            if self.next_index(peer) <= last and self._has_room(peer):
                self.speak_soon()  # with entries: heartbeats and answers alone would not end
        elif message.round > self.obeyed.get(peer, 0):
            following = max(2, min(message.next_index, last + 1))  # the first is the same for all
            if following <= self.match_index(peer):
                self._forgot(peer, following)
            self.obeyed[peer] = self.round
            self.set_next_index(peer, following)
            self.speak_soon()

    def _forgot(self, peer: str, following: int) -> None:
        """It asks for what it acknowledged to this leadership, and counts no more for that.

        Messages arrive in order, so this is no old news: its disk lost what was synced, or it runs
        without sync and lost power. Not to listen would leave it behind until somebody else leads.
        """
        log.error(
            "%s acknowledged entry %d and asks for %d: its disk lost what was synced, or its data "
            "directory is an older copy (or it runs without sync); look at that disk before it "
            "fails again, and start no node from a backup",
            *(peer, self.match_index(peer), following),
        )
        self.set_match_index(peer, following - 1)

    # --- follower

    def follow(self, peer: str, term: int, now_ms: int) -> bool:
        """`peer` speaks as the leader of `term`. False, and it was told so, if that is over."""
        if term < self.term:
            self.send(peer, AppendReply(self.term, 0, self.now_ms(), False, 0))
            return False
        if term == self.term and self.role is Role.LEADER:
            raise FailStop(f"{peer} leads term {term}, and so does {self.node}")
        if term > self.term:
            self.set_term(term, None)
        if not self.transferring:
            self.draw_deadline()
        self.last_contact = self.now()
        self.set_role(Role.FOLLOWER)
        self.set_leader(peer)
        self.heard_clock(peer, now_ms)
        return True

    def on_append(self, peer: str, message: Append) -> None:
        if not self.follow(peer, message.term, message.now_ms):
            return
        hint = self._mismatch(message)
        if hint is not None:
            self._reply(peer, message.round, matched=False, next_index=hint)
            return
        verified = max(self._take(peer, message), self.commit)  # committed: the leader has it, too
        commit = min(message.commit, verified)
        if commit > self.commit:
            self.set_commit(commit)
        self._reply(peer, message.round, matched=True, next_index=verified + 1)

    def _mismatch(self, message: Append) -> int | None:
        """Where the leader must go on if the logs do not meet at `previous`; None if they do."""
        journal = self.journal
        first = journal.first_index
        previous = message.previous_index
        if previous > journal.last_index:
            return journal.last_index + 1
        if previous <= self.commit:
            return None  # below the commit index all logs are the same; `_take` checks what it can
        term = journal[previous - first][2]
        if term == message.previous_term:
            return None
        index = previous
        while index > max(self.commit + 1, first + 1) and journal[index - 1 - first][2] == term:
            index -= 1
        return index

    def _take(self, peer: str, message: Append) -> int:
        """Make the log agree with the entries; the last index that was compared."""
        journal = self.journal
        first = journal.first_index
        verified = message.previous_index
        if message.previous_index >= first:
            self._refuse_contradiction(peer, message.previous_index, message.previous_term)
        for command, index, term in message.entries:
            if index >= first:
                self._refuse_contradiction(peer, index, term)
                if index <= journal.last_index and journal[index - first][2] != term:
                    self.truncate_from(index)
                if index > journal.last_index:
                    self.append_entry(command, index, term)
            verified = index
        return verified

    def _refuse_contradiction(self, peer: str, index: int, term: int) -> None:
        journal = self.journal
        if index <= self.commit and journal[index - journal.first_index][2] != term:
            raise FailStop(
                f"{peer}, leader of term {self.term}, contradicts entry {index}, which is committed"
            )

    def _reply(self, peer: str, number: int, *, matched: bool, next_index: int) -> None:
        reply: RaftMessage = AppendReply(self.term, number, self.now_ms(), matched, next_index)
        self.send(peer, reply)
