"""Elections: who may ask for votes, who gives one, and what a living leader prevents.

Rules
- Before an election a replica asks whether it would win (pre-vote); asking changes nothing, so one
  that was away and comes back does not depose a leader that everybody else hears.
- Who heard of a leader within the least election timeout gives neither pre-vote nor vote, unless
  the leader itself asked for the election (a transfer) or no connection with it stands any more.
- Of two that ask at the same time one gives way, so that they do not split the votes.
- Votes are counted by voter. A vote is in the journal before the reply leaves.
- Pre-votes, and the leader's wish for an election, end with the term, and where a vote is given.
- Any message of a newer term ends a leadership, replies too.
"""

from __future__ import annotations

from cluster.raft.state import NEVER, RaftState, Role
from cluster.raft.wire import PreVote, PreVoteReply, RequestVote, TimeoutNow, VoteReply


class Elections(RaftState):
    """The rules of elections; the election itself is started by the library's tick."""

    pre_votes: set[str] | None
    """Who would vote for this replica, while it asks; None while it does not."""
    votes: set[str]
    """Who voted for this replica in its term."""
    standing_for_transfer: bool
    """The election that goes on was asked for by the leader."""

    def prepare_election(self) -> None:
        """Before each tick: let the library start an election only when it would be won."""
        if self.role is Role.LEADER or self.now() < self.deadline or not self.peers:
            return
        if self.transferring:
            if any(self.is_connected(peer) for peer in self.peers):
                return
            self.set_transferring(False)
        if self.pre_votes is not None and len(self.pre_votes) >= self.quorum:
            self.pre_votes = None
            return
        self.draw_deadline()
        if self.node not in self.configurations.latest:
            return
        self.pre_votes = {self.node}
        ask = PreVote(self.term + 1, self.journal.last_index, self.journal.last_term)
        for peer in self.peers:
            self.send(peer, ask)

    def leader_is_alive(self) -> bool:
        """Heard of so lately that nobody can be elected without the leader's own fault."""
        least_s = self.timings.election_min_ms / 1000
        return self.role is Role.LEADER or self.now() - self.last_contact < least_s

    def out_of_touch(self, peer: str) -> None:
        """No connection with `peer` stands: if it led, its process has ended, as it seems."""
        if self.role is Role.FOLLOWER and peer == self.leader:
            self.last_contact = NEVER
            self.stand_soon()

    def stand_soon(self) -> None:
        """Want an election within two heartbeats, unless a leader is heard of before.

        One that lives is. So it is by the others, who prevent the election: one follower that
        cannot reach it asks in vain.
        """
        heartbeats = 1 + self.random.random()
        soon = self.now() + heartbeats * self.timings.heartbeat_ms / 1000
        self.set_deadline(min(self.deadline, soon))

    def on_pre_vote(self, peer: str, message: PreVote) -> None:
        granted = (
            message.term > self.term
            and self._is_up_to_date(message.last_index, message.last_term)
            and not self.leader_is_alive()
            and self._gives_way(peer, message)
        )
        self.send(peer, PreVoteReply(self.term, message.term, granted))

    def _gives_way(self, peer: str, message: PreVote) -> bool:
        """Whether `peer` may stand, though this replica may be asking for pre-votes itself.

        If both did, each would have its own vote, and nobody the other's. Who has won its pre-votes
        stands; before that the longer log goes first, then the later name. The other one hears of
        that before it hears this answer, and gives way.
        """
        if self.pre_votes is None:
            return True
        if len(self.pre_votes) >= self.quorum:
            return False
        own = self.journal.last_term, self.journal.last_index, self.node
        if (message.last_term, message.last_index, peer) > own:
            self.pre_votes = None
        return True

    def on_pre_vote_reply(self, peer: str, message: PreVoteReply) -> None:
        if message.term > self.term:
            self.step_down(message.term)
        elif message.granted and message.asked == self.term + 1 and self.pre_votes is not None:
            self.pre_votes.add(peer)
            if len(self.pre_votes) >= self.quorum and self.role is not Role.LEADER:
                self.set_deadline(NEVER)

    def on_request_vote(self, peer: str, message: RequestVote) -> None:
        if message.term > self.term:
            if self.leader_is_alive() and not message.transfer and self.leader != peer:
                return
            self.step_down(message.term)
        granted = (
            message.term == self.term
            and self.role is not Role.LEADER
            and self._is_up_to_date(message.last_index, message.last_term)
            and self.vote in (None, peer)
        )
        if granted:
            if self.vote is None:
                self.set_term(self.term, peer)
            self.draw_deadline()
        self.send(peer, VoteReply(self.term, granted))

    def on_vote_reply(self, peer: str, message: VoteReply) -> None:
        if message.term > self.term:
            self.step_down(message.term)
        elif message.granted and message.term == self.term and self.role is Role.CANDIDATE:
            self.votes.add(peer)
            if len(self.votes) >= self.quorum:
                self.become_leader()

    def on_timeout_now(self, peer: str, message: TimeoutNow) -> None:
        if message.term == self.term and peer == self.leader and self.role is Role.FOLLOWER:
            self.set_transferring(True)
            self.set_deadline(NEVER)

    def _is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Raft, section 5.4.1: no vote for a log that lacks what this one may have acknowledged."""
        return (last_term, last_index) >= (self.journal.last_term, self.journal.last_index)
