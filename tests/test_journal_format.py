"""The log that changes add up to: each change does what it says, or nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cluster.storage.journal_format import (
    FORMAT,
    Group,
    Header,
    Log,
    Malformed,
    append_change,
    apply_changes,
    clear_change,
    decode_body,
    decode_changes,
    encode_group,
    start_change,
)

State = tuple[list[int], int | None, int | None, int, str | None, int]


def log_of(*indexes: int) -> Log:
    log = Log()
    for index in indexes:
        log.append(b"x", index, 1)
    return log


def later_part(*indexes: int, start: int = 1) -> Log:
    """A log of which the segments before `indexes` are gone."""
    log = Log()
    header = Header(FORMAT, "c", "n1", 2, 2, 0, (0, 0), False, start, indexes[0], 3, "n2", 7)
    log.continue_from(header)
    for index in indexes:
        log.append(b"x", index, 1)
    return log


def state_of(log: Log) -> State:
    indexes = [index for _, index, _ in log.entries]
    return indexes, log.start, log.next_index, log.term, log.vote, log.commit_hint


def test_a_log_begins_anywhere_and_knows_nothing() -> None:
    assert state_of(Log()) == ([], None, None, 0, None, 0)
    assert Log().whole
    assert state_of(log_of(5, 6)) == ([5, 6], 5, 7, 0, None, 0)


@pytest.mark.parametrize(
    ("index", "left", "start"),
    [(8, [5, 6, 7], 5), (7, [5, 6], 5), (6, [5], 5), (5, [], 5), (3, [], 3)],
)
def test_a_truncation_leaves_what_is_before_it_and_the_log_goes_on_there(
    index: int, left: list[int], start: int
) -> None:
    log = log_of(5, 6, 7)
    log.truncate_from(index)
    assert state_of(log)[:3] == (left, start, index)
    assert log.whole
    log.append(b"y", index, 2)
    assert state_of(log)[:3] == ([*left, index], start, index + 1)


def test_a_truncation_of_what_is_empty_already_says_where_the_next_entry_belongs() -> None:
    log = log_of(5, 6)
    log.truncate_from(5)
    log.truncate_from(4)
    assert state_of(log)[:3] == ([], 4, 4)


@pytest.mark.parametrize(("index", "left"), [(5, [5, 6, 7]), (6, [6, 7]), (7, [7])])
def test_a_compaction_leaves_what_is_at_it_and_behind(index: int, left: list[int]) -> None:
    log = log_of(5, 6, 7)
    log.start_at(index)
    assert state_of(log)[:3] == (left, index, 8)


@pytest.mark.parametrize(("index", "whole"), [(2, False), (4, True), (5, True)])
def test_a_log_whose_first_segments_are_gone_is_whole_once_it_starts_behind_them(
    index: int, whole: bool
) -> None:
    log = later_part(4, 5)
    assert not log.whole
    log.start_at(index)
    assert log.whole is whole
    assert state_of(log) == ([at for at in (4, 5) if at >= index], index, 6, 3, "n2", 7)


def test_a_log_may_be_compacted_before_there_is_any_entry_of_what_is_left() -> None:
    log = later_part(4)
    log.truncate_from(4)
    log.start_at(2)
    assert state_of(log)[:3] == ([], 2, 4)
    assert not log.whole


def test_a_vote_is_given_once_in_a_term_that_was_entered_before() -> None:
    log = Log()
    for term, vote in ((2, None), (2, "n1"), (2, "n1"), (3, None), (3, None), (3, "n2")):
        log.set_vote(term, vote)
        assert (log.term, log.vote) == (term, vote)


@pytest.mark.parametrize(
    "change",
    [
        lambda log: log.append(b"", 9, 1),
        lambda log: log.append(b"", 7, 1),
        lambda log: log.truncate_from(9),
        lambda log: log.start_at(4),
        lambda log: log.start_at(8),
        lambda log: log.set_vote(1, "n1"),
        lambda log: log.set_vote(2, "n2"),
        lambda log: log.set_vote(2, None),
    ],
)
def test_what_no_log_can_do_is_refused_and_changes_nothing(change: Callable[[Log], None]) -> None:
    log = log_of(5, 6, 7)
    log.set_vote(2, "n1")
    before = state_of(log)
    with pytest.raises(Malformed):
        change(log)
    assert state_of(log) == before


@pytest.mark.parametrize("change", [lambda log: log.truncate_from(1), lambda log: log.start_at(1)])
def test_of_a_log_that_may_begin_anywhere_nothing_is_removed(
    change: Callable[[Log], None],
) -> None:
    log = Log()
    with pytest.raises(Malformed):
        change(log)
    assert state_of(log) == state_of(Log())


@pytest.mark.parametrize("without_sync", [False, True])
def test_a_group_says_where_it_was_synced_and_whether_it_ever_is(without_sync: bool) -> None:
    changes = append_change(b"a", 8, 2) + append_change(b"bb", 9, 3)
    group = decode_body(encode_group(changes, (4, 500), without_sync=without_sync))
    assert group == Group((4, 500), without_sync, changes)
    log = Log()
    assert apply_changes(log, decode_changes(changes)) == 9
    assert log.entries == [(b"a", 8, 2), (b"bb", 9, 3)]


def test_a_change_without_a_payload_may_be_the_last() -> None:
    assert list(decode_changes(start_change(3) + clear_change())) == [
        (b"S", (3).to_bytes(8, "little")),
        (b"R", b""),
    ]
