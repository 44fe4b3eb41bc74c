"""Recorders beside real Pubs: what is put is in the file, or counted there as lost."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcap")

from pubsub import Codec, Gap, Message, Peer, RecordingError, WrongContext, record
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from pubsub.faces.undecoded import UndecodedPub
from pubsub.record import Recorder
from pubsub.record import recorder as recorder_module
from pubsub.record.batches import Stored
from pubsub.record.replaying import put
from pubsub.record.writing import ChunkWriter
from tests.integration.support import LONG, coordinator_in_loop, coordinator_in_thread, free_port

pytestmark = pytest.mark.loop


@pytest.fixture(scope="module")
def coordinator() -> Iterator[str]:
    with coordinator_in_thread() as running:
        yield running.address


@pytest.fixture
def peer(coordinator: str) -> Iterator[Peer]:
    """That of the Recorder."""
    with Peer(coordinator) as made:
        yield made


@pytest.fixture
def other(coordinator: str) -> Iterator[Peer]:
    """That of the Pubs."""
    with Peer(coordinator) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.mcap"


def publisher(peer: Peer, topic: str, **options: Any) -> BlockingPub:
    pub = BlockingPub(topic, peer=peer, **options)
    pub.wait_for_subscribers(1, timeout=LONG)
    return pub


def read(path: Path, **options: Any) -> list[Any]:
    with record.open(path, **options) as recording:
        assert recording.finished
        return list(recording)


def gaps(path: Path) -> dict[str, dict[str, int]]:
    with record.open(path) as recording:
        return recording.gaps


VALUES = [
    *(None, True, -1, 2**70, 1.5, "ünï", b"\0\1", [1, [2]], {"a": {"b": 1}}, (1, (2, 3)), {4, 5}),
    *(frozenset({6}), 1 + 2j, Decimal("1.50"), datetime(2026, 1, 2, tzinfo=timezone.utc)),
    *(b"x" * 100_000, {"two": [b"y" * 70_000, b"z" * 80_000]}),
]


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_every_kind_of_value_comes_back_as_it_was(
    peer: Peer, other: Peer, path: Path, where: str
) -> None:
    """Also what lies in memory that the publisher lends."""
    with Recorder(path, "a/**", peer=peer) as recorder:
        pub = publisher(peer if where == "here" else other, "a/b")
        pub.put_many(VALUES)
        pub.close()
    assert read(path) == VALUES
    assert (recorder.messages, recorder.lost) == (len(VALUES), 0)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_arrays_are_copied_out_of_the_memory_of_their_publisher(
    peer: Peer, other: Peer, path: Path, where: str
) -> None:
    np = pytest.importorskip("numpy")
    arrays = [np.arange(size, dtype="i4") + size for size in (3, 50_000, 1_000_000)]
    with Recorder(path, "a", peer=peer):
        pub = publisher(peer if where == "here" else other, "a")
        for array in arrays:
            pub.put({"array": array})
        room = pub.empty(200_000, "f8")
        room[:] = 7.0
        pub.put(room)
        pub.close()
    values = read(path)
    for value, array in zip(values, arrays, strict=False):
        assert (value["array"] == array).all()
        assert not value["array"].flags.writeable
    assert (values[3] == 7.0).all()
    assert read(path, copy=True)[1]["array"].flags.writeable


def test_streams_of_all_codecs_are_recorded_without_being_decoded(
    peer: Peer, other: Peer, path: Path
) -> None:
    own = Codec("fraction", lambda value: str(value).encode(), lambda data: Fraction(data.decode()))
    with Recorder(path, "c/*", peer=peer):
        for topic, codec, value in (
            ("c/pickle", "pickle", Fraction(1, 2)),
            ("c/raw", "raw", b"raw"),
            ("c/own", own, Fraction(3, 4)),
        ):
            pub = publisher(other, topic, codec=codec)
            pub.put(value)
            pub.close()
    with record.open(path, allow_pickle=True, codec=own) as recording:
        found = {m.topic: m.value for m in recording.messages() if isinstance(m, Message)}
        codecs = {stream.topic: stream.codec for stream in recording.streams}
    assert found == {"c/pickle": Fraction(1, 2), "c/raw": b"raw", "c/own": Fraction(3, 4)}
    assert codecs == {"c/pickle": "pickle", "c/raw": "raw", "c/own": "fraction"}


def test_several_topics_and_publishers_keep_their_order_and_are_recorded_once(
    peer: Peer, other: Peer, path: Path
) -> None:
    with Recorder(path, ["s/a", "s/*", "s/**"], peer=peer) as recorder:
        pubs = [publisher(p, topic) for p in (peer, other) for topic in ("s/a", "s/b", "s/b/c")]
        for n in range(200):
            for pub in pubs:
                pub.put(n)
        for pub in pubs:
            pub.close()
    seqs: dict[tuple[str, str], list[int]] = {}
    with record.open(path) as recording:
        assert recording.topics == ("s/a", "s/b", "s/b/c")
        for message in recording.messages():
            assert isinstance(message, Message)
            assert message.value == message.seq
            seqs.setdefault((message.topic, message.publisher), []).append(message.seq)
    assert list(seqs.values()) == [list(range(200))] * 6
    assert {t: c.messages for t, c in recorder.topics.items()} == dict.fromkeys(
        ("s/a", "s/b", "s/b/c"), 400
    )


def test_headers_are_recorded_and_replayed_with_their_messages(
    peer: Peer, other: Peer, path: Path
) -> None:
    with Recorder(path, "hd", peer=peer):
        pub = publisher(other, "hd")
        pub.put(0)
        pub.put(1, headers={"unit": "C", "id": b"7"})
        pub.put(2)
        pub.close()
    found = [{}, {"unit": "C", "id": b"7"}, {}]
    with record.open(path) as recording:
        messages = [m for m in recording.messages() if isinstance(m, Message)]
        assert [message.headers for message in messages] == found
        batches = [event.what for event in recording.events() if isinstance(event.what, Stored)]
    sub = BlockingSub("again", peer=peer)
    again = UndecodedPub("again", codec="msgpack", peer=other)
    again.wait_for_subscribers(1, timeout=LONG)
    for batch in batches:
        assert put(again, batch, "run.mcap") > 0
        skipped = batch._replace(skip=1, messages=batch.messages - 1, first=batch.first + 1)
        if skipped.messages:
            put(again, skipped, "run.mcap")
    events = sub.messages()
    got = [next(events) for _ in range(2 * len(found) - len(batches))]
    assert all(
        message.headers == found[message.value] for message in got if isinstance(message, Message)
    )
    broken = batches[0]._replace(headers=b"\x90")
    with pytest.raises(RecordingError, match="headers that are no map"):
        put(again, broken, "run.mcap")
    again.close()


def test_history_is_recorded_where_it_is_asked_for(peer: Peer, other: Peer, path: Path) -> None:
    pub = BlockingPub("h", peer=other, history=5)
    pub.put_many(range(10))
    pub.flush(LONG)
    with Recorder(path, "h", peer=peer, history="all"):
        pub.wait_for_subscribers(1, timeout=LONG)
        pub.put(10)
        pub.close()
    assert read(path) == [5, 6, 7, 8, 9, 10]


class SlowDisk:
    """No chunk is written before it is let."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let = threading.Event()
        self.held = threading.Event()
        end_chunk = ChunkWriter.end_chunk

        def wait(writer: ChunkWriter) -> None:
            self.held.set()
            assert self.let.wait(LONG)
            end_chunk(writer)

        monkeypatch.setattr(ChunkWriter, "end_chunk", wait)


def test_g3_what_a_slow_disk_loses_is_counted_and_stands_in_the_file(
    peer: Peer, other: Peer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    recorder = Recorder(path, "g", peer=peer, window=64 * 1024)
    recorder.start()
    pub = publisher(other, "g", buffer=128 * 1024)
    pub.put(-1)
    assert disk.held.wait(LONG)
    for n in range(50_000):  # no put waits for it
        pub.put({"n": n, "pad": "x" * 50})
    disk.let.set()
    pub.close()
    recorder.close()
    expected = 0
    lost = messages = 0
    with record.open(path) as recording:
        for event in recording.messages():
            if isinstance(event, Gap):
                assert event.reason == "overflow"
                expected += event.missed
                lost += event.missed
            else:
                assert event.seq == expected
                expected += 1
                messages += 1
        assert recording.gaps == {"overflow": {"g": lost}}
    assert lost > 0
    assert messages + lost == 50_001
    assert (recorder.messages, recorder.lost) == (messages, lost)


def test_g8_a_blocking_pub_does_not_wait_for_a_recorder(
    peer: Peer, other: Peer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    recorder = Recorder(path, "b", peer=peer, window=64 * 1024)
    recorder.start()
    pub = publisher(other, "b", buffer=128 * 1024, overflow="block")
    pub.put(-1)
    assert disk.held.wait(LONG)
    pub.put_many(["x" * 100 for _ in range(20_000)])  # else it would wait for ever
    disk.let.set()
    pub.close()
    recorder.close()
    assert recorder.messages + recorder.lost == 20_001


def test_a_publisher_that_vanishes_is_said_in_the_file(
    coordinator: str, peer: Peer, path: Path
) -> None:
    source = """if 1:
        import os, signal, sys
        from pubsub import Pub
        pub = Pub("v")
        pub.wait_for_subscribers(timeout=30)
        pub.put("last words")
        pub.flush(30)
        print("put", flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with Recorder(path, "v", peer=peer) as recorder:
        program = subprocess.Popen(
            [sys.executable, "-c", source],
            env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"put\n"
            assert program.stdin is not None
            program.stdin.write(b"\n")
            program.stdin.close()
            assert program.wait(LONG) == -signal.SIGKILL
        while not gaps(path):
            time.sleep(0.01)
    with record.open(path) as recording:
        events = list(recording.messages())
        assert recording.gaps == {"vanished": {"v": 1}}
    assert [e.value for e in events if isinstance(e, Message)] == ["last words"]
    assert [e[1:] for e in events if isinstance(e, Gap)] == [("v", 0, "vanished")]
    assert [gap.reason for gap in recorder.unknown] == ["vanished"]
    assert recorder.lost == 0


# --- files ------------------------------------------------------------------------------------


def test_rotation_by_size_makes_files_that_stand_alone(peer: Peer, other: Peer, path: Path) -> None:
    options: dict[str, Any] = {"rotate_size": 200_000, "compression": "none"}
    with Recorder(path, "r/*", peer=peer, **options) as recorder:
        pub = publisher(other, "r/a")
        for n in range(12):
            pub.put(os.urandom(2_000_000))  # each is half a chunk
            pub.put(n)
        pub.close()
    names = [Path(name).name for name in recorder.paths]
    assert len(names) > 2
    assert names == [f"run-{n:04}.mcap" for n in range(1, len(names) + 1)]
    values: list[Any] = []
    for name in recorder.paths:
        values += [value for value in read(Path(name)) if isinstance(value, int)]
    assert values == list(range(12))
    assert sum(os.path.getsize(name) for name in recorder.paths) == recorder.size


def test_rotation_by_time(peer: Peer, other: Peer, path: Path) -> None:
    recorder = Recorder(path, "r", peer=peer, rotate_time=0.05)
    with recorder:
        pub = publisher(other, "r")
        for n in range(3):
            pub.put(n)
            pub.flush(LONG)
            while len(recorder.paths) < n + 2:  # the file was used, and its time is over
                threading.Event().wait(0.01)
        pub.close()
    assert [read(Path(name)) for name in recorder.paths] == [[0], [1], [2], []]


def test_a_limit_of_time_ends_it(peer: Peer, path: Path) -> None:
    recorder = Recorder(path, "l", peer=peer, limit_time=0.1)
    recorder.start()
    assert recorder.wait(LONG)
    recorder.close()
    assert read(path) == []


def test_a_limit_of_size_ends_it(peer: Peer, other: Peer, path: Path) -> None:
    recorder = Recorder(path, "l", peer=peer, limit_size=1_000_000, compression="none")
    recorder.start()
    pub = publisher(other, "l")
    while not recorder.wait(0):
        pub.put(bytes(500_000))
        pub.flush(LONG)
    pub.close()
    recorder.close()
    values = read(path)
    assert len(values) == recorder.messages
    assert 1_000_000 <= os.path.getsize(path) < 20_000_000


@pytest.mark.parametrize("fsync", ["never", "chunk", 0.05])
def test_the_disk_is_made_to_hold_it_as_the_policy_says(
    peer: Peer, other: Peer, path: Path, fsync: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = threading.Event()
    monkeypatch.setattr(ChunkWriter, "sync", lambda writer: synced.set())
    with Recorder(path, "f", peer=peer, fsync=fsync):
        pub = publisher(other, "f")
        pub.put(1)
        if fsync != "never":
            assert synced.wait(LONG)
        pub.close()
    assert synced.is_set() is (fsync != "never")


def test_no_more_streams_than_a_file_has_room_for_are_in_one(
    peer: Peer, other: Peer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MOST_CHANNELS", 4)
    with Recorder(path, "m/*", peer=peer) as recorder:
        for n in range(5):
            pub = publisher(other, f"m/{n}")
            pub.put(n)
            pub.close()
    assert [read(Path(name)) for name in recorder.paths] == [[0, 1, 2], [3, 4]]
    assert recorder.paths[1].endswith("run-0002.mcap")


def test_a_file_that_is_there_is_only_overwritten_where_that_is_said(
    peer: Peer, path: Path, tmp_path: Path
) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(RecordingError, match=r"run\.mcap: it is there already"):
        Recorder(path, "o", peer=peer).start()
    assert path.read_bytes() == b"precious"
    busy = pytest.raises(RecordingError, match="being recorded by another process")
    with Recorder(path, "o", peer=peer, overwrite=True), busy:
        Recorder(path, "o", peer=peer, overwrite=True).start()
    assert read(path) == []
    with pytest.raises(RecordingError, match="it is a directory"):
        Recorder(tmp_path, "o", peer=peer).start()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Recorder(tmp_path / "nowhere" / "run.mcap", "o", peer=peer).start()


def test_where_it_cannot_begin_the_file_is_as_it_was(tmp_path: Path) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    there = tmp_path / "there.mcap"
    there.write_bytes(b"precious")
    with Peer(nobody, connect_timeout=0.2) as peer:
        for path in (there, tmp_path / "new.mcap"):
            with pytest.raises(ConnectionError):
                Recorder(path, "o", peer=peer, overwrite=True).start()
    assert there.read_bytes() == b"precious"
    assert [entry.name for entry in tmp_path.iterdir()] == ["there.mcap"]


def test_a_disk_that_is_full_ends_it_and_what_is_there_is_finished(
    peer: Peer, other: Peer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, room = os.write, [3_000_000]

    def write(descriptor: int, data: Any) -> int:
        if os.path.realpath(f"/proc/self/fd/{descriptor}") != str(path):
            return real(descriptor, data)
        if os.lseek(descriptor, 0, os.SEEK_CUR) + len(data) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    recorder = Recorder(path, "d", peer=peer, compression="none")
    recorder.start()
    pub = publisher(other, "d")
    while not recorder.wait(0):
        pub.put(bytes(300_000))
        pub.flush(LONG)
    pub.close()
    with pytest.raises(OSError, match="No space left"):
        recorder.close()
    recorder.close()  # it was said once
    assert len(read(path)) == recorder.messages
    assert recorder.lost > 0


# --- programs ---------------------------------------------------------------------------------


async def test_in_an_event_loop_it_is_entered_by_async_with(tmp_path: Path) -> None:
    async with coordinator_in_loop() as address, Peer(address) as own:
        with pytest.raises(WrongContext, match="a Recorder has a thread of its own"):
            Recorder(tmp_path / "no.mcap", "e", peer=own)
        import asyncio

        peer = await asyncio.to_thread(Peer, address)
        async with Recorder(tmp_path / "run.mcap", "e/*", peer=peer) as recorder:
            pub = own.pub("e/x")
            await pub.wait_for_subscribers(1, timeout=LONG)
            pub.put("async")
            await pub.close()
        await asyncio.to_thread(peer.close)
    assert recorder.messages == 1
    assert read(tmp_path / "run.mcap") == ["async"]


def test_a_program_that_ends_without_closing_it_leaves_a_finished_file(
    coordinator: str, path: Path
) -> None:
    source = f"""if 1:
        from pubsub import Pub
        from pubsub.record import Recorder
        recorder = Recorder({str(path)!r}, "end")
        recorder.start()
        pub = Pub("end")
        pub.wait_for_subscribers(timeout=30)
        pub.put_many(range(100))
        pub.close()
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
        capture_output=True,
        text=True,
        timeout=LONG,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read(path) == list(range(100))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compression": "zip"}, "compression 'zip' is none of zstd, lz4, none"),
        ({"fsync": "always"}, 'fsync \'always\' is neither "never", "chunk" nor a number'),
        ({"patterns": []}, "no topic to record"),
        ({"patterns": "a//b"}, "a//b"),
    ],
)
def test_wrong_options_are_named(path: Path, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Recorder(path, **{"patterns": "a", **options})
    assert not path.exists()


def test_times_never_go_back(
    peer: Peer, other: Peer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the clock is set back while it records."""
    with Recorder(path, "t", peer=peer):
        pub = publisher(other, "t")
        pub.put(1)
        pub.flush(LONG)
        monkeypatch.setattr(time, "time_ns", lambda: 0)
        pub.put(2)
        pub.close()
        monkeypatch.undo()
    with record.open(path) as recording:
        times = [event.at for event in recording.events()]
        assert times == sorted(times)
        assert 0 < recording.start <= recording.end < math.inf
