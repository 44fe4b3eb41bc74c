"""This library over each of its ways: direct, reverse, over a relay; and a relay's splice beside a
plain TCP forwarder: the same messages and the same raw stream through both."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from typing import Any, ClassVar

from benchmarks.contender import Meeting
from benchmarks.contenders.brokers import free_port, reach, watched
from benchmarks.contenders.channels import Tls
from benchmarks.contenders.ours import AsyncPair, AsyncPublisher, AsyncSubscriber, use
from benchmarks.contenders.sockets import Publisher, Sockets, Subscriber
from benchmarks.courses import circuits
from benchmarks.daemons import daemon
from benchmarks.stage import Stage
from pubsub.faces.asyncpub import AsyncPub
from pubsub.faces.asyncsub import AsyncSub
from pubsub.faces.peer import Peer
from pubsub.links import unix

__all__ = ["CONTENDERS"]


def _use(place: str) -> None:
    """The same, by TCP: else both ends, on one host, would go by none of what is compared."""
    use(place)
    unix.available = lambda: False


PROGRAM = """\
import sys, time
from pubsub import Peer
with Peer(listen=sys.argv[2] == "listen") as peer:
    peer.sub(sys.argv[1]).get()
    print(time.monotonic_ns())
"""


# --- a plain TCP forwarder --------------------------------------------------------------

HAPROXY = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen forwarder
    bind 127.0.0.1:{port}
    server target 127.0.0.1:{target}
"""
FORWARDER = next(filter(shutil.which, ("socat", "haproxy")), "")
FORWARDED = {
    "socat": "`socat -b 65536 TCP-LISTEN:…,fork,nodelay TCP:…,nodelay`",
    "haproxy": "haproxy with `mode tcp`, else as it is (there is no socat)",
    "": "socat, or haproxy",
}[FORWARDER]


def _forward(listener: socket.socket) -> int:
    """Have a forwarder to there, for as long as this process lives; its port."""
    port, target = free_port(), listener.getsockname()[1]
    command = [
        *("socat", "-b", "65536", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay"),
        f"TCP:127.0.0.1:{target},nodelay",
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        if FORWARDER == "haproxy":
            file.write(HAPROXY.format(port=port, target=target))
            file.flush()
            command = ["haproxy", "-q", "-f", file.name]
        with reach(watched(command), FORWARDER, port):
            through, _ = listener.accept()  # or what comes first would be this
    with through:
        through.recv(1)  # its end: who closes first keeps the port for a while
    return port


def _lack() -> str:
    return "" if FORWARDER else "program socat or haproxy"


# --- messages ---------------------------------------------------------------------------


class _Subscriber(AsyncSubscriber):
    """One that is sure of its way: figures of another one would be a lie."""

    def __init__(self, sub: AsyncSub, check: Callable[[AsyncSub], None]) -> None:
        super().__init__(sub)
        self._check = check

    async def drain(self) -> tuple[int, Any]:
        found = await super().drain()
        self._check(self._sub)
        return found


class _Pair(AsyncPair):
    """The same of the end of a round trip."""

    def __init__(self, pub: AsyncPub, sub: AsyncSub, check: Callable[[AsyncSub], None]) -> None:
        super().__init__(pub, sub)
        self._check = check
        self.receive = self._first

    async def _first(self, timeout: float | None = None) -> Any:
        value = await self._sub.get(timeout)
        self._check(self._sub)
        self.receive = self._sub.get
        return value


class Way(Tls):
    """The async face with a key and TLS. Whoever publishes has one Peer and whoever subscribes has
    another, so that the ends of a round trip go the same way there and back."""

    family = "ways"
    groups = frozenset(("ways",))
    workloads = frozenset(
        ("ways-small-dict", "ways-64-kib", "ways-round-trip", "ways-first-message")
    )
    way: ClassVar[str]
    publisher_listens: ClassVar[bool] = True
    subscriber_listens: ClassVar[bool] = True

    def _publisher(self) -> Peer:
        return Peer(listen=self.publisher_listens)

    def _check(self, sub: AsyncSub) -> None:
        ways = {stream["way"] for stream in sub.publishers.values()}
        if ways != {self.way}:
            raise RuntimeError(f"its ways were {sorted(ways)} instead of {self.way!r} alone")

    async def open_publisher(self, meeting: Meeting) -> AsyncPublisher:
        _use(meeting.place)
        pub = AsyncPub(meeting.topic, overflow="block", peer=self._publisher())
        return AsyncPublisher(await pub)

    async def open_subscriber(self, meeting: Meeting) -> AsyncSubscriber:
        _use(meeting.place)
        sub = AsyncSub(meeting.topic, peer=Peer(listen=self.subscriber_listens))
        return _Subscriber(await sub, self._check)

    async def open_pair(self, meeting: Meeting, first: bool) -> AsyncPair:
        _use(meeting.place)
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        pub = AsyncPub(there if first else back, peer=self._publisher())
        subscribes = Peer(listen=self.subscriber_listens)
        sub = AsyncSub(back if first else there, peer=subscribes)
        return _Pair(await pub, await sub, self._check)

    def program(self, meeting: Meeting) -> list[str]:
        """See `Channel.program`."""
        executable, option, _, topic = super().program(meeting)
        how = "listen" if self.subscriber_listens else "listen not"
        return [executable, option, PROGRAM, topic, how]


class Direct(Way):
    """The subscriber dials."""

    name = "pubsub-direct"
    title = "pubsubd, direct"
    how = "`PUBSUB_KEY` and `PUBSUB_ENCRYPT=1`, as in all of these; all Peers listen."
    way = "direct"


class Reverse(Way):
    """The publisher dials."""

    name = "pubsub-reverse"
    title = "pubsubd, reverse"
    how = "the publisher's `Peer(listen=False)`."
    way = "reverse"
    publisher_listens = False


class Relay(Way):
    """Both dial a relay, which runs beside the coordinator."""

    name = "pubsub-relay"
    title = "pubsubd, relay"
    how = "`Peer(listen=False)` at both ends, and `pubsubd relay`."
    way = "relay"
    publisher_listens = subscriber_listens = False

    async def beside(self, coordinator: Any, place: str) -> None:
        command = ("relay", "--coordinator", place)
        self._stage = Stage()
        await asyncio.to_thread(daemon, self._stage, 0, {}, command)
        while not list(coordinator.registry.relay_rows()):  # noqa: ASYNC110  (nobody tells of it)
            await asyncio.sleep(0.01)


class Forwarded(Way):
    """The subscriber dials a forwarder, which dials the publisher."""

    name = "pubsub-forwarded"
    title = "pubsubd, direct through a forwarder"
    how = f"as direct, where the publisher's Peer advertises the forwarder: {FORWARDED}."
    kind = "baseline"
    family = "forwarder"
    way = "direct"

    def missing(self) -> str:
        return ", ".join(filter(None, (super().missing(), _lack())))

    def _publisher(self) -> Peer:
        target = free_port()
        with socket.create_server(("127.0.0.1", target)) as listener:
            port = _forward(listener)
        return Peer(host="127.0.0.1", port=target, advertise=f"127.0.0.1:{port}")

    def _check(self, sub: AsyncSub) -> None:
        super()._check(sub)
        # It is told the publisher's own address, too, and is to have taken the first one.
        told = {int(name.partition("#")[0].rpartition(":")[2]) for name in sub.publishers}
        remotes = sub.peer.runtime.publishers.remotes.values()
        dialled = {each.link.peername[1] for each in remotes if each.link is not None}
        if not dialled <= told:
            raise RuntimeError(f"it dialled {dialled}, and the forwarder is at {told}")


# --- a raw stream -----------------------------------------------------------------------


class Splice(Sockets):
    """Two sockets that are the ends of a circuit."""

    name = "relay"
    title = "pubsubd, a relay's splice"
    how = "two blocking sockets, each of which joins one circuit of a `pubsubd relay`."
    kind = "ours"
    groups = frozenset(("ways",))
    workloads = frozenset(("ways-stream", "ways-circuits"))
    service = True

    def serve(self, announce: Callable[[str], None]) -> None:
        with circuits.a_relay() as relay:
            announce(str(relay.port))
            threading.Event().wait()

    def open_publisher(self, meeting: Meeting) -> Publisher:
        port = int(meeting.place)
        ((mine, other),) = circuits.tickets(port, 1)
        end = circuits.join(port, mine)
        meeting.announce(f"{port} {other.hex()}")
        return Publisher([end])

    def open_subscriber(self, meeting: Meeting) -> Subscriber:
        port, ticket = meeting.place.split()
        return Subscriber(circuits.join(int(port), bytes.fromhex(ticket)))


class Forwarder(Sockets):
    """The same through a forwarder."""

    name = "forwarder"
    title = "plain TCP forwarder"
    how = f"two blocking sockets, and between them {FORWARDED}."
    kind = "baseline"
    family = "forwarder"
    groups = frozenset(("ways",))
    workloads = frozenset(("ways-stream",))

    def missing(self) -> str:
        return _lack()

    def open_publisher(self, meeting: Meeting) -> Publisher:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            meeting.announce(str(_forward(listener)))
            return Publisher([listener.accept()[0]])


class Unforwarded(Sockets):
    """The same with nothing between."""

    name = "sockets-alone"
    title = "nothing between"
    how = "two blocking sockets, the one connected to the other."
    groups = frozenset(("ways",))
    workloads = frozenset(("ways-stream",))


CONTENDERS = (Direct(), Reverse(), Relay(), Forwarded(), Splice(), Forwarder(), Unforwarded())
