"""coordinator/table.py: a view costs nothing and stays as it was; indexes never drift apart."""

from __future__ import annotations

import gc
from random import Random

import msgpack
import pytest

from coordinator.table import BLOCK, NEVER, Found, Sealed, Table


def put(table: Table, sequence: int, *, forget_ms: int = 0, branches: bytes = b"here") -> None:
    table.put(f"id-{sequence}", sequence, forget_ms or sequence, branches, b"%d" % sequence)


def filled(count: int) -> Table:
    table = Table()
    for sequence in range(count):
        put(table, sequence)
    return table


def content(view: dict[int, Sealed]) -> list[bytes]:
    return [msgpack.packb(view[number]) for number in sorted(view)]


def test_what_was_put_is_got_and_what_was_forgotten_is_not() -> None:
    table = filled(10)
    assert table.get("id-3") == Found("id-3", 3, b"here", b"3")
    assert table.forget_before(4) == 4
    assert [table.get("id-3"), table.get("stranger")] == [None, None]
    assert len(table) == len(list(table.newest_first(BLOCK))) == 6


def test_each_has_the_branches_that_it_came_with() -> None:
    table = Table()
    for sequence in range(300):
        put(table, sequence, branches=b"at %d" % (sequence % 7))
    for sequence in range(300):
        found = table.get(f"id-{sequence}")
        assert found is not None
        assert found.branches == b"at %d" % (sequence % 7)


def test_the_newest_come_first_whatever_order_they_finished_in() -> None:
    table, sequences = Table(), list(range(1, 5 * BLOCK, 3))
    Random(1).shuffle(sequences)
    for sequence in sequences:
        put(table, sequence)
    before = 3 * BLOCK + 5
    listed = [found.sequence for found in table.newest_first(before)]
    assert listed == sorted([s for s in sequences if s < before], reverse=True)


@pytest.mark.parametrize("seed", range(4))
def test_the_oldest_go_first_however_times_wander(seed: int) -> None:
    random, table = Random(seed), Table()
    times = {
        n: random.choice((-5, 900, 1_024, 70_000)) + random.randrange(3_000) for n in range(400)
    }
    for sequence, time_ms in times.items():
        put(table, sequence, forget_ms=time_ms)
    put(table, 1_000, forget_ms=NEVER)
    left = dict(times)
    while left:
        count = random.randrange(1, 40)
        horizon_ms = table.horizon_after(count)
        assert horizon_ms == sorted(left.values())[:count][-1] + 1
        gone = [n for n, time_ms in left.items() if time_ms < horizon_ms]
        assert table.forget_before(horizon_ms) == len(gone)
        for sequence in gone:
            del left[sequence]
            assert table.get(f"id-{sequence}") is None
        assert sorted(f.sequence for f in table.newest_first(999)) == sorted(left)
    assert (len(table), table.horizon_after(5)) == (1, 0)
    assert table.forget_before(NEVER) == 0


def test_a_view_stays_as_it_was_while_the_table_goes_on() -> None:
    random, table = Random(1), Table()
    waiting, views = list(range(5_000)), []
    for _ in range(6):
        views.append((table.view(), content(table.view())))
        for _ in range(700):
            put(table, waiting.pop(random.randrange(min(len(waiting), 300))))
        table.forget_before(table.horizon_after(200))
    for view, expected in views:
        assert content(view) == expected


def test_only_the_block_that_is_written_is_copied_and_once_for_a_view() -> None:
    table = Table()
    for sequence in range(0, 10 * BLOCK, 2):
        put(table, sequence)
    view = table.view()
    put(table, 3 * BLOCK + 1)
    once = table._open[3]
    put(table, 3 * BLOCK + 3)
    assert table._open[3] is once
    later = table.view()
    assert [number for number in view if later[number] is not view[number]] == [3]


def test_a_block_goes_with_its_last_transaction() -> None:
    table = filled(3 * BLOCK)
    table.forget_before(2 * BLOCK)
    assert list(table.view()) == [2]
    put(table, 5 * BLOCK)
    assert sorted(table.view()) == [2, 5]
    held = table.bytes
    put(table, 7 * BLOCK, branches=b"x" * 1_000)
    assert held + 1_000 < table.bytes < held + 1_100
    table.forget_before(NEVER)
    assert (len(table), table.bytes) == (0, 0)


def test_the_order_of_transactions_is_that_of_their_numbers_not_of_their_ends() -> None:
    ordered, shuffled = filled(1_000), Table()
    sequences = list(range(1_000))
    Random(1).shuffle(sequences)
    for sequence in sequences:
        put(shuffled, sequence)
    assert content(ordered.view()) == content(shuffled.view())


def test_a_table_loaded_from_its_blocks_is_the_same_and_goes_on() -> None:
    table = filled(1_000)
    table.forget_before(300)
    again = Table()
    for number, block in table.view().items():
        again.load(number, msgpack.unpackb(msgpack.packb(block), use_list=False))
    assert again.is_whole()
    for each in (table, again):
        put(each, 1_000)
        each.forget_before(310)
    assert content(again.view()) == content(table.view())
    assert again.horizon_after(1) == table.horizon_after(1)


def test_an_id_that_is_there_twice_makes_a_table_that_is_not_whole() -> None:
    table = filled(1)
    again = Table()
    for number in (0, 1):
        sequence = number * BLOCK
        block = Table()
        block.put("same", sequence, 1, b"", b"")
        again.load(number, block.view()[number])
    assert table.is_whole()
    assert not again.is_whole()


def test_a_block_that_is_there_twice_or_is_too_short_is_refused() -> None:
    block = filled(3).view()[0]
    table = Table()
    table.load(0, block)
    with pytest.raises(ValueError, match="block 0"):
        table.load(0, ((), (None,) * BLOCK, (None,) * BLOCK))
    branches, ids, records = block
    for short in ((branches, ids[:-1], records[:-1]), (branches, ids, records[:-1])):
        with pytest.raises(ValueError, match="block 0"):
            Table().load(0, short)


def test_the_collector_has_next_to_nothing_to_walk_over() -> None:
    gc.collect()
    before = len(gc.get_objects())
    table = filled(20_000)
    gc.collect()
    containers = len(gc.get_objects()) - before
    table.get("id-1")
    assert containers < 20_000 / 50


def test_what_is_let_go_of_goes_little_by_little() -> None:
    table = filled(1_000)
    left = []
    for _ in table.release():
        left.append(sum(map(len, table._shards)) + len(table._blocks))
    assert len(left) > 100
    assert left[-1] == 0
