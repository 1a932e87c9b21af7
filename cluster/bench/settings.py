"""What `assent bench` is asked to measure, and the one error that it ends with."""

from __future__ import annotations

from dataclasses import dataclass


class BenchError(Exception):
    """It could not be measured; the text is one sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure. Shares, `clients`, `rate` and `batch` as in `bench.requests.Load`.

    `nodes`, `participants`: URLs of those that run already; empty: started here. `store`: memory or
    sqlite. `remembered`: transactions finished before the measurement. `code`: a directory whose
    programs run in the place of these. `profile`: a directory for a profile of every node.
    """

    clients: int = 64
    rate: float = 0.0
    seconds: float = 5.0
    warm_up: float = 2.0
    participants_per_transaction: int = 3
    participant_processes: int = 1
    load_processes: int = 1
    batch: int = 1
    no_share: float = 0.0
    read_only_share: float = 0.0
    payload_bytes: int = 0
    plain: bool = False
    no_batches: bool = False
    store: str = "memory"
    no_fsync: bool = False
    remembered: int = 0
    log_level: str = "info"
    node_count: int = 3
    nodes: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    data_dir: str = ""
    code: str = ""
    profile: str = ""
