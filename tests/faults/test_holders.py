"""Everything that a hostile peer does, done by the holder of a certificate to those whose topics it
may not have.

The attacks are those of `attacks.py`, over TLS with an issued certificate that gives ``a/**``
alone, and some that only a holder can do. Beside them is the honest pair of `test_hostile`, on a
topic that the holder has no right to: nothing of it is served to the holder, nothing of the
holder's is taken for it, and the pair notices nothing.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from pubsub import AuthError, Gap, Peer
from pubsub.cli.asking import ask
from pubsub.config import parse_address
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.server import Coordinator
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.trust import guard
from pubsub.trust.certificates import Contexts, file_contexts
from pubsub.wire.frames import Data, Event
from pubsub.wire.messages import (
    Ack,
    Answer,
    End,
    Expect,
    Goodbye,
    Hello,
    Match,
    Ping,
    Pong,
    Query,
    Refused,
    Register,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Welcome,
)
from tests.faults import attacks, test_hostile, test_strangers
from tests.faults.attacks import (
    LONG,
    ON_ANYONE,
    ON_COORDINATOR,
    ON_PUBLISHER,
    ON_SUBSCRIBER,
    HostilePublisher,
    Stranger,
    Target,
    batch,
    register,
)
from tests.faults.test_hostile import LIMITED, MIB, Beside, beside, memory
from tests.faults.test_strangers import attempt, trap
from tests.integration.support import coordinator_in_loop, default_guard, eventually
from tests.wire.said import hello, welcome

pytest.importorskip("cryptography", reason="certificates need the extra pubsubd[tls]")

from pubsub.trust.issuing import init, issue

pytestmark = [pytest.mark.loop, pytest.mark.by_hand]

PATIENCE: dict[str, Any] = {"handshake_timeout": 3.0, "ping_interval": 0.5, "ping_timeout": 5.0}
"""What a holder sends may be no offence, where it has no right that could be abused: it is cut when
it shows no sign of life."""


class Secured:
    """A TLS connection that one thread may read while another writes, as plain sockets are."""

    def __init__(self, plain: Any, context: ssl.SSLContext, *, dials: bool) -> None:
        self._socket = context.wrap_socket(plain, server_side=not dials)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._timeout = LONG

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def shutdown(self, how: int) -> None:
        socket.socket.shutdown(self._socket, how)

    def close(self) -> None:
        self._socket.close()

    def recv_into(self, buffer: Any) -> int:
        return self._do(self._socket.recv_into, buffer)

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._do(self._socket.send, rest) :]

    def _do(self, call: Callable[[Any], int], what: Any) -> int:
        while True:
            try:
                with self._lock:
                    return call(what)
            except ssl.SSLWantReadError:
                ready: Any = select.select([self._socket], [], [], self._timeout)
            except ssl.SSLWantWriteError:
                ready = select.select([], [self._socket], [], self._timeout)
            except ssl.SSLError as error:  # an alert, or no end of TLS before that of TCP
                raise ConnectionError(str(error)) from error
            if not any(ready):
                raise TimeoutError


class Holder(Stranger):
    """Has a certificate, and does as whoever is served does, whatever it hears.

    Attributes:
        contexts: of its certificate.
        secrets: identities and topics that are not for it.
        heard: how many frames of each kind any of them has heard.
        beyond: those that it should not have heard.
    """

    contexts: ClassVar[Contexts]
    secrets: ClassVar[tuple[str, ...]]
    heard: ClassVar[Counter[type[Event]]]
    beyond: ClassVar[list[Event]]

    def __init__(self, address: Any, *, deaf: bool = False) -> None:
        super().__init__(address, deaf=deaf)
        dials = isinstance(address, str)
        context = self.contexts.client if dials else self.contexts.server
        plain = self.socket
        try:
            self.socket = cast(Any, Secured(plain, context, dials=dials))
        except BaseException:
            plain.close()
            raise

    def new_id(self) -> str:
        return guard.Holder(lambda: (self.contexts, b"")).new_id()

    def next(self) -> Event | None:
        event = super().next()
        if event is not None:
            self.heard[type(event)] += 1
            if isinstance(event, Subscribed) or (
                isinstance(event, (Match, Expect, Answer))
                and any(secret in repr(event) for secret in self.secrets)
            ):
                self.beyond.append(event)
        return event

    def data(self, channel: int, first: int, messages: int, *what: Any) -> None:
        self.heard[Data] += 1
        self.beyond.append(Data(channel, first, 0.0, messages, b""))

    def wait_for(self, kind: type[Event]) -> Event:
        """Where a stream is to be opened, that this is refused is waited for."""
        if kind is not Subscribed:
            return super().wait_for(kind)
        end = super().wait_for(End)
        assert isinstance(end, End)
        assert end.code == "refused", end
        return end

    def __enter__(self) -> Holder:
        return self

    def ended(self) -> Goodbye:
        goodbye = self.until_cut()
        assert goodbye is not None
        return goodbye


class Certificates:
    """A CA, and a certificate for each of those that take part."""

    def __init__(self, ca: Path) -> None:
        init(ca)

        def made(name: str, rights: Rights) -> str:
            return str(issue(ca, name, rights, days=1).path)

        self.coordinator = made("head", Rights(coordinator=True))
        namesake = made("honest", Rights(["a/**"], ["a/**"]))
        self.namesake = str(Path(namesake).rename(ca / "namesake.pem"))
        self.honest = made("honest", Rights(["t"], ["t"]))
        self.holder = made("holder", Rights(["a/**"], ["a/**"]))
        self.holder_of_t = made("other", Rights(["a/**", "t"], ["a/**", "t"]))


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    """The attacks of all modules are a holder's, and coordinators have the certificate for it."""
    made = Certificates(tmp_path / "ca")
    monkeypatch.setenv("PUBSUB_CERT", made.coordinator)
    monkeypatch.setattr(Holder, "contexts", file_contexts(made.holder), raising=False)
    monkeypatch.setattr(Holder, "secrets", (), raising=False)
    monkeypatch.setattr(Holder, "heard", Counter(), raising=False)
    monkeypatch.setattr(Holder, "beyond", [], raising=False)
    monkeypatch.setattr(attacks, "Stranger", Holder)
    monkeypatch.setattr(test_strangers, "Stranger", Holder)
    monkeypatch.setattr(attacks, "UNDER", "a/")  # so that they reach the limits
    for log in LIMITED:  # the attacks are many, and would share one limit of warnings
        monkeypatch.setattr(log, "filters", [])
    return made


@asynccontextmanager
async def honest(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Beside]:
    """The pair: at the end nothing of it was served to any `Holder`, and nothing else was taken."""
    async with beside(
        Registry(max_registrations=5000, max_segments=50_000),
        coordinator=PATIENCE,
        cert=certificates.honest,
        **PATIENCE,
    ) as pair:
        ours = [pair.publisher.runtime.peer_id, pair.subscriber.runtime.peer_id]
        monkeypatch.setattr(Holder, "secrets", (*ours, "'t'", "'honest'"))
        sub = await pair.subscriber.sub("t")
        name = pair._name()
        false: list[object] = []

        async def take() -> None:
            async for event in sub.messages():
                if event.publisher == name or (isinstance(event, Gap) and not event.missed):
                    continue
                false.append(event)

        taking = asyncio.create_task(take())
        yield pair
        taken = len(pair.got)
        await eventually(lambda: len(pair.got) > taken)
        publication, registry = pair.pub._publication, pair.coordinator.registry
        assert {state for state, _ in publication.cursors()} == {"attached"}  # held for nobody
        await eventually(lambda: len(pair.pub.subscribers) == 2)  # others have left just now
        ours_alone = [{"topic": "t", "publishers": 1, "subscribers": 2}]
        await eventually(lambda: [r for r in registry.topics() if r["topic"] == "t"] == ours_alone)
        await sub.close()
        await taking
        assert false == []
        assert Holder.beyond == []
        assert sub.lost == 0
    assert not [r for r in caplog.records if r.exc_info or "internal error" in r.getMessage()]


# --- all that a hostile peer does ---------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["publisher", "coordinator"])
async def test_a_holder_is_served_nothing_beyond_its_rights(
    victim: str,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with honest(certificates, monkeypatch, caplog) as pair:
        before = memory()
        if victim == "publisher":
            target = Target(pair.publisher.runtime.address, "peer", pair.stream_id)
            chosen = [*ON_ANYONE, *ON_PUBLISHER]
        else:
            target = Target(pair.address, "coordinator")
            chosen = [*ON_ANYONE, *ON_COORDINATOR]
        for start in range(0, len(chosen), 4):
            await asyncio.gather(*(attempt(a, target) for a in chosen[start : start + 4]))
        assert Holder.heard[Welcome] >= len(chosen) - len(ON_ANYONE)
        assert Holder.heard[End if victim == "publisher" else Expect]
        await eventually(lambda: len(list(pair.coordinator.registry.peers())) == 2)
        assert memory() - before < 64 * MIB


# --- what only a holder can do ------------------------------------------------------------------


def asks_a_coordinator(address: str, honest: list[str]) -> None:
    """For all that it has no right to, as a peer that is there does."""
    with Holder(address) as holder:
        holder.hello("coordinator", "127.0.0.1", 1)
        id_ = 0
        for role, topic in (("pub", "t"), ("sub", "t"), ("pub", "b/a"), ("sub", "b/**")):
            for renewed in (False, True):
                for observer in (False, True):
                    id_ += 1
                    holder.send(Register(id_, role, topic, renewed, observer))
                    refused = holder.wait_for(Refused)
                    assert isinstance(refused, Refused)
                    assert refused.id == id_
                    verb = "publish" if role == "pub" else "subscribe"
                    assert f"'holder' may not {verb} '{topic}': it may {verb} 'a/**'" in (
                        refused.reason
                    )
        for pattern in ("**", "*", "*/**", "**/a"):  # what is within its rights, and no more
            id_ += 1
            holder.send(register(id_, "sub", pattern))
            match = holder.wait_for(Match)
            assert isinstance(match, Match)
            assert match.added == ()
        holder.send(register(id_, "sub", "t"))  # in the place of one that it may have
        assert isinstance(holder.wait_for(Refused), Refused)
        holder.send(Query(1, "topics"))
        answer = holder.wait_for(Answer)
        assert isinstance(answer, Answer)
        assert answer.rows == ()
        holder.send(Query(2, "peers"))
        goodbye = holder.ended()
        assert (goodbye.code, "cert issue … --list" in goodbye.reason) == ("auth", True)
    with Holder(address) as client:
        client.hello("coordinator", role="client")
        client.send(Query(1, "topics"))
        answer = client.wait_for(Answer)
        assert isinstance(answer, Answer)
        assert all(row["topic"] != "t" for row in answer.rows)
        client.send(register(1, "sub", "a/**"))
        assert client.ended().code == "protocol"
    comes_as(address, "coordinator", honest)


def comes_as(address: str, wants: str, honest: list[str]) -> None:
    """Under an identity that somebody else has."""
    for peer_id in honest:
        with Holder(address) as holder:
            holder.send(hello("peer", wants, peer_id, "", "127.0.0.1", 1, {"name": "stranger"}))
            event = holder.next()
            assert isinstance(event, Goodbye), event  # and no WELCOME
            assert (event.code, event.reason) == ("auth", "its certificate is that of another peer")


def asks_a_publisher(address: str, stream_id: int, honest: list[str]) -> None:
    """For a stream that it has no right to, in each way."""
    with Holder(address) as holder:
        holder.hello("peer", "127.0.0.1", 1)
        channel = 0
        for resume in (None, 0, 1, 2**62):
            for history in (None, 0, 10):
                for observer in (False, True):
                    for before in (False, True):
                        holder.send(
                            Subscribe(
                                *(channel, stream_id, 1, resume, history, 2**40),
                                *(observer, before, 2**28),
                            )
                        )
                        end = holder.wait_for(End)
                        assert isinstance(end, End)
                        assert (end.channel, end.final, end.code) == (channel, 0, "refused")
                        channel += 1
        for other in range(1, 200):  # those that it may not even know of
            if other != stream_id:
                holder.subscribe(channel, other)
                end = holder.wait_for(End)
                assert isinstance(end, End)
                assert end.code == "unknown"
                channel += 1
        holder.send(*(Ack(c, 0, 2**50) for c in range(channel)))
        holder.send(Ping(3))
        holder.wait_for(Pong)
    comes_as(address, "peer", honest)


async def test_a_holder_asks_for_what_it_has_no_right_to(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with honest(certificates, monkeypatch, caplog) as pair:
        publisher, subscriber = pair.publisher.runtime, pair.subscriber.runtime
        peers = [publisher.peer_id, subscriber.peer_id]
        await asyncio.to_thread(asks_a_coordinator, pair.address, peers)
        assert publisher.address is not None
        at = str(publisher.address)
        await asyncio.to_thread(asks_a_publisher, at, pair.stream_id, peers)
        for kind in (Welcome, Refused, Match, Answer, End):
            assert Holder.heard[kind], kind


async def test_a_holder_that_has_the_right_is_served_the_same(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what it is refused above is refused for want of the right."""
    monkeypatch.setattr(Holder, "contexts", file_contexts(certificates.holder_of_t))

    def asks(pair: Beside) -> None:
        with Holder(pair.address) as holder:
            holder.hello("coordinator")
            holder.send(register(1, "sub", "**"), Query(1, "topics"))
            match = holder.wait_for(Match)
            assert isinstance(match, Match)
            assert [row.topic for row in match.added] == ["t"]
            answer = holder.wait_for(Answer)
            assert isinstance(answer, Answer)
            assert "t" in [row["topic"] for row in answer.rows]
        with Holder(str(pair.publisher.runtime.address)) as holder:
            holder.hello("peer")
            holder.subscribe(0, pair.stream_id)
            Stranger.wait_for(holder, Subscribed)
            holder.wait_for(Ping)

    async with beside(cert=certificates.honest, **PATIENCE) as pair:
        await asyncio.to_thread(asks, pair)
    assert Holder.heard[Data]
    assert {type(event) for event in Holder.beyond} == {Subscribed, Data}


# --- what a subscriber takes --------------------------------------------------------------------


class Liar(Coordinator):
    """Has every right that anybody has, where it says who there is."""

    def joined(self, connection: Any, link: Any, other: Any) -> None:
        connection.rights = EVERYTHING
        super().joined(connection, link, other)


def sends_unasked(attack: attacks.Publishing) -> Callable[[Stranger, int], None]:
    """Publish, as one does who was asked."""

    def publish(stranger: Stranger, channel: int) -> None:
        if attack.answer:
            stranger.send(Subscribed(channel, "t", "msgpack", 0, 0, 1 << 20))
        stranger.send(batch(channel, 0, b"\x07"))
        attack.publish(stranger, channel)

    return publish


@pytest.mark.slow
@pytest.mark.usefixtures("only_advertised")
async def test_nothing_is_taken_from_a_holder_where_a_publisher_is_said_to_be(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It comes under the whole identity of the one whose place it takes, and has that one's name,
    else nobody would listen; but not the right."""
    monkeypatch.setattr(Holder, "contexts", file_contexts(certificates.namesake))

    def poses(said: Hello) -> list[Any]:
        return [welcome("peer", said.expects)]

    chosen = ON_SUBSCRIBER

    async def one(attack: attacks.Publishing) -> None:
        async with trap(poses, sends_unasked(attack)) as false:
            told = f"127.0.0.1:{false.port}"
            async with Peer(
                pair.address, advertise=told, cert=certificates.honest, **PATIENCE
            ) as bait:
                pub = await bait.pub("t")
                await eventually(lambda: false.caught, attack.name)
                assert not pub.closed
            heard = {type(event) for event in false.heard}
            assert heard <= {Subscribe, Unsubscribe, Goodbye, Ping}

    async with honest(certificates, monkeypatch, caplog) as pair:
        for start in range(0, len(chosen), 5):
            await asyncio.gather(*map(one, chosen[start : start + 5]))


@pytest.mark.parametrize("lies", [False, True], ids=["honest", "lying"])
async def test_nothing_is_taken_of_a_holders_pub_on_a_topic_of_others(
    lies: bool,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if lies:
        monkeypatch.setattr(test_hostile, "Coordinator", Liar)
    async with honest(certificates, monkeypatch, caplog) as pair:
        published: list[int] = []

        def publish(stranger: Stranger, channel: int) -> None:
            published.append(channel)
            stranger.send(batch(channel, 0, b"\x07"))

        hostile = await asyncio.to_thread(HostilePublisher, pair.address, "t", publish)
        try:
            if lies:
                await eventually(lambda: hostile.connections)
                await eventually(
                    lambda: any(
                        "it may not publish this topic: it may publish 'a/**'" in r.getMessage()
                        for r in caplog.records
                    )
                )
                # nor is anything served to its Sub, of which this coordinator tells
                hostile.session.send(register(2, "sub", "t"))
                address = str(pair.publisher.runtime.address)
                await asyncio.to_thread(
                    asks_a_publisher, address, pair.stream_id, [pair.subscriber.runtime.peer_id]
                )
            else:
                refused = await asyncio.to_thread(hostile.session.wait_for, Refused)
                assert isinstance(refused, Refused)
                assert "'holder' may not publish 't': it may publish 'a/**'" in refused.reason
                assert hostile.connections == []
        finally:
            await asyncio.to_thread(hostile.close)
        await eventually(lambda: len(list(pair.coordinator.registry.peers())) == 2)
        Holder.beyond.clear()  # a coordinator that lies has told it what it knows


async def test_a_holder_is_no_coordinator_for_anybody(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poses_to: list[Hello] = []

    def poses(said: Hello) -> list[Any]:
        poses_to.append(said)
        return [welcome(said.wants, "0123456789abcdef")]

    def publish(stranger: Stranger, channel: int) -> None:
        stranger.send(Refused(1, "auth", "says who?"))

    async with (
        honest(certificates, monkeypatch, caplog) as pair,
        trap(poses, publish) as false,
    ):
        told = f"127.0.0.1:{false.port}"
        why = "the certificate of 'holder' does not make it a coordinator"
        async with Peer(told, cert=certificates.honest, **PATIENCE) as peer:
            with pytest.raises(AuthError, match=why):
                await peer.sub("t")
            with pytest.raises(AuthError, match=why):
                await peer.pub("t")
        with pytest.raises(AuthError, match=why):
            await asyncio.to_thread(ask, parse_address(told), "topics", default_guard())
        # beside one that is a coordinator, it changes nothing
        async with Peer([pair.address, told], cert=certificates.honest, **PATIENCE) as both:
            sub = both.sub("t")
            assert isinstance(await sub.get(timeout=LONG), int)
        assert false.heard
        for goodbye in false.heard:  # nobody has told it anything
            assert isinstance(goodbye, Goodbye)
            assert (goodbye.code, why in goodbye.reason) == ("auth", True)
    assert poses_to == []


async def test_nobody_introduces_itself_to_a_holder_where_another_one_is_looked_for(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TLS has shown that it has another name: it hears of no name, pid or address."""
    said: list[Hello] = []

    def poses(hello: Hello) -> list[Any]:
        said.append(hello)
        return []

    async with (
        honest(certificates, monkeypatch, caplog) as pair,
        trap(poses, lambda stranger, channel: None) as false,
    ):
        told = f"127.0.0.1:{false.port}"
        async with Peer(pair.address, advertise=told, cert=certificates.honest) as bait:
            pub = await bait.pub("t")
            await eventually(lambda: false.caught)
            assert not pub.closed
        for goodbye in false.heard:
            assert isinstance(goodbye, Goodbye)
            assert goodbye.code == "identity"
    assert said == []


async def test_a_holder_keeps_nobody_out_who_comes_later(
    certificates: Certificates,
) -> None:
    """It knows the identity of one with which it shares a topic, and comes first under it to a
    publisher of another topic, and to a coordinator that knows nobody yet, as one that was started
    again."""

    def learn(address: str, there: Peer) -> None:
        with Holder(address) as asks:
            asks.hello("coordinator")
            asks.send(register(1, "sub", "a/*"))
            match = asks.wait_for(Match)
            assert isinstance(match, Match)
            assert [row.peer_id for row in match.added] == [there.peer_id]

    async with (
        coordinator_in_loop() as address,
        coordinator_in_loop() as anew,
        Peer(f"{address},{anew}", cert=certificates.honest) as here,
        Peer(address, cert=certificates.holder_of_t) as there,
    ):
        pub, shared = await here.pub("t"), await there.pub("a/b")
        assert not shared.closed
        await asyncio.to_thread(learn, address, there)
        at = str(here.runtime.address)
        await asyncio.to_thread(comes_as, at, "peer", [there.peer_id])
        await asyncio.to_thread(comes_as, anew, "coordinator", [there.peer_id])
        async with there.sub("t") as sub:
            pub.put("for whom it is")
            assert await sub.get(timeout=5) == "for whom it is"
