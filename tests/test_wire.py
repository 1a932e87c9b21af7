"""The wire: every message comes back as it went, and nothing else gets through."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib

import msgpack
import pytest

from cluster.raft import wire
from cluster.raft.wire import BadFrame, Frames, Message, encode

BOOT = bytes(range(16))
LARGEST = 2**63 - 1
MESSAGES: list[Message] = [
    wire.Hello("assent", "n1", "n2", BOOT, 4, b"birth", b"later", "n1-1700000000000"),
    wire.Welcome(BOOT, b"birth"),
    wire.Refused("another cluster", is_another=False),
    wire.PreVote(3, 17, 2),
    wire.PreVoteReply(2, 3, True),
    wire.RequestVote(3, 17, 2, False),
    wire.VoteReply(3, False),
    wire.TimeoutNow(9),
    wire.TimeoutNow(LARGEST),
    wire.Append(3, 5, 1_700_000_000_000, 16, 17, 2, ((b"\0x", 18, 3), (b"\1", 19, 3))),
    wire.Append(3, 5, 1_700_000_000_000, 16, 17, 2),
    wire.Append(3, 5, 1, 0, LARGEST - 1, 2, ((b"\0", LARGEST, LARGEST),)),
    wire.AppendReply(3, 5, 1_700_000_000_000, True, 20),
    wire.SnapshotPiece(3, 5, 1, 100, 2, 65536, True, b"piece"),
    wire.SnapshotReply(3, 5, 1, 100, 2, 65541),
]


def frame(fields: object) -> bytes:
    body: bytes = msgpack.packb(fields)
    return wire.header(wire.WIRE_VERSION, len(body), zlib.crc32(body)) + body


def read(received: bytes, limit: int = wire.MAX_FRAME_BYTES) -> list[Message]:
    return list(Frames(limit).feed(received))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert read(encode(message)) == [message]


def test_a_stream_may_be_cut_anywhere() -> None:
    stream = b"".join(encode(message) for message in MESSAGES)
    for size in (1, 2, 7, 64, len(stream)):
        frames = Frames(wire.MAX_FRAME_BYTES)
        received: list[Message] = []
        for at in range(0, len(stream), size):
            received += frames.feed(stream[at : at + size])
        assert received == MESSAGES


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_field_of_the_wrong_type_or_sign_is_refused(message: Message) -> None:
    good = msgpack.unpackb(encode(message)[wire._HEADER_BYTES :])
    assert read(frame(good)) == [message]  # the frames below are wrong in the one field alone
    for place in range(len(good)):
        for wrong in (
            None,
            -1,
            1.5,
            2**63,
            [],
            {},
            [1],
            {1: 2},
            "x" * 65 + "!",
            msgpack.ExtType(1, b"x"),
        ):
            if isinstance(message, wire.Refused) and isinstance(wrong, str):
                continue
            fields = list(good)
            fields[place] = wrong
            with pytest.raises(BadFrame):
                read(frame(fields))
        if good[place] == BOOT:
            for boot in (BOOT[:-1], BOOT + b"x"):
                fields = list(good)
                fields[place] = boot
                with pytest.raises(BadFrame):
                    read(frame(fields))
        if type(good[place]) is int:
            fields = list(good)
            fields[place] = True
            with pytest.raises(BadFrame):
                read(frame(fields))
    for fields in (good[:-1], [*good, 0], good + good):
        with pytest.raises(BadFrame):
            read(frame(fields))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\xc0",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\x92\x0e\x01\x00",
        b"\x92\x0e",
        b"\x92\x0e\xcd\x01",
        b"\x0e",
    ],
)
def test_what_is_not_a_message_is_refused(body: bytes) -> None:
    with pytest.raises(BadFrame):
        wire.decode(body)


def test_all_of_it_holds_where_msgpack_is_installed_without_its_c_part() -> None:
    """The two forms of msgpack's reader do not hold their limits in the same places."""
    if os.environ.get("MSGPACK_PUREPYTHON"):
        return
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "MSGPACK_PUREPYTHON": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-2000:]


def test_another_wire_version_is_refused_by_name() -> None:
    with pytest.raises(BadFrame, match="wire version 1; this node speaks 3"):
        read(b"\x01" + encode(wire.TimeoutNow(1))[1:])


def test_a_frame_over_the_limit_is_refused_before_it_is_held() -> None:
    frames = Frames()
    with pytest.raises(BadFrame, match="4096 are allowed"):
        list(frames.feed(wire.header(wire.WIRE_VERSION, wire.MAX_HELLO_BYTES + 1, 0)))


def test_a_frame_as_large_as_allowed_passes_and_no_larger_one_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A peer would close the stream at it, and get it again over the next one, for ever."""
    allowed = wire.SnapshotPiece(3, 5, 1, 100, 2, 0, False, bytes(100))
    too_large = wire.SnapshotPiece(3, 5, 1, 100, 2, 0, False, bytes(101))
    limit = len(encode(allowed)) - wire._HEADER_BYTES
    oversized = encode(too_large)
    monkeypatch.setattr(wire, "MAX_FRAME_BYTES", limit)
    assert read(encode(allowed), limit) == [allowed]
    with pytest.raises(BadFrame, match=f"SnapshotPiece of {limit + 1} bytes; {limit} are allowed"):
        encode(too_large)
    with pytest.raises(BadFrame, match=f"frame of {limit + 1} bytes; {limit} are allowed"):
        read(oversized, limit)


def test_the_limit_may_be_raised_between_two_frames_of_one_read() -> None:
    large = wire.SnapshotPiece(3, 5, 1, 100, 2, 0, False, bytes(10_000))
    frames, seen = Frames(), []
    for message in frames.feed(encode(MESSAGES[0]) + encode(large)):
        seen.append(message)
        frames.limit = wire.MAX_FRAME_BYTES
    assert seen == [MESSAGES[0], large]


def test_a_nest_of_containers_costs_no_memory() -> None:
    """Eight million empty arrays in one frame would be half a gigabyte of lists."""
    size = 1 << 20
    bombs = [
        b"\x98\x14" + b"\x90" * size,
        b"\x98\x14" + b"\xdd" + struct.pack(">I", size) + b"\x90" * size,
        b"\xdd" + struct.pack(">I", size) + b"\x90" * size,
        b"\x98\x14" + b"\x91" * size,
        b"\x98\x14" + b"\xdf" + struct.pack(">I", size) + b"\x90" * size,
        b"\x98\x14" + msgpack.packb({f"{number:x}": None for number in range(size // 6)}),
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(BadFrame):
                wire.decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 * size
    finally:
        tracemalloc.stop()


def test_entries_are_cut_off_at_their_limit() -> None:
    entries = tuple((b"\0", 2 + number, 1) for number in range(wire.MAX_ENTRIES))
    assert read(encode(wire.Append(1, 1, 1, 1, 1, 0, entries))) != []
    with pytest.raises(BadFrame):
        encode(wire.Append(1, 1, 1, 1, 1, 0, (*entries, (b"\0", 9999, 1))))
    packed = (struct.pack(">QI", 1, 1) + b"\0") * (wire.MAX_ENTRIES + 1)
    with pytest.raises(BadFrame, match="more than"):
        read(frame([20, 1, 1, 1, 1, 1, 0, packed]))


@pytest.mark.parametrize(
    "packed",
    [
        b"x",
        struct.pack(">QI", 1, 2) + b"x",
        struct.pack(">QI", 1, 0),
        struct.pack(">QI", 2**64 - 1, 1) + b"x",
        struct.pack(">QI", 1, 1) + b"xy",
    ],
    ids=["cut header", "cut command", "empty command", "huge term", "cut second header"],
)
def test_entries_that_are_damaged_are_refused(packed: bytes) -> None:
    with pytest.raises(BadFrame):
        read(frame([20, 1, 1, 1, 1, 1, 0, packed]))


def test_an_entry_behind_the_last_index_is_refused() -> None:
    packed = struct.pack(">QI", 1, 1) + b"x"
    with pytest.raises(BadFrame, match="index is too large"):
        read(frame([20, 1, 1, 1, 1, LARGEST, 0, packed]))


def test_noise_never_raises_anything_but_bad_frame() -> None:
    """In a frame whose checksums fit: what a peer that is not one of ours may send."""
    chosen = random.Random(7)
    read_all_the_same = 0
    for _ in range(3000):
        body = bytearray(encode(chosen.choice(MESSAGES))[wire._HEADER_BYTES :])
        for _ in range(chosen.randint(1, 4)):
            body[chosen.randrange(len(body))] = chosen.randrange(256)
        if chosen.random() < 0.2:
            del body[chosen.randrange(len(body)) :]
        try:
            wire.decode(bytes(body))
        except BadFrame:
            continue
        read_all_the_same += 1
    assert read_all_the_same > 100, "some of it must get as far as a message"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_changed_bit_of_a_frame_is_noticed_before_anything_is_waited_for(
    message: Message,
) -> None:
    """One of the length would have the node wait for what never comes."""
    good = encode(message)
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadFrame, match=r"checksum|wire version"):
            read(bytes(bad))
