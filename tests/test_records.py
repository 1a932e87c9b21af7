"""A record is believed only whole, undamaged, and in its place."""

from __future__ import annotations

import random
import tracemalloc

from cluster.storage.records import (
    MAGIC,
    OVERHEAD,
    body_length,
    decode_record,
    encode_record,
    find_records,
)


def test_a_record_gives_its_body_back() -> None:
    for body in (b"", b"x", MAGIC, bytes(70_000)):
        record = encode_record(3, 40, body)
        assert len(record) == OVERHEAD + len(body)
        assert body_length(record[:OVERHEAD]) == len(body)
        assert decode_record(bytes(40) + record + b"more", 3, 40) == body
        assert decode_record(record, 3, 40, start=40) == body


def test_a_record_is_not_believed_at_another_offset_or_in_another_file() -> None:
    record = encode_record(3, 40, b"body")
    assert decode_record(bytes(41) + record, 3, 41) is None
    assert decode_record(record, 3, 0) is None
    assert decode_record(record, 4, 40, start=40) is None


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    record = encode_record(1, 0, random.Random(1).randbytes(50))
    for bit in range(len(record) * 8):
        flipped = bytearray(record)
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert decode_record(bytes(flipped) + bytes(50), 1, 0) is None
    for cut in range(len(record)):
        assert decode_record(record[:cut], 1, 0) is None


def test_records_behind_damage_are_found() -> None:
    blob = b""
    places = []
    for body in (b"one", MAGIC * 3, b"three", b""):
        places.append((len(blob), body))
        blob += encode_record(9, len(blob), body)
    assert list(find_records(blob, 9, 0)) == places
    assert list(find_records(blob, 9, 1)) == places[1:]
    damaged = blob[:20] + b"?" + blob[21:]
    assert list(find_records(damaged, 9, 0)) == [places[0], *places[2:]]
    assert list(find_records(blob, 8, 0)) == []
    assert list(find_records(b"", 9, 0)) == []


def test_of_a_record_that_claims_more_than_there_is_nothing_is_copied() -> None:
    """A megabyte of a client's text, full of what begins a record, kept a start for minutes."""
    claims = "¥ZR1    ".encode()
    assert MAGIC in claims
    blob = claims * 1_000 + bytes(1 << 20)
    tracemalloc.start()
    assert list(find_records(blob, 1, 0)) == []
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 16


def test_what_is_no_record_claims_no_length() -> None:
    assert body_length(b"") is None
    assert body_length(bytes(OVERHEAD)) is None
