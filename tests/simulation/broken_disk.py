"""How planted bugs break the rules of the disk: what is written, synced, named, removed."""

from __future__ import annotations

from typing import Any

from cluster.storage.journal import Journal
from cluster.storage.journal_format import Log
from tests.model.broken_rules import Taken, replaced, together


def sync_is_a_lie(_original: Any, segments: Any, sync: Any) -> None:
    segments._watermark.advance(sync.position)
    sync.done = True


def without_sync(original: Any, node: Any, *arguments: Any, **named: Any) -> None:
    original(node, *arguments, **(named | {"fsync": False}))


def forgotten_vote(original: Any, *arguments: Any, **named: Any) -> Any:
    """At a start nothing is left of term and vote but what the entries say."""
    journal = original(*arguments, **named)
    journal.set_vote(journal.last_term if len(journal) else 0, None)
    return journal


def vote_of_any_kind(_original: Any, log: Log, term: int, vote: str | None) -> None:
    """The journal's own net: it takes no lower term, and no second vote in a term."""
    log.term, log.vote = term, vote


def name_not_synced(original: Any, segments: Any, sync: Any) -> None:
    """A new segment's content is synced, and its name in the directory is not."""
    sync.names_changed = False
    original(segments, sync)


def remove_all_before(original: Any, segments: Any, log: Log, **_named: bool) -> None:
    """With a new segment the older ones go, whatever is still needed of them."""
    original(segments, log, replaced=True)


def place_without_sync(_original: Any, store: Any, aside: Any, meta: Any, size: int) -> bool:
    """A snapshot gets its name, and what it covers goes before the name is durable."""
    store._disk.rename(aside, store._path)
    store._meta, store.size = meta, size
    return True


def damage_is_cut(_original: Any, _reading: Any, _tear: Any, _numbers: Any) -> None:
    """Whatever is not whole counts as written after the last sync."""


def short_is_whole(original: Any, reading: Any, *arguments: Any) -> Any:
    """A file that ends too early is no damage either."""
    reading._mark = (0, 0)
    return original(reading, *arguments)


VOTE_NOT_WRITTEN: Taken = together(
    replaced(Log, "set_vote", vote_of_any_kind),
    replaced(Journal, "open", forgotten_vote),
)
