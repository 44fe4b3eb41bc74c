"""The publishing end of a link: what it answers, in which order it writes, whom it cuts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgpack
import pytest

import pubsub.core.serving as serving_module
from pubsub.core.cursor import SubKey
from pubsub.core.publication import Publication
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.core.serving import ASKED_BURST, SHARED_PIECE, Serving
from pubsub.errors import ProtocolError
from pubsub.wire.frames import (
    BATCH_COST,
    BUFFER_PIECE,
    Data,
    Event,
    FrameReader,
    array_header,
)
from pubsub.wire.liveness import HEARTBEAT_TOKEN
from pubsub.wire.messages import (
    Ack,
    Control,
    End,
    Gap,
    Ping,
    Pong,
    Subscribe,
    Subscribed,
    Unsubscribe,
    encode,
)
from tests.wire.buffers import whole
from tests.wire.said import hello, welcome
from tests.wire.sinks import Gathering, Piece

UNLIMITED = 10**9


TAKEN_OVER = End(0, 0, "elsewhere", "its Sub has subscribed the stream again, on another channel")


def publication(stream_id: int = 1, *, buffer: int = 10**6, block: bool = False) -> Publication:
    made = Publication(
        stream_id,
        f"topic/{stream_id}",
        block=block,
        buffer=buffer,
        join_timeout=5.0,
        resume_timeout=30.0,
        now=0.0,
    )
    made.answered(0.0)
    made.settle()
    return made


def put(made: Publication, *values: Any, buffers: tuple[bytes, ...] = ()) -> int:
    """A batch of these values; the bytes it counts for."""
    body = array_header(len(values)) + b"".join(map(msgpack.packb, values))
    return made.append(len(values), body, whole(*buffers), 1.5).size


class End_:
    """A Serving, and what it writes as the subscriber reads it."""

    def __init__(
        self, *publications: Publication, max_channels: int = 10, rights: Rights = EVERYTHING
    ) -> None:
        self.publications = {made.stream_id: made for made in publications}
        self.dirty = False
        self.now = 0.0
        self.takes = False  # its socket takes a frame at once
        self.at_once: list[bytes] = []
        self.serving = Serving(
            *("subscriber", "subscriber:1", self.find, self.on_output),
            max_channels=max_channels,
            write_now=self.write_now,
            rights=rights,
            now=lambda: self.now,
        )
        self.gathering = Gathering(bytearray(4096), 10**8)
        self.pieces = self.gathering.pieces
        self.found: list[int] = []
        self.on_find: Callable[[], None] = lambda: None

    def find(self, stream_id: int) -> Publication | None:
        self.found.append(stream_id)
        self.on_find()
        return self.publications.get(stream_id)

    def on_output(self) -> None:
        self.dirty = True

    def write_now(self, frame: bytes) -> bool:
        if self.takes:
            self.at_once.append(frame)
        return self.takes

    def hear(self, *messages: Control) -> None:
        for message in messages:
            [event] = FrameReader(bytearray(4096)).feed(encode(message))
            self.serving.receive(event)

    def pump(self, budget: int = UNLIMITED) -> list[Event | Piece]:
        chunks = self.serving.pump(budget)
        self.dirty = False
        return self.gathering.feed(b"".join(chunks))


def subscribe(
    channel: int = 0,
    stream_id: int = 1,
    *,
    sub_id: int = 7,
    resume: int | None = None,
    limit: int = UNLIMITED,
    observer: bool = False,
    max_batch: int = UNLIMITED,
) -> Subscribe:
    return Subscribe(channel, stream_id, sub_id, resume, 0, limit, observer, False, max_batch)


def values(events: Sequence[Event | Piece]) -> list[tuple[int, Any]]:
    """The channels and values of all DATA."""
    return [
        (event.channel, value)
        for event in events
        if isinstance(event, Data)
        for value in msgpack.unpackb(event.body)
    ]


# --- the short road -----------------------------------------------------------------------------


def test_a_lone_small_batch_is_written_as_it_enters_the_log_and_as_pump_would() -> None:
    slow, quick = End_(publication()), End_(publication())
    quick.takes = True
    for end in (slow, quick):
        end.hear(subscribe())
        end.pump()
        put(end.publications[1], "a")
    usual = b"".join(slow.serving.pump(UNLIMITED))
    assert quick.at_once == [usual]
    assert not quick.dirty, "and nothing is left to be done in this turn"
    assert quick.serving.pump(UNLIMITED) == []
    [(_, cursor)] = quick.publications[1].cursors()
    [(_, same)] = slow.publications[1].cursors()
    assert (cursor.sent, cursor.next, cursor.sent_until) == (same.sent, same.next, same.sent_until)
    assert cursor.at_end
    assert not cursor.queued
    quick.hear(Ack(0, 1, UNLIMITED))
    put(quick.publications[1], "b")
    assert len(quick.at_once) == 2


def test_a_socket_that_takes_nothing_at_once_gets_it_at_the_end_of_the_turn() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "a")
    end.takes = True
    put(made, "b")
    assert end.at_once == [], "nothing overtakes what waits"
    assert values(end.pump()) == [(0, "a"), (0, "b")]


@pytest.mark.parametrize("why", ["answer", "window", "large", "buffers", "too large", "flush"])
def test_what_is_not_alone_or_not_small_takes_the_long_road(why: str) -> None:
    made, other = publication(), publication(2)
    end = End_(made, other)
    end.takes = True
    size = BATCH_COST + len(array_header(1)) + 1
    limits: dict[str, Any] = {"limit": 2 * size - 1} if why == "window" else {}
    limits |= {"max_batch": 40} if why == "too large" else {}
    end.hear(subscribe(**limits))
    end.pump()
    put(made, 1)
    assert len(end.at_once) == 1
    if why == "answer":  # SUBSCRIBED is to be written
        end.hear(subscribe(1, 2))
    elif why == "flush":
        assert made.when_received(lambda: None, observers=False) is not None
    value: Any = bytes(serving_module.LONE) if why == "large" else 2
    value = "v" * 60 if why == "too large" else value
    put(made, value, buffers=(b"buffer",) if why == "buffers" else ())
    assert len(end.at_once) == 1
    assert end.dirty
    events = end.pump()
    if why == "window":
        assert values(events) == []
        end.hear(Ack(0, 1, UNLIMITED))
        assert values(end.pump()) == [(0, 2)]
    elif why == "too large":
        assert events == [Gap(0, 1, 2, "too large")]
    else:
        assert (0, value) in values(events)


def test_g1_what_would_fit_the_window_does_not_overtake_what_does_not() -> None:
    made = publication()
    end = End_(made)
    end.takes = True
    size = BATCH_COST + len(array_header(1)) + len(msgpack.packb("a"))
    end.hear(subscribe(limit=2 * size))
    end.pump()
    assert put(made, "a") == size
    put(made, "b" * 100)
    assert end.pump() == [], "the window has no room for it, and nothing is due any more"
    put(made, "c")
    assert len(end.at_once) == 1
    end.hear(Ack(0, 1, UNLIMITED))
    assert values(end.pump()) == [(0, "b" * 100), (0, "c")]


# --- what it answers ----------------------------------------------------------------------------


def test_a_subscription_is_answered_and_then_served() -> None:
    made = publication(buffer=4000)
    end = End_(made)
    put(made, "before")
    end.hear(subscribe())
    assert end.dirty
    assert end.serving.channels == 1
    assert end.pump() == [Subscribed(0, "topic/1", "msgpack", 1, 1, 1000)]
    put(made, "a", "b")
    assert end.dirty
    [data] = end.pump()
    assert isinstance(data, Data)
    assert (data.channel, data.first, data.sent_at, data.messages) == (0, 1, 1.5, 2)
    assert values([data]) == [(0, "a"), (0, "b")]
    assert end.pump() == []


def test_what_is_pending_is_brought_in_before_a_cursor_is_opened() -> None:
    made = publication()
    end = End_(made)

    def bring_in() -> None:
        put(made, "pending")

    end.on_find = bring_in
    end.hear(subscribe())
    assert end.pump() == [Subscribed(0, "topic/1", "msgpack", 1, 1, 250_000)]


def test_an_unknown_stream_is_answered_with_its_end() -> None:
    end = End_(publication())
    end.hear(subscribe(3, 99))
    assert end.pump() == [End(3, 0, "unknown", "there is no stream 99 here")]
    assert end.serving.channels == 0
    end.hear(Ack(3, 0, 0), Unsubscribe(3))  # crossed it


def test_g3_a_stream_that_ended_while_the_link_was_broken_is_answered_with_its_count() -> None:
    made = publication()
    end = End_(made)
    put(made, 1, 2, 3)
    made.end("closed", "the Pub was closed")
    end.hear(subscribe(resume=1))
    assert end.pump() == [End(0, 3, "closed", "the Pub was closed")]


def test_an_ack_opens_the_window_and_lets_go() -> None:
    made = publication()
    end = End_(made)
    size = put(made, "a")
    end.hear(subscribe(limit=size))
    end.pump()
    put(made, "b")
    put(made, "c")
    assert values(end.pump()) == [(0, "b")]
    assert not end.dirty
    end.hear(Ack(0, 2, 2 * size))
    assert end.dirty
    assert values(end.pump()) == [(0, "c")]
    end.hear(Ack(0, 3, 3 * size))
    assert len(made.log) == 0


def test_an_unsubscription_lets_go_and_frames_may_cross_it() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "a")
    end.hear(Unsubscribe(0))
    assert (end.serving.channels, made.attached, len(made.log)) == (0, 0, 0)
    assert end.pump() == []
    end.hear(Ack(0, 1, 5), Unsubscribe(0))
    put(made, "b")
    assert end.pump() == []


def test_the_end_of_a_pub_is_told_and_frames_may_cross_it() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "a")
    made.end("closed", "the Pub was closed")
    assert end.dirty
    assert end.pump() == [End(0, 1, "closed", "the Pub was closed")]
    assert end.serving.channels == 0
    end.hear(Ack(0, 0, 5), Unsubscribe(0))
    end.hear(subscribe(1))
    assert end.pump() == [End(1, 1, "closed", "the Pub was closed")]


def test_one_peer_may_have_several_subs_and_streams() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1, sub_id=7), subscribe(1, 1, sub_id=8), subscribe(5, 2, sub_id=7))
    end.pump()
    put(one, "a")
    put(two, "b")
    assert sorted(values(end.pump())) == [(0, "a"), (1, "a"), (5, "b")]


# --- in which order it writes -------------------------------------------------------------------


def test_g8_channels_take_turns() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1), subscribe(1, 2))
    end.pump()
    for number in range(3):
        put(one, number)
    put(two, "other")
    assert values(end.pump()) == [(0, 0), (1, "other"), (0, 1), (0, 2)]


def test_about_as_much_is_written_as_asked_for() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    sizes = [put(made, number) for number in range(5)]
    assert values(end.pump(1)) == [(0, 0)]
    assert values(end.pump(sizes[0] - BATCH_COST + 1)) == [(0, 1), (0, 2)]
    assert values(end.pump(0)) == []
    assert values(end.pump(UNLIMITED)) == [(0, 3), (0, 4)]


def test_control_frames_go_first_and_whatever_the_budget() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1))
    end.pump()
    put(one, "a")
    end.hear(subscribe(1, 2))
    assert isinstance(end.pump(0)[0], Subscribed)
    assert values(end.pump()) == [(0, "a")]


def test_g8_a_closed_window_holds_up_no_other_channel() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(0, sub_id=1, limit=1), subscribe(1, sub_id=2))
    end.pump()
    for number in range(3):
        put(made, number)
    assert values(end.pump()) == [(0, 0), (1, 0), (1, 1), (1, 2)]
    end.hear(Ack(0, 1, 10_000))
    assert values(end.pump()) == [(0, 1), (0, 2)]


def test_large_buffers_go_in_pieces_between_which_others_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_module, "SHARED_PIECE", 100)
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1), subscribe(1, 2))
    end.pump()
    put(one, "large", buffers=(b"x" * 250, b"y" * 100))
    put(one, "behind")
    put(two, "small 1")
    put(two, "small 2")
    events = end.pump()
    assert [e if isinstance(e, Piece) else values([e])[0] for e in events] == [
        Piece(0),
        (1, "small 1"),
        Piece(0),
        (1, "small 2"),
        Piece(0),
        Piece(0),
        (0, "large"),
        (0, "behind"),
    ]
    assert end.pieces == [(0, 250, 0, 100), (0, 250, 100, 100), (0, 250, 200, 50), (0, 100, 0, 100)]


def test_pieces_are_as_long_as_the_wire_allows_where_there_is_nobody_to_delay() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1))
    end.pump()
    put(one, "alone", buffers=(bytes(2 * BUFFER_PIECE),))
    end.pump()
    assert {size for _, _, _, size in end.pieces} == {BUFFER_PIECE}
    end.pieces.clear()
    end.hear(subscribe(1, 2), Ack(0, 1, 2**40))
    put(one, "with another", buffers=(bytes(2 * BUFFER_PIECE),))
    end.pump()
    assert {size for _, _, _, size in end.pieces} == {SHARED_PIECE}
    assert SHARED_PIECE < BUFFER_PIECE


def test_pieces_count_against_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "BUFFER_PIECE", 100)
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "large", buffers=(b"x" * 300,))
    put(made, "behind")
    assert end.pump(50) == [Piece(0)]
    piece, last, data = end.pump(150)
    assert piece == last == Piece(0)
    assert values([data]) == [(0, "large")]
    assert values(end.pump(1)) == [(0, "behind")]


def test_g3_what_is_too_large_for_a_subscriber_is_a_gap_to_it_alone() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(0, max_batch=1000), subscribe(1, sub_id=8))
    end.pump()
    put(made, "a")
    put(made, "b", "c" * 1000)
    put(made, "d", buffers=(b"." * 1000,))
    said = end.pump()
    assert [event for event in said if isinstance(event, Gap)] == [
        Gap(0, 1, 3, "too large"),
        Gap(0, 3, 4, "too large"),
    ]
    assert values(said) == [(0, "a"), (1, "a"), (1, "b"), (1, "c" * 1000), (1, "d")]
    end.hear(Ack(0, 4, UNLIMITED), Ack(1, 4, UNLIMITED))
    assert len(made.log) == 0
    assert [cursor.lost for _, cursor in made.cursors()] == [3, 0]


def test_g3_what_left_the_log_is_said_in_its_place_and_counts_for_the_window() -> None:
    made = publication(buffer=1000)
    end = End_(made)
    end.hear(subscribe(limit=700))
    end.pump()
    put(made, "a" * 300)
    assert values(end.pump()) == [(0, "a" * 300)]
    for _ in range(5):
        put(made, "b" * 600)
    assert end.pump() == []  # no room in the window yet
    end.hear(Ack(0, 0, 1000))  # nor for the batch behind it
    assert end.pump() == []
    end.hear(Ack(0, 0, 2000))
    gap, data = end.pump()
    assert gap == Gap(0, 1, 5, "overflow")
    assert values([data]) == [(0, "b" * 600)]
    [(_, cursor)] = made.cursors()
    assert (cursor.lost, cursor.sent) == (4, 2 * BATCH_COST + 300 + 600 + BATCH_COST + 16)


def test_a_flush_does_not_wait_for_what_is_too_large() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(max_batch=1000))
    end.pump()
    put(made, "x" * 2000)
    done: list[bool] = []
    made.when_received(lambda: done.append(True), observers=False)
    [gap, ping] = end.pump()
    assert gap == Gap(0, 0, 1, "too large")
    assert isinstance(ping, Ping)
    end.hear(Pong(ping.token))
    assert done == [True]


def test_a_flush_asks_what_has_arrived_where_the_window_is_full_too() -> None:
    """Else nobody would know how much of it is missing, when it is given up."""
    made = publication()
    end = End_(made)
    end.hear(subscribe(limit=1))
    end.pump()
    for value in "abc":
        put(made, value)
    made.when_received(lambda: None, observers=False)
    data, ping = end.pump()
    assert values([data]) == [(0, "a")]
    assert isinstance(ping, Ping)
    put(made, "d")
    assert end.pump() == [], "it is asked once"
    (cursor,) = [cursor for _, cursor in made.cursors()]
    assert cursor.received == 0
    end.hear(Pong(ping.token))
    assert cursor.received == 1
    assert end.pump() == []


def test_bodies_and_buffers_are_not_copied() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(0, sub_id=1), subscribe(1, sub_id=2))
    end.pump()
    large = b"x" * 1000
    body = array_header(1) + b"\x01"
    made.append(1, body, whole(large), 0.0)
    chunks = end.serving.pump(UNLIMITED)
    assert sum(chunk is body for chunk in chunks) == 2
    assert sum(isinstance(chunk, memoryview) and chunk.obj is large for chunk in chunks) == 2


def test_the_pieces_of_a_large_buffer_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_module, "BUFFER_PIECE", 100)
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    large = b"x" * 250
    made.append(1, array_header(1) + b"\x01", whole(large), 0.0)
    chunks = end.serving.pump(UNLIMITED)
    pieces = [chunk for chunk in chunks if isinstance(chunk, memoryview)]
    assert [len(piece) for piece in pieces] == [100, 100, 50]
    assert all(piece.obj is large for piece in pieces)


def test_a_message_of_one_piece_is_written_with_its_batch() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "first", buffers=(b"x" * 1000,))
    put(made, "second", buffers=(b"y" * 1000,))
    piece, data = end.pump(1)
    assert piece == Piece(0)
    assert values([data]) == [(0, "first")]


@pytest.mark.parametrize("how", ["unsubscribed", "ended", "taken over", "lost"])
def test_a_large_message_stops_when_its_channel_does(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "BUFFER_PIECE", 100)
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "large", buffers=(b"x" * 300,))
    assert end.pump(1) == [Piece(0)]
    if how == "unsubscribed":
        end.hear(Unsubscribe(0))
    elif how == "ended":
        made.end("closed", "")
        assert end.pump() == [End(0, 1, "closed", "")]
    elif how == "taken over":
        other = End_(made)
        other.hear(subscribe(resume=0))
        assert [type(event) for event in other.pump()] == [Subscribed, *[Piece] * 3, Data]
        assert end.pump() == [TAKEN_OVER]
    else:
        end.serving.broken(0.0)
    assert end.pump() == []


# --- whether it arrived -------------------------------------------------------------------------


def flushed(made: Publication) -> list[bool]:
    done: list[bool] = []
    assert made.when_received(lambda: done.append(True), observers=False) is not None
    return done


def test_a_flush_sends_a_ping_behind_the_data_and_its_pong_says_that_it_arrived() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "a")
    done = flushed(made)
    put(made, "b")
    data, more, ping = end.pump()
    assert values([data, more]) == [(0, "a"), (0, "b")]
    assert isinstance(ping, Ping)
    assert ping.token != HEARTBEAT_TOKEN
    end.hear(Pong(HEARTBEAT_TOKEN))
    assert done == []
    end.hear(Pong(ping.token))
    assert done == [True]
    end.hear(Pong(ping.token))  # again: nothing


def test_a_flush_of_what_was_sent_long_ago_asks_at_once() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    put(made, "a")
    end.pump()
    done = flushed(made)
    assert end.dirty
    [ping] = end.pump()
    assert isinstance(ping, Ping)
    end.hear(Pong(ping.token))
    assert done == [True]


def test_a_flush_waits_for_the_window_and_does_not_spin() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(limit=1))
    end.pump()
    put(made, "a")
    put(made, "b")
    done = flushed(made)
    assert values(end.pump()) == [(0, "a")]
    assert not end.dirty
    end.hear(Ack(0, 1, 10_000))
    data, ping = end.pump()
    assert values([data]) == [(0, "b")]
    assert isinstance(ping, Ping)
    end.hear(Pong(ping.token))
    assert done == [True]


def test_a_flush_of_a_large_message_asks_behind_its_last_byte(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving_module, "BUFFER_PIECE", 100)
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "large", buffers=(b"x" * 200,))
    done = flushed(made)
    assert end.pump(1) == [Piece(0)]
    later = flushed(made)
    assert [type(event) for event in end.pump()] == [Piece, Data, Ping]
    end.hear(Pong(1))
    assert done == later == [True]


def test_one_pong_answers_all_pings_before_it() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1), subscribe(1, 2))
    end.pump()
    put(one, "a")
    put(two, "b")
    first = flushed(one)
    end.pump()
    second = flushed(two)
    end.pump()
    end.hear(Pong(2))
    assert first == second == [True]


def test_flushes_of_many_channels_share_a_ping() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1), subscribe(1, 2))
    end.pump()
    put(one, "a")
    put(two, "b")
    first, second = flushed(one), flushed(two)
    assert [type(event) for event in end.pump()] == [Data, Data, Ping]
    end.hear(Pong(1))
    assert first == second == [True]


def test_a_publisher_that_flushes_on_and_on_leaves_a_bounded_number_of_pings_unanswered() -> None:
    """The other end may be held up, or stopped; it would find all of them at once."""
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    pings = []
    for number in range(2 * serving_module.UNANSWERED):
        put(made, number)
        done = flushed(made)
        pings += [event for event in end.pump() if isinstance(event, Ping)]
    assert len(pings) == serving_module.UNANSWERED
    assert not end.dirty
    end.hear(Pong(pings[-1].token))
    assert not done
    assert end.dirty
    [last] = end.pump()
    assert isinstance(last, Ping)
    end.hear(Pong(last.token))
    assert done == [True]


def test_a_pong_for_a_channel_that_is_no_more_means_nothing() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "a")
    done = flushed(made)
    end.pump()
    other = End_(made)
    other.hear(subscribe(1, resume=0))
    end.hear(subscribe(1, sub_id=8))  # another Sub, on a channel of the same number
    end.hear(Pong(1))
    assert done == []
    ping = other.pump()[-1]
    assert isinstance(ping, Ping)
    other.hear(Pong(ping.token))
    assert done == [True]


# --- the end ------------------------------------------------------------------------------------


def test_g5_when_the_link_breaks_places_are_held() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    put(made, "a")
    put(made, "b")
    end.pump()
    end.serving.broken(100.0)
    assert (end.serving.channels, made.attached) == (0, 0)
    assert made.expire(100.0) == 130.0
    put(made, "c")
    assert end.pump() == []
    again = End_(made)
    again.hear(subscribe(resume=1))
    subscribed, *data = again.pump()
    assert subscribed == Subscribed(0, "topic/1", "msgpack", 1, 1, 250_000)
    assert values(data) == [(0, "b"), (0, "c")]


def test_after_a_goodbye_nothing_is_held() -> None:
    one, two = publication(1), publication(2)
    end = End_(one, two)
    end.hear(subscribe(0, 1), subscribe(1, 2))
    end.pump()
    put(one, "a")
    end.serving.closed()
    assert [len(one.log), one.attached, two.attached] == [0, 0, 0]
    assert one.expire(0.0) is None
    end.serving.closed()
    end.serving.broken(0.0)


def test_g5_a_half_open_link_that_is_lost_later_takes_nothing_with_it() -> None:
    made = publication()
    old, new = End_(made), End_(made)
    old.hear(subscribe())
    old.pump()
    put(made, "a")
    old.pump()
    new.hear(subscribe(resume=0))
    new.pump()
    old.hear(Ack(0, 0, 0), Unsubscribe(0))  # was on its way
    put(made, "b")
    assert old.pump() == [TAKEN_OVER], "and no message"
    assert values(new.pump()) == [(0, "b")]
    old.serving.broken(0.0)
    assert made.attached == 1
    put(made, "c")
    assert values(new.pump()) == [(0, "c")]


# --- hostile subscribers ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        pytest.param([Ack(0, 4, 1)], "an ACK of 4 where it is between 1 and 3", id="never sent"),
        pytest.param([Ack(0, 0, 1)], "an ACK of 0 where it is between 1 and 3", id="goes back"),
        pytest.param(
            [Ack(0, 2, 1), Ack(0, 1, 1)],
            "an ACK of 1 where it is between 2 and 3",
            id="goes back 2",
        ),
        pytest.param([Ack(1, 0, 1)], "channel 1 was never opened", id="ack on unknown channel"),
        pytest.param([Unsubscribe(9)], "channel 9 was never opened", id="unsubscribes unknown"),
        pytest.param([subscribe(0)], "channel 0 was used before", id="reuses a channel"),
        pytest.param(
            [Unsubscribe(0), subscribe(0)], "channel 0 was used before", id="reuses a closed one"
        ),
        pytest.param(
            [subscribe(5), subscribe(4)], "channel 4 was used before", id="channels going down"
        ),
        pytest.param(
            [subscribe(1, resume=4)], "a resume at 4 of a stream of 3 messages", id="resume behind"
        ),
        pytest.param(
            [subscribe(1, sub_id=9, resume=2**64 - 1)], "a resume at", id="resume far behind"
        ),
        pytest.param(
            [subscribe(i, sub_id=i) for i in range(1, 4)], "more than 3 channels", id="too many"
        ),
        pytest.param([Pong(1)], "a PONG for PING 1 that was never sent", id="never asked"),
        pytest.param([Ping(1)], "a PING where a subscriber speaks", id="a ping"),
        pytest.param([welcome("peer", "x")], "a WELCOME where", id="a welcome"),
        pytest.param([hello("peer", "peer", "x")], "a HELLO where", id="a hello"),
        pytest.param([Subscribed(0, "t", "raw", 0, 0, 1)], "a SUBSCRIBED where", id="subscribed"),
        pytest.param([End(0, 0, "closed", "")], "END where", id="an end"),
    ],
)
def test_a_subscriber_that_breaks_the_protocol_is_cut_and_nobody_else_notices(
    messages: list[Control], what: str
) -> None:
    made = publication()
    hostile, honest = End_(made, max_channels=3), End_(made)
    put(made, "a")
    hostile.hear(subscribe(0))
    hostile.pump()
    put(made, "b", "c")
    assert values(hostile.pump()) == [(0, "b"), (0, "c")]
    honest.serving.peer_id = "honest"
    honest.hear(subscribe(resume=1))
    with pytest.raises(ProtocolError, match=what):
        hostile.hear(*messages)
    hostile.serving.broken(0.0)  # what the link does then
    put(made, "d")
    assert values(honest.pump()) == [(0, "b"), (0, "c"), (0, "d")]
    honest.hear(Ack(0, 4, UNLIMITED))
    made.expire(1000.0)
    assert (made.attached, len(made.log), made.log.holds.total()) == (1, 0, 1)


@pytest.mark.parametrize("how", ["closed", "lost"])
def test_a_channel_whose_subscription_was_refused_serves_nothing(how: str) -> None:
    made = publication()
    end = End_(made)
    with pytest.raises(ProtocolError, match="a resume at 1"):
        end.hear(subscribe(resume=1))
    end.hear(Ack(0, 0, 1), Unsubscribe(0))
    with pytest.raises(ProtocolError, match="a resume at 1"):
        end.hear(subscribe(1, resume=1))
    if how == "closed":
        end.serving.closed()
    else:
        end.serving.broken(0.0)
    assert end.pump() == []
    assert made.expire(0.0) is None


def test_a_subscriber_that_publishes_is_refused() -> None:
    with pytest.raises(ProtocolError, match="where a subscriber speaks"):
        End_(publication()).serving.receive(Data(0, 0, 0.0, 1, b"\x91\x01"))


def test_too_many_channels_is_a_limit() -> None:
    end = End_(publication(), max_channels=1)
    end.hear(subscribe(0))
    with pytest.raises(ProtocolError) as it:
        end.hear(subscribe(1, sub_id=2))
    assert it.value.code == "limit"


def test_channels_that_were_closed_make_room() -> None:
    end = End_(publication(), max_channels=1)
    for channel in range(10):
        end.hear(subscribe(channel), Unsubscribe(channel))
        end.pump()


def test_g6_a_subscriber_that_asks_on_and_on_without_reading_is_cut() -> None:
    end = End_(publication(), max_channels=5)
    with pytest.raises(ProtocolError, match="does not read the answers") as it:
        for channel in range(100):
            end.hear(subscribe(channel, 99))
    assert it.value.code == "limit"
    assert len(end.serving.pump(0)) == 11


def test_an_ack_before_anything_was_sent_changes_only_the_limit() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(limit=0))
    end.pump()
    put(made, "a")
    assert end.pump() == []
    end.hear(Ack(0, 0, BATCH_COST))
    assert values(end.pump()) == [(0, "a")]


def test_a_cursor_of_a_link_that_is_over_wakes_nobody() -> None:
    """While the channels of a link end one by one, a put that waited for room may come in between,
    and reach a cursor whose turn has not come."""
    made = publication()
    end = End_(made)
    end.hear(subscribe(0), subscribe(1, sub_id=8))
    end.pump()
    room: list[int] = []

    def on_room() -> None:
        if not room:
            room.append(put(made, "late"))

    made.on_room = on_room
    end.serving.closed()
    assert room
    assert made.attached == 0


def test_g3_a_wake_up_that_raises_is_asked_for_again_by_the_next() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe())
    end.pump()
    works = end.serving._on_output

    def raises() -> None:
        end.serving._on_output = works
        raise RecursionError

    end.serving._on_output = raises
    with pytest.raises(RecursionError):
        put(made, 1)
    put(made, 2)
    assert end.dirty
    assert [event.first for event in end.pump() if isinstance(event, Data)] == [0, 1]


def test_g3_a_link_whose_channel_another_one_takes_is_told_and_its_places_are_held() -> None:
    first, second = publication(1), publication(2)
    old, new = End_(first, second), End_(first, second)
    for stream_id in (1, 2):
        old.hear(subscribe(stream_id, stream_id, sub_id=stream_id))
    old.pump()
    put(first, 1)
    put(second, 2)
    taken = [replace(TAKEN_OVER, channel=channel) for channel in (1, 2)]
    new.hear(subscribe(0, 1, sub_id=1, resume=0))
    assert [each for each in old.pump() if isinstance(each, End)] == taken[:1], "one goes on"
    new.hear(subscribe(1, 2, sub_id=2, resume=0))
    assert old.pump() == [taken[1]]
    assert [event.first for event in new.pump() if isinstance(event, Data)] == [0, 0]
    old.serving.broken(1.0)
    assert [state for made in (first, second) for state, _ in made.cursors()] == ["attached"] * 2


# --- rights -------------------------------------------------------------------------------------


def test_a_subscriber_without_the_right_is_refused_and_the_link_goes_on() -> None:
    end = End_(publication(1), publication(2), rights=Rights(["**"], ["topic/2"]))
    put(end.publications[1], "secret")
    put(end.publications[2], "open")
    end.hear(subscribe(0, 1), subscribe(1, 2))
    refused, answer, *rest = end.pump()
    why = "it may not subscribe this topic: it may subscribe 'topic/2'"
    assert refused == End(0, 0, "refused", why)
    assert isinstance(answer, Subscribed)
    assert (answer.channel, answer.topic) == (1, "topic/2")
    assert rest == []
    assert end.serving.channels == 1
    end.hear(Ack(0, 1, UNLIMITED), Unsubscribe(0))
    put(end.publications[1], "secret")
    put(end.publications[2], "news")
    assert values(end.pump()) == [(1, "news")]


def test_what_is_refused_names_no_topic_and_no_count_even_of_a_stream_that_ended() -> None:
    made = publication(1)
    put(made, 1, 2, 3)
    made.end("closed", "the Pub was closed")
    end = End_(made, rights=Rights(subscribe=["other"]))
    end.hear(subscribe(0, 1))
    (refused,) = end.pump()
    assert isinstance(refused, End)
    assert (refused.final, refused.code) == (0, "refused")
    assert "topic/1" not in refused.reason


def test_no_place_is_held_for_who_is_refused() -> None:
    """A coordinator has said that it comes, by whatever it knew then."""
    made = publication(1, buffer=100, block=True)
    made.expect(SubKey("subscriber", 7), before=False, observer=False, now=0.0)
    put(made, "x" * 50)
    assert not made.room(100)
    end = End_(made, rights=Rights(subscribe=["other"]))
    end.hear(subscribe(0, 1))
    assert made.room(100)
    assert list(made.cursors()) == []


def test_a_refusal_ends_no_channel_of_another_link() -> None:
    made = publication(1)
    one, other = End_(made), End_(made, rights=Rights())
    one.hear(subscribe(0, 1))
    one.pump()
    other.hear(subscribe(0, 1))
    put(made, "goes on")
    assert values(one.pump()) == [(0, "goes on")]


def test_rights_are_asked_once_for_each_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    rights = Rights(subscribe=["topic/*"])

    def may_subscribe(self: Rights, topic: str) -> bool:
        asked.append(topic)
        return True

    monkeypatch.setattr(Rights, "may_subscribe", may_subscribe)
    end = End_(publication(1), publication(2), rights=rights)
    end.hear(subscribe(0, 1), subscribe(1, 2))
    for value in range(100):
        put(end.publications[1], value)
        put(end.publications[2], value)
        end.pump()
    assert asked == ["topic/1", "topic/2"]


# --- what is asked again and again ----------------------------------------------------------------


def asking(channel: int, *, history: int | None = None, sub_id: int = 7) -> Subscribe:
    return Subscribe(channel, 1, sub_id, None, history, UNLIMITED, False, False, UNLIMITED)


def keeping(*puts: Any) -> Publication:
    """A publication that keeps these for who asks."""
    made = publication()
    made.history = len(puts)
    for value in puts:
        put(made, value)
    return made


@pytest.mark.parametrize("same", [True, False], ids=["one Sub", "many Subs"])
def test_who_asks_for_what_was_put_before_again_and_again_is_refused(same: bool) -> None:
    made = keeping("a", "b")
    end = End_(made)
    for channel in range(ASKED_BURST):
        end.hear(asking(channel, sub_id=7 if same else channel), Unsubscribe(channel))
        end.pump()
    end.hear(asking(ASKED_BURST))
    [refused] = end.pump()
    assert isinstance(refused, End)
    assert (refused.channel, refused.code) == (ASKED_BURST, "refused")
    assert "too often: 256 times at once" in refused.reason
    end.now += 1.0
    end.hear(asking(ASKED_BURST + 1), asking(ASKED_BURST + 2, sub_id=8))
    answers = [event for event in end.pump() if isinstance(event, (Subscribed, End))]
    assert [type(answer) for answer in answers] == [Subscribed, End], "one more in each second"
    end.hear(asking(ASKED_BURST + 3, history=0, sub_id=9))
    [answer] = end.pump()
    assert isinstance(answer, Subscribed), "what asks for nothing old is served on"


def test_a_process_of_200_subs_may_ask_and_what_keeps_nothing_may_be_asked_for_ever() -> None:
    made = keeping("a")
    end = End_(made, max_channels=1000)
    end.hear(*(asking(channel, sub_id=channel) for channel in range(200)))
    assert len(values(end.pump())) == 200
    made.history = 0
    end.hear(*(asking(200 + n, sub_id=200 + n) for n in range(500)))
    assert not [event for event in end.pump() if isinstance(event, End)]


def test_g3_who_goes_on_again_and_again_where_no_place_is_held_goes_on_from_now() -> None:
    made = keeping("a", "b")
    end = End_(made)
    for channel in range(ASKED_BURST):
        end.hear(subscribe(channel, resume=0), Unsubscribe(channel))
        end.pump()
    end.hear(subscribe(ASKED_BURST, resume=0))
    assert end.pump() == [Subscribed(ASKED_BURST, "topic/1", "msgpack", 0, 2, 250_000)]
    [(_, cursor)] = made.cursors()
    assert cursor.lost == 2, "a counted gap"
    put(made, "c")
    assert values(end.pump()) == [(ASKED_BURST, "c")]


def test_g5_who_comes_back_to_the_places_that_were_held_is_not_counted() -> None:
    made = publication()
    many = 2 * ASKED_BURST
    old, new = End_(made, max_channels=many), End_(made, max_channels=many)
    old.hear(*(subscribe(channel, sub_id=channel) for channel in range(many)))
    old.pump()
    put(made, "a")
    old.serving.broken(0.0)
    new.hear(*(subscribe(channel, sub_id=channel, resume=0) for channel in range(many)))
    assert len(values(new.pump())) == many


def test_a_channel_whose_sub_subscribes_anew_on_the_same_link_hears_of_its_end() -> None:
    made = publication()
    end = End_(made)
    end.hear(subscribe(0))
    end.pump()
    put(made, "a")
    end.hear(subscribe(1, resume=0))
    over, answer, *rest = end.pump()
    assert over == TAKEN_OVER
    assert isinstance(answer, Subscribed)
    assert values(rest) == [(1, "a")]
    assert (end.serving.channels, made.attached) == (1, 1)
    end.hear(Ack(0, 0, 0), Unsubscribe(0))  # was on its way
    put(made, "b")
    assert values(end.pump()) == [(1, "b")]
