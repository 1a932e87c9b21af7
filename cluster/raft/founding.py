"""Which of several clusters of one name a log belongs to.

A name is chosen by people, and often twice: a cluster is begun anew after a trial, and one machine
still has its old directory. Terms and indexes of both logs begin at 1, so entries that were never
the same would count as such, and the nodes would go on with different states. Therefore the first
`Epoch` of a log, its founding, tells it from any other (`coordinator.log.StateMachine.founding`).
A node that has applied none yet belongs to whichever cluster it hears of first.
"""

from __future__ import annotations


def foreign(node: str, ours: str, peer: str, theirs: str) -> str | None:
    """What to say of a peer whose log has another founding, or None if it may be the same log."""
    if not ours or not theirs or ours == theirs:
        return None
    return (
        f"{node} and {peer} are of two clusters with one name: the log of {node} was founded by "
        f"{ours}, that of {peer} by {theirs}. One of them has a data directory of another cluster: "
        "give it its own, or an empty one if this is its first start"
    )
