"""coordinator/table.py: a view costs nothing, stays as it was, and the order survives a reload."""

from __future__ import annotations

from random import Random

import pytest

from coordinator.table import SHARDS, Table, shard_of


def filled(count: int) -> Table[int]:
    table: Table[int] = Table()
    for number in range(count):
        table.put(f"key-{number}", number)
    return table


def test_what_was_put_is_got_replaced_and_removed() -> None:
    table = filled(10)
    table.put("key-3", 33)
    table.remove("key-4")
    assert (table.get("key-3"), table.get("key-4"), table.get("key-5")) == (33, None, 5)
    assert len(table) == len(list(table.values())) == 9


def test_removing_what_is_not_there_is_an_error_and_leaves_the_count() -> None:
    table = filled(3)
    with pytest.raises(KeyError):
        table.remove("stranger")
    assert len(table) == 3


def test_a_view_stays_as_it_was_while_the_table_goes_on() -> None:
    random = Random(1)
    table = filled(5_000)
    views = []
    for _ in range(4):
        views.append((table.view(), sorted(table.values())))
        for _ in range(2_000):
            key = f"key-{random.randrange(7_000)}"
            if random.random() < 0.3 and table.get(key) is not None:
                table.remove(key)
            else:
                table.put(key, random.randrange(10**6))
    for view, values in views:
        assert sorted(value for shard in view for value in shard.values()) == values


def test_only_the_shard_that_is_written_is_copied() -> None:
    table = filled(5_000)
    view = table.view()
    table.put("key-7", -1)
    table.put("key-7", -2)
    shards = zip(view, table.view(), strict=True)
    copied = [number for number, (old, new) in enumerate(shards) if old is not new]
    assert copied == [shard_of("key-7")]


def test_a_shard_is_copied_once_for_a_view_however_often_it_is_written() -> None:
    table = filled(10)
    table.view()
    table.put("key-7", -1)
    once = table._shards[shard_of("key-7")]
    table.put("key-7", -2)
    assert table._shards[shard_of("key-7")] is once


def test_the_order_of_values_survives_a_view_and_a_reload() -> None:
    table = filled(3_000)
    for number in range(0, 3_000, 7):
        table.remove(f"key-{number}")
    for number in range(0, 3_000, 14):
        table.put(f"key-{number}", number)
    order = list(table.values())
    again: Table[int] = Table()
    for value in order:
        again.put(f"key-{value}", value)
    table.view()
    table.put("key-1", 1)
    assert list(again.values()) == list(table.values()) == order


def test_keys_spread_over_the_shards_the_same_way_everywhere() -> None:
    # zlib.crc32, not hash(): the number is part of the bytes of a snapshot.
    assert shard_of("key-1") == 8058
    used = {shard_of(f"key-{number}") for number in range(20 * SHARDS)}
    assert len(used) == SHARDS
