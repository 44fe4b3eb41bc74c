"""What `pubsub doctor` looks at: it asks, dials and tries out, each for a bounded time, and hands
every finding on as soon as there is one."""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Literal, NamedTuple, TypeVar

from pubsub import Gap, Peer
from pubsub._version import __version__
from pubsub.cli import findings
from pubsub.cli.asking import What, ask, find_default
from pubsub.cli.command import given_credentials
from pubsub.cli.findings import Fault, Finding, Met, Seen
from pubsub.cli.knocking import DIAL, KNOCK, knock
from pubsub.cli.measuring import Measuring, answer, own_name
from pubsub.config import (
    DEFAULT_COORDINATOR,
    Address,
    Settings,
    coordinators_from,
    is_loopback,
)
from pubsub.coordinator.registry import machine_of
from pubsub.errors import DecodeError, PubSubError
from pubsub.links.keeping import explain
from pubsub.links.resolving import host_of, resolve
from pubsub.runtime.coordinator_link import PORTS, most_of
from pubsub.trust.credentials import credentials_from
from pubsub.trust.guard import Group, Guard, Holder

__all__ = ["Examination"]

T = TypeVar("T")

SAID = 1.0
"""Seconds of waiting after which it is said for whom."""
ADDRESSES = 2
"""Addresses of a name under which a peer or relay is dialled."""
VISIT = DIAL + ADDRESSES * KNOCK
"""Seconds for both."""
ASK = 5.0
"""Seconds for a coordinator's list."""
AT_ONCE = 8
"""Peers that are dialled at a time."""
MOST = 50
"""Peers that are dialled."""
LOOK = 2.0
"""Seconds for which the streams of a topic are looked at."""
JOIN = 8.0
"""Seconds for a Sub to be ready."""
TURNS = 100
"""Messages that go there and back, one after the other."""
MESSAGES = 20_000
"""Messages that are put as fast as it goes."""
PAYLOAD = 100
"""Bytes of each."""


class _Told(NamedTuple):
    """What one coordinator knows."""

    address: Address
    here: bool
    """It is on this machine."""
    topics: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    relays: list[dict[str, Any]]


class Examination:
    """Looks at everything, in an order in which the first trouble often explains those after it.

    Parameters:
        topic: a topic or pattern to look at; None: none.
        coordinator: what the command was told.
        tell: gets each finding.
        waits: gets a sentence on whom is waited for.
    """

    def __init__(
        self,
        topic: str | None,
        coordinator: str | None,
        tell: Callable[[Finding], None],
        waits: Callable[[str], None],
    ) -> None:
        self._topic = topic
        self._coordinator = coordinator
        self._tell = tell
        self._waits = waits
        self._loop = asyncio.get_running_loop()
        self._unreached = False
        self._exposed = False
        self._alone: dict[str, Finding] = {}  # who listens on loopback; said with its streams

    async def run(self) -> None:
        """All of it."""
        for finding in findings.environment(os.environ, _versions()):
            self._tell(finding)
        guard = self._credentials()
        self._descriptors()
        if guard is None:
            return
        named, configured = coordinators_from(self._coordinator, {})
        if not configured:
            where = asyncio.to_thread(find_default, guard)
            named = (await self._patiently(where, f"a coordinator at {named[0]}", PORTS * DIAL),)
        told = await self._coordinators(named, configured, guard)
        peers = {row["peer_id"]: (row, each) for each in told for row in each.peers}
        if len(peers) > findings.SPARE:
            self._descriptors(len(peers))
        await self._peers(list(peers.values()), guard)
        await self._relays({row["peer_id"]: row for each in told for row in each.relays}, guard)
        rows = {row["topic"]: row for each in told for row in each.topics}
        for finding in findings.foreign_topics(rows.values()):
            self._tell(finding)
        if told and self._topic is not None:
            for finding in findings.topic(self._topic, {str(t.address): t.topics for t in told}):
                self._tell(finding)
            await self._streams(self._topic, [row for row, _ in peers.values()])
        for finding in self._alone.values():
            self._tell(finding)
        if told or not configured:
            await self._path(guard)

    async def _patiently(self, what: Awaitable[T], whom: str, seconds: float) -> T:
        """Wait no longer than that, and say for whom.

        Raises:
            asyncio.TimeoutError: it was not enough.
        """
        task = asyncio.ensure_future(what)
        try:
            await asyncio.wait({task}, timeout=SAID)
            if not task.done():
                self._waits(f"waiting for {whom} (at most {seconds:g} s)")
                await asyncio.wait({task}, timeout=max(0.0, seconds - SAID))
            if not task.done():
                raise asyncio.TimeoutError
            return task.result()
        finally:
            task.cancel()

    # --- this process -----------------------------------------------------------------------

    def _credentials(self) -> Guard | None:
        try:
            found = credentials_from(Settings(**given_credentials()), os.environ)
            guard = found.guard()
            keys = [key.id for key in (found.keys() if isinstance(guard, Group) else ())]
        except (PubSubError, ValueError, OSError) as error:
            self._tell(Finding("credentials", "wrong", str(error)))
            return None
        held = isinstance(guard, Holder)
        self._tell(
            findings.credentials(
                *(found.kind, "" if found.kind == "key" else found.value, found.source),
                keys=keys,
                name=guard.name,
                until=guard.until if held else 0.0,
                rights=str(guard.rights) if held else "",
                now=time.time(),
            )
        )
        return guard

    def _descriptors(self, peers: int = 0) -> None:
        try:
            import resource
        except ImportError:  # Windows has no such limit
            return
        self._tell(findings.descriptors(*resource.getrlimit(resource.RLIMIT_NOFILE), peers))

    # --- coordinators, peers and relays -----------------------------------------------------

    async def _knock(
        self, at: Address, wants: Literal["peer", "coordinator", "relay"], guard: Guard
    ) -> tuple[Met | Fault, bool]:
        """Whom one meets there, and whether it is on this machine."""
        found, link = await knock(at, wants, guard)
        here = is_loopback(at.host)
        if link.sockname and link.peername:
            source, met = host_of(link.sockname), Address(host_of(link.peername), at.port)
            here = not machine_of(source, met)
        await link.gone()
        return found, here

    async def _resolved(self, named: Address) -> list[Address] | Fault:
        try:
            hosts = await resolve(self._loop, named.host, DIAL)
        except OSError as error:
            return Fault(named, "name", explain(error))
        return [Address(host, named.port) for host in hosts]

    async def _visit(
        self, named: Address, wants: Literal["peer", "relay"], guard: Guard
    ) -> Met | Fault:
        """Whom one meets at the first address of that name where anybody is."""
        places = await self._resolved(named)
        if isinstance(places, Fault):
            return places
        found = [(await self._knock(place, wants, guard))[0] for place in places[:ADDRESSES]]
        return next((each for each in found if isinstance(each, Met)), found[0])

    async def _coordinators(
        self, named: Sequence[Address], configured: bool, guard: Guard
    ) -> list[_Told]:
        """What those know that answer."""
        told, answers = [], []
        for address in named:
            places = await self._resolved(address)
            found: list[Met | Fault] = []
            each_once: dict[str, tuple[Address, bool]] = {}
            if isinstance(places, Fault):
                found.append(places)
            else:
                knocks = [self._knock(at, "coordinator", guard) for at in most_of(places)]
                whom = f"the coordinator at {address}"
                for answer, is_here in await self._patiently(asyncio.gather(*knocks), whom, KNOCK):
                    found.append(answer)
                    if isinstance(answer, Met):
                        at, before = each_once.get(answer.peer_id, (answer.at, False))
                        each_once[answer.peer_id] = at, before or is_here
                        self._exposed |= not is_loopback(answer.at.host)
            for finding in findings.coordinator(
                address, found, version=__version__, configured=configured
            ):
                self._tell(finding)
            answers.append((address, found))
            for at, here in each_once.values():
                one = address if len(each_once) == 1 else at
                told.append(await self._lists(one, here, guard))
        for finding in findings.same(answers):
            self._tell(finding)
        if configured:
            known = [
                each.peer_id for _, found in answers for each in found if isinstance(each, Met)
            ]
            await self._beside(known, named, guard)
        return told

    async def _lists(self, address: Address, here: bool, guard: Guard) -> _Told:
        rows: dict[str, list[dict[str, Any]]] = {}
        asked: tuple[What, ...] = ("topics", "peers", "relays")
        for what in asked:
            question = asyncio.to_thread(ask, address, what, guard, timeout=ASK)
            try:
                rows[what] = await self._patiently(
                    question, f"the {what} of the coordinator at {address}", 2 * ASK
                )
            except (PubSubError, asyncio.TimeoutError) as error:
                rows[what] = []
                self._tell(
                    Finding(
                        f"coordinator {address}",
                        "note",
                        f"its {what} could not be asked for: {explain(error)}",
                    )
                )
        return _Told(address, here, rows["topics"], rows["peers"], rows["relays"])

    async def _beside(self, known: list[str], named: Sequence[Address], guard: Guard) -> None:
        """Whether another coordinator is where programs look that were told of none."""
        first = DEFAULT_COORDINATOR
        places = [Address(first.host, first.port + n) for n in range(PORTS)]
        knocks = [self._knock(place, "coordinator", guard) for place in places]
        whom = f"coordinators beside, from {places[0]} on"
        for found, _ in await self._patiently(asyncio.gather(*knocks), whom, KNOCK):
            if isinstance(found, Met):
                finding = findings.beside(found, known, named)
                if finding is not None:
                    self._tell(finding)

    async def _peers(self, listed: list[tuple[dict[str, Any], _Told]], guard: Guard) -> None:
        self._exposed |= any(
            not is_loopback(place.host) for row, _ in listed for place in findings.places(row)
        )
        turns = asyncio.Semaphore(AT_ONCE)

        async def look(row: dict[str, Any], told: _Told) -> None:
            async with turns:
                places = findings.places(row, told.address.host.partition("%")[2])
                mine = [at for at in places if told.here or not is_loopback(at.host)]
                found = await asyncio.gather(*(self._visit(at, "peer", guard) for at in mine))
            finding = findings.peer(row, found, exposed=self._exposed)
            alone = findings.is_alone(row, exposed=self._exposed)
            if alone and finding.subject not in self._alone:
                self._alone[finding.subject] = finding
            else:
                self._unreached |= not alone and findings.needs_relay(found)
                self._tell(finding)

        looks = [look(row, told) for row, told in listed[:MOST]]
        most = VISIT * -(-len(looks) // AT_ONCE)
        await self._patiently(asyncio.gather(*looks), "the peers that do not answer", most)
        if len(listed) > MOST:
            text = f"{MOST} of {len(listed):,} were dialled"
            self._tell(Finding("peers", "note", text))

    async def _relays(self, rows: Mapping[str, dict[str, Any]], guard: Guard) -> None:
        found: list[tuple[dict[str, Any], Sequence[Met | Fault]]] = []
        for row in rows.values():
            if places := findings.places(row):
                visits = asyncio.gather(*(self._visit(at, "relay", guard) for at in places))
                whom = f"the relay at {' and '.join(map(str, places))}"
                found.append((row, await self._patiently(visits, whom, VISIT)))
        for finding in findings.relays(found, needed=self._unreached):
            self._tell(finding)

    # --- what is tried out ------------------------------------------------------------------

    def _peer(self) -> Peer:
        return Peer(
            self._coordinator,
            name="pubsub doctor",
            connect_timeout=DIAL,
            linger=0.0,
            **given_credentials(),
        )

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Within: what the library warns of is a finding too."""
        said: dict[str, None] = {}

        class Warnings(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                said[record.getMessage()] = None

        handler = Warnings(logging.WARNING)
        logger = logging.getLogger("pubsub")
        handler.addFilter(lambda record: record.name == "pubsub")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            of_alone = tuple(f"the publisher {who} on " for who in self._alone)
            for text in said:
                if not text.startswith(of_alone):  # that is said of it anyway
                    self._tell(Finding("what a program is told here", "wrong", text))

    async def _streams(self, topic: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See for a while what a Sub of this topic gets, from whom of these."""
        peer = self._peer()
        try:
            with self._listening():
                sub = peer.sub(topic, observer=True, history=1)
                await self._patiently(_ready(sub), f"the publishers of {topic!r}", JOIN)
                found = await self._look(sub)
            missed: dict[str, list[Seen]] = {}
            for publisher, state in sub.publishers.items():
                name = findings.called(publisher, rows)
                seen = found(publisher, state)._replace(publisher=name)
                who = name.rpartition("#")[0]
                if who in self._alone and seen.state != "attached":
                    missed.setdefault(who, []).append(seen)
                else:
                    self._tell(findings.stream(seen))
            for who, streams in missed.items():
                self._alone[who] = findings.not_reached(self._alone[who], streams)
        except (PubSubError, OSError, asyncio.TimeoutError) as error:
            text = f"a Sub of it is not ready: {explain(error)}"
            self._tell(Finding(f"topic {topic}", "wrong", text))
        finally:
            await peer.close(0.0)

    async def _look(self, sub: Any) -> Callable[[str, dict[str, Any]], Seen]:
        began, since = self._loop.time(), time.time()
        taken: dict[str, int] = {}
        delays: dict[str, float] = {}
        last: dict[str, float] = {}

        async def follow() -> None:
            while True:
                try:
                    async for event in sub.messages():
                        if isinstance(event, Gap):
                            continue
                        who, delay = event.publisher, time.time() - event.sent_at
                        if who in last or event.sent_at >= since:  # the first may be from before
                            taken[who] = taken.get(who, 0) + 1
                            delays[who] = min(delay, delays.get(who, delay))
                        last[who] = event.sent_at
                except DecodeError as error:
                    self._tell(Finding(f"topic {error.topic}", "note", str(error)))

        following = asyncio.ensure_future(follow())
        try:
            await asyncio.wait({following}, timeout=LOOK)
            if following.done():
                following.result()
        finally:
            following.cancel()
        seconds = self._loop.time() - began
        now = time.time()

        def seen(publisher: str, state: dict[str, Any]) -> Seen:
            away = state["since"]
            return Seen(
                *(publisher, state["topic"], state["state"], state["way"], state["failed"]),
                *(seconds if away is None else now - away, taken.get(publisher, 0), state["lost"]),
                delays.get(publisher),
                now - last[publisher] if publisher in last else None,
            )

        return seen

    async def _path(self, guard: Guard) -> None:
        """Two Peers, which meet as any two programs do."""
        subject = "a Pub and a Sub of its own"
        name = own_name(guard, "pubsub-doctor")
        if name is None:
            self._tell(
                Finding(
                    subject,
                    "note",
                    "not tried out: there is no pattern of which this certificate may both publish "
                    "and subscribe a topic",
                )
            )
            return
        one = two = None
        try:
            with self._listening():
                one, two = self._peer(), self._peer()
                text = await self._patiently(
                    _try_out(one, two, name), "messages of its own", 3 * JOIN
                )
            self._tell(Finding(subject, "ok", text))
        except asyncio.TimeoutError:
            text = f"a message did not arrive, or not come back, within {3 * JOIN:g} s"
            self._tell(Finding(subject, "wrong", text))
        except (PubSubError, OSError) as error:
            self._tell(Finding(subject, "wrong", f"they do not meet: {explain(error)}"))
        finally:
            for peer in (one, two):
                if peer is not None:
                    await peer.close(0.0)


async def _ready(sub: Any) -> None:
    await sub


async def _try_out(one: Peer, two: Peer, name: str) -> str:
    """Send something from the one to the other and back; returns what was measured."""
    answering = asyncio.ensure_future(answer(two, name))
    try:
        async with Measuring.between(one, name, PAYLOAD) as measuring:
            turns = await measuring.turns(TURNS, JOIN)
            flood = await measuring.flood(MESSAGES, JOIN)
    finally:
        answering.cancel()
        await asyncio.wait({answering})
    return (
        f"a message goes there and back in {median(turns) * 1000:.1f} ms, and "
        f"{flood.messages / flood.seconds:,.0f} of {PAYLOAD} bytes go through in a second"
    )


def _versions() -> str:
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    python = f"Python {platform.python_version()} on {platform.system()}"
    return f"pubsubd {__version__}, {python}, {loop}"
