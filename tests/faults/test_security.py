"""Keys and certificates on several machines, and strangers on one of them.

One follows docs/security.md to the letter. Whoever has none of the credentials, or others, reads,
publishes and lists nothing, disturbs nobody, and hears why; so does whoever is asked.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgpack
import pytest

from pubsub.wire.messages import Goodbye
from tests.cli.processes import LONG, Running, Start, execute
from tests.faults.attacks import Stranger, framed
from tests.faults.hosts import HOSTS, Hosts, hosts
from tests.faults.test_machines import Machines, check_all_arrives
from tests.faults.worker import Worker, start_worker
from tests.wire.said import hello

pytest.importorskip("cryptography", reason="TLS needs the extra pubsubd[tls]")

pytestmark = pytest.mark.by_hand

__all__ = ["hosts"]  # the fixture

COORDINATOR = "10.77.1.1:7700"
STRANGER = "w2"

BOTH = """
import sys
from pubsub import Pub, Sub
for make in Pub, Sub:
    try:
        with make("t") as made:
            made.put(1) if make is Pub else print(made.get(timeout=5))
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""
ANOTHER_KEY = (
    r"it has another key \(the first of (our|its) key file is none of (its|ours)\), or a cert"
)
ANOTHER_CA = (
    r"it is not of our CA: (another one issued its certificate|it does not know the one that "
    r"issued our certificate)"
)
PLAIN = r"it speaks plain where TLS belongs"


class Group(Machines):
    """Programs on the machines, each with what its machine has."""

    def __init__(self, start: Start, hosts: Hosts, credentials: dict[str, dict[str, str]]) -> None:
        super().__init__(start, hosts)
        self.credentials = credentials

    def run(self, host: str, *args: str, coordinator: str | None, **env: str) -> Running:
        return self.start(
            *args,
            coordinator=coordinator,
            prefix=self.hosts.on(host),
            **(env or self.credentials[host]),
        )

    def coordinator(self, line: str = "pubsubd coordinator --host 0.0.0.0") -> str:
        self.head = self.run("head", *line.split(), coordinator=None)
        assert self.head.err() == "pubsubd: coordinator on 0.0.0.0:7700"  # and not: open to all
        return self.head.err()

    def worker(self, host: str) -> Worker:
        return start_worker(self.start, COORDINATOR, self.hosts.on(host), **self.credentials[host])

    @contextmanager
    def flow(self) -> Iterator[tuple[str, Worker, Worker]]:
        """From the head node to w1, which misses nothing, and gets nothing else, whatever happens
        meanwhile. Yields where the publisher listens, and both."""
        here, there = self.worker("head"), self.worker("w1")
        there.peer(name="a")
        there.sub(name="a", topic="t")
        here.peer(name="a")
        stream = here.pub(name="a", topic="t", rate=500)
        here.attached(name="a", n=1)
        links = there.connections()
        yield stream.partition("#")[0], here, there
        there.reach(name="a", due={stream: here.counts()["a"] + 100})
        put = here.stop()["a"]
        report = there.reach(name="a", due={stream: put})
        assert report["got"] == {stream: put}
        assert report["lost"] == 0
        assert there.connections() == links

    def heard(self, text: str) -> str:
        """The coordinator's next line that has this."""
        line = self.head.err()
        while not re.search(text, line):
            line = self.head.err()
        return line


def new_key(path: Path) -> dict[str, str]:
    """What has the programs of a machine use a new key, which lies there."""
    made = execute("pubsubd", "key", "new", str(path))
    assert made.code == 0, made.err
    return {"PUBSUB_KEY_FILE": str(path)}


@pytest.fixture
def keyed(start: Start, hosts: Hosts, tmp_path: Path) -> Group:
    """Each machine has a copy of the key."""
    new_key(tmp_path / "pubsub.key")
    for host in HOSTS:
        (tmp_path / host).mkdir()
        shutil.copy2(tmp_path / "pubsub.key", tmp_path / host)
    return Group(
        start,
        hosts,
        {host: {"PUBSUB_KEY_FILE": str(tmp_path / host / "pubsub.key")} for host in HOSTS},
    )


def issue(ca: Path, name: str, *rights: str) -> dict[str, str]:
    """A certificate, as one that makes them does."""
    if not ca.exists():
        made = execute("pubsubd", "cert", "init", str(ca))
        assert made.code == 0, made.err
    made = execute("pubsubd", "cert", "issue", str(ca), name, *rights)
    assert made.code == 0, made.err
    return {"PUBSUB_CERT": str(ca / f"{name}.pem")}


@pytest.fixture
def certified(start: Start, hosts: Hosts, tmp_path: Path) -> Group:
    """Each machine has a certificate; that of the head node makes a coordinator."""
    every = ("--publish", "t", "--subscribe", "t", "--list")
    ca = tmp_path / "ca"
    return Group(
        start,
        hosts,
        {
            "head": issue(ca, "head", "--coordinator", *every),
            "w1": issue(ca, "w1", *every),
            "w2": issue(ca, "w2", *every),
        },
    )


@pytest.fixture(params=["key", "certificates"])
def group(request: pytest.FixtureRequest) -> Group:
    made: Group = request.getfixturevalue(
        {"key": "keyed", "certificates": "certified"}[request.param]
    )
    return made


# --- who belongs here ---------------------------------------------------------------------------


def test_g3_one_key_on_each_machine_and_everything_works(group: Group) -> None:
    assert group.coordinator() == (
        "pubsubd: programs on this machine and others reach it with PUBSUB_COORDINATOR="
        f"{COORDINATOR}"
    )
    check_all_arrives(group, dict.fromkeys(HOSTS, COORDINATOR))
    sub = group.sub("w1", 1, COORDINATOR)
    for host in HOSTS:
        topics = group.run(host, "pubsub", "topics", coordinator=COORDINATOR)
        code, out, err = topics.end()
        assert (code, err) == (0, [])
        assert any(line.split()[0] == "t" for line in out)
        peers = group.run(host, "pubsub", "peers", coordinator=COORDINATOR)
        code, out, err = peers.end()
        assert (code, err) == (0, [])
        assert any("10.77.1.11:" in line for line in out)
    put = group.run("w2", "pubsub", "put", "t", '["w2", 1]', coordinator=COORDINATOR)
    assert put.end() == (0, [], [])
    assert sub.out() == "[('w2', 1)] lost 0"
    assert sub.end() == (0, [], [])


# --- strangers ----------------------------------------------------------------------------------


def nothing(path: Path) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(path)}


def another_key(path: Path) -> dict[str, str]:
    return new_key(path / "another.key")


def open_to_all(path: Path) -> dict[str, str]:
    return {"PUBSUB_INSECURE": "1"}


def another_ca(path: Path) -> dict[str, str]:
    return issue(path / "theirs", "w2", "--publish", "t", "--subscribe", "t", "--list")


NO_KEY = (
    r"10\.77\.1\.1 is on another machine, and no key is set: make one by `pubsubd key new FILE`"
)

Credentials = Callable[[Path], dict[str, str]]


@pytest.mark.parametrize(
    ("kind", "credentials", "hears", "is_said"),
    [
        ("key", nothing, NO_KEY, ""),
        ("key", another_key, ANOTHER_KEY, ANOTHER_KEY),
        ("key", open_to_all, PLAIN, PLAIN),
        ("key", another_ca, ANOTHER_CA, ANOTHER_KEY),
        ("certificates", nothing, NO_KEY, ""),
        ("certificates", another_key, ANOTHER_KEY, ANOTHER_CA),
        ("certificates", open_to_all, PLAIN, PLAIN),
        ("certificates", another_ca, ANOTHER_CA, ANOTHER_CA),
    ],
)
def test_a_stranger_reads_publishes_and_lists_nothing_and_hears_why(
    request: pytest.FixtureRequest,
    kind: str,
    credentials: Credentials,
    hears: str,
    is_said: str,
    tmp_path: Path,
) -> None:
    group: Group = request.getfixturevalue({"key": "keyed", "certificates": "certified"}[kind])
    group.coordinator()
    env = credentials(tmp_path)
    with group.flow():
        commands = [
            group.run(STRANGER, "pubsub", *args, coordinator=COORDINATOR, **env)
            for args in (
                ("topics",),
                ("peers",),
                ("put", "t", "1"),
                ("tail", "t", "-n", "1", "--timeout", "20"),
            )
        ]
        program = group.run(STRANGER, "python", "-c", BOTH, coordinator=COORDINATOR, **env)
        for command in commands:
            code, out, err = command.end()
            assert (code, out) == (1, []), err
            assert re.search(hears, err[-1]), err
        code, out, _ = program.end()
        assert len(out) == 2
        for line in out:
            assert re.match(rf"AuthError .*{hears}", line)
        if is_said:
            line = group.heard(is_said)
            assert re.search(r"10\.77\.1\.12:\d+: ", line)


def version_1(wants: str) -> bytes:
    """The HELLO of a peer of version 1."""
    return framed(msgpack.packb([1, 1, "peer", wants, "stranger", "", "10.77.1.12", 1, {}]))


def last_words(hosts: Hosts, address: str, said: bytes) -> Goodbye | None:
    """What a process there answers to somebody who says that; it must be its last word."""
    with hosts.within(STRANGER, lambda: Stranger(address)) as stranger:
        stranger.send(said)
        first = stranger.next()
        assert first is None or isinstance(first, Goodbye), first
        assert first is None or stranger.next() is None
        return first


def test_who_speaks_plain_is_told_so_and_no_more(group: Group) -> None:
    group.coordinator()
    with group.flow() as (peer, here, _):
        for address, wants in ((COORDINATOR, "coordinator"), (peer, "peer")):
            from pubsub.wire.messages import encode

            answer = last_words(group.hosts, address, encode(hello("peer", wants, "stranger")))
            assert answer is not None
            assert answer.code == "auth"
            assert answer.reason.startswith(
                "it speaks plain where TLS belongs: set PUBSUB_KEY_FILE"
            )
            answer = last_words(group.hosts, address, version_1(wants))
            assert answer is not None
            assert answer.code == "version"
            for said in (b"GET / HTTP/1.1\r\nHost: head\r\n\r\n", b"\x00" * 100, b"\xff" * 5000):
                last_words(group.hosts, address, said)
        for reason in (PLAIN, "version 1", "http|another protocol"):
            assert re.search(r"10\.77\.1\.12:\d+: ", group.heard(reason))
        here.log_has(text="it speaks plain where TLS belongs")


# --- real clients of other protocols ------------------------------------------------------------


@pytest.fixture
def openssl() -> str:
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("needs the command openssl")
    return found


def s_client(group: Group, openssl: str, address: str, *more: str) -> str:
    """What it says, and hears after a HELLO, which must not be an answer."""
    from pubsub.wire.messages import encode

    ended = subprocess.run(
        [*group.hosts.on(STRANGER), openssl, "s_client", "-connect", address, "-quiet", *more],
        input=encode(hello("peer", "coordinator", "stranger")),
        capture_output=True,
        timeout=LONG,
    )
    assert ended.stdout == b""
    assert ended.returncode != 0
    return ended.stderr.decode()


def test_openssl_is_not_let_in(group: Group, openssl: str, tmp_path: Path) -> None:
    made = (tmp_path / "its.key", tmp_path / "its.crt")
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-keyout", made[0], "-out", made[1], "-subj", "/CN=head", "-days", "2"],
        check=True,
        capture_output=True,
    )  # fmt: skip
    its_own = ("-key", str(made[0]), "-cert", str(made[1]))
    group.coordinator()
    with group.flow() as (peer, here, _):
        for address in (COORDINATOR, peer):
            said = s_client(group, openssl, address)
            assert "certificate required" in said
            said = s_client(group, openssl, address, *its_own)
            assert "alert" in said
            said = s_client(group, openssl, address, "-tls1_2")
            assert "alert protocol version" in said
        for reason in (
            "it shows no certificate",
            "|".join((ANOTHER_KEY, ANOTHER_CA)),
            "it has no version of TLS that this process has",
        ):
            assert re.search(r"10\.77\.1\.12:\d+: ", group.heard(reason))
        here.log_has(text="it has no version of TLS that this process has")


# --- who listens on the network -----------------------------------------------------------------


class Sniffer:
    """Has a copy of every packet on the network."""

    ETH_P_ALL = 3
    SO_RCVBUFFORCE = 33

    def __init__(self, hosts: Hosts) -> None:
        self._socket = hosts.within("br", self._make)
        self._seen = bytearray()
        self._stop = False
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _make(self) -> socket.socket:
        sniffing = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(self.ETH_P_ALL))
        sniffing.setsockopt(socket.SOL_SOCKET, self.SO_RCVBUFFORCE, 1 << 26)
        sniffing.settimeout(0.2)
        return sniffing

    def _listen(self) -> None:
        while True:
            try:
                self._seen += self._socket.recv(1 << 16)
            except TimeoutError:
                if self._stop:
                    return

    def close(self) -> bytes:
        """All that went over the network."""
        self._stop = True
        self._thread.join()
        self._socket.close()
        return bytes(self._seen)


TALK = """
import sys
from pubsub import Peer
who, to, topic, payload = sys.argv[1:]
with Peer(name=f"name-of-{who}") as peer:
    pub, sub = peer.pub(f"{topic}/{who}"), peer.sub(f"{topic}/{to}")
    pub.wait_for_subscribers(1, timeout=30)
    pub.put({payload: 1})
    print(sub.get(timeout=30), flush=True)
    sys.stdin.read()
"""
MARKS = ["some-topic", "some-payload", "name-of-w1", "name-of-head"]


def seen_on_the_wire(group: Group) -> set[str]:
    """Two machines talk: which of the marks an eavesdropper sees."""
    sniffer = Sniffer(group.hosts)
    talk = ("python", "-c", TALK)
    talking = [
        group.run(*(one, *talk, one, other, *MARKS[:2]), coordinator=COORDINATOR)
        for one, other in (("head", "w1"), ("w1", "head"))
    ]
    assert [process.out() for process in talking] == ["{'some-payload': 1}"] * 2
    peers = group.run("w2", "pubsub", "peers", coordinator=COORDINATOR)
    code, out, _ = peers.end()  # where all is open, each says so
    assert code == 0
    assert any("name-of-w1" in line for line in out)
    for process in talking:
        process.close_input()
        assert process.end()[:2] == (0, [])
    seen = sniffer.close()
    assert seen.count(socket.inet_aton("10.77.1.11")) > 20  # it did listen
    return {mark for mark in MARKS if mark.encode() in seen}


def test_an_eavesdropper_sees_no_payload_topic_or_name(group: Group, tmp_path: Path) -> None:
    if "PUBSUB_CERT" in group.credentials["head"]:
        every = ("--publish", "some-topic/*", "--subscribe", "some-topic/*", "--list")
        ca = tmp_path / "ca"
        group.credentials.update(
            {
                "head": issue(ca, "name-of-head", "--coordinator", *every),
                "w1": issue(ca, "name-of-w1", *every),
                "w2": issue(ca, "name-of-w2", *every),
            }
        )
    group.coordinator()
    assert seen_on_the_wire(group) == set()


def test_an_eavesdropper_sees_everything_where_all_is_open(start: Start, hosts: Hosts) -> None:
    """So the one above can."""
    group = Group(start, hosts, {host: {"PUBSUB_INSECURE": "1"} for host in HOSTS})
    head = group.run("head", "pubsubd", "coordinator", "--host", "0.0.0.0", coordinator=None)
    assert "open to everyone" in head.err()
    assert seen_on_the_wire(group) == set(MARKS)


# --- roles --------------------------------------------------------------------------------------


FALSE = """
import asyncio, os
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from pubsub.trust.credentials import credentials_from
async def main():
    guard = credentials_from(Settings(), os.environ).guard()
    coordinator = Coordinator(asyncio.get_running_loop(), guard=guard)
    print(await coordinator.start("0.0.0.0", 7700), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_certificate_that_makes_no_coordinator_is_taken_for_none(certified: Group) -> None:
    refused = certified.run("w1", "pubsubd", "coordinator", "--host", "0.0.0.0", coordinator=None)
    code, out, err = refused.end()
    assert (code, out) == (1, [])
    assert "the certificate of 'w1' does not make it a coordinator" in err[-1]
    # one that is none of ours does not ask
    assert certified.run("w1", "python", "-c", FALSE, coordinator=None).out() == "0.0.0.0:7700"
    for args in (("put", "t", "1"), ("topics",), ("tail", "t", "-n", "1")):
        command = certified.run("w2", "pubsub", *args, coordinator="10.77.1.11:7700")
        code, out, err = command.end()
        assert (code, out) == (1, [])
        assert "the certificate of 'w1' does not make it a coordinator" in err[-1]
