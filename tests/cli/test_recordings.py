"""`pubsub record`, `info`, `replay` and `export` as processes, beside Pubs and Subs of this one."""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mcap")

from mcap.reader import make_reader

from pubsub import Codec, Gap, Message, Peer, record
from pubsub.cli.exporting import schema_of
from pubsub.cli.pubsub import pubsub
from pubsub.cli.quantities import bytes_of, period, seconds_of
from pubsub.faces.blockingpub import BlockingPub
from pubsub.faces.blockingsub import BlockingSub
from pubsub.record.replaying import Ahead, Due, due
from tests.cli.processes import LONG, Running, Start, execute
from tests.record.files import write


@pytest.fixture
def peer(coordinator: str) -> Iterator[Peer]:
    with Peer(coordinator) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.mcap"


def recording(start: Start, coordinator: str, path: Path, *args: str) -> Running:
    """A `pubsub record` that has begun."""
    running = start("pubsub", "record", *args, "-o", str(path), coordinator=coordinator)
    assert running.err().endswith("; Ctrl-C ends it")
    return running


def publisher(peer: Peer, topic: str, **options: Any) -> BlockingPub:
    pub = BlockingPub(topic, peer=peer, **options)
    pub.wait_for_subscribers(1, timeout=LONG)
    return pub


def read(path: Path, **options: Any) -> list[Any]:
    with record.open(path, **options) as opened:
        assert opened.finished
        return list(opened)


# --- record -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_file_and_the_account_is_said(
    start: Start, coordinator: str, peer: Peer, topic: str, path: Path, number: int, code: int
) -> None:
    running = recording(start, coordinator, path, f"{topic}/*")
    for name in ("a", "b"):
        pub = publisher(peer, f"{topic}/{name}")
        pub.put_many([{"n": 1}, {"n": 2}])
        pub.close()
    running.signal(number)
    ended, _, said = running.end()
    assert ended == code
    assert said[0].startswith("pubsub: recorded 4 messages (2 batches), lost 0: ")
    assert said[0].endswith(f" in {path}")
    assert said[1:] == [
        f"pubsub: {topic}/a: 2 messages (1 batch) of 13 bytes, lost 0",
        f"pubsub: {topic}/b: 2 messages (1 batch) of 13 bytes, lost 0",
    ]
    assert read(path) == [{"n": 1}, {"n": 2}] * 2


def test_what_was_put_before_a_signal_is_recorded(
    start: Start, coordinator: str, peer: Peer, topic: str, path: Path
) -> None:
    running = recording(start, coordinator, path, topic)
    pub = publisher(peer, topic)
    for n in range(1000):
        pub.put(n)
    pub.close()
    running.interrupt()
    assert running.wait() == 130
    assert read(path) == list(range(1000))


def test_nothing_recorded_says_why(coordinator: str, topic: str, path: Path) -> None:
    result = execute(
        *("pubsub", "record", topic, "-o", str(path), "--limit-time", "300ms"),
        coordinator=coordinator,
    )
    assert result.code == 0
    nobody = "no publisher of it is known (`pubsub doctor TOPIC` says why)"
    assert f"recorded 0 messages (0 batches), lost 0; {nobody}: " in result.err
    assert read(path) == []


def test_a_publisher_that_vanishes_makes_the_exit_code_1(
    start: Start, coordinator: str, topic: str, path: Path
) -> None:
    running = recording(start, coordinator, path, topic)
    put = start("pubsub", "put", topic, "-", coordinator=coordinator)
    put.send("one\n")
    while not read_unfinished(path):
        time.sleep(0.01)
    put.signal(signal.SIGKILL)
    while not gaps(path):
        time.sleep(0.01)
    running.signal(signal.SIGTERM)
    code, _, said = running.end()
    assert code == 1
    assert "1 publisher vanished: what it had not sent is not known" in said[-1]
    assert (
        execute("pubsub", "info", str(path))
        .lines[3]
        .endswith("lost 0; 1 publisher vanished: what it had not sent is not known")
    )


def gaps(path: Path) -> dict[str, dict[str, int]]:
    with record.open(path) as opened:
        return opened.gaps


def read_unfinished(path: Path) -> list[Any]:
    with record.open(path) as opened:
        return list(opened)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("there", "it is there already: choose another name, or have it overwritten (--force)"),
        (".", "it is a directory"),
        ("nowhere/run.mcap", "No such file or directory"),
    ],
)
def test_a_target_that_cannot_be_is_one_line(
    coordinator: str, tmp_path: Path, target: str, said: str
) -> None:
    (tmp_path / "there").write_text("precious")
    result = execute("pubsub", "record", "t", "-o", str(tmp_path / target), coordinator=coordinator)
    assert result.code == 1
    assert result.err == f"pubsub: {tmp_path / target}: {said}\n"
    assert (tmp_path / "there").read_text() == "precious"


def test_a_file_that_cannot_grow_is_one_line_and_can_be_read(
    start: Start, coordinator: str, peer: Peer, topic: str, path: Path
) -> None:
    running = recording(start, coordinator, path, topic, "--compression", "none")
    resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (9_000_000, 9_000_000))
    pub = publisher(peer, topic)
    while running.process.poll() is None:
        pub.put(os.urandom(400_000))
        pub.flush(LONG)
    pub.close()
    code, _, said = running.end()
    assert code == 1
    assert said[-1] == "pubsub: File too large"
    assert any("lost " in line and "recorded" in line for line in said)
    values = read(path)
    assert values
    assert set(map(len, values)) == {400_000}


def test_a_recorder_that_is_killed_loses_a_second_and_info_finishes_its_file(
    start: Start, coordinator: str, peer: Peer, topic: str, path: Path
) -> None:
    running = recording(start, coordinator, path, topic)
    pub = publisher(peer, topic)
    pub.put_many(range(100))
    while read_unfinished(path) != list(range(100)):
        time.sleep(0.01)
    live = execute("pubsub", "info", str(path))
    assert live.err == f"pubsub: {path} is being recorded: this is what is in it by now\n"
    running.signal(signal.SIGKILL)
    running.wait()
    with open(path, "ab") as stream:
        stream.write(b"\x06\xff")  # of the next chunk
    first = execute("pubsub", "info", str(path))
    assert first.code == 0
    assert first.err == (
        f"pubsub: {path} was not finished: its last 2 bytes were no whole chunk, and were cut off; "
        "it is indexed now\n"
    )
    again = execute("pubsub", "info", str(path))
    assert again.err == ""
    assert again.lines[2:] == first.lines[2:]
    assert read(path) == list(range(100))


# --- info -------------------------------------------------------------------------------------


def test_info_says_what_is_in_a_file(path: Path) -> None:
    write(path)
    result = execute("pubsub", "info", str(path), TZ="UTC")
    assert (result.code, result.err) == (0, "")
    assert result.lines[0] == f"file      {path}"
    assert result.lines[2:] == [
        "recorded  1970-01-01 00:00:01.000+00:00 to 1970-01-01 00:00:04.000+00:00 (3.0 s)",
        "messages  24, lost 6",
        "",
        "TOPIC  MESSAGES  BATCHES  BYTES  LOST  PUBLISHERS  CODEC",
        "a/x          12        4    212     6           1  msgpack",
        "a/y          12        4    212     0           1  msgpack",
    ]


def test_info_for_programs(path: Path) -> None:
    write(path)
    facts = json.loads(execute("pubsub", "info", str(path), "--json").text)
    assert (facts["start"], facts["end"], facts["finished"]) == (1.0, 4.0, True)
    assert [(s["topic"], s["messages"]) for s in facts["streams"]] == [("a/x", 12), ("a/y", 12)]
    assert facts["gaps"] == {"overflow": {"a/x": 6}}


def test_info_of_what_is_no_recording(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some text")
    result = execute("pubsub", "info", str(tmp_path / "text"))
    assert result.code == 1
    assert result.err.endswith("text: it is no recording (MCAP), by its first bytes\n")
    missing = execute("pubsub", "info", str(tmp_path / "no.mcap"))
    assert (missing.code, missing.err.split(": ")[-1]) == (1, "No such file or directory\n")


def test_a_file_that_cannot_be_written_to_is_shown_all_the_same(path: Path) -> None:
    from pubsub.record import finishing

    write(path, finish=False)
    mend = pytest.MonkeyPatch()
    mend.setattr(finishing, "finish", _not_permitted)
    try:
        result = _invoke("info", str(path))
    finally:
        mend.undo()
    assert result[0] == 0
    assert "messages  24, lost 6" in result[1]


def _not_permitted(path: str) -> str:
    raise PermissionError(13, "Permission denied", path)


def _invoke(*args: str) -> tuple[int, str]:
    from click.testing import CliRunner

    result = CliRunner().invoke(pubsub, args, standalone_mode=False)
    assert result.exception is None
    return result.return_value, result.output


# --- replay -----------------------------------------------------------------------------------


def taken(sub: BlockingSub, count: int) -> list[Any]:
    return [sub.get(timeout=LONG) for _ in range(count)]


def test_replay_publishes_each_topic_again(coordinator: str, peer: Peer, path: Path) -> None:
    written = write(path, chunks=2)
    sub = BlockingSub("a/*", peer=peer)
    result = execute(
        *("pubsub", "replay", str(path), "--wait", "1", "--rate", "10x"), coordinator=coordinator
    )
    assert result.code == 0, result.err
    assert taken(sub, 12) == [value for chunk in written.values for value in chunk]
    said = result.err.splitlines()[-1]
    assert said.startswith("pubsub: replayed 12 messages (4 batches) on 2 topics in 1")
    assert said.endswith("; 2 messages were lost when it was recorded")


def test_replay_decodes_nothing(coordinator: str, peer: Peer, tmp_path: Path) -> None:
    own = Codec("fraction", lambda value: str(value).encode(), lambda data: Fraction(data.decode()))
    np = pytest.importorskip("numpy")
    path = tmp_path / "all.mcap"
    with record.Recorder(path, "codec/*", peer=peer):
        for name, codec, value in (
            ("own", own, Fraction(3, 4)),
            ("pickle", "pickle", Fraction(1, 2)),
            ("array", "msgpack", np.arange(500_000)),
        ):
            pub = publisher(peer, f"codec/{name}", codec=codec)
            pub.put(value)
            pub.close()
    subs = [
        BlockingSub("codec/own", peer=peer, codec=own),
        BlockingSub("codec/pickle", peer=peer, allow_pickle=True),
        BlockingSub("codec/array", peer=peer),
    ]
    result = execute(
        *("pubsub", "replay", str(path), "--rate", "max", "--wait", "3"), coordinator=coordinator
    )
    assert result.code == 0, result.err
    assert [sub.get(timeout=LONG) for sub in subs[:2]] == [Fraction(3, 4), Fraction(1, 2)]
    assert (subs[2].get(timeout=LONG) == np.arange(500_000)).all()


def test_as_fast_as_subscribers_take_it_loses_nothing(
    start: Start, coordinator: str, peer: Peer, topic: str, tmp_path: Path
) -> None:
    path = tmp_path / "big.mcap"
    values = [os.urandom(100_000) for _ in range(1000)]
    with record.Recorder(path, topic, peer=peer):
        pub = publisher(peer, topic)
        pub.put_many(values)
        pub.close()
    sub = BlockingSub(topic, peer=peer, window=1_000_000)
    replay = start(
        *("pubsub", "replay", str(path), "--rate", "max", "--wait", "1"), coordinator=coordinator
    )
    assert taken(sub, len(values)) == values
    assert replay.wait() == 0
    assert sub.lost == 0


def test_topics_and_other_names(coordinator: str, peer: Peer, path: Path) -> None:
    written = write(path, chunks=1)
    sub = BlockingSub("**", peer=peer)
    result = execute(
        *("pubsub", "replay", str(path), "--topics", "a/y", "--remap", "a/y=b/z", "--wait", "1"),
        coordinator=coordinator,
    )
    assert result.code == 0, result.err
    events = sub.messages()
    found = [next(events) for _ in range(3)]
    assert [(e.topic, e.value) for e in found if isinstance(e, Message)] == [
        ("b/z", value) for value in written.values[0][3:]
    ]


def test_loop_goes_on_until_ctrl_c(start: Start, coordinator: str, peer: Peer, path: Path) -> None:
    written = write(path, chunks=1, topics=("loop/x",))
    sub = BlockingSub("loop/x", peer=peer)
    replay = start(
        *("pubsub", "replay", str(path), "--loop", "--rate", "100x", "--wait", "1"),
        coordinator=coordinator,
    )
    assert taken(sub, 9) == written.values[0] * 3
    replay.interrupt()
    code, _, said = replay.end()
    assert code == 130
    assert any(line.startswith("pubsub: replayed ") for line in said)


def test_several_files_are_one_recording(coordinator: str, peer: Peer, tmp_path: Path) -> None:
    written = [write(tmp_path / f"{n}.mcap", chunks=1, topics=("f/x",)) for n in range(2)]
    sub = BlockingSub("f/x", peer=peer)
    result = execute(
        *("pubsub", "replay", *(str(each.path) for each in written), "--wait", "1"),
        coordinator=coordinator,
    )
    assert result.code == 0, result.err
    assert taken(sub, 6) == written[0].values[0] * 2


def test_a_subscriber_that_does_not_come_in_time_is_exit_code_3(
    coordinator: str, path: Path
) -> None:
    write(path)
    result = execute(
        *("pubsub", "replay", str(path), "--wait", "2", "--timeout", "0.2"),
        coordinator=coordinator,
    )
    assert result.code == 3
    assert result.err == "pubsub: 0 of 2 subscribers after 0.2 s; nothing was replayed\n"


def test_nobody_was_listening_is_said_once(coordinator: str, path: Path) -> None:
    write(path, chunks=1, topics=tuple(f"n/{n}" for n in range(5)))
    result = execute("pubsub", "replay", str(path), coordinator=coordinator)
    assert result.code == 0
    assert result.err.splitlines()[1:] == [
        "pubsub: nobody was listening on 'n/0', 'n/1', 'n/2' and 2 more"
    ]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--topics", "zzz"), 1, "pubsub: there is no message of zzz in"),
        (("--remap", "zzz=b"), 1, "pubsub: --remap zzz=…: no such topic: its topics are a/x, a/y"),
        (("--remap", "zzz"), 2, "'zzz' names no other topic"),
        (("--rate", "0"), 2, "'0' is no rate: it is written 2x"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    coordinator: str, path: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    write(path)
    result = execute("pubsub", "replay", str(path), *args, coordinator=coordinator)
    assert result.code == code
    assert said in result.err
    assert result.err.count("\n") == 1


def test_a_broken_chunk_is_one_line_and_what_came_before_is_delivered(
    coordinator: str, peer: Peer, path: Path
) -> None:
    written = write(path, chunks=2)
    data = bytearray(path.read_bytes())
    data[written.ends[1] - 2] ^= 1
    path.write_bytes(data)
    sub = BlockingSub("a/*", peer=peer)
    result = execute(
        "pubsub", "replay", str(path), "--wait", "1", "--rate", "max", coordinator=coordinator
    )
    assert result.code == 1
    assert f"pubsub: {path}: it is broken: the chunk at byte" in result.err
    assert taken(sub, 6) == written.values[0]


def test_each_batch_is_due_when_it_was(path: Path) -> None:
    write(path, chunks=3)
    with record.open(path) as opened:
        for rate, times in ((1.0, [0, 0, 1, 1, 2, 2]), (2.0, [0, 0, 0.5, 0.5, 1, 1])):
            events = [event for event in due([opened], {}, rate) if isinstance(event, Due)]
            assert [event.at for event in events] == times
        assert {e.at for e in due([opened], {}, math.inf) if isinstance(e, Due)} == {0}
        assert sum(isinstance(event, Gap) for event in due([opened], {}, 1.0)) == 2


def test_what_is_read_ahead_is_bounded_and_ends_with_the_error_of_its_source() -> None:
    read = 0
    blocked = threading.Event()

    def source() -> Iterator[int]:
        nonlocal read
        for n in range(100):
            read += 1
            yield n
        raise OSError("the disk is gone")

    ahead = Ahead(source(), lambda n: 10, most=50)
    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        for n in ahead:
            found.append(n)
            assert read <= n + 8
    assert found == list(range(100))
    assert not blocked.is_set()
    stopped = Ahead(iter(range(1000)), lambda n: 100, most=50)
    stopped.close()  # its thread ends, though nobody took anything


# --- export -----------------------------------------------------------------------------------


def test_export_writes_a_message_of_json_for_each(path: Path, tmp_path: Path) -> None:
    written = write(path)
    out = tmp_path / "out.mcap"
    result = execute("pubsub", "export", str(path), "-o", str(out))
    assert result.code == 0
    assert result.err == (f"pubsub: wrote 24 messages to {out}; 6 were lost when it was recorded\n")
    with open(out, "rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        found = list(reader.iter_messages(topics=["a/x", "a/y"]))
        gaps = [json.loads(m.data) for _, _, m in reader.iter_messages(topics="pubsubd.gaps")]
    assert [json.loads(message.data) for _, _, message in found] == [
        value for chunk in written.values for value in chunk
    ]
    schemas = {
        schema.name: (schema.encoding, json.loads(schema.data)) for schema, _, _ in found if schema
    }
    assert set(schemas) == {"a/x", "a/y"}
    number = {"type": "number"}
    fields = {"n": number, "channel": number, "i": number}
    assert schemas["a/x"] == ("jsonschema", {"type": "object", "properties": fields})
    assert {channel.message_encoding for _, channel, _ in found} == {"json"}
    assert [message.log_time for _, _, message in found][::6] == [
        n * 1_000_000_000 for n in (1, 2, 3, 4)
    ]
    assert [gap["missed"] for gap in gaps] == [2, 2, 2]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.mcap", "run.mcap"]


def test_what_is_no_object_is_the_value_of_one(
    peer: Peer, topic: str, path: Path, tmp_path: Path
) -> None:
    with record.Recorder(path, topic, peer=peer):
        pub = publisher(peer, topic)
        pub.put_many([5, "text", b"ab", [1, 2], math.nan])
        pub.close()
    out = tmp_path / "out.mcap"
    assert execute("pubsub", "export", str(path), "-o", str(out)).code == 0
    with open(out, "rb") as stream:
        data = [json.loads(message.data) for _, _, message in make_reader(stream).iter_messages()]
    assert data == [
        *({"value": 5}, {"value": "text"}, {"value": {"base64": "YWI="}}, {"value": [1, 2]}),
        {"value": "NaN"},
    ]


def test_a_pickle_is_exported_only_where_that_is_allowed(
    peer: Peer, topic: str, path: Path, tmp_path: Path
) -> None:
    with record.Recorder(path, topic, peer=peer):
        pub = publisher(peer, topic, codec="pickle")
        pub.put({"f": Fraction(1, 2)})
        pub.close()
    out = tmp_path / "out.mcap"
    refused = execute("pubsub", "export", str(path), "-o", str(out))
    assert refused.code == 1
    assert "--allow-pickle" in refused.err
    assert refused.err.count("\n") == 1
    assert not out.exists()
    assert execute("pubsub", "export", str(path), "-o", str(out), "--allow-pickle").code == 0
    again = execute("pubsub", "export", str(path), "-o", str(out), "--allow-pickle")
    assert again.err == f"pubsub: {out}: it is there already: choose another name, or --force\n"


def test_schemas_say_what_a_value_has() -> None:
    value = {"a": 1, "b": [{"c": "x"}], "d": None, "e": True, "f": []}
    assert schema_of(value) == {
        "type": "object",
        "properties": {
            "a": {"type": "number"},
            "b": {
                "type": "array",
                "items": {"type": "object", "properties": {"c": {"type": "string"}}},
            },
            "d": {},
            "e": {"type": "boolean"},
            "f": {"type": "array"},
        },
    }
    deep: Any = {}
    for _ in range(1000):
        deep = {"in": deep}
    assert len(json.dumps(schema_of(deep))) < 1000


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [("500000", 500_000), ("10MB", 10_000_000), ("1.5GiB", 1_610_612_736), ("2k", 2000)],
)
def test_sizes(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "10 elephants", "MB", "1e5"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("500ms", 0.5), ("5m", 300), ("1h30m", 5400), ("2d", 172_800)]
)
def test_times(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "5 minutes", "1h30"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        seconds_of(text)


def test_a_period_has_units() -> None:
    assert [period(text) for text in ("1h30m", "250ms", "90", "today")] == [5400, 0.25, None, None]


def test_where_mcap_is_missing_that_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mcap.py").write_text('raise ModuleNotFoundError("No module named mcap")')
    for args in (
        ("record", "t", "-o", "x"),
        ("info", "x.mcap"),
        ("replay", "x"),
        ("export", "x", "-o", "y"),
    ):
        result = execute("pubsub", *args, PYTHONPATH=str(tmp_path))
        assert result.code == 1
        assert result.err == (
            "pubsub: recordings need the package mcap (No module named mcap): "
            'pip install "pubsubd[record]"\n'
        )
