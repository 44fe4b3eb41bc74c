"""`pubsub tail` as a process, fed by a Pub of this one."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from pubsub import Peer
from pubsub.faces.account import what_is_unknown
from pubsub.faces.blockingpub import BlockingPub
from tests.cli.processes import LONG, Start, daemon, execute
from tests.integration.support import free_port


@pytest.fixture
def peer(coordinator: str) -> Iterator[Peer]:
    with Peer(coordinator) as made:
        yield made


def publisher(peer: Peer, topic: str, subscribers: int = 1, **options: Any) -> BlockingPub:
    """A Pub that has its subscribers."""
    pub = BlockingPub(topic, peer=peer, **options)
    pub.wait_for_subscribers(subscribers, timeout=LONG)
    return pub


def test_each_message_is_a_line_that_comes_at_once(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    pub = publisher(peer, topic)
    for value in ({"v": 1}, "two", [3.5, None], "ünïcode"):
        pub.put(value)
        assert json.loads(tail.out()) == value  # before the next one is put
    tail.interrupt()
    assert tail.end() == (130, [], ["pubsub: received 4, lost 0"])


def test_count_ends_it_with_exactly_so_many(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, "-n", "3", coordinator=coordinator)
    publisher(peer, topic).put_many(range(10))
    assert tail.end() == (0, ["0", "1", "2"], ["pubsub: received 3, lost 0"])


def test_quiet_leaves_out_the_account(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, "-n", "1", "-q", coordinator=coordinator)
    publisher(peer, topic).put(0)
    assert tail.end() == (0, ["0"], [])


def test_timeout_without_a_message_ends_it(coordinator: str, topic: str) -> None:
    result = execute("pubsub", "tail", topic, "--timeout", "2", coordinator=coordinator)
    assert (result.code, result.out) == (0, b"")
    nobody = "no publisher of it is known (`pubsub doctor TOPIC` says why)"
    assert result.err == f"pubsub: received 0, lost 0; {nobody}\n"


def test_timeout_before_the_count_is_exit_code_3(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, "-n", "3", "--timeout", "2", coordinator=coordinator)
    publisher(peer, topic).put("one")
    assert tail.end() == (3, ['"one"'], ["pubsub: received 1, lost 0"])


def test_topics_and_timestamps_make_objects(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start(
        *("pubsub", "tail", f"{topic}/*", "--topics", "--timestamps", "-n", "1"),
        coordinator=coordinator,
    )
    publisher(peer, f"{topic}/a").put({"v": 1})
    row = json.loads(tail.out())
    assert (row["topic"], row["value"]) == (f"{topic}/a", {"v": 1})
    age = datetime.now().astimezone() - datetime.fromisoformat(row["time"])
    assert abs(age.total_seconds()) < LONG
    assert tail.wait() == 0


def test_headers_of_put_are_shown_by_tail(start: Start, coordinator: str, topic: str) -> None:
    tail = start("pubsub", "tail", topic, "--headers", "-n", "1", coordinator=coordinator)
    given = ("--wait", "1", "--header", "unit=C", "--header", "sum=1=1", "--header", "empty=")
    put = execute("pubsub", "put", topic, "21.5", *given, coordinator=coordinator)
    assert put.code == 0
    row = {"headers": {"unit": "C", "sum": "1=1", "empty": ""}, "value": 21.5}
    assert json.loads(tail.out()) == row
    assert tail.wait() == 0


@pytest.mark.parametrize("given", ["unit", "=C"])
def test_a_header_without_a_name_is_a_usage_error(coordinator: str, topic: str, given: str) -> None:
    put = execute("pubsub", "put", topic, "1", "--header", given, coordinator=coordinator)
    assert put.code == 2
    assert f"--header {given!r} is not NAME=TEXT, such as unit=C" in put.err


@pytest.mark.parametrize(
    ("form", "lines"),
    [
        ("json", ["[1, 2]", '{"base64": "YWI="}', '"c\\nd"']),
        ("repr", ["(1, 2)", "b'ab'", "'c\\nd'"]),
        ("raw", ["[1, 2]", "ab", "c", "d"]),
    ],
)
def test_formats(
    start: Start, coordinator: str, peer: Peer, form: str, lines: list[str], topic: str
) -> None:
    tail = start(
        "pubsub", "tail", topic, "--format", form, "-n", "3", "-q", coordinator=coordinator
    )
    publisher(peer, topic).put_many([(1, 2), b"ab", "c\nd"])
    assert tail.end() == (0, lines, [])


def test_several_patterns_show_each_message_once(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start(
        *("pubsub", "tail", f"{topic}/s/a", f"{topic}/s/*", f"{topic}/**", f"{topic}/s/a"),
        *("--topics", "-q"),
        coordinator=coordinator,
    )
    a, b, c = (
        publisher(peer, f"{topic}/{name}", n) for name, n in (("s/a", 3), ("s/b", 2), ("c", 1))
    )
    for n, pub in enumerate((a, b, c, a)):
        pub.put(n)
    rows = [json.loads(tail.out()) for _ in range(4)]
    assert sorted((row["value"], row["topic"].removeprefix(f"{topic}/")) for row in rows) == [
        (0, "s/a"),
        (1, "s/b"),
        (2, "c"),
        (3, "s/a"),
    ]
    for pub in (a, b, c):
        pub.put("last")
    for _ in range(3):
        tail.out()
    tail.interrupt()
    assert tail.end() == (130, [], [])


@pytest.mark.parametrize(("history", "shown"), [("2", ["3", "4"]), ("all", ["1", "2", "3", "4"])])
def test_history_begins_with_what_was(
    coordinator: str, peer: Peer, history: str, shown: list[str], topic: str
) -> None:
    pub = BlockingPub(topic, peer=peer, history=4)
    pub.put_many(range(5))
    result = execute(
        *("pubsub", "tail", topic, "--history", history, "-n", str(len(shown)), "-q"),
        coordinator=coordinator,
    )
    assert (result.code, result.lines, result.err) == (0, shown, "")
    pub.close()


def test_an_observer_it_is(start: Start, coordinator: str, peer: Peer, topic: str) -> None:
    start("pubsub", "tail", topic, coordinator=coordinator)
    (how,) = publisher(peer, topic).subscribers.values()
    assert how["observer"] is True


def test_gaps_are_told_when_they_happen_and_every_message_is_accounted_for(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, "--format", "raw", coordinator=coordinator)
    pub = publisher(peer, topic, buffer=200_000)
    tail.signal(signal.SIGSTOP)
    total = 4_000
    for n in range(total):
        pub.put(f"{n:05}" + 10_000 * "x")  # more than sockets and window hold
    tail.signal(signal.SIGCONT)
    pub.put("last")
    received = 0
    while (line := tail.out()) != "last":
        received += 1
        number = int(line[:5])
    lost = number + 1 - received
    line = tail.err()
    assert line.startswith("pubsub: lost ")
    assert f" messages of {topic} from {peer.address}#" in line
    assert line.endswith(" (overflow)")
    tail.interrupt()
    code, _, errors = tail.end()
    assert code == 1  # something was lost, whatever ended it
    told = sum(int(text.split()[2]) for text in (line, *errors[:-1]))
    assert told == total - received
    assert lost <= told
    assert errors[-1] == f"pubsub: received {received + 1}, lost {told}"


def test_sigterm_ends_it_in_order(start: Start, coordinator: str, peer: Peer, topic: str) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    publisher(peer, topic).put(1)
    tail.out()
    tail.signal(signal.SIGTERM)
    assert tail.end() == (143, [], ["pubsub: received 1, lost 0"])


def test_what_a_publisher_knows_to_be_received_is_shown_before_ctrl_c_ends_it(
    start: Start, coordinator: str, peer: Peer, topic: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for _ in range(3):
        with copy.open("wb") as stdout:
            tail = start("pubsub", "tail", topic, coordinator=coordinator, stdout=stdout)
            with publisher(peer, topic) as pub:
                pub.put_many(["x" * 600] * 10_000)  # a hundred batches
                pub.flush()
                tail.interrupt()
                assert tail.wait() == 130
        assert tail.rest_of_errors() == ["pubsub: received 10000, lost 0"]
        assert copy.read_bytes().count(b"\n") == 10_000


def test_a_closed_pipe_ends_it_quietly_without_another_message(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator, read=False)
    publisher(peer, topic).put(1)
    stdout = tail.process.stdout
    assert stdout is not None
    assert stdout.readline() == b"1\n"
    stdout.close()
    assert (tail.wait(), tail.rest_of_errors()) == (0, [])


def test_a_closed_pipe_in_a_flood_ends_it_quietly(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator, read=False)
    publisher(peer, topic).put_many(range(100_000))
    stdout = tail.process.stdout
    assert stdout is not None
    assert stdout.readline() == b"0\n"
    stdout.close()
    assert (tail.wait(), tail.rest_of_errors()) == (0, [])


def test_a_reader_that_comes_late_gets_everything(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    total = 200_000
    tail = start(
        *("pubsub", "tail", topic, "-n", str(total), "-q"), coordinator=coordinator, read=False
    )
    pub = publisher(peer, topic)
    pub.put_many(range(total))
    assert len(pub.subscribers) == 1
    tail.read_on()
    assert tail.end() == (0, [str(n) for n in range(total)], [])


def test_a_full_disk_is_an_error(start: Start, coordinator: str, peer: Peer, topic: str) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("wb") as stdout:
        tail = start("pubsub", "tail", topic, coordinator=coordinator, stdout=stdout)
        publisher(peer, topic).put(1)
        assert tail.wait() == 1
    assert tail.rest_of_errors() == ["pubsub: standard output: No space left on device"]


def test_a_full_disk_is_an_error_also_at_the_last_message(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("wb") as stdout:
        tail = start("pubsub", "tail", topic, "-n", "1", coordinator=coordinator, stdout=stdout)
        publisher(peer, topic).put(1)
        assert tail.wait() == 1
    assert tail.rest_of_errors() == ["pubsub: standard output: No space left on device"]


def test_a_killed_coordinator_stops_nothing(start: Start, topic: str) -> None:
    port = free_port()
    first, where = daemon(start, port)
    with Peer(where) as peer:
        tail = start("pubsub", "tail", topic, coordinator=where)
        pub = publisher(peer, topic)
        pub.put(1)
        assert tail.out() == "1"
        first.signal(signal.SIGKILL)
        first.wait()
        assert tail.err().startswith(f"pubsub: the coordinator at {where} is gone")
        assert tail.err().startswith(f"pubsub: no coordinator at {where}: ")
        pub.put(2)
        assert tail.out() == "2"
        daemon(start, port)
        with Peer(where) as other:
            late = publisher(other, topic)
            late.put(3)
            assert tail.out() == "3"
            late.close()
        tail.interrupt()
        code, _, errors = tail.end()
        assert (code, errors[-1]) == (130, "pubsub: received 3, lost 0")


def test_a_killed_publisher_is_said(start: Start, coordinator: str, topic: str) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    put = start("pubsub", "put", topic, "-", "--wait", "1", coordinator=coordinator)
    put.send("one\n")
    assert tail.out() == '"one"'
    put.kill()
    assert tail.err().startswith("pubsub: the link with the publisher at ")
    said = tail.err()
    while "vanished" not in said:
        said = tail.err()
    assert re.fullmatch(
        rf"pubsub: the publisher of {topic} at 127\.0\.0\.1:\d+#1 vanished: what it had not sent "
        "is not known",
        said,
    )
    tail.interrupt()
    assert tail.end() == (1, [], [VANISHED])


VANISHED = "pubsub: received 1, lost 0; 1 publisher vanished: what it had not sent is not known"


@pytest.mark.parametrize("options", [[], ["--timeout", "2"], ["-n", "5", "--timeout", "2"]])
def test_g3_a_publisher_that_is_away_at_the_end_is_not_left_out_of_the_account(
    start: Start, coordinator: str, topic: str, options: list[str]
) -> None:
    """It may come back, but not to this tail."""
    tail = start("pubsub", "tail", topic, *options, coordinator=coordinator)
    put = start("pubsub", "put", topic, "-", "--wait", "1", coordinator=coordinator)
    put.send("one\n")
    assert tail.out() == '"one"'
    put.kill()
    assert tail.err().startswith("pubsub: the link with the publisher at ")
    if not options:
        tail.signal(signal.SIGTERM)
    code, _, errors = tail.end()
    assert (code, errors[-1]) == (1, VANISHED)


def test_who_has_all_that_was_wanted_misses_nobody(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, "-n", "2", coordinator=coordinator)
    put = start("pubsub", "put", topic, "-", "--wait", "1", coordinator=coordinator)
    put.send("one\n")
    assert tail.out() == '"one"'
    put.kill()
    assert tail.err().startswith("pubsub: the link with the publisher at ")
    publisher(peer, topic).put("two")
    code, lines, errors = tail.end()
    assert (code, lines, errors[-1]) == (0, ['"two"'], "pubsub: received 2, lost 0")


@pytest.mark.usefixtures("only_advertised")
def test_g3_a_publisher_that_never_was_reached_is_said(
    start: Start, coordinator: str, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, f"{topic}/**", coordinator=coordinator)
    while topic not in execute("pubsub", "topics", coordinator=coordinator).text:
        pass
    where = f"127.0.0.1:{free_port()}"
    with Peer(coordinator, advertise=where, linger=0) as peer:
        pub = BlockingPub(topic, peer=peer)
        pub.put("lost")
        assert [tail.err() for _ in range(5)] == [
            f"pubsub: the publisher of {topic} at {where}#1 is not reached: what it puts is not "
            "known",
            "pubsub: unix: nothing listens there (connection refused)",
            f"pubsub: direct: {where}: nothing listens there (connection refused)",
            "pubsub: reverse: it was asked to dial this Peer, and has not",
            "pubsub: relay: there is none (pubsubd relay, pubsubd coordinator --relay)",
        ]
        assert tail.err().startswith(f"pubsub: cannot reach the publisher at {where}: ")
    assert tail.err().startswith(f"pubsub: the publisher at {where} is given up: ")
    tail.interrupt()
    assert tail.end() == (
        4,
        [],
        ["pubsub: received 0, lost 0; 1 publisher was never reached: what it put is not known"],
    )


def test_g3_all_of_them_are_in_one_account() -> None:
    assert what_is_unknown(0, 0) == ""
    assert what_is_unknown(2, 1) == (
        "2 publishers vanished, 1 was never reached: what they had not sent is not known"
    )
    assert what_is_unknown(0, 2) == "2 publishers were never reached: what they put is not known"


def test_pickles_only_where_they_are_allowed(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    taking = start(
        "pubsub", "tail", f"{topic}/p", "--allow-pickle", "-n", "1", coordinator=coordinator
    )
    pub = publisher(peer, f"{topic}/p", codec="pickle")
    pub.put(slice(1, 2))
    assert taking.out() == '"slice(1, 2, None)"'
    assert taking.wait() == 0
    refusing = start("pubsub", "tail", f"{topic}/*", coordinator=coordinator)
    line = refusing.err()
    assert line.startswith(f"pubsub: '{topic}/p' from {peer.address}#")
    assert line.endswith(": use --allow-pickle if you trust every publisher of this topic")
    publisher(peer, f"{topic}/q").put("plain")
    assert refusing.out() == '"plain"'
    refusing.interrupt()
    assert refusing.end() == (1, [], ["pubsub: received 1, lost 0, refused 1 stream"])


def test_a_refused_stream_is_counted_once_however_many_patterns_match(
    coordinator: str, peer: Peer, topic: str
) -> None:
    pub = BlockingPub(topic, peer=peer, codec="pickle")
    result = execute(
        *("pubsub", "tail", topic, "test/**", "**", "--timeout", "2"), coordinator=coordinator
    )
    assert (result.code, result.out) == (1, b"")
    mine = [line for line in result.err.splitlines() if repr(topic) in line]
    assert len(mine) == 1
    assert result.err.splitlines()[-1].startswith("pubsub: received 0, lost 0, refused 1 stream")
    pub.close()


def test_nobody_there_is_one_line_and_exit_code_1(peer: Peer, topic: str) -> None:
    BlockingPub(topic, peer=peer)
    result = execute("pubsub", "tail", topic, "--coordinator", peer.address)
    assert (result.code, result.out) == (1, b"")
    last = result.err.splitlines()[-1]
    assert last.startswith("pubsub: no coordinator could be reached (")
    assert "this is a peer, not a coordinator" in last


def test_a_web_server_is_no_coordinator() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        where = f"127.0.0.1:{server.getsockname()[1]}"
        result = execute("pubsub", "tail", "t", "--coordinator", where)
        thread.join()
    assert (result.code, result.out) == (1, b"")
    assert "this is another protocol" in result.err
    assert "Traceback" not in result.err


def test_a_closed_standard_output_is_an_error(coordinator: str, topic: str) -> None:
    result = _with_closed_stdout("tail", topic, "--coordinator", coordinator)
    assert result == (1, "pubsub: standard output is closed\n")


def _with_closed_stdout(*args: str) -> tuple[int, str]:
    run = subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "pubsub.cli.pubsub", *args],
        stderr=subprocess.PIPE,
        timeout=LONG,
    )
    return run.returncode, run.stderr.decode()


@pytest.mark.parametrize("options", [[], ["-n", "100000"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_where_nobody_reads_and_what_was_not_shown_is_counted(
    start: Start, coordinator: str, peer: Peer, topic: str, options: list[str], number: int
) -> None:
    tail = start("pubsub", "tail", topic, *options, coordinator=coordinator, read=False)
    pub = publisher(peer, topic)
    pub.put_many(range(100_000))
    if options:  # it has left: all it wants has come
        while pub.subscribers:
            time.sleep(0.01)
    else:
        while next(iter(pub.subscribers.values()))["lag"] == 100_000:
            time.sleep(0.01)
    tail.signal(number)
    assert tail.wait() == 1
    first, last = tail.rest_of_errors()
    said = re.fullmatch(r"pubsub: received (\d+), lost 0", first)
    assert said is not None
    dropped = re.fullmatch(
        r"pubsub: up to (\d+) of the last lines could not be written within 2 s", last
    )
    assert dropped is not None
    tail.read_on()  # what is in the pipe
    shown = tail.rest_of_output().count(b"\n")
    assert shown < int(said[1])
    assert int(said[1]) - shown <= int(dropped[1]) <= 100_000
    if not options:  # all of it has come within these 2 s
        assert 100_000 - shown <= int(dropped[1])


def account(errors: list[str]) -> tuple[int, int, int]:
    """What a tail said that it has received, lost and not been able to show."""
    received, lost, left_out = 0, 0, 0
    for line in errors:
        if said := re.fullmatch(r"pubsub: received (\d+), lost (\d+)", line):
            received, lost = int(said[1]), int(said[2])
        elif said := re.match(r"pubsub: up to (\d+) of the last lines could not", line):
            left_out = int(said[1])
    return received, lost, left_out


def test_what_is_put_after_the_signal_is_not_missed(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator, read=False)
    pub = publisher(peer, topic)
    value, due, later = "x" * 2_000, 1_000, 0
    pub.put_many([value] * due)
    pub.flush(timeout=LONG)
    tail.signal(signal.SIGINT)
    while tail.process.poll() is None:  # for the 2 s that it has
        pub.put_many([value] * 100)
        later += 100
        time.sleep(0.1)
    assert tail.wait() == 1
    received, lost, left_out = account(tail.rest_of_errors())
    tail.read_on()
    shown = tail.rest_of_output().count(b"\n")
    assert lost == 0
    assert due - shown <= left_out
    assert received - shown <= left_out
    assert left_out < due + later / 2  # of these, only what it had before it heard of the signal


def test_what_is_beyond_the_count_is_not_missed(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    count, put = 30_000, 60_000
    tail = start("pubsub", "tail", topic, "-n", str(count), coordinator=coordinator, read=False)
    pub = publisher(peer, topic)
    pub.put_many(["x" * 200] * put)  # more of it comes than it shows
    while next(iter(pub.subscribers.values()))["lag"] == put:
        time.sleep(0.01)
    tail.signal(signal.SIGINT)
    assert tail.wait() == 1
    received, lost, left_out = account(tail.rest_of_errors())
    tail.read_on()
    shown = tail.rest_of_output().count(b"\n")
    assert lost == 0
    assert received - shown <= left_out
    assert count - shown <= left_out <= count


def test_gaps_that_wait_when_time_is_up_are_told_in_the_account(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator, read=False)
    pub = publisher(peer, topic, buffer=100_000)
    pub.put_many(["x" * 200] * 200_000)  # more than the buffer and the window hold
    pub.put("last")
    pub.close(linger=0.5)
    tail.signal(signal.SIGINT)
    assert tail.wait() == 1
    received, lost, left_out = account(tail.rest_of_errors())
    tail.read_on()
    shown = tail.rest_of_output().count(b"\n")
    assert lost > 0
    assert received + lost <= 200_001
    assert shown + lost + left_out >= 200_001


@pytest.mark.parametrize("ending", ["count", "timeout"])
def test_at_its_end_it_waits_for_a_reader_that_pauses(
    start: Start, coordinator: str, peer: Peer, topic: str, ending: str
) -> None:
    total = 30_000
    options = ["-n", str(total)] if ending == "count" else ["--timeout", "2"]
    tail = start("pubsub", "tail", topic, *options, coordinator=coordinator, read=False)
    pub = publisher(peer, topic)
    pub.put_many(range(total))
    while pub.subscribers:  # it has left, and nothing keeps it but its reader
        time.sleep(0.01)
    with pytest.raises(subprocess.TimeoutExpired):
        tail.process.wait(2.5)  # it once cut its output after 2 s
    tail.read_on()
    assert tail.end() == (
        0,
        [str(n) for n in range(total)],
        [f"pubsub: received {total}, lost 0"],
    )


def test_timeout_bounds_the_wait_for_a_coordinator(topic: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # by itself it waits 5 s for an answer
        where = f"127.0.0.1:{silent.getsockname()[1]}"
        result = execute("pubsub", "tail", topic, "--timeout", "2", "--coordinator", where)
    assert (result.code, result.out) == (1, b"")
    # One line: before the handshake, which has 5 s, is given up and said to be.
    (line,) = result.err.splitlines()
    assert line.startswith(
        f"pubsub: no coordinator could be reached ({where}: something listens there, but it has "
        "not answered as a coordinator does: it is busy or stopped ("
    )
    assert line.endswith("or give --coordinator the address where it runs")


@pytest.mark.parametrize("command", ["tail", "put"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_refusal_is_said_once(
    command: str, count: int, coordinator: str, start: Start, tmp_path: Path
) -> None:
    if count == 2:
        coordinator = f"{coordinator},{daemon(start)[1]}"
    key = tmp_path / "other.key"
    assert execute("pubsubd", "key", "new", str(key)).code == 0
    given = ["t", "1"] if command == "put" else ["t"]
    asked = execute(*("pubsub", command, *given), coordinator=coordinator, PUBSUB_KEY_FILE=str(key))
    assert asked.code == 1
    (line,) = asked.err.splitlines()
    assert line.startswith(f"pubsub: the coordinator at {coordinator.split(',')[0]}: ")
    assert line.count("the coordinator at") == count
