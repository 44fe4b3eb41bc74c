"""What of the messages `pubsub tail` shows, as a process, fed by a Pub of this one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pubsub import Peer
from pubsub.faces.blockingpub import BlockingPub
from tests.cli.processes import LONG, Start, execute


@pytest.fixture
def peer(coordinator: str) -> Iterator[Peer]:
    with Peer(coordinator) as made:
        yield made


def kept(peer: Peer, topic: str, values: list[object], history: int | None = None) -> BlockingPub:
    """A Pub that has put these, and keeps all of them unless it is told otherwise."""
    pub = BlockingPub(topic, peer=peer, history=len(values) if history is None else history)
    pub.put_many(values)
    return pub


def test_where_shows_what_fits_and_counts_the_rest(
    coordinator: str, peer: Peer, topic: str
) -> None:
    values = [{"t": 31, "room": "a"}, {"t": "hot"}, {"room": "a"}, {"t": 40, "room": "b"}, b"x"]
    with kept(peer, topic, [*values, {"t": 32, "room": "a"}]):
        result = execute(
            *("pubsub", "tail", topic, "--history", "all", "-n", "2"),
            *("--where", 't > 30 and room == "a"', "--fields", "room,t,no"),
            coordinator=coordinator,
        )
    assert [json.loads(line) for line in result.lines] == [
        {"room": "a", "t": 31, "no": None},
        {"room": "a", "t": 32, "no": None},
    ]
    assert (result.code, result.err) == (
        0,
        "pubsub: received 6, shown 2, lost 0; --where did not fit 3 (the first: '>' not supported "
        "between instances of 'str' and 'int')\n",
    )


def test_where_that_does_not_fit_is_said_at_once_where_nothing_was_shown(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    with kept(peer, topic, [{"temp": 31}, {"temp": 32}]):
        where = ("--history", "all", "--where", "tmp > 30")
        tail = start("pubsub", "tail", topic, *where, coordinator=coordinator)
        missing = "--where does not fit the first message that comes: 'tmp' is missing"
        assert tail.err() == f"pubsub: {missing}"


def test_the_timeout_is_of_what_is_shown(coordinator: str, peer: Peer, topic: str) -> None:
    with kept(peer, topic, [1, 2, 3]):
        result = execute(
            *("pubsub", "tail", topic, "--history", "all", "-n", "1", "--timeout", "2"),
            *("--where", "value > 3"),
            coordinator=coordinator,
        )
    assert (result.code, result.out) == (3, b"")
    assert result.err == "pubsub: received 3, shown 0, lost 0\n"


def test_fields_are_columns_where_the_form_is_raw(coordinator: str, peer: Peer, topic: str) -> None:
    with kept(peer, topic, [{"a": {"b": ["x\ty"]}, "c": 1}]):
        result = execute(
            *("pubsub", "tail", topic, "--history", "all", "-n", "1", "-q"),
            *("--fields", "a.b.0,c,d", "--format", "raw", "--topics"),
            coordinator=coordinator,
        )
    assert result.out == f"{topic}\tx\\ty\t1\t\n".encode()


def test_since_begins_with_all_that_was_sent_after_it(
    coordinator: str, peer: Peer, topic: str
) -> None:
    with kept(peer, topic, [1, 2, 3]):
        result = execute(
            "pubsub", "tail", topic, "--since", "1h", "-n", "3", coordinator=coordinator
        )
    assert (result.code, result.lines) == (0, ["1", "2", "3"])
    assert result.err == "pubsub: received 3, shown 3, lost 0\n"


def test_g3_since_says_where_a_history_is_shorter(coordinator: str, peer: Peer, topic: str) -> None:
    with kept(peer, topic, [1, 2, 3], history=1):
        result = execute(
            "pubsub", "tail", topic, "--since", "1h", "-n", "1", coordinator=coordinator
        )
    assert (result.code, result.lines) == (0, ["3"])
    first, last = result.err.splitlines()
    assert first.startswith(f"pubsub: {topic} from {peer.address}#1 begins at ")
    assert first.endswith(": the 2 messages before that, Pub(history=…) does not keep")
    assert last == "pubsub: received 1, shown 1, lost 0"


def test_g3_since_says_who_has_nothing_from_before(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    with kept(peer, topic, [1, 2, 3], history=0):
        tail = start("pubsub", "tail", topic, "--since", "1h", coordinator=coordinator)
        assert tail.err() == (
            f"pubsub: {topic} from {peer.address}#1 has nothing from before: the 3 messages before "
            "that, Pub(history=…) does not keep"
        )
        tail.interrupt()
        assert tail.end() == (130, [], ["pubsub: received 0, shown 0, lost 0"])


def test_rates_are_lines_for_each_topic_and_account_for_every_message(
    start: Start, coordinator: str, peer: Peer, topic: str
) -> None:
    """Also of a stream whose values nobody here may decode."""
    tail = start("pubsub", "tail", f"{topic}/*", f"{topic}/**", "--rate", coordinator=coordinator)
    with (
        BlockingPub(f"{topic}/a", peer=peer) as a,
        BlockingPub(f"{topic}/b", peer=peer, codec="pickle") as b,
    ):
        for pub, count in ((a, 1000), (b, 10)):
            pub.wait_for_subscribers(2, timeout=LONG)
            pub.put_many([b"x" * 100] * count)
        totals: dict[str, int] = {}
        size = 0.0
        while totals != {f"{topic}/a": 1000, f"{topic}/b": 10}:
            row = json.loads(tail.out())
            totals[row["topic"]] = row["total"]
            size += row["bytes_per_second"]
        assert size > 0
        tail.interrupt()
        assert tail.end()[::2] == (130, ["pubsub: received 1010, lost 0"])


def test_color_in_a_pipe_only_where_it_is_asked_for(
    coordinator: str, peer: Peer, topic: str
) -> None:
    given = ("pubsub", "tail", topic, "--history", "all", "-n", "1", "-q")
    with kept(peer, topic, ["\x9b"]):
        plain = execute(*given, coordinator=coordinator)
        colored = execute(*given, "--color", "always", coordinator=coordinator)
    assert plain.out == '"\x9b"\n'.encode()
    assert colored.out == b'\x1b[32m"\\u009b"\x1b[0m\n'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--where", "a > > 1"], "--where: invalid syntax, column 5, before '> 1'"),
        (["--fields", "a,,b"], "--fields 'a,,b' has an empty name"),
        (["--since", "soon"], "--since 'soon' is no time"),
        (["--since", "5m", "--history", "3"], "--since and --history exclude each other"),
        (["--rate", "--where", "a"], "--rate and --where exclude each other"),
        (["--rate", "-n", "1"], "--rate and --count exclude each other"),
    ],
)
def test_what_cannot_be_asked_for_is_one_line(options: list[str], said: str) -> None:
    result = execute("pubsub", "tail", "t", *options)
    assert (result.code, result.out) == (2, b"")
    assert f" tail: {said}" in result.err
    assert result.err.count("\n") == 1


def test_where_without_its_package_is_one_line() -> None:
    hidden = (
        "import sys; sys.modules['simpleeval'] = None; sys.argv = ['pubsub', 'tail', 't', "
        "'--where', 'a']; from pubsub.cli.pubsub import main; main()"
    )
    result = execute("python", "-c", hidden)
    assert (result.code, result.out) == (1, b"")
    assert result.err.startswith("pubsub: --where needs the package `simpleeval`")
    assert result.err.endswith("pip install 'pubsubd[cli]'\n")
