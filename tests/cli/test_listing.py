"""`pubsub topics` and `pubsub peers`, and the client that asks for them."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pubsub import CoordinatorUnavailable, Peer
from pubsub.cli.asking import ask
from pubsub.cli.listing import table
from pubsub.config import Address, Settings, parse_address
from pubsub.faces.blockingpub import BlockingPub
from pubsub.trust.credentials import credentials_from
from pubsub.trust.guard import Guard
from pubsub.wire.messages import Ping, Pong, encode
from tests.cli.processes import LONG, Result, Start, daemon, execute
from tests.integration.support import free_port
from tests.wire.said import hello, welcome

OPEN = Guard()


def test_a_table_is_aligned_and_numbers_stand_to_the_right() -> None:
    rows = [{"name": "a", "pubs": 1, "state": ""}, {"name": "longer", "pubs": 100, "state": "x"}]
    assert table(("name", "pubs", "state"), rows) == [
        "NAME    PUBS  STATE",
        "a          1  -",
        "longer   100  x",
    ]
    assert table(("name", "pubs"), []) == ["NAME  PUBS"]


def test_a_table_obeys_no_control_characters_of_others() -> None:
    rows = [{"name": "\x1b[2J\n\u009b", "pid": None}]
    assert table(("name", "pid"), rows) == ["NAME    PID", "?[2J??    -"]


def test_topics_and_patterns_with_their_counts(coordinator: str) -> None:
    with Peer(coordinator) as peer:
        pub = peer.pub("list/a")
        subs = [peer.sub("list/*"), peer.sub("list/b")]
        result = execute("pubsub", "topics", coordinator=coordinator)
        assert (result.code, result.err) == (0, "")
        assert result.lines == [
            "TOPIC   PUBLISHERS  SUBSCRIBERS",
            "list/*           1            1",
            "list/a           1            1",
            "list/b           0            2",
        ]
        result = execute("pubsub", "topics", "--json", coordinator=coordinator)
        assert json.loads(result.out)[1] == {"topic": "list/a", "publishers": 1, "subscribers": 1}
        del pub, subs


def test_peers_and_who_they_are(coordinator: str) -> None:
    with Peer(coordinator, name="the peer of this test") as peer:
        pub = peer.pub("t")
        result = execute("pubsub", "peers", "--coordinator", coordinator)
        assert (result.code, result.err) == (0, "")
        heads, line = result.lines
        assert heads.split() == "NAME ADDRESS PID HOSTNAME PUBS SUBS STATE".split()
        assert line.startswith(f"the peer of this test  {peer.address}  ")
        assert line.endswith("connected")
        (row,) = json.loads(execute("pubsub", "peers", "--json", coordinator=coordinator).out)
        assert row["peer_id"] == peer.peer_id
        assert (row["pubs"], row["subs"], row["state"]) == (1, 0, "connected")
        del pub


def test_nothing_to_show_is_said(start: Start) -> None:
    _, where = daemon(start)
    for what in ("topics", "peers"):
        result = execute("pubsub", what, coordinator=where)
        assert (result.code, result.out) == (0, b"")
        assert result.err == f"pubsub: the coordinator at {where} knows no {what}\n"
        result = execute("pubsub", what, "--json", coordinator=where)
        assert (result.code, result.out, result.err) == (0, b"[]\n", "")


def test_of_several_coordinators_each_shows_its_own(start: Start) -> None:
    _, one = daemon(start)
    _, two = daemon(start)
    with Peer(one) as here, Peer(f"{one},{two}") as everywhere:
        pubs = [here.pub("here"), everywhere.pub("everywhere")]
        result = execute("pubsub", "topics", "--json", coordinator=f"{one},{two}")
        assert [(row["coordinator"], row["topic"]) for row in json.loads(result.out)] == [
            (one, "everywhere"),
            (one, "here"),
            (two, "everywhere"),
        ]
        result = execute("pubsub", "topics", coordinator=f"{one},127.0.0.1:1")
        assert result.code == 1
        assert result.lines[0].split() == ["COORDINATOR", "TOPIC", "PUBLISHERS", "SUBSCRIBERS"]
        assert len(result.lines) == 3
        assert result.err.startswith("pubsub: no coordinator at 127.0.0.1:1: ")
        assert "start one" not in result.err  # there is one
        result = execute("pubsub", "topics", coordinator="127.0.0.1:1,127.0.0.1:2")
        assert [line.count("start one") for line in result.err.splitlines()] == [0, 1]
        del pubs


NAMED = """
import sys
from pubsub.links import resolving
meant, *sys.argv[1:] = sys.argv[1:]
resolving.ask = lambda host: tuple(meant.split(","))
import pubsub.cli.pubsub
pubsub.cli.pubsub.main()
"""


def test_a_name_means_all_coordinators_that_it_has_an_address_of(start: Start) -> None:
    port = free_port()
    first, _ = daemon(start, port)
    _, other = daemon(start, port, "--host", "127.0.0.2")
    head = f"head:{port}"

    def run(meant: str, *args: str) -> Result:
        return execute("python", "-c", NAMED, meant, *args, "--coordinator", head)

    both = "127.0.0.1,127.0.0.2,127.0.0.9"  # nobody is at the last
    with Peer(f"127.0.0.1:{port}") as here, Peer(other) as there:
        pubs = [here.pub("here"), there.pub("there")]
        result = run(both, "topics", "--json")
        assert (result.code, result.err) == (0, "")
        assert [(row["coordinator"], row["topic"]) for row in json.loads(result.out)] == [
            (f"127.0.0.1:{port}", "here"),
            (other, "there"),
        ]
        assert len(run(both, "peers").lines) == 3
        result = run(both, "doctor", "there", "--json")
        found = {row["subject"]: row["text"] for row in json.loads(result.out)}
        assert found["topic there"].startswith("published by 1"), result.text
        tail = start("python", "-c", NAMED, both, "tail", "there", "--coordinator", head)
        pubs[1].wait_for_subscribers(timeout=LONG)
        pubs[1].put("by the second")
        assert tail.out() == '"by the second"'
        tail.interrupt()
        tail.wait()
    first.kill()
    result = run("127.0.0.1,127.0.0.9", "topics")
    assert (result.code, result.out) == (1, b"")
    assert result.err.startswith(f"pubsub: no coordinator at 127.0.0.1:{port}: nothing listens")


def test_two_addresses_of_one_coordinator_are_one(start: Start) -> None:
    _, where = daemon(start, 0, "--host", "0.0.0.0", "--insecure")
    port = parse_address(where).port
    with Peer(f"127.0.0.1:{port}", insecure=True) as peer:
        pub = peer.pub("once")
        result = execute(
            *("python", "-c", NAMED, "127.0.0.1,127.0.0.2", "topics"),
            *("--insecure", "--coordinator", f"head:{port}"),
        )
        del pub
    assert [line.split()[0] for line in result.lines] == ["TOPIC", "once"]
    assert result.code == 0


def test_a_long_answer_comes_whole(start: Start) -> None:
    _, where = daemon(start)
    with Peer(where) as peer:
        pubs = [peer.pub(f"long/{i:04}") for i in range(1_200)]
        guard = credentials_from(Settings(), os.environ).guard()
        rows = ask(parse_address(where), "topics", guard)
        assert [row["topic"] for row in rows] == [pub.topic for pub in pubs]


def test_a_reader_that_has_enough_is_no_error(start: Start) -> None:
    _, where = daemon(start)
    with Peer(where) as peer:
        pubs = [peer.pub(f"some/longer/name/{i:04}") for i in range(2_000)]
        process = start("pubsub", "topics", coordinator=where, read=False)
        assert process.process.stdout is not None
        process.process.stdout.close()
        code = process.wait()
        assert (code, process.rest_of_errors()) == (0, [])
        del pubs


# --- what is no coordinator -----------------------------------------------------------------


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Something that listens and treats its first connection so."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                try:
                    talk(connection)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield Address(*listening.getsockname())
        thread.join()


def http(connection: socket.socket) -> None:
    connection.recv(1024)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def silence(connection: socket.socket) -> None:
    while connection.recv(1024):
        pass


def slam(connection: socket.socket) -> None:
    connection.recv(1024)


def nonsense(connection: socket.socket) -> None:
    connection.recv(1024)
    connection.sendall(b"\x00\x00\x00\x04\xff\xff\xff\xff")


def stop_halfway(connection: socket.socket) -> None:
    connection.recv(1024)
    connection.sendall(encode(welcome("coordinator", "c")))
    connection.recv(1024)


def say_hello(connection: socket.socket) -> None:
    connection.recv(1024)
    connection.sendall(encode(welcome("coordinator", "c")))
    connection.sendall(encode(hello("peer", "coordinator", "p")))
    silence(connection)


@pytest.mark.parametrize(
    ("talk", "why"),
    [
        (http, "this is another protocol"),
        (slam, "the connection was closed without an answer"),
        (silence, "no answer within 0.5 s"),
        (nonsense, "a frame that is no"),
        (stop_halfway, "the connection was closed without an answer"),
        (say_hello, "a HELLO where an answer belongs"),
    ],
)
def test_what_is_no_coordinator_is_called_so(
    talk: Callable[[socket.socket], None], why: str
) -> None:
    timeout = 0.5 if talk is silence else LONG  # all others have to be told by what they say
    with server(talk) as address, pytest.raises(CoordinatorUnavailable) as caught:
        ask(address, "topics", OPEN, timeout=timeout)
    assert str(caught.value).startswith(f"no coordinator at {address}: ")
    assert why in str(caught.value)
    assert caught.value.addresses == (str(address),)


def test_pings_are_answered_while_waiting() -> None:
    heard: list[bytes] = []

    def talk(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(encode(welcome("coordinator", "c")))
        connection.recv(1024)
        connection.sendall(encode(Ping(7)))
        heard.append(connection.recv(1024))

    with server(talk) as address, pytest.raises(CoordinatorUnavailable):
        ask(address, "topics", OPEN)
    assert heard == [encode(Pong(7))]


def test_a_peer_is_no_coordinator(coordinator: str) -> None:
    with Peer(coordinator) as peer, BlockingPub("t", peer=peer):
        result = execute("pubsub", "topics", "--coordinator", peer.address)
    assert (result.code, result.out) == (1, b"")
    assert result.err.startswith(
        f"pubsub: no coordinator at {peer.address}: this is a peer, not a coordinator: start one "
    )


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("127.0.0.1:1", "nothing listens there (connection refused)"),
        ("no.such.host.invalid:7700", ""),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_nobody_there_is_one_line_and_exit_code_1(where: str, why: str, options: list[str]) -> None:
    result = execute("pubsub", "peers", *options, "--coordinator", where)
    assert (result.code, result.out) == (1, b"")
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith(f"pubsub: no coordinator at {where}: {why}")
