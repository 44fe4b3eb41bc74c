"""`pubsub put` as a process, received by a Sub or a `pubsub tail`."""

from __future__ import annotations

import io
import json
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pubsub import Peer
from pubsub.cli.command import make_peer
from pubsub.cli.put import Sending, _peer, from_json_lines, from_lines, from_text, put
from pubsub.faces.blockingsub import BlockingSub
from tests.cli.processes import LONG, Running, Start, execute


@pytest.fixture
def peer(coordinator: str) -> Iterator[Peer]:
    with Peer(coordinator) as made:
        yield made


# --- what is put ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, null]}', {"a": [1, None]}),
        ("1", 1),
        ('"1"', "1"),
        ("hello", "hello"),
        ("", ""),
        ("{oops", "{oops"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("ünïcode", "ünïcode"),
        ("\udcff", b"\xff"),  # how Python has a byte of an argument that is not UTF-8
    ],
)
def test_an_argument_is_json_or_else_text(text: str, value: Any) -> None:
    assert from_text(text) == value


def test_an_argument_nested_too_deeply_is_text() -> None:
    assert from_text(100_000 * "[") == 100_000 * "["


def test_lines_are_text_or_else_bytes_and_lose_only_their_end() -> None:
    data = b"one\r\n\n\xff\xfe\nt\xc3\xbco\x00\nlast"
    found = list(from_lines(io.BytesIO(data)))
    assert [value for value, _ in found] == ["one\r", "", b"\xff\xfe", "tüo\x00", "last"]
    assert sum(size for _, size in found) == len(data)


def test_the_column_is_in_the_line_and_nothing_stood_before_the_first() -> None:
    with pytest.raises(ValueError, match="line 1") as caught:
        list(from_json_lines(io.BytesIO(b'{"x":\r\n')))
    assert str(caught.value) == (
        "line 1 of standard input is not JSON (Expecting value at column 6)"
    )
    lines = from_json_lines(io.BytesIO(b'\n1\n{"x":\n'))
    next(lines)
    with pytest.raises(ValueError, match=r"column 6\); the lines before it were put$"):
        next(lines)


def test_json_lines_are_values_and_blank_ones_none() -> None:
    data = b'{"a": 1}\n\n  \n[2]\r\n"three"'
    assert [value for value, _ in from_json_lines(io.BytesIO(data))] == [{"a": 1}, [2], "three"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{oops\n", "Expecting property name enclosed in double quotes at column 2"),
        (b"NaN\n", "JSON has no NaN"),
        (b'"\xff"\n', "can't decode byte 0xff"),
        (b"1 2\n", "Extra data at column 3"),
        (100_000 * b"[" + b"\n", "nested too deeply"),
    ],
)
def test_a_line_that_is_no_json_is_named(line: bytes, why: str) -> None:
    lines = from_json_lines(io.BytesIO(b"1\n\n" + line))
    assert next(lines) == (1, 2)
    with pytest.raises(ValueError, match="line 3 of standard input is not JSON") as caught:
        next(lines)
    assert why in str(caught.value)


# --- one message ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (['{"on": true}'], {"on": True}),
        (["hello"], "hello"),
        (["-5"], -5),
        (["-.5e1"], "-.5e1"),
        (["--", "-5"], -5),
        (["--", "--wait"], "--wait"),
        (["--rate", "5", "-1.5"], -1.5),
    ],
)
def test_a_value_arrives(coordinator: str, peer: Peer, args: list[str], value: Any) -> None:
    topic = f"put/{abs(hash(repr(args)))}"
    sub = BlockingSub(topic, peer=peer)
    result = execute("pubsub", "put", topic, *args, coordinator=coordinator)
    assert (result.code, result.out, result.err) == (0, b"", "")
    assert sub.get(timeout=LONG) == value


def test_nobody_listening_is_said_and_no_failure(coordinator: str, topic: str) -> None:
    result = execute("pubsub", "put", topic, "1", coordinator=coordinator)
    assert (result.code, result.out) == (0, b"")
    assert result.err == f"pubsub: nobody was listening on '{topic}'\n"


def test_a_wildcard_of_another_system_is_said_once(coordinator: str) -> None:
    said = "pubsub: 'put/#': '#' is no wildcard here, write 'put/**'"
    for where in (coordinator, None):  # where it is silent about much else
        result = execute("pubsub", "put", "put/#", "1", coordinator=where)
        assert result.err.splitlines()[0] == said
        assert result.err.count("wildcard") == 1
    args = ("tail", "put/#", "--timeout", "0.1")
    assert execute("pubsub", *args, coordinator=coordinator).err.count(said) == 1


def test_nothing_put_is_nothing_to_say(coordinator: str, topic: str) -> None:
    result = execute("pubsub", "put", topic, "-", coordinator=coordinator)
    assert (result.code, result.out, result.err) == (0, b"", "")


def test_a_tail_counts_as_a_listener(start: Start, coordinator: str, topic: str) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    waiting = execute("pubsub", "put", topic, "1", "--wait", "1", coordinator=coordinator)
    assert (waiting.code, waiting.err) == (0, "")
    assert tail.out() == "1"
    at_once = execute("pubsub", "put", topic, "2", coordinator=coordinator)
    assert (at_once.code, at_once.err) == (0, "")
    assert tail.out() == "2"


def test_a_tail_that_ends_with_the_message_was_a_listener(
    start: Start, coordinator: str, topic: str
) -> None:
    for _ in range(3):
        tail = start("pubsub", "tail", topic, "-n", "1", "-q", coordinator=coordinator)
        put = execute("pubsub", "put", topic, "1", "--wait", "1", coordinator=coordinator)
        assert (put.code, put.err) == (0, "")
        assert tail.end() == (0, ["1"], [])


def test_a_subscriber_that_was_killed_is_not_waited_for_long(
    start: Start, coordinator: str, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    execute("pubsub", "put", topic, "1", "--wait", "1", coordinator=coordinator)
    tail.kill()
    put = execute("pubsub", "put", topic, "2", coordinator=coordinator)
    assert (put.code, put.err) in (
        (1, f"pubsub: the subscribers of '{topic}' did not come: nobody has received it\n"),
        (0, f"pubsub: nobody was listening on '{topic}'\n"),  # no coordinator lists it any more
    )


def test_wait_gives_up_with_exit_code_3(coordinator: str, topic: str) -> None:
    result = execute(
        *("pubsub", "put", topic, "1", "--wait", "2", "--timeout", "2"), coordinator=coordinator
    )
    assert (result.code, result.out) == (3, b"")
    assert result.err == (f"pubsub: 0 of 2 subscribers on '{topic}' after 2 s; nothing was put\n")


@pytest.mark.parametrize("wait", [0, 1])
@pytest.mark.parametrize("coordinator", [None, "127.0.0.1:1"])
def test_timeout_bounds_every_wait(coordinator: str | None, wait: int) -> None:
    """Also the one for a subscriber that is named and does not come: by itself it is 5 s."""
    if coordinator is None and wait:
        coordinator = "127.0.0.1:1"  # else it would run one itself
    sending = Sending("t", coordinator=coordinator, wait=wait, timeout=3.0)
    with _peer(sending) as peer:
        assert peer.settings.join_timeout == 3.0
        assert peer.settings.connect_timeout <= 3.0
    for timeout, bound in ((None, 5.0), (0.1, 1.0), (60.0, 5.0)):
        with make_peer("t", "127.0.0.1:1", timeout) as peer:
            assert (peer.settings.connect_timeout, peer.settings.join_timeout) == (bound, bound)


def test_a_subscriber_that_does_not_come_is_said(
    start: Start, coordinator: str, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    while topic not in _topics(coordinator):
        time.sleep(0.02)
    tail.signal(signal.SIGSTOP)
    put = execute("pubsub", "put", topic, "1", "--timeout", "2", coordinator=coordinator)
    assert (put.code, put.out) == (1, b"")
    assert put.err == (
        f"pubsub: the subscribers of '{topic}' did not come: nobody has received it\n"
    )


def test_waited_for_and_received_by_nobody_is_exit_code_1(
    start: Start, coordinator: str, topic: str
) -> None:
    source = f"""
import time
from pubsub import Sub
sub = Sub({topic!r}, observer=True)
while not any(how["state"] == "attached" for how in sub.publishers.values()):
    time.sleep(0.01)
print("attached", flush=True)
time.sleep(1000)
"""
    listener = start("python", "-c", source, coordinator=coordinator)
    while topic not in _topics(coordinator):  # the timeout is for the time after that
        time.sleep(0.02)
    put = start(
        *("pubsub", "put", topic, "-", "--wait", "1", "--timeout", "5"), coordinator=coordinator
    )
    assert listener.out() == "attached"
    listener.signal(signal.SIGSTOP)
    put.send("one\n")
    put.close_input()
    code, _, (waits, stuck, last) = put.end()
    assert waits.startswith(
        f"pubsub: waiting (Ctrl-C gives up): 1 message of Pub('{topic}') is not"
    )
    assert stuck.endswith("has taken nothing for 5 s, 1 messages behind: going on without it")
    assert last == f"pubsub: nobody is known to have received what was put on '{topic}'"
    assert code == 1


def test_no_coordinator_is_exit_code_1() -> None:
    result = execute("pubsub", "put", "t", "1", "--coordinator", "127.0.0.1:1,127.0.0.1:2")
    assert (result.code, result.out) == (1, b"")
    assert "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("pubsub: no coordinator could be reached (")


def test_nothing_configured_and_nobody_there_is_one_line() -> None:
    try:
        socket.create_connection(("127.0.0.1", 7700), timeout=1).close()
    except OSError:
        pass
    else:
        pytest.skip("a coordinator runs at the default address of this machine")
    result = execute("pubsub", "put", "t", "1")
    assert (result.code, result.out) == (1, b"")
    (line,) = result.err.splitlines()
    assert line.startswith("pubsub: no coordinator could be reached (127.0.0.1:7700: nothing")


# --- standard input -------------------------------------------------------------------------


def test_lines_are_put_as_they_come(start: Start, coordinator: str, peer: Peer, topic: str) -> None:
    sub = BlockingSub(topic, peer=peer)
    put = start("pubsub", "put", topic, "-", coordinator=coordinator)
    for line in ("one", "two", "ünïcode"):
        put.send(f"{line}\n")
        assert sub.get(timeout=LONG) == line  # long before the end of the input
    put.close_input()
    assert put.end() == (0, [], [])


def test_json_lines_arrive_as_values(coordinator: str, peer: Peer, topic: str) -> None:
    sub = BlockingSub(topic, peer=peer)
    rows = [{"i": i, "v": [None, 1.5, "x"]} for i in range(1000)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    result = execute(
        "pubsub", "put", topic, "-", "--json-lines", coordinator=coordinator, stdin=text
    )
    assert (result.code, result.err) == (0, "")
    assert [sub.get(timeout=LONG) for _ in rows] == rows


def test_a_bad_json_line_ends_it_and_those_before_arrive(
    coordinator: str, peer: Peer, topic: str
) -> None:
    sub = BlockingSub(topic, peer=peer)
    result = execute(
        *("pubsub", "put", topic, "-", "--json-lines"),
        coordinator=coordinator,
        stdin="1\n2\n{\n4\n",
    )
    assert (result.code, result.out) == (1, b"")
    (line,) = result.err.splitlines()
    assert line.startswith("pubsub: line 3 of standard input is not JSON (")
    assert [sub.get(timeout=LONG), sub.get(timeout=LONG)] == [1, 2]
    with pytest.raises(TimeoutError):
        sub.get(timeout=0.1)


def test_rate_is_kept(coordinator: str, topic: str) -> None:
    began = time.monotonic()
    result = execute(
        "pubsub", "put", topic, "-", "--rate", "20", coordinator=coordinator, stdin="x\n" * 11
    )
    assert result.code == 0
    assert time.monotonic() - began >= 10 / 20  # the first at once, then ten pauses


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_still_delivers_what_it_has(
    start: Start, coordinator: str, peer: Peer, topic: str, number: int, code: int
) -> None:
    sub = BlockingSub(topic, peer=peer)
    put = start("pubsub", "put", topic, "-", coordinator=coordinator)
    put.send("first\n")
    assert sub.get(timeout=LONG) == "first"
    put.send("".join(f"{n}\n" for n in range(1000)))
    assert sub.get(timeout=LONG) == "0"
    put.signal(number)
    assert put.end() == (code, [], [])
    assert sub.lost == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_it_waits(
    start: Start, coordinator: str, topic: str, number: int, code: int
) -> None:
    put = start("pubsub", "put", topic, "1", "--wait", "1", coordinator=coordinator)
    with Peer(coordinator) as peer:
        other = BlockingSub(f"{topic}/other", peer=peer)
        while topic not in _topics(coordinator):
            time.sleep(0.02)
        other.close()
    put.signal(number)
    assert put.end() == (code, [], [])


def _topics(coordinator: str) -> list[str]:
    result = execute("pubsub", "topics", "--json", coordinator=coordinator)
    return [row["topic"] for row in json.loads(result.out)]


def test_a_tail_that_stops_in_midstream_is_left_behind(
    start: Start, coordinator: str, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, coordinator=coordinator)
    while topic not in _topics(coordinator):  # the timeout is for the time after that
        time.sleep(0.02)
    put = start(
        *("pubsub", "put", topic, "-", "--wait", "1", "--timeout", "2"), coordinator=coordinator
    )
    put.send("one\n")
    assert tail.out() == '"one"'
    tail.signal(signal.SIGSTOP)
    put.send("two\nthree\n")
    put.close_input()
    assert put.err().startswith("pubsub: waiting (Ctrl-C gives up): ")
    found = re.search(
        r"#1 has taken nothing for 2 s, ([23]) messages behind: going on without it$", put.err()
    )
    assert found is not None
    if found[1] == "2":
        assert put.end() == (1, [], [])
    else:  # it has shown the first one, and was stopped before it acknowledged that
        unknown = f"pubsub: nobody is known to have received what was put on '{topic}'"
        assert put.end() == (1, [], [unknown])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_g9_a_signal_ends_the_waiting_and_says_what_was_left(
    start: Start, coordinator: str, topic: str, number: int, code: int
) -> None:
    take = f"from pubsub import Sub\nfor value in Sub({topic!r}): print(value, flush=True)"
    listener = start("python", "-c", take, coordinator=coordinator)
    put = start("pubsub", "put", topic, "-", "--wait", "1", coordinator=coordinator)
    put.send("one\n")
    assert listener.out() == "one"
    listener.signal(signal.SIGSTOP)
    put.send("two\n" * 1_000)
    put.close_input()
    waits = put.err()
    put.signal(number)
    # whether the first was acknowledged before it was stopped, nobody knows
    assert re.search(r": waiting \(Ctrl-C gives up\): 1,00[01] messages of Pub.* behind\)$", waits)
    assert put.end() == (code, [], [waits.replace("waiting (Ctrl-C gives up)", "gave up")])


def test_a_tail_whose_reader_pauses_loses_nothing(
    start: Start, coordinator: str, topic: str
) -> None:
    """More than the buffer of a Pub (64 MiB): `put` waits for the observer, and knows when."""
    total, line = 80_000, 1_000 * "x"
    tail = start(
        *("pubsub", "tail", topic, "-n", str(total), "--format", "raw"),
        coordinator=coordinator,
        read=False,
    )
    put = start(  # it is patient: this machine may be slow
        *("pubsub", "put", topic, "-", "--wait", "1", "--timeout", "60"), coordinator=coordinator
    )
    sent = 0
    for _ in range(15):  # as far ahead as `put` goes (16 MiB): the rest has to wait
        put.send("".join(f"{sent + n} {line}\n" for n in range(1_000)))
        sent += 1_000
    tail.read_on()
    while sent < total:
        put.send("".join(f"{sent + n} {line}\n" for n in range(1_000)))
        sent += 1_000
    put.close_input()
    assert put.end()[:2] == (0, [])  # where it takes long, it says that it waits
    code, lines, errors = tail.end()
    assert (code, errors) == (0, [f"pubsub: received {total}, lost 0"])
    assert [int(text.partition(" ")[0]) for text in lines] == list(range(total))


def test_a_closed_standard_input_is_an_error(coordinator: str) -> None:
    run = subprocess.run(
        [
            *("/bin/sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "pubsub.cli.pubsub"),
            *("put", "t", "-", "--coordinator", coordinator),
        ],
        capture_output=True,
        timeout=LONG,
    )
    assert (run.returncode, run.stdout) == (1, b"")
    assert run.stderr == b"pubsub: standard input is closed\n"


# --- what did not arrive ------------------------------------------------------------------------


def listener(start: Start, coordinator: str, body: str, **env: str) -> Running:
    """A program with a Sub that does something, once it has said ``ready``."""
    source = "from pubsub import Peer, Sub\n" + textwrap.dedent(body)
    return start("python", "-c", source, coordinator=coordinator, **env)


def test_g3_a_subscriber_for_which_a_message_is_too_large_is_said_and_exit_code_1(
    coordinator: str, topic: str
) -> None:
    with Peer(coordinator, max_message=1_000) as small:
        sub = BlockingSub(topic, peer=small)
        large = json.dumps("x" * 200_000)  # and a batch
        put = execute(
            *("pubsub", "put", topic, "-", "--json-lines"),
            coordinator=coordinator,
            stdin=f"1\n{large}\n",
        )
        assert (put.code, put.out) == (1, b"")
        who = re.escape(small.address)
        assert re.fullmatch(rf"pubsub: {who}#\d+ has lost [12] of 2 messages\n", put.err)
        assert sub.lost in (1, 2)  # both, where they were one batch


def test_g3_a_subscriber_that_leaves_with_messages_not_taken_is_said_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    coordinator: str,
    peer: Peer,
    topic: str,
) -> None:
    here = Peer(coordinator)
    monkeypatch.setattr("pubsub.cli.put._peer", lambda sending: here)
    sub = BlockingSub(topic, peer=peer)

    def values() -> Iterator[tuple[str, int]]:
        yield "one", 3
        assert sub.get(timeout=LONG) == "one"
        yield "two", 3
        while sub._inbox.empty:
            time.sleep(0.01)
        sub.close()
        (pub,) = here.runtime.pubs.values()
        while pub.publication.attached:
            time.sleep(0.01)
        yield "for nobody", 10

    assert put(Sending(topic, coordinator=coordinator), values()) == 1
    said = capsys.readouterr().err
    assert said == f"pubsub: {peer.address}#1 has left, with 1 of 3 messages not taken\n"


def test_a_subscriber_that_leaves_when_it_has_all_is_no_failure(
    start: Start, coordinator: str, topic: str
) -> None:
    other = listener(
        start,
        coordinator,
        f"""
        with Sub({topic!r}) as sub:
            print("ready", flush=True)
            sub.get()
        """,
    )
    assert other.out() == "ready"
    for _ in range(2):
        put = execute("pubsub", "put", topic, "1", coordinator=coordinator)
        assert put.code == 0
        assert put.err in ("", f"pubsub: nobody was listening on '{topic}'\n")
        assert other.wait() == 0


def test_an_observer_that_had_enough_is_no_failure(
    start: Start, coordinator: str, topic: str
) -> None:
    tail = start("pubsub", "tail", topic, "-n", "1", "-q", coordinator=coordinator)
    put = start("pubsub", "put", topic, "-", "--wait", "1", coordinator=coordinator)
    put.send("1\n2\n")
    assert tail.wait() == 0
    put.close_input()
    assert put.end() == (0, [], [])


def test_g3_a_subscriber_that_is_killed_is_said_and_exit_code_1(
    start: Start, coordinator: str, topic: str
) -> None:
    other = listener(
        start,
        coordinator,
        f"""
        sub = Sub({topic!r}, observer=True)
        print("ready", flush=True)
        print(sub.get(), flush=True)
        import time; time.sleep(1000)
        """,
    )
    assert other.out() == "ready"
    put = start("pubsub", "put", topic, "-", "--timeout", "2", coordinator=coordinator)
    put.send("one\n")
    assert other.out() == "one"
    other.kill()
    put.send("two\n")
    put.close_input()
    code, _, errors = put.end()
    assert code == 1
    assert errors  # that it is gone, or takes nothing


def test_a_message_that_cannot_be_put_is_named_and_those_before_it_arrive(
    coordinator: str, peer: Peer, topic: str
) -> None:
    sub = BlockingSub(topic, peer=peer)
    put = execute(
        *("pubsub", "put", topic, "-", "--json-lines"),
        coordinator=coordinator,
        stdin='1\n"\\ud800"\n3\n',
    )
    assert (put.code, put.out) == (1, b"")
    (line,) = put.err.splitlines()
    assert line.startswith("pubsub: message 2: ")
    assert line.endswith("; those before it were put")
    assert sub.get(timeout=LONG) == 1


@pytest.mark.parametrize("put_before", [0, 2])
def test_a_message_that_is_too_large_says_which_and_what_was_put(
    monkeypatch: pytest.MonkeyPatch, coordinator: str, peer: Peer, topic: str, put_before: int
) -> None:
    sub = BlockingSub(topic, peer=peer)
    monkeypatch.setattr(
        "pubsub.cli.put._peer", lambda sending: Peer(coordinator, max_message=1_000)
    )
    values = [*(("fits", 4) for _ in range(put_before)), ("x" * 2_000, 2_000)]
    before = f"message {put_before + 1}: " if put_before else ""
    after = "; those before it were put" if put_before else ""
    with pytest.raises(ValueError, match=f"^{before}a message of 2,003 bytes .*{after}$"):
        put(Sending(topic, coordinator=coordinator), values)
    assert [sub.get(timeout=LONG) for _ in range(put_before)] == ["fits"] * put_before
