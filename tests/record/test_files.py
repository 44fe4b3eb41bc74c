"""Files: whole, cut off anywhere, broken, hostile, and as other readers of MCAP see them."""

from __future__ import annotations

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("mcap")

from mcap.reader import make_reader
from mcap.writer import Writer

from pubsub import DecodeError, Gap, Message, RecordingError, record
from pubsub.record.finishing import finish, hold
from pubsub.record.index import MAGIC, packed
from pubsub.record.writing import ChunkWriter
from tests.record.files import PUBLISHER, SECOND, Written, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(tmp_path_factory.mktemp("whole") / "run.mcap")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each example of a property in turn."""
    return tmp_path_factory.mktemp("copies") / "run.mcap"


def flat(chunks: list[list[Any]]) -> list[Any]:
    return [value for chunk in chunks for value in chunk]


def seen_by_mcap(path: Path) -> list[str]:
    with open(path, "rb") as stream:
        found = make_reader(stream, validate_crcs=True).iter_messages(log_time_order=False)
        return [channel.topic for _, channel, _ in found]


# --- whole ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_what_was_written_is_read(tmp_path: Path, compression: str) -> None:
    written = write(tmp_path / "run.mcap", compression=compression)
    with record.open(written.path) as recording:
        assert recording.finished
        assert recording.topics == ("a/x", "a/y")
        assert (recording.start, recording.end) == (1.0, 4.0)
        assert list(recording) == flat(written.values)
        assert list(recording) == flat(written.values)  # each time from the beginning
        assert [stream.messages for stream in recording.streams] == [12, 12]
        assert recording.gaps == {"overflow": {"a/x": 6}}


def test_messages_say_where_they_come_from_and_gaps_stand_in_their_place(whole: Written) -> None:
    with record.open(whole.path, topics="a/x") as recording:
        events = list(recording.messages())
    assert events[0] == Message({"n": 0, "channel": 2, "i": 0}, "a/x", PUBLISHER, 0, 1.0)
    assert [e.seq for e in events[:3] if isinstance(e, Message)] == [0, 1, 2]
    assert events[3] == Gap(PUBLISHER, "a/x", 2, "overflow")
    assert events[4] == Message({"n": 1, "channel": 2, "i": 0}, "a/x", PUBLISHER, 5, 2.0)


@pytest.mark.parametrize(
    ("options", "chunks"),
    [
        ({"start": 2.0}, (1, 2, 3)),
        ({"end": 2.0}, (0,)),
        ({"start": 2.0, "end": 3.5}, (1, 2)),
        ({"start": 9.0}, ()),
        ({"topics": ["a/*", "a/x"]}, (0, 1, 2, 3)),
        ({"topics": "b/**"}, ()),
    ],
)
def test_filters(whole: Written, options: dict[str, Any], chunks: tuple[int, ...]) -> None:
    with record.open(whole.path, **options) as recording:
        assert list(recording) == flat([whole.values[n] for n in chunks])


def test_only_chunks_that_are_wanted_are_read(whole: Written) -> None:
    """By the index: the others may as well be broken."""
    data = bytearray(whole.path.read_bytes())
    data[whole.ends[0] - 3] ^= 0xFF
    copy = whole.path.with_name("broken.mcap")
    copy.write_bytes(data)
    with record.open(copy, start=2.0) as recording:
        assert list(recording) == flat(whole.values[1:])
    broken = r"broken\.mcap: it is broken: the chunk at byte"
    with record.open(copy) as recording, pytest.raises(RecordingError, match=broken):
        list(recording)


def test_other_readers_see_topics_times_and_sizes(whole: Written) -> None:
    with open(whole.path, "rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics is not None
        assert summary.statistics.message_count == 11
        assert summary.statistics.chunk_count == 4
        assert summary.statistics.message_start_time == SECOND
        assert summary.statistics.message_end_time == 4 * SECOND
        found = list(reader.iter_messages(topics="a/y"))
        assert [message.log_time for _, _, message in found] == [n * SECOND for n in (1, 2, 3, 4)]
        assert {channel.message_encoding for _, channel, _ in found} == {"pubsubd-batch/1"}
        gaps = list(reader.iter_messages(topics="pubsubd.gaps"))
        assert [schema.name for schema, _, _ in gaps if schema is not None] == ["pubsubd.Gap"] * 3


def test_a_pickle_is_decoded_only_where_that_is_allowed(tmp_path: Path) -> None:
    import pickle

    from pubsub.record.batches import BATCH_ENCODING, pack
    from tests.record.files import body_of

    descriptor = os.open(tmp_path / "p.mcap", os.O_RDWR | os.O_CREAT)
    writer = ChunkWriter(descriptor, "zstd")
    channel = writer.add_channel("p", BATCH_ENCODING, {"codec": "pickle", "publisher": "x"})
    body = body_of([pickle.dumps({1, 2})])
    writer.add(channel, 0, 1, 1, pack(0, 1.0, 1, 0, b"", body, []))
    writer.end_chunk()
    writer.finish()
    os.close(descriptor)
    refused = r"'p' from x has the codec 'pickle'.*allow_pickle=True"
    with record.open(tmp_path / "p.mcap") as recording, pytest.raises(DecodeError, match=refused):
        list(recording)
    with record.open(tmp_path / "p.mcap", allow_pickle=True) as recording:
        assert list(recording) == [{1, 2}]


def test_an_unknown_codec_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "run.mcap", codec="mine").path
    with record.open(path) as recording, pytest.raises(DecodeError, match="codec 'mine', which"):
        list(recording)


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.mcap"
    with open(path, "wb") as stream:
        writer = Writer(stream)
        writer.start()
        channel = writer.register_channel("t", "json", 0)
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()  # type: ignore[no-untyped-call]
    with pytest.raises(RecordingError, match="MCAP, but no recording of pubsubd"):
        record.open(path)
    path.write_bytes(b"something else")
    with pytest.raises(RecordingError, match=r"other\.mcap: it is no recording \(MCAP\)"):
        record.open(path)


# --- cut off ----------------------------------------------------------------------------------


@settings(max_examples=200)
@given(data=st.data(), zeros=st.sampled_from([0, 0, 1, 5000]))
def test_a_killed_recorder_leaves_all_its_whole_chunks(
    whole: Written, place: Path, data: st.DataObject, zeros: int
) -> None:
    """Cut off at any byte, maybe with zeros where the disk had not written yet."""
    content = whole.path.read_bytes()
    marks = [at + by for at in whole.ends for by in (-1, 0, 1, 2, 30, 60)]
    cut = data.draw(st.sampled_from(marks) | st.integers(len(MAGIC), len(content) - 1))
    left = content[:cut] + bytes(zeros)
    place.write_bytes(left)
    chunks = sum(left[:end] == content[:end] for end in whole.ends)
    expected = flat(whole.values[:chunks])
    with record.open(place) as recording:
        assert not recording.finished
        assert not recording.broken
        assert list(recording) == expected
        with record.open(place, topics="a/y") as part:
            assert list(part) == [value for value in expected if value["channel"] == 3]
        counted = sum(stream.messages for stream in recording.streams)
        gaps = recording.gaps
    assert counted == len(expected)
    assert finish(str(place)) == ""
    indexed = place.read_bytes()
    with record.open(place) as recording:
        assert recording.finished
        assert list(recording) == expected
        assert sum(stream.messages for stream in recording.streams) == counted
        assert recording.gaps == gaps
    assert len(seen_by_mcap(place)) == max(0, 3 * chunks - 1)
    assert finish(str(place)) == ""  # once
    assert place.read_bytes() == indexed


def test_finishing_that_is_cut_off_can_be_done_again(whole: Written, place: Path) -> None:
    content = whole.path.read_bytes()
    for cut in range(whole.ends[-1], len(content), 7):
        place.write_bytes(content[:cut])
        assert finish(str(place)) == ""
        with record.open(place) as recording:
            assert list(recording) == flat(whole.values)


def test_a_file_that_is_being_recorded_is_read_and_left_alone(tmp_path: Path) -> None:
    written = write(tmp_path / "run.mcap", finish=False)
    before = written.path.read_bytes()
    descriptor = os.open(written.path, os.O_RDWR)
    try:
        assert hold(descriptor)
        assert finish(str(written.path)) == "it is being recorded"
    finally:
        os.close(descriptor)
    assert written.path.read_bytes() == before
    with record.open(written.path) as recording:
        assert list(recording) == flat(written.values)


def test_where_nobody_can_tell_whether_it_is_being_recorded_it_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without locks."""
    from pubsub.record import finishing

    monkeypatch.setattr(finishing, "fcntl", None)
    written = write(tmp_path / "run.mcap", finish=False)
    assert finish(str(written.path)) == "whether it is being recorded cannot be told here"
    with record.open(written.path) as recording:
        assert list(recording) == flat(written.values)


def test_what_is_behind_a_broken_chunk_is_not_cut_off(whole: Written, place: Path) -> None:
    content = bytearray(whole.path.read_bytes()[: whole.ends[3]])
    content[whole.ends[1] - 2] ^= 1
    place.write_bytes(content)
    with record.open(place) as recording:
        assert list(recording) == whole.values[0]
        assert "the record at byte" in recording.broken
    assert "is broken" in finish(str(place))
    assert place.read_bytes() == content


# --- a disk that is full ----------------------------------------------------------------------


@pytest.mark.parametrize("room", range(0, 700, 41))
def test_a_full_disk_leaves_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    written = write(tmp_path / "whole.mcap")
    limit = written.ends[1] + room
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        left = limit - os.lseek(descriptor, 0, os.SEEK_CUR)
        if left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data[:left])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "run.mcap")
    monkeypatch.undo()
    with record.open(tmp_path / "run.mcap") as recording:
        values = list(recording)
    chunks = 2 + sum(end <= limit for end in written.ends[2:])
    assert values in (flat(written.values[:chunks]), flat(written.values[: chunks - 1]))


# --- hostile ----------------------------------------------------------------------------------


def read_all(path: Path) -> None:
    """Whatever is wrong is a RecordingError, or a message that cannot be decoded."""
    try:
        with record.open(path) as recording:
            list(recording.messages())
    except (RecordingError, DecodeError):
        pass


@settings(max_examples=300)
@given(data=st.data())
def test_a_file_with_any_bytes_changed_is_read_or_refused(
    whole: Written, place: Path, data: st.DataObject
) -> None:
    content = bytearray(whole.path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(MAGIC), len(content) - 1))
        content[at : at + 8] = data.draw(st.binary(min_size=1, max_size=8))
    place.write_bytes(content)
    read_all(place)


@settings(max_examples=200)
@given(tail=st.binary(max_size=200))
@example(tail=b"\x06" + b"\xff" * 8 + bytes(100))
@example(tail=b"\x02" + (20).to_bytes(8, "little") + b"\xff" * 20 + MAGIC)
@example(tail=b"\x02" + (20).to_bytes(8, "little") + (8).to_bytes(8, "little") + bytes(12) + MAGIC)
def test_any_bytes_behind_the_magic_are_read_or_refused(place: Path, tail: bytes) -> None:
    place.write_bytes(MAGIC + tail)
    read_all(place)


def bomb_of_zstd() -> tuple[str, bytes, int]:
    import zstandard

    return "zstd", zstandard.compress(bytes(800_000_000)), 800_000_000


def bomb_that_lies() -> tuple[str, bytes, int]:
    import zstandard

    return "zstd", zstandard.compress(bytes(100_000_000)), 1000


def bomb_of_lz4() -> tuple[str, bytes, int]:
    import lz4.frame

    return "lz4", lz4.frame.compress(bytes(100_000_000), store_size=False), 1000


@pytest.mark.parametrize("bomb", [bomb_of_zstd, bomb_that_lies, bomb_of_lz4])
def test_a_chunk_cannot_take_more_memory_than_it_may(
    place: Path, bomb: Callable[[], tuple[str, bytes, int]]
) -> None:
    from mcap.records import Chunk

    compression, data, size = bomb()
    chunk = Chunk(
        compression=compression,
        data=data,
        message_end_time=0,
        message_start_time=0,
        uncompressed_crc=0,
        uncompressed_size=size,
    )
    place.write_bytes(MAGIC + packed(chunk))
    tracemalloc.start()
    try:
        with record.open(place) as recording:
            assert not list(recording)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
