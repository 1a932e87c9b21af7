"""Everything that a seed draws before anything runs: the cluster, the load, the faults, the times.

Each seed has its own mixture (swarm testing): most runs lack most faults, so that one kind does not
hide another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from cluster.raft.state import CoreLimits
from coordinator.sweep import LEAST_KEPT_MS
from tests.simulation.bounds import draw_bounds
from tests.simulation.manners import Manners
from tests.simulation.network import Weather

FAULTS = (
    "kill",
    "kill leader",
    "flap",
    "terminate",
    "power",
    "kill all",
    "power all",
    "stop",
    "stop leader",
    "stop leader",
    "suspend leader",
    "isolate",
    "isolate leader",
    "isolate leader",
    "halves",
    "one way",
    "bridge",
    "ring",
    "reset",
    "slow link",
    "clock",
    "full disk",
    "rot",
    "lost write",
    "misdirected write",
    "slow disk",
    "stall",
    "elected",
    "proposed",
    "proposed",
    "voted",
    "syncing",
    "asleep",
    "asleep",
    "contest",
    "failing syncs",
    "replay",
    "replay",
    "kill participant",
    "stop participant",
    "cut participant",
    "cut participant from leader",
    "cut client",
    "kill client",
    "nonsense",
)
"""What the nemesis can do; twice what hurts only at its moment.

"flap": a node is killed again and again, soon after it was started. "suspend leader": its machine
stands still, not the process alone: nothing reaches it either. "stall": all nodes stand still
together, as when the machine below them does. "elected", "proposed", "voted" and "syncing": another
fault, at the moment in which a node begins to lead, the leader has asked for a prepare, a
participant has voted, or the leader's disk is at work. "asleep": a leader stands still from the
moment in which it has spoken to all, hears their answers when others have been at work, and nothing
else. "contest": two nodes stand for election together, and votes for one of them come late.
"failing syncs": a disk takes what is written, and does not sync it.
"""

QUICK_FAULTS = (
    "kill leader",
    "isolate leader",
    "halves",
    "reset",
    "kill participant",
    "clock",
    *("replay",) * 6,
)
"""Those that no commit or rollback outlives by much: for where tombstones are kept only briefly."""

DAY_MS = 86_400_000
MANY = 1_000_000
BRIEFLY_MS = 12_000

UNREADABLE = 1 / 10
"""The share of seeds in which a disk gives nothing back for a while."""

WIPED = 1 / 12
"""The share of seeds in which a node loses its directory, and is started once more."""

PARTED = 1 / 12
"""The share of seeds in which two logs grow apart while neither is a quorum's."""

ORDEALS = ("hunt", "stutter", "wear")
ORDEAL = 1 / 12
"""What goes on for as long as there are faults (`ordeals`), and the share of seeds that have it."""

AHEAD = 1 / 8
"""The share of seeds in which services' clocks are set a day ahead for a moment, now and then, and
of those in which all nodes' are, and of those in which the leader's is."""

UNSYNCED = 1 / 12
"""The share of seeds whose nodes do not sync: of a power loss they promise nothing, but that what
has ended in order is there after it."""

IN_BYTES = 1 / 8
"""The share of seeds that take the whole way through aiohttp, which costs more than all else."""


@dataclass(frozen=True, slots=True)
class Environment:
    """One seed's world. Times in seconds where the name does not say otherwise."""

    seed: int
    nodes: int
    kinds: tuple[str, ...]
    """Of the participants: `sdk`, `plain` (remembers), `forgetful`."""
    clients: int
    faults: tuple[str, ...]
    fault_gap_s: float
    fault_s: float
    faulty_s: float
    settle_s: float
    weather: Weather
    sync_mean_s: float
    crash_point: float
    """The chance of every disk operation that the process, or the machine, dies at it."""
    snapshot_every: tuple[int, ...]
    """Of each node: they may differ while a setting is being rolled out."""
    segment_bytes: int
    """After so many a journal goes on in another file."""
    block: int
    """So many finished transactions lie together; the same on all nodes, as in production."""
    cramped: bool
    """Nodes have room for little at a time, and refuse the rest."""
    core: CoreLimits
    groups_under_way: int
    """Entries of commands that a leader has under way at a time."""
    heartbeat_ms: int
    election_min_ms: int
    election_max_ms: int
    call_timeout_ms: int
    retry_max_ms: int
    grace_ms: int
    timeouts_ms: tuple[int, ...]
    keep_ms: int
    most_remembered: int
    """So many finished transactions are remembered at most."""
    tombstones_ms: int
    clock_rate: float
    clock_offset_ms: int
    clock_jump_ms: int
    think_s: float
    client_timeout_s: float
    vote_no: float
    read_only: float
    contended: bool
    repeat: float
    other_body: float
    """Shares of transactions: asked for twice; another body is sent under the same id."""
    impatient: float
    """The share of calls whose client gives up after a moment."""
    comes_back: float
    """The share of submissions without an answer that are made once more, a while later."""
    operator: float
    operator_s: float
    """The mean pause of one who ends branches one by one; 0: there is none."""
    nonsense: float
    burst: float
    """Shares of what clients do: abort by hand, send what is no request, ask for many at once."""
    interactive: float
    """The share of what clients do that is a transaction which they fill and end themselves."""
    manners: Manners
    inquiry_after_s: float
    astray: float
    """The share of requests to nodes that find none, and of the nodes' answers that get lost, at a
    proxy that answers in their place."""
    nodes_twice: float
    nodes_twice_s: float
    """The share of the nodes' answers that come once more, up to so much later."""
    flips: float
    """The share of pieces between nodes of which a bit is another one when they arrive."""
    wiped_s: float
    """When a node loses its directory, after the faults have begun; 0: none does."""
    unreadable_s: float
    """When a node's disk begins to give nothing back, after the faults have begun; 0: none does."""
    parted_s: float
    """When two logs begin to grow apart, after the faults have begun; 0: none do."""
    services_ahead_s: float
    """When clocks of services begin to be set a day ahead, after the faults have begun; 0: none."""
    ordeal: str
    """What goes on for as long as there are faults; mostly nothing."""
    nodes_ahead: str
    """Whether the clocks of nodes are, when all has settled: `all`, `leader`, or of none."""
    syncs: bool
    """Whether nodes sync their journals."""
    bounds: Mapping[str, float]
    """How much is done in a turn, where it is less than in production (`bounds`)."""
    http_in_bytes: bool
    """aiohttp's own client and server talk over the connections; else messages do, which are parsed
    and written by nobody (`light_server`)."""

    @property
    def forgets(self) -> bool:
        """Whether finished transactions are forgotten while the run lasts."""
        return self.keep_ms < 3_600_000 or self.most_remembered < MANY

    @property
    def kept_s(self) -> float:
        """So long after its end a transaction is surely remembered, whatever the clocks say."""
        if self.most_remembered < MANY and self.nodes_ahead == "all":
            return 0.0  # where there are too many, that clock counts
        kept_ms = self.keep_ms if self.most_remembered == MANY else LEAST_KEPT_MS
        apart_ms = self.clock_offset_ms + 2 * self.clock_jump_ms
        drifted_ms = 1_000 * self.clock_rate * (self.faulty_s + self.settle_s)
        return max(0.0, min(kept_ms, self.keep_ms) - apart_ms - drifted_ms) / 1_000

    @property
    def brief(self) -> bool:
        """Whether tombstones go while the run lasts: all messages but prepares must be young."""
        return self.tombstones_ms < 3_600_000


def draw_environment(seed: int) -> Environment:
    """The environment of a seed; the same in every process."""
    draw = Random(f"environment {seed}")
    choice, chance = draw.choice, draw.random
    calm = chance() < 0.1
    brief = chance() < 0.1
    possible = QUICK_FAULTS if brief else FAULTS
    faults = () if calm else tuple(draw.sample(possible, choice((2, 4, 8, 16)) if not brief else 6))
    grace_ms = choice((500, 1_000, 2_000))
    kinds = tuple(
        choice(("sdk", "sdk", "sdk", "sdk", "plain", "forgetful")) if not brief else "sdk"
        for _ in range(choice((2, 2, 3, 4)))
    )
    nodes = choice((3, 3, 5))
    soft = "forgetful" in kinds  # its promise holds only while clocks agree within the grace
    # A rollback of a plain branch (any, until its participant has declared itself) counts only
    # after `expires_at`: as far away as the leader's clock was ahead when the transaction began.
    # Larger jumps are safe, too, but nothing would be settled for as long.
    jumps = (300, 4_000, 20_000)
    slowly = Random(f"working {seed}")
    fronts = Random(f"fronts {seed}")
    before_nodes = Random(f"before nodes {seed}")
    wiped, unreadable = Random(f"wiped {seed}"), Random(f"unreadable {seed}")
    ordeal = Random(f"ordeal {seed}")
    parted, ahead = Random(f"parted {seed}"), Random(f"ahead {seed}")
    nodes_twice = 0.0 if calm or brief else before_nodes.choice((0.0, 0.0, 0.0, 0.02, 0.1))
    # Everything of Raft scales with it, and nothing costs as much as heartbeats.
    heartbeat_ms = choice((100, 150, 250, 400))
    least_ms = heartbeat_ms * choice((4, 5))
    # The last one: so slow that elections only just succeed. What is proposed waits for long then,
    # and others come in between.
    sync_mean_s = choice((0.0005, 0.002, 0.01, 0.05, 0.05 if brief else least_ms / 8_000))
    return Environment(
        seed=seed,
        nodes=nodes,
        kinds=kinds,
        clients=choice((1, 1, 2, 3)),
        faults=faults,
        fault_gap_s=choice((0.3, 1.0, 2.0, 4.0)) if not brief else 2.0,
        fault_s=choice((0.5, 1.5, 4.0)) if not brief else 0.3,
        faulty_s=choice((4.0, 8.0, 12.0, 20.0)) if not brief else 30.0,
        settle_s=90.0,
        weather=Weather(
            mean_s=choice((0.0003, 0.001, 0.005, 0.03)),
            lost=choice((0.0, 0.0, 0.0, 0.01, 0.05)),
            split=choice((0.0, 0.1)),
            reset=choice((0.0, 0.0, 0.0005, 0.005)),
        ),
        sync_mean_s=sync_mean_s,
        crash_point=0.0 if calm else choice((0.0, 0.0, 0.0003, 0.002)),
        snapshot_every=_each(draw, nodes, (5, 20, 60, 400)),
        segment_bytes=choice((500, 5_000, 16 << 20)),
        block=choice((1, 3, 8, 256)),
        cramped=chance() < 0.2,
        core=CoreLimits(
            append_bytes=choice((300, 1 << 20)),
            backlog_bytes=choice((1_000, 4 << 20)),
            apply_portion=choice((1, 256)),
            kept_bytes=choice((200, 8 << 20)),
            piece_bytes=choice((400, 256 << 10)),
        ),
        groups_under_way=Random(f"groups {seed}").choice((1, 1, 1, 4)),
        heartbeat_ms=heartbeat_ms,
        election_min_ms=least_ms,
        election_max_ms=least_ms * choice((102, 120, 200, 250)) // 100,
        call_timeout_ms=choice((500, 1_500, 3_000)),
        retry_max_ms=choice((300, 1_000)),
        grace_ms=grace_ms,
        timeouts_ms=choice(((400, 3_000), (1_500, 3_000), (3_000,))) if not brief else (45_000,),
        keep_ms=(keep_ms := choice((2_000, 5_000, DAY_MS, DAY_MS)) if not brief else DAY_MS),
        most_remembered=MANY
        if brief
        else Random(f"remembered {seed}").choice((*(MANY,) * 6, 5, 20)),
        tombstones_ms=BRIEFLY_MS if brief else 7 * DAY_MS,
        clock_rate=choice((0.0, 0.0, 0.001, 0.01)) if not soft else 0.0,
        clock_offset_ms=choice((0, 100, 2_000)) if not soft else grace_ms // 4,
        # If most clocks are wrong by more than ids are kept, new ids are refused: not a fault.
        clock_jump_ms=min(
            choice(jumps) if not soft else grace_ms // 8,
            keep_ms // 8,
            BRIEFLY_MS // 16 if brief else DAY_MS,  # nor must a clock make tombstones old
        ),
        think_s=choice((0.2, 0.6, 1.5)),
        client_timeout_s=choice((0.5, 1.0, 2.0)),
        vote_no=choice((0.0, 0.05, 0.3)),
        read_only=choice((0.0, 0.1, 0.4)),
        contended=chance() < 0.3,
        repeat=choice((0.0, 0.1, 0.4)),
        other_body=choice((0.0, 0.1, 0.4)),
        impatient=choice((0.0, 0.1, 0.4)),
        comes_back=choice((0.0, 0.3, 0.8)),
        operator=choice((0.0, 0.0, 0.3)),
        operator_s=0.0 if calm or brief else Random(f"operator {seed}").choice((0, 0, 0.15, 0.6)),
        nonsense=choice((0.0, 0.0, 0.1)),
        burst=choice((0.0, 0.0, 0.3)),
        interactive=Random(f"interactive {seed}").choice((0.0, 0.0, 0.3)),
        manners=Manners()
        if calm or brief or chance() < 0.4
        else Manners(
            slow=choice((0.0, 0.05, 0.3)),
            slow_s=choice((0.5, 2.0, 6.0)),
            error=choice((0.0, 0.02, 0.1)),
            lost_answer=choice((0.0, 0.02, 0.1)),
            garbage=choice((0.0, 0.0, 0.02, 0.1)),
            hanging=choice((0.0, 0.0, 0.02)),
            duplicate=choice((0.0, 0.1, 0.3)),
            duplicate_s=choice((0.1, 3.0, 15.0)),
            working=slowly.choice((0.0, 0.3)),
            working_s=slowly.choice((0.3, 2.0)),
            gave_up=fronts.choice((0.0, 0.0, 0.05, 0.2)),
            goes_on_s=fronts.choice((0.5, 3.0, 8.0)),
            refused_end=fronts.choice((0.0, 0.0, 0.03, 0.1)),
            refuses_s=fronts.choice((0.0, 0.5, 2.0)),
            twice=fronts.choice((0.0, 0.1, 0.4)),
            twice_s=fronts.choice((0.05, 0.5)),
        ),
        inquiry_after_s=choice((0.1, 0.5, 1.5, 3.0, 6.0)),
        astray=0.0 if calm else Random(f"astray {seed}").choice((*(0.0,) * 6, 0.03, 0.15)),
        nodes_twice=nodes_twice,
        nodes_twice_s=before_nodes.choice((0.01, 0.1, 1.0)),
        flips=0.0 if calm else Random(f"flips {seed}").choice((*(0.0,) * 8, 0.002, 0.02)),
        wiped_s=0.0 if calm or brief or wiped.random() > WIPED else wiped.uniform(0.5, 8.0),
        unreadable_s=unreadable.uniform(0.5, 8.0)
        if not calm and unreadable.random() < UNREADABLE
        else 0.0,
        parted_s=0.0 if calm or brief or parted.random() > PARTED else parted.uniform(0.5, 6.0),
        services_ahead_s=ahead.uniform(0.5, 4.0)
        if not calm and "sdk" in kinds and ahead.random() < (0.5 if brief else AHEAD)
        else 0.0,
        ordeal=ordeal.choice(ORDEALS)
        if not calm and not brief and ordeal.random() < ORDEAL
        else "",
        nodes_ahead=ahead.choice(("all", "leader"))
        if keep_ms == DAY_MS and ahead.random() < 2 * AHEAD
        else "",
        syncs=Random(f"syncs {seed}").random() > UNSYNCED,
        bounds=draw_bounds(Random(f"bounds {seed}")),
        http_in_bytes=Random(f"http {seed}").random() < IN_BYTES,
    )


def _each(draw: Random, nodes: int, choices: tuple[int, ...]) -> tuple[int, ...]:
    """One for all, or each node its own."""
    if draw.random() < 0.5:
        return (draw.choice(choices),) * nodes
    return tuple(draw.choice(choices) for _ in range(nodes))
