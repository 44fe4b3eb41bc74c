"""Sub: what a subscriber holds.

Here is what its two forms (`asyncsub`, `blockingsub`) share. Both take whole batches from the
inbox, decode each when its first message is asked for, and hand out messages from a list iterator.
"""

from __future__ import annotations

import operator
import weakref
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby, islice, pairwise, repeat
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pubsub.codec.codecs import by_name, decoder_of
from pubsub.codec.decoder import Decoder
from pubsub.codec.headers import BatchHeaders
from pubsub.codec.own_codecs import Codec
from pubsub.config import MIB, whole
from pubsub.core.inbox import Inbox
from pubsub.core.stream import Entry, Stream
from pubsub.core.topics import check_pattern
from pubsub.core.window import Credit
from pubsub.errors import DecodeError, PubSubError
from pubsub.faces.account import what_is_unknown
from pubsub.faces.elsewhere import refuse_inside
from pubsub.faces.face import Face, Weak
from pubsub.faces.foreign import warn_of_foreign_wildcards
from pubsub.faces.message import Gap, Message, Observed, Run, message_of, pairs_of
from pubsub.faces.peer import Peer
from pubsub.faces.process import default_peer
from pubsub.runtime.members import Effort
from pubsub.support.host import this_host
from pubsub.support.logs import logger
from pubsub.support.ratelimit import RateLimit

__all__ = ["Sub"]

log = logger("pubsub.sub")
log.logger.addFilter(RateLimit())  # a publisher of garbage can make it speak

NOTHING: Any = object()


class Sub(Face, blocking=None):
    """Receives the messages of a topic, or of all topics that match a pattern.

    Made where no event loop runs, it belongs to the process's default `Peer`, its calls block,
    and it is *ready* when the constructor returns: every publisher that the coordinator knew has
    acknowledged it, and whatever is put from then on arrives. Made inside a running event loop,
    it belongs to that loop; ``await sub`` or ``async with sub`` makes sure that it is ready.

    ``for value in sub`` (in an event loop ``async for``) gives the messages until it is closed.

    Parameters:
        topic: a topic, or a pattern with ``*`` (one segment) and ``**`` (any number).
        peer: the Peer to belong to; default: the process's, or the running loop's, own.
        keep: ``"all"`` messages, or only the ``"latest"`` of each topic that was not taken yet
            (those it overtook count as lost, with the reason ``conflated``).
        history: how many messages from before now are wanted, or ``"all"``; a Pub gives what its
            own `history` kept. Default 0.
        window: bytes that may wait here before publishers pause sending. Default 8 MiB.
        observer: True: a Pub never waits for this Sub, not even with ``overflow="block"``.
        copy: numpy arrays come read-only, because others may have the same memory (in this process,
            and over `Peer`'s `shared_memory` in others); True: as copies that can be written to.
        allow_pickle: True: accept streams with ``codec="pickle"`` of publishers that have shown who
            they are; ``"anyone"``: of all, also where there are no credentials. Unpickling runs
            code of the sender's choice: only where every publisher is trusted.
        codec: a `Codec`, or several, whose streams it decodes too. One that runs code is taken from
            publishers that have shown who they are; with ``allow_pickle="anyone"`` from all.

    Raises:
        TopicError: the topic or pattern is not valid.
        CoordinatorUnavailable: blocking only, when none could be reached in time; in an event
            loop ``await sub`` and ``get`` raise it. Also when one takes no more Pubs and Subs.
        AuthError: in the same places, when a coordinator says that this process has no right to
            the topic, or to anything that matches the pattern.
        OSError: in the same places, when the Peer cannot listen on its ``host`` and ``port``.
        WrongContext: no place for it: in the middle of the work of a Peer (in a signal handler,
            say), with another face than its `peer`, where threads are replaced (gevent, eventlet),
            or where Python is ending and starts no thread any more.

    Example:
        >>> from pubsub import Pub, Sub
        >>> sub = Sub("numbers/*")
        >>> pub = Pub("numbers/odd")
        >>> pub.put([1, 3, 5])
        >>> sub.get(timeout=5)
        [1, 3, 5]
        >>> pub.close(); sub.close()
    """

    _kind = "Sub"
    _tracer: ClassVar[Any] = None  # see `tracing`
    _inbox: Inbox
    _waiting: Any  # true where somebody waits for a message

    def __init__(
        self,
        topic: str,
        *,
        peer: Peer | None = None,
        keep: Literal["all", "latest"] = "all",
        history: int | Literal["all"] = 0,
        window: int = 8 * MIB,
        observer: bool = False,
        copy: bool = False,
        allow_pickle: bool | Literal["anyone"] = False,
        codec: Codec | Iterable[Codec] = (),
    ) -> None:
        refuse_inside("Sub")
        self._dead: Exception | None = None
        self._held: Exception | None = None
        self.topic = check_pattern(topic)
        warn_of_foreign_wildcards(self.topic)
        if keep not in ("all", "latest"):
            raise ValueError(f'keep {keep!r} is neither "all" nor "latest"')
        if isinstance(history, str) and history != "all":
            raise TypeError(f'history={history!r} is neither a whole number nor "all"')
        self.keep = keep
        self.history: int | Literal["all"] = (
            "all" if history == "all" else whole("history", history, 0)
        )
        self.window = whole("window", window, 1)
        self.observer = bool(observer)
        self.copy = bool(copy)
        if isinstance(allow_pickle, str) and allow_pickle != "anyone":
            raise ValueError(f'allow_pickle={allow_pickle!r} is neither True, False nor "anyone"')
        self.allow_pickle: bool | Literal["anyone"] = (
            "anyone" if allow_pickle == "anyone" else bool(allow_pickle)
        )
        self._codecs = by_name(codec)
        self.peer = peer if peer is not None else default_peer(Peer)
        self._values: Iterator[Any] = iter(())
        self._run: Run | None = None
        self._runs: Run | None = None  # the next ones, of the same batch
        self._gaps: deque[Gap] = deque()
        self._installed: Entry | None = None  # it can be handed out, and still waits in the inbox
        self._over: Exception | None = None  # why nothing is made ready to be handed out any more
        self._dropped: deque[bool] = deque()  # as many as were handed out to nobody at the end
        self._decoders: dict[str, Decoder] = {}
        self._timeout: Any = None  # found to be right: who says it again pays a comparison
        # What the program does with what it takes, while somebody asks; see `_effort`.
        self._stopwatch = this_host().stopwatch
        self._watching = self.peer.runtime.watching
        self._taken_at = 0.0  # when the batch was that it is at; 0: it waits, or nobody asked then
        self._in_hand = 0  # messages of that
        self._handled = 0  # messages before
        self._handling = 0.0  # seconds that they took
        self._open()

    def _enter(self, weak: Weak) -> None:
        self._inbox, self._ready = self._runtime.add_sub(weak, self._make_inbox)
        self._when_dropped(self._runtime.drop_sub, self._inbox.sub_id)

    def _make_inbox(self, sub_id: int) -> Inbox:
        inbox = Inbox(
            sub_id,
            self.topic,
            latest=self.keep == "latest",
            window=self.window,
            history=None if self.history == "all" else self.history,
            observer=self.observer,
        )
        this = weakref.ref(self)

        def on_entry() -> None:
            sub = this()
            if sub is not None and sub._waiting:
                sub._wake()

        # the callbacks are there before the first entry can be
        inbox.accepts = self._acceptance()
        inbox.on_entry = on_entry
        inbox.window.on_consumed = self._on_consumed()
        return inbox

    def _acceptance(self) -> Callable[[Stream], Exception | None]:
        """What says why this Sub cannot read a stream, if it cannot; it keeps no Sub alive."""
        allow_pickle, codecs = self.allow_pickle, self._codecs

        def accepts(stream: Stream) -> Exception | None:
            try:
                decoder_of(stream.codec, codecs, allow_pickle=bool(allow_pickle))
                own = codecs.get(stream.codec)
                runs_code = stream.codec == "pickle" if own is None else own.runs_code
                if runs_code and not (stream.vouched or allow_pickle == "anyone"):
                    how = "is pickled" if own is None else f"uses the codec {own.name!r}"
                    raise DecodeError(
                        f"this stream {how}, and its publisher has not shown who it is (nobody "
                        "has credentials here): give all of them a key, or use "
                        'Sub(..., allow_pickle="anyone") where anyone may run code here'
                    )
            except DecodeError as error:
                return DecodeError(
                    f"{stream.topic!r} from {stream.publisher}: {error}",
                    topic=stream.topic,
                    publisher=stream.publisher,
                )
            return None

        return accepts

    if TYPE_CHECKING:  # of either form

        def _on_consumed(self) -> Callable[[Credit, int], None]: ...  # see `Window.on_consumed`
        def _wake(self) -> None: ...  # there is something to take, or nothing will come
        def _abandon(self, error: Exception) -> None: ...  # see `Sink`
        def __iter__(self) -> Iterator[Any]: ...
        def __aiter__(self) -> AsyncIterator[Any]: ...

    # --- taking -------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Any:
        """The next message. To be awaited in an event loop; cancelling it loses no message. While
        more waits than is taken, the loop runs once 10 ms have passed, before the next batch.

        Parameters:
            timeout: seconds to wait, any real number; None or infinite: for ever; 0 or less: take
                what is there.

        Raises:
            TimeoutError: nothing came in time.
            Closed: the Sub is closed. (A daemon thread that waits here when the interpreter
                exits does not return.)
            DecodeError: a publisher's codec is not allowed here (once for each such stream).
            CoordinatorUnavailable: none could be reached.
            WrongContext: a Sub that was made outside an event loop would block this one; or this
                call interrupts another one on the same Sub (from a signal handler, say), which it
                would have to wait for.
        """

    def get_many(self, max: int = 1000, timeout: float | None = None) -> Any:
        """A list of at least one message and at most `max`: what is there, waiting only for the
        first. To be awaited in an event loop.

        Raises: as `get`; and ValueError, TypeError, before anything is taken, where `max` is no
            whole number above 0.
        """

    def messages(self) -> Any:
        """The same messages with where they come from, and each gap in its place: an iterator,
        in an event loop an asynchronous one, which goes on after a wait that was cancelled.

        Yields:
            `Message` and `Gap`.
        """

    def close(self) -> Any:
        """Close: loops over it end, what waits is given up (and counted as lost). May be called
        again, and from anywhere: a signal handler, a destructor, another thread. In an event loop
        it may be awaited, and need not be; called from elsewhere than its loop's thread, it is done
        in the next turn of the loop, and whoever waits for a message there is woken."""

    # --- decoding -----------------------------------------------------------------------

    def _decoded(self, entry: Entry) -> tuple[Run, int, BaseException | None]:
        """An entry's messages, how many of them cannot be decoded, and why; or what a signal
        handler raised meanwhile. It may be done again: nothing is changed."""
        stream = entry.stream
        wanted = entry.end - entry.first
        if not wanted:
            return Run(stream, entry.gaps, entry.end, iter(()), 0.0), 0, None
        decoder = self._decoders.get(stream.codec)
        if decoder is None:
            decoder = self._decoders[stream.codec] = decoder_of(
                *(stream.codec, self._codecs),
                allow_pickle=bool(self.allow_pickle),
                copy=self.copy,
            )
        broken: DecodeError | None = None
        raised: BaseException | None = None
        try:
            values = decoder.decode(entry.body, entry.buffers)
        except DecodeError as error:
            broken = error.with_traceback(None)  # which would keep alive what frames have
            raised = error.__cause__
        if raised is not None:  # what does not come again was not the batch's fault
            raised.__traceback__ = None
            try:
                values, broken = decoder.decode(entry.body, entry.buffers), None
            except DecodeError as again:
                if not isinstance(raised, Exception) and type(again.__cause__) is not type(raised):
                    raise raised from None  # a signal handler's SystemExit; the batch waits on
        if broken is not None:
            run, lost, why = self._salvaged(entry, decoder, broken)
            return run, lost, why if lost or isinstance(raised, Exception) else raised
        if entry.skip:
            del values[: entry.skip]
        if len(values) != wanted:
            return self._salvaged(entry, None, DecodeError("not as many values as announced"))
        run = Run(*(stream, entry.gaps, entry.end, iter(values), entry.sent_at, _headers_of(entry)))
        return run, 0, raised

    def _salvaged(
        self, entry: Entry, decoder: Decoder | None, error: Exception
    ) -> tuple[Run, int, BaseException | None]:
        """Of a batch that does not decode as a whole: deliver what does, count what does not."""
        stream = entry.stream
        wanted = entry.end - entry.first
        values: list[Any] = []
        if decoder is not None:
            with suppress(DecodeError):
                values = decoder.decode_each(entry.body, entry.buffers)[entry.skip :][:wanted]
        values += [error] * (wanted - len(values))
        gaps = entry.gaps
        seq = entry.first
        runs: list[Run] = []
        lost = 0
        headers = _headers_of(entry)
        for bad, group in groupby(values, lambda value: isinstance(value, DecodeError)):
            some = list(group)
            seq += len(some)
            if bad:
                gaps += ((len(some), "undecodable"),)
                lost += len(some)
            else:
                runs.append(Run(stream, gaps, seq, iter(some), entry.sent_at, headers))
                gaps = ()
        if gaps:
            runs.append(Run(stream, gaps, seq, iter(()), entry.sent_at))
        for one, following in pairwise(runs):
            one.following = following
        return runs[0], lost, error if lost else None

    def _advance(self) -> bool:
        """Go on to the next decoded run, or the next entry that waits; False: there is none.

        An interrupt (a signal handler that raises) takes nothing with it: an entry waits in the
        inbox until its messages can be handed out. Python looks for signals after calls, so what
        belongs together is done without one.
        """
        if self._installed is not None:  # it was interrupted
            self._release()
        entry = None
        lost = 0
        error: BaseException | None = None
        run = self._runs
        if run is None:
            entry = self._inbox.peek()
            if entry is None:
                return False
            if entry.error is not None:
                self._installed = entry
                self._release()
                raise entry.error
            run, lost, error = self._decoded(entry)
        stream = run.stream
        values = run.values
        if self._tracer is not None:
            values = Observed(run, self._tracer.took, self._dropped)
        gaps = self._gaps
        if run.gaps:
            gaps = deque(
                Gap(stream.publisher, stream.topic, count, reason) for count, reason in run.gaps
            )
        before = self._run, self._values, self._gaps  # what goes may run code, at the end
        now = self._stopwatch() if self._watching.on else 0.0
        inbox = self._inbox
        credit = stream.credit
        window = credit.window
        if self._over is not None:
            return False
        # Nothing is called from here to where the entry is installed.
        self._gaps = gaps
        self._run = run
        self._values = values
        self._runs = run.following
        if entry is not None:
            if entry.size and entry.end > credit.consumed_until:
                credit.consumed_until = entry.end
            credit.consumed += entry.size
            window.consumed += entry.size
            taken = entry.end - entry.first - lost
            stream.delivered += taken
            inbox.delivered += taken
            stream.lost += lost
            inbox.lost += lost
            if now:
                if self._taken_at:
                    self._handling += now - self._taken_at
                    self._handled += self._in_hand
                self._in_hand = taken
                self._taken_at = now
            elif self._taken_at:
                self._taken_at = 0.0
            self._installed = entry
            inbox.release(entry)
            self._installed = None
            if lost:
                inbox.lost_by["undecodable"] = inbox.lost_by.get("undecodable", 0) + lost
                log.warning(
                    "%d of %d messages from %s on %r cannot be decoded: %s",
                    lost,
                    entry.end - entry.first,
                    stream.publisher,
                    stream.topic,
                    error,
                    topic=stream.topic,
                    address=stream.publisher,
                    peer=stream.key.peer_id,
                )
            elif error is not None:
                raise error
        del before
        return True

    def _idle(self) -> None:
        """The program is done with what it has, and waits."""
        self._handling += self._stopwatch() - self._taken_at
        self._handled += self._in_hand
        self._taken_at = 0.0

    def _effort(self) -> Effort:
        """See `Sink.effort`. (Read while it changes, it may be off by a batch.)"""
        run, left = self._run, 0
        while run is not None:
            left += operator.length_hint(run.values)
            run = run.following
        began = self._taken_at
        seconds = self._handling + (self._stopwatch() - began if began else 0.0)
        messages = self._handled + (max(0, self._in_hand - left) if began else 0)
        oldest = self._run.sent_at if left and self._run is not None else None
        return Effort(messages, seconds, left, oldest, bool(self._waiting))

    def _release(self) -> None:
        """What can be handed out need not wait in the inbox."""
        assert self._installed is not None
        self._inbox.release(self._installed, True)
        self._installed = None

    def _event(self) -> Message | Gap | None:
        """The next message or gap of what is decoded."""
        try:
            if self._gaps:
                return self._gaps.popleft()
        except IndexError:  # another thread had it
            pass
        run = self._run
        if run is None:
            return None
        pairs = run.pairs
        if pairs is None:
            pairs = run.pairs = pairs_of(run.values)
        for value, left in pairs:
            return message_of(run, value, run.end - 1 - left)
        return None

    # --- for people ---------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """Messages that were due to this Sub and will never be delivered, as far as is known: what
        publishers that have vanished had not sent, and what those had put that never were reached,
        is not in it. `publishers` names them."""
        return self._inbox.lost + len(self._dropped)

    @property
    def publishers(self) -> dict[str, dict[str, Any]]:
        """The streams that this Sub gets, and the last 4,096 that ended without a word: publisher →
        how each stands.

        The publisher is ``host:port#n``, with the address that others are told and the Pub's number
        in its process; where no address can be dialled from here, ``name (pid 7 on host)#n``, by
        what it says of itself (with its id behind, where another one says the same). A `Message`
        names its ``publisher`` alike. Of each: ``topic``,
        ``name`` (of the publisher's certificate; empty: none is used), ``peer_id`` (of its
        process, as `Peer.peer_id`), ``state`` (``attached``;
        ``connecting``: not reached yet; ``reconnecting``: its link broke; ``vanished`` or
        ``unreachable``: as the reason of a `Gap` says), ``since`` (when it was attached last, or
        first to be reached, in seconds since 1970; None: it is attached),
        ``delivered`` (messages that were taken), ``lost``, ``way`` (``unix``: by its
        Unix socket, on this host; ``direct``: it was dialled; ``reverse``: it has dialled us;
        ``relay``: both have dialled one; ``local``: it is in this process; empty: there is none),
        ``failed`` (why the ways failed that are better, or all of them, each in a line).
        """
        inbox = self._inbox
        run = self._run
        decoded, left = None if run is None else run.stream, 0  # of the batch that is being taken
        while run is not None:
            left += operator.length_hint(run.values)
            run = run.following
        now = this_host().wall_clock()
        return {
            stream.publisher: {
                "topic": stream.topic,
                "name": stream.name,
                "peer_id": stream.key.peer_id,
                "state": self._runtime.publishers.state_of(stream),
                "since": None if stream.since is None else now - self._away(stream),
                "delivered": stream.delivered - (left if stream is decoded else 0),
                "lost": stream.lost,
                **self._runtime.publishers.way_of(stream),
            }
            for stream in (*list(inbox.gone.values()), *list(inbox.streams.values()))
        }

    def _away(self, stream: Stream) -> float:
        """Seconds for which a stream is not attached."""
        return 0.0 if stream.since is None else self._runtime.loop.time() - stream.since

    def _stop(self, error: Exception) -> None:
        """Hand out nothing any more. What could have been handed out counts as lost; what waits
        behind it is for `_discard`."""
        self._over = error  # nothing follows what is handed out now
        run = self._run
        if run is not None:  # whoever is in the middle of it is at its end
            self._dropped.extend(map(operator.is_, run.values, repeat(None)))
            run.pairs = None  # a `zip` keeps what it gave last, and a closed Sub is to hold nothing
        self._gaps.clear()
        self._dead = error

    def _discard(self) -> None:
        """Count what waits as lost; by who may take it."""
        if self._installed is not None:
            self._release()
        run = self._runs
        while run is not None:
            self._inbox.lost += operator.length_hint(run.values)
            run = self._runs = run.following
        self._inbox.discard()

    def _drop(self, found: list[Any]) -> None:
        """Count messages that nobody gets, because the call that gathered them was interrupted."""
        self._dropped.extend(map(operator.is_, found, repeat(None)))

    def _check(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            raise held
        if self._dead is not None:
            raise self._dead.with_traceback(None)  # as `Face._check`
        if self._ready.error is not None and not self._inbox.streams:
            raise self._ready.error.with_traceback(None)

    def __repr__(self) -> str:
        if self._dead is not None:
            return f"<Sub {self.topic!r}: closed>"
        fates = Counter(stream.gone for stream in list(self._inbox.gone.values()))
        unknown = what_is_unknown(fates["vanished"], fates["unreachable"])
        more = f"; {unknown}" if unknown else ""
        streams = len(self._inbox.streams)
        return f"<Sub {self.topic!r}: {streams} publishers, {self.lost} lost{more}>"


def _headers_of(entry: Entry) -> BatchHeaders | None:
    """Those of an entry's messages, not looked at."""
    if not entry.headers:
        return None
    stream = entry.stream
    return BatchHeaders(entry.headers, entry.first - entry.skip, stream.topic, stream.publisher)


def take_more(sub: Sub, found: list[Any], most: int) -> None:
    """Add messages that are there already to `found`, up to `most` in all."""
    while len(found) < most:
        found.extend(islice(sub._values, most - len(found)))
        if len(found) == most:
            return
        sub._gaps.clear()
        try:
            if sub._dead is not None or not sub._advance():
                return
        except PubSubError as error:
            sub._held = error  # what was found comes first
            return
