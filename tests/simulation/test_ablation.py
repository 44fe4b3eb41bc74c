"""Without any one of its safeguards, the simulation finds a promise broken.

Each test switches one off and runs seeds until a run fails, which must happen soon, and with the
promise that the safeguard is there for. A safeguard without which nothing fails is either not
needed, or the simulation does not look where it is.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import pytest

from pubsub.coordinator import records, registry
from pubsub.coordinator.registry import Registry
from pubsub.coordinator.server import Coordinator
from pubsub.core import receiving
from pubsub.core.cursor import Cursor, Skip
from pubsub.core.inbox import Inbox
from pubsub.core.publication import Publication
from pubsub.core.receiving import Receiving
from pubsub.core.rights import EVERYTHING
from pubsub.core.serving import Serving
from pubsub.core.stream import Stream
from pubsub.core.window import Credit
from pubsub.faces.asyncsub import AsyncSub
from pubsub.links.link import Link, Lost
from pubsub.links.probing import Prober
from pubsub.links.renewal import Renewal
from pubsub.runtime import lingering
from pubsub.runtime.publisher_link import Remote
from pubsub.runtime.readiness import Readiness, Ready
from pubsub.runtime.runtime import Runtime
from pubsub.runtime.subscriber_link import Served, Subscribers
from pubsub.trust.proof import Proof
from pubsub.wire.handshake import Standing
from pubsub.wire.liveness import Heartbeat, Pulse
from pubsub.wire.messages import Match, Register, Subscribe
from tests.simulation.model import Violation
from tests.simulation.world import simulate

pytestmark = pytest.mark.timeout(300)  # they compute, and a busy machine takes its time


MOST = 100
"""Seeds within which a missing safeguard must be found. The world of the one that finds it runs
once more with it, to see that its absence is the only reason."""

Ablation = Callable[[ExitStack], None]


def replace(stack: ExitStack, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put in place of a method what `make` makes of it."""
    stack.enter_context(patch.object(owner, name, make(getattr(owner, name))))


def fails(ablation: Ablation, profile: str, promise: str) -> None:
    """See that this very promise is broken without a safeguard, whatever else is."""
    others: Counter[str] = Counter()
    found = None
    with ExitStack() as stack:
        ablation(stack)
        for seed in range(MOST):
            try:
                simulate(seed, profile)
            except Violation as violation:
                if violation.promise == promise:
                    found = seed
                    break
                others[violation.promise] += 1
    if found is None:
        raise AssertionError(f"{promise} is kept in {MOST} seeds without it; broken: {others}")
    simulate(found, profile)


# --- the subscribing side -------------------------------------------------------------------


def repeating(stack: ExitStack) -> None:
    """Publishers send again what a Sub that comes back has not acknowledged, though it says from
    where it goes on. (With small windows that would be over the window.)"""

    def again(attach: Any) -> Any:
        def from_acked(
            self: Publication, key: Any, outlet: Any, asked: Subscribe, **more: Any
        ) -> Any:
            known = self._cursors.get(key)
            acked = None if known is None else known.acked
            cursor, answer = attach(self, key, outlet, asked, **more)
            if acked is not None and asked.resume is not None and asked.limit > 10**6:
                cursor.place(max(acked, self.log.start))
                REPEATED.append(answer.next - cursor.next)
            return cursor, answer

        return from_acked

    def lenient(ack: Any) -> Any:
        """The Sub acknowledges what it had from before."""
        return lambda self, seq, limit: ack(self, max(self.acked, min(seq, self.sent_until)), limit)

    replace(stack, Publication, "attach", again)
    replace(stack, Cursor, "ack", lenient)


REPEATED: list[int] = []
"""How many messages `repeating` sent again, each time."""


def dedupe(stack: ExitStack) -> None:
    """What came before is taken again, from publishers that repeat themselves."""
    repeating(stack)

    def make(batch: Any) -> Any:
        def again(self: Stream, first: int, *rest: Any) -> None:
            if self.expected is not None:
                self.expected = min(first, self.expected)
            batch(self, first, *rest)

        return again

    replace(stack, Stream, "batch", make)
    replace(stack, Credit, "check", lambda check: lambda self, size, expected: None)


def resume_position(stack: ExitStack) -> None:
    """A stream is subscribed anew as if it had never been there."""

    def make(subscribe: Any) -> Any:
        def anew(self: Receiving, stream: Stream) -> None:
            stream.expected = None
            subscribe(self, stream)

        return anew

    replace(stack, Receiving, "subscribe", make)


def gap_count(stack: ExitStack) -> None:
    """What is lost is not counted."""
    replace(stack, Inbox, "lose", lambda lose: lambda self, stream, count, reason: None)


def gap_event(stack: ExitStack) -> None:
    """What is lost is counted, and not told."""

    def make(put: Any) -> Any:
        def silent(self: Inbox, entry: Any) -> None:
            entry.gaps = ()
            put(self, entry)

        return silent

    replace(stack, Inbox, "put", make)


def gap_frame(stack: ExitStack) -> None:
    """What is not sent is passed over without a word, and nobody minds."""

    def silent(take: Any) -> Any:
        def onward(self: Cursor) -> Any:
            what = take(self)
            while isinstance(what, Skip):
                what = take(self)
            return what

        return onward

    def lenient(batch: Any) -> Any:
        def anything(self: Stream, first: int, *rest: Any) -> None:
            if self.expected is not None:
                self.expected = max(first, self.expected)
            batch(self, first, *rest)

        return anything

    replace(stack, Cursor, "take", silent)
    replace(stack, Stream, "batch", lenient)


def last_words(stack: ExitStack) -> None:
    """A stream whose publisher is gone ends like any other."""
    replace(stack, Stream, "fate", lambda fate: lambda self, trouble: "")


def cancel_safety(stack: ExitStack) -> None:
    """A message is taken out before the last await of `get`."""

    def make(get: Any) -> Any:
        async def late(self: AsyncSub, timeout: float | None = None) -> Any:
            value = await get(self, timeout)
            await asyncio.sleep(0.2)
            return value

        return late

    replace(stack, AsyncSub, "get", make)


def readiness(stack: ExitStack) -> None:
    """A Sub is ready at once."""

    def make(add_sub: Any) -> Any:
        def at_once(self: Runtime, *args: Any) -> Any:
            inbox, ready = add_sub(self, *args)
            ready.set()
            return inbox, ready

        return at_once

    replace(stack, Runtime, "add_sub", make)


def readiness_of_publishers(stack: ExitStack) -> None:
    """A Sub is ready when the coordinators have answered, and not the publishers."""

    def make(check: Any) -> Any:
        def hasty(self: Readiness, ready: Ready) -> None:
            ready.unsettled.clear()
            check(self, ready)

        return hasty

    replace(stack, Readiness, "_check", make)


def redial(stack: ExitStack) -> None:
    """A link that broke stays broken."""

    def make(dial: Any) -> Any:
        def once(self: Remote, delay: float = 0.0) -> None:
            if not self._opened_at:
                dial(self, delay)

        return once

    replace(stack, Remote, "_dial", make)


def link_over_listing(stack: ExitStack) -> None:
    """What a coordinator no longer lists is given up, however healthy its link."""

    def make(matched: Any) -> Any:
        def obedient(self: Runtime, session: Any, match: Match) -> None:
            matched(self, session, match)
            sub = self.subs.get(match.sub_id)
            for stream in list(sub.inbox.streams.values()) if sub is not None else ():
                if stream.key.peer_id != self.peer_id and not self.publishers.listed(stream):
                    if stream.route is not None:
                        stream.route.unsubscribe(stream)
                    self.publishers.give_up(stream)

        return obedient

    replace(stack, Runtime, "matched", make)


# --- the publishing side --------------------------------------------------------------------


def ack_window(stack: ExitStack) -> None:
    """A channel sends whatever there is, and the other end takes it."""

    def make(take: Any) -> Any:
        def greedy(self: Cursor) -> Any:
            self.limit = self.sent + 10**9
            return take(self)

        return greedy

    replace(stack, Cursor, "take", make)
    replace(stack, Credit, "check", lambda check: lambda self, size, expected: None)


def expected_cursors(stack: ExitStack) -> None:
    """Nobody waits for the subscribers that a coordinator names."""
    replace(stack, Publication, "expect", lambda expect: lambda self, key, **how: None)


def first_messages(stack: ExitStack) -> None:
    """A new Pub does not keep its first messages for who may be older."""

    def make(init: Any) -> Any:
        def forgetful(self: Publication, *args: Any, **options: Any) -> None:
            init(self, *args, **options)
            self.settle()

        return forgetful

    replace(stack, Publication, "__init__", make)


def restart_grace(stack: ExitStack) -> None:
    """A Pub takes what a coordinator says for all there is, even when that has just started."""
    replace(
        stack, Readiness, "_settle", lambda settle: lambda self, publication: publication.settle()
    )


def renewed(stack: ExitStack) -> None:
    """What is registered again counts as new."""

    def make(registrations: Any) -> Any:
        def anew(self: Runtime, session: Any) -> Iterator[Register]:
            for register in registrations(self, session):
                yield Register(register.id, register.role, register.topic, False, register.observer)

        return anew

    replace(stack, Runtime, "registrations", make)


def place_of_the_disconnected(stack: ExitStack) -> None:
    """A subscriber whose link broke is forgotten."""

    def make(detach: Any) -> Any:
        def forget(self: Publication, cursor: Cursor, now: float) -> None:
            detach(self, cursor, now)
            self.remove(cursor)

        return forget

    replace(stack, Publication, "detach", make)


def heartbeat(stack: ExitStack) -> None:
    """Silence is never taken for death."""
    replace(stack, Heartbeat, "tick", lambda tick: lambda self: Pulse.NOTHING)


def ping_while_bytes_come(stack: ExitStack) -> None:
    """Who hears something has nothing to ask."""

    def make(tick: Any) -> Any:
        def polite(self: Heartbeat) -> Pulse:
            pulse: Pulse = tick(self)
            return Pulse.NOTHING if pulse is Pulse.PING and self.silent < self._ping_at else pulse

        return polite

    replace(stack, Heartbeat, "tick", make)


def room(stack: ExitStack) -> None:
    """With overflow="block" there is always room."""
    replace(stack, Publication, "room", lambda room: lambda self, size: True)


def dropping(stack: ExitStack) -> None:
    """A log that is over its buffer keeps all the same what somebody needs."""

    def make(append: Any) -> Any:
        def hoard(self: Publication, *batch: Any) -> Any:
            buffer, self.buffer = self.buffer, 10**9
            try:
                return append(self, *batch)
            finally:
                self.buffer = buffer

        return hoard

    replace(stack, Publication, "append", make)


def holds(stack: ExitStack) -> None:
    """A log lets go what was sent, whoever may have to have it again."""

    def make(take: Any) -> Any:
        def hasty(self: Cursor) -> Any:
            batch = take(self)
            if batch is not None:
                self._hold(self.send)
            return batch

        return hasty

    def trimming(append: Any) -> Any:
        def hasty(self: Publication, *args: Any) -> Any:
            batch = append(self, *args)
            self.log.trim(self.history)  # now, and not with the next ACK
            return batch

        return hasty

    replace(stack, Cursor, "take", make)
    replace(stack, Publication, "append", trimming)


def flush_by_pong(stack: ExitStack) -> None:
    """What is written counts as received."""

    def make(take: Any) -> Any:
        def trusting(self: Cursor) -> Any:
            batch = take(self)
            self.arrived(self.next)
            return batch

        return trusting

    replace(stack, Cursor, "take", make)


def linger(stack: ExitStack) -> None:
    """A Pub is closed without waiting for its subscribers. (A flush waits.)"""

    async def at_once(loop: Any, pub: Any, by: float) -> None:
        pub.source.seal()

    replace(stack, lingering, "_delivered", lambda delivered: at_once)


def count_in_end(stack: ExitStack) -> None:
    """END does not say how many messages there were."""
    replace(stack, Stream, "end", lambda end: lambda self, final: end(self, 0))


def cursor_removal(stack: ExitStack) -> None:
    """A Sub that was closed keeps its place in the log, as if its link had broken, for ever."""

    def detach(self: Publication, cursor: Cursor) -> None:
        if self._attached.pop(cursor.key, None) is not None:
            cursor.outlet = None
            cursor.queued = False

    replace(stack, Publication, "remove", lambda remove: detach)


def probing(stack: ExitStack) -> None:
    """Nobody asks whether a peer that went without a goodbye still lives."""
    replace(stack, Prober, "suspect", lambda suspect: lambda self, *args: None)


def probing_by_coordinators(stack: ExitStack) -> None:
    """The same for coordinators: whom they name to a new Pub may be dead."""
    replace(stack, Coordinator, "_is_gone", lambda gone: lambda self, peer_id: None)


# --- keys and rights ------------------------------------------------------------------------


def without_rights(stack: ExitStack, of: type) -> None:
    """Whoever is at the other end may do everything."""

    def make(init: Any) -> Any:
        def trusting(self: Any, *args: Any, **options: Any) -> None:
            init(self, *args, **{**options, "rights": EVERYTHING})

        return trusting

    replace(stack, of, "__init__", make)


def rights_at_the_publisher(stack: ExitStack) -> None:
    """A publisher gives a stream to whoever a coordinator has sent."""
    without_rights(stack, Serving)


def rights_at_the_subscriber(stack: ExitStack) -> None:
    """A Sub takes a stream from whoever a coordinator has named."""
    without_rights(stack, Receiving)


def topic_at_the_subscriber(stack: ExitStack) -> None:
    """A Sub takes whatever topic a coordinator has named to it."""
    replace(stack, receiving, "hears", lambda hears: lambda subscribed, topic: True)


def rights_at_the_coordinator(stack: ExitStack) -> None:
    """A coordinator takes whatever is registered."""
    replace(stack, registry, "refused", lambda refused: lambda peer, message, topic: None)


def matches_within_rights(stack: ExitStack) -> None:
    """A coordinator tells a Sub of all that its pattern matches."""

    def make(init: Any) -> Any:
        def unlimited(self: Any, *args: Any) -> None:
            init(self, *args)
            self.limited = False

        return unlimited

    replace(stack, records.Registration, "__init__", make)


def claims_at_the_coordinator(stack: ExitStack) -> None:
    """A coordinator takes whoever says that it is a peer for that peer."""
    replace(stack, Registry, "knows", lambda knows: lambda self, peer_id, who: True)


def claims_at_the_publisher(stack: ExitStack) -> None:
    """A publisher takes whoever says that it is a subscriber for that subscriber."""
    replace(stack, Subscribers, "admit", lambda admit: lambda self, other: None)


def proof(stack: ExitStack) -> None:
    """Any proof counts."""

    def make(verify: Any) -> Any:
        def lenient(self: Proof, label: str, hello: Any, asked: Any, shown: bytes) -> None:
            self._standing = Standing(EVERYTHING, authenticated=True)

        return lenient

    replace(stack, Proof, "_verify", make)


def rekey(stack: ExitStack) -> None:
    """What stands on a key that is gone goes on."""
    replace(stack, Renewal, "review", lambda review: lambda self: None)


def rekey_redial(stack: ExitStack) -> None:
    """What stands on a key that is gone is ended like any other link: by a goodbye."""
    replace(stack, Link, "renew", lambda renew: lambda self: self.goodbye())


def place_of_the_rekeyed(stack: ExitStack) -> None:
    """A publisher that ends such a link forgets who was there."""

    def make(closed: Any) -> Any:
        def forget(self: Served, link: Link, error: Exception | None) -> None:
            renewed = isinstance(error, Lost) and "counts no more" in str(error)
            closed(self, link, None if renewed else error)

        return forget

    replace(stack, Served, "closed", make)


def calls(stack: ExitStack) -> None:
    """Nobody asks a publisher to dial."""
    replace(stack, Remote, "_go_around", lambda go: lambda self: None)


ABLATIONS: dict[Ablation, tuple[str, str]] = {
    # without it: the profile, and the promise that the simulation finds broken
    dedupe: ("links", "G2"),
    calls: ("walls", "G7"),
    resume_position: ("links", "G2"),
    gap_count: ("calm", "G3"),
    gap_event: ("calm", "G3"),
    gap_frame: ("calm", "G3"),
    last_words: ("chaos", "G3"),
    cancel_safety: ("calm", "G4"),  # its first message
    readiness: ("calm", "G4"),
    readiness_of_publishers: ("calm", "G4"),
    redial: ("links", "G7"),
    link_over_listing: ("discovery", "G7"),
    ack_window: ("calm", "G6"),
    expected_cursors: ("calm", "G4"),
    first_messages: ("calm", "G4"),
    restart_grace: ("discovery", "G4"),
    renewed: ("discovery", "G4"),
    place_of_the_disconnected: ("links", "G5"),
    heartbeat: ("links", "G7"),
    ping_while_bytes_come: ("discovery", "G7"),
    room: ("calm", "G6"),
    dropping: ("calm", "G6"),
    holds: ("links", "G5"),
    flush_by_pong: ("calm", "G9"),
    linger: ("calm", "G9"),
    count_in_end: ("calm", "G3"),
    cursor_removal: ("calm", "leak"),
    probing: ("deaths", "G8"),
    probing_by_coordinators: ("deaths", "G8"),
    rights_at_the_publisher: ("rights", "rights"),
    rights_at_the_subscriber: ("rights", "rights"),
    topic_at_the_subscriber: ("rights", "G1"),
    rights_at_the_coordinator: ("rights", "rights"),
    matches_within_rights: ("rights", "rights"),
    claims_at_the_coordinator: ("keys", "auth"),
    claims_at_the_publisher: ("keys", "auth"),
    proof: ("keys", "auth"),
    rekey: ("keys", "auth"),
    rekey_redial: ("keys", "G7"),
    place_of_the_rekeyed: ("keys", "G5"),
}


@pytest.mark.parametrize("ablation", ABLATIONS, ids=lambda ablation: ablation.__name__)
def test_without_its_safeguard_a_promise_is_broken(ablation: Ablation) -> None:
    if ABLATIONS[ablation][0] in ("keys", "rights"):
        pytest.importorskip("cryptography", reason="some worlds have TLS")
    fails(ablation, *ABLATIONS[ablation])


def test_g2_a_publisher_that_repeats_itself_is_not_believed() -> None:
    """So it is `dedupe` alone that its ablation shows."""
    REPEATED.clear()
    with ExitStack() as stack:
        repeating(stack)
        for seed in range(3 * MOST):
            simulate(seed, "links")
            if sum(REPEATED) > 20:
                return
    raise AssertionError(f"in {3 * MOST} seeds, only {sum(REPEATED)} messages were repeated")
