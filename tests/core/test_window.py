"""A window: how streams share it, what a channel may carry, and what an ACK says."""

from __future__ import annotations

import pytest

from pubsub.core.inbox import Inbox
from pubsub.core.stream import Stream, StreamKey
from pubsub.core.window import Credit
from pubsub.errors import ProtocolError
from pubsub.wire.frames import BATCH_COST
from tests.core.test_inbox import opened as begun
from tests.core.test_stream import WINDOW, Route, batch, entries, fresh, opened

# --- sharing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("streams", "share"), [(1, 1000), (2, 500), (3, 250), (4, 250), (5, 125), (9, 62)]
)
def test_g6_streams_share_the_window(streams: int, share: int) -> None:
    inbox = Inbox(1, "*", window=1000)
    for number in range(streams):
        begun(inbox, number)
    assert inbox.window.share == share


def test_g6_the_share_is_never_nothing() -> None:
    inbox = Inbox(1, "*", window=1)
    for number in range(5):
        begun(inbox, number)
    assert inbox.window.share == 1


def test_streams_hear_of_a_new_share_only_when_it_changes() -> None:
    inbox = Inbox(1, "*", window=8000)
    told: list[int] = []
    streams: list[Stream] = []
    inbox.window.on_consumed = lambda credit, stage: told.extend(
        stream.key.stream_id for stream in streams if stream.credit is credit
    )
    streams.append(begun(inbox, 1))
    assert streams[0].credit.ack_every == 2000
    streams.append(begun(inbox, 2))
    assert told == [1]
    assert streams[0].credit.ack_every == streams[1].credit.ack_every == 1000
    streams.append(begun(inbox, 3))
    streams.append(begun(inbox, 4))
    assert told == [1, 1, 2]
    streams[3].finish()
    assert told == [1, 1, 2]
    streams[2].disconnected()
    streams[1].finish()
    assert told == [1, 1, 2, 1]  # the one without a link learns it when it has one
    streams[2].connect(Route(), 0)
    assert streams[2].credit.limit == 4000


def joined(inbox: Inbox, number: int) -> tuple[Stream, int]:
    """A stream, and the bytes that its publisher may send."""
    stream = Stream(inbox, StreamKey("publisher", number), "topic", "publisher:1", 10**6)
    inbox.add(stream)
    limit = stream.connect(Telling(), number)
    stream.opened("topic", "msgpack", 0, 0, 10**9)
    return stream, limit


def at_once(credit: Credit, stage: int) -> None:
    """Acknowledge."""
    credit.acknowledge()


class Telling(Route):
    """Remembers what was granted."""

    def __init__(self) -> None:
        super().__init__()
        self.granted: tuple[int, int] | None = None

    def ack(self, stream: Stream) -> None:
        self.granted = stream.credit.grant() or self.granted


def waiting(inbox: Inbox) -> int:
    slots = (*inbox._newest, *inbox._passed)
    return sum(e.size for e in (*inbox._entries, *(slot.entry for slot in slots)))


@pytest.mark.parametrize("latest", [False, True])
def test_g6_what_ended_streams_have_left_takes_its_part_of_the_window(latest: bool) -> None:
    """Pubs that come, put one message each and go, while nobody takes."""
    inbox = Inbox(1, "**", latest=latest, window=10_000)
    inbox.window.on_consumed = at_once
    sent = 0
    for number in range(100):
        stream = Stream(inbox, StreamKey("p", number), f"t/{number}", "p:1", 10**6)
        inbox.add(stream)
        limit = stream.connect(Telling(), number)
        stream.opened(f"t/{number}", "msgpack", 0, 0, 10**9)
        if limit:
            batch(stream, 0, size=3000)
            sent += 1
        stream.end(1)
    assert sent == 4
    assert waiting(inbox) == 12_000, "the window, and one message"
    assert inbox.lost == 96
    live, limit = joined(inbox, 100)
    assert limit == 0
    told = live.route
    assert isinstance(told, Telling)
    first = inbox.take()
    assert first is not None
    taken = [first, *entries(inbox)]
    assert sum(entry.end - entry.first for entry in taken) == 4
    assert sum(count for entry in taken for count, _ in entry.gaps) == 96
    assert told.granted == (0, 10_000), "it heard of the room"


def test_g6_streams_that_come_one_after_the_other_share_what_is_left() -> None:
    inbox = Inbox(1, "*", window=16_000)
    inbox.window.on_consumed = at_once
    streams = []
    for number in range(20):
        stream, limit = joined(inbox, number)
        streams.append(stream)
        seq = sent = 0
        while sent + 1000 <= limit:  # as much as it may
            batch(stream, seq)
            seq, sent = seq + 1, sent + 1000
    assert waiting(inbox) == 16_000
    for stream in streams[1:]:
        assert isinstance(stream.route, Telling)
        assert stream.credit.limit == 1, "one message of each live stream is let through"
    list(entries(inbox))
    assert inbox.window.promised - inbox.window.consumed <= 16_000
    for stream in streams:
        assert inbox.window.share == 500
        assert 375 < stream.credit.limit - stream.credit.consumed <= 500, (
            "nearly; ACKs are not for nothing"
        )


def test_a_stream_whose_beginning_was_interrupted_ends_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inbox = Inbox(1, "*", window=1000)
    stream = Stream(inbox, StreamKey("publisher", 1), "topic", "publisher:1", 10**6)

    def interrupted(credit: Credit) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(inbox.window, "add", interrupted)
        inbox.add(stream)
    stream.finish()
    assert not inbox.streams
    begun(inbox, 2)
    assert inbox.window.share == 1000


def test_g6_idle_streams_keep_nothing_from_a_new_one() -> None:
    """Also those that are still connecting, and those whose link broke."""
    inbox = Inbox(1, "*", window=8000)
    first = Stream(inbox, StreamKey("publisher", 0), "topic", "publisher:1", 10**6)
    inbox.add(first)
    assert first.connect(Route(), 0) == 8000
    second, limit = joined(inbox, 1)
    assert limit == 4000
    second.disconnected()
    for number in range(2, 5):
        _, limit = joined(inbox, number)
        assert limit == inbox.window.share
    assert second.connect(Route(), 1) == 1000
    assert inbox.window.promised - inbox.window.consumed == 5000


# --- a channel ----------------------------------------------------------------------------------


def test_g6_a_channel_begins_with_the_window_less_what_waits() -> None:
    inbox, stream = fresh(window=4000)
    assert stream.connect(Route(), 0) == 4000
    stream.opened("topic", "msgpack", 0, 0, 1)
    batch(stream, 0)
    batch(stream, 1)
    entry = inbox.take()
    assert entry is not None
    stream.disconnected()
    assert stream.connect(Route(), 0) == 3000
    stream.opened("topic", "msgpack", 2, 2, 1)
    batch(stream, 2, size=2500)
    stream.disconnected()
    assert stream.connect(Route(), 0) == 500
    stream.opened("topic", "msgpack", 3, 3, 1)
    batch(stream, 3, size=600)
    stream.disconnected()
    assert stream.connect(Route(), 0) == 0


def test_g6_more_than_the_window_is_refused() -> None:
    _, stream = opened(window=2500)
    batch(stream, 0)
    batch(stream, 1)
    with pytest.raises(ProtocolError, match="3,000 bytes on a channel that may carry 2,500") as it:
        batch(stream, 2)
    assert it.value.code == "limit"


def test_one_batch_may_pass_the_limit_when_all_before_it_is_acknowledged() -> None:
    inbox, stream = opened(window=1500)
    batch(stream, 0, size=9000)
    with pytest.raises(ProtocolError):
        batch(stream, 1)
    entries(inbox)
    assert stream.credit.grant() == (1, 10_500)
    batch(stream, 1, size=5000)
    entries(inbox)
    with pytest.raises(ProtocolError):  # consumed, but the publisher cannot know
        batch(stream, 2)


def test_none_may_pass_a_limit_that_was_reached() -> None:
    inbox, stream = opened(window=1000)
    batch(stream, 0, size=1000)
    entries(inbox)
    stream.credit.acked_until = 1  # as if all were acknowledged and the limit as before
    with pytest.raises(ProtocolError):
        batch(stream, 1)


def test_what_was_on_its_way_when_the_limit_became_less_is_taken() -> None:
    inbox, stream = opened(window=4000)
    batch(stream, 0)
    fresh(inbox=inbox)
    assert stream.credit.grant() == (0, 2000)
    batch(stream, 1)
    batch(stream, 2)
    batch(stream, 3)
    with pytest.raises(ProtocolError, match="5,000 bytes on a channel that may carry 4,000"):
        batch(stream, 4)


def test_a_new_channel_begins_with_the_limit_of_its_own() -> None:
    inbox, stream = opened(window=4000)
    fresh(inbox=inbox)
    stream.disconnected()
    assert stream.connect(Route(), 0) == 2000
    stream.opened("topic", "msgpack", 0, 0, 1)
    batch(stream, 0)
    with pytest.raises(ProtocolError):
        batch(stream, 1, size=1001)


def test_a_repeated_batch_counts_for_nothing() -> None:
    inbox, stream = opened(window=3000)
    batch(stream, 0)
    batch(stream, 0)
    entries(inbox)
    assert stream.credit.grant() == (1, 5000)  # both were sent on this channel
    batch(stream, 1, size=3000)


# --- acknowledging ------------------------------------------------------------------------------


def test_an_ack_is_due_soon_or_now_and_once() -> None:
    inbox, stream = opened(window=8192)
    assert stream.credit.ack_every == 2048
    stages: list[int] = []
    inbox.window.on_consumed = lambda credit, stage: stages.append(stage)
    for seq in range(5):
        batch(stream, seq)
    entries(inbox)
    assert stages == [1, 2]
    assert stream.credit.grant() == (5, 8192 + 5000)
    assert stream.credit.grant() is None
    batch(stream, 5)
    entries(inbox)
    assert stages == [1, 2, 1]


@pytest.mark.parametrize(
    ("window", "asked", "every"), [(8192, 100, 100), (8192, 10**9, 2048), (1, 0, 1)]
)
def test_acks_are_as_frequent_as_both_sides_need(window: int, asked: int, every: int) -> None:
    _, stream = fresh(window=window)
    stream.connect(Route(), 0)
    stream.opened("topic", "msgpack", 0, 0, asked)
    assert stream.credit.ack_every == every


def test_an_ack_says_what_was_consumed_and_not_what_batch() -> None:
    inbox, stream = opened(3)
    batch(stream, 3, 2)
    batch(stream, 5, 2)
    assert stream.credit.grant() is None
    inbox.take()
    assert stream.credit.grant() == (5, WINDOW + 1000)


def test_an_ack_covers_the_gap_behind_which_something_was_consumed() -> None:
    inbox, stream = opened()
    stream.gap(0, 4, "overflow")
    batch(stream, 4)
    inbox.take()
    inbox.take()
    assert stream.credit.grant() == (5, WINDOW + 1000 + BATCH_COST)


def test_an_ack_never_goes_back() -> None:
    """After a resume the publisher takes for consumed what only waits here."""
    inbox, stream = opened()
    batch(stream, 0)
    batch(stream, 1)
    stream.disconnected()
    stream.connect(Route(), 0)
    stream.opened("topic", "msgpack", 2, 2, 1)
    inbox.take()
    assert stream.credit.grant() == (2, WINDOW - 1000)
    inbox.take()
    assert stream.credit.grant() == (2, WINDOW)
    batch(stream, 2)
    inbox.take()
    assert stream.credit.grant() == (3, WINDOW + 1000)


def test_without_a_way_back_there_is_no_ack() -> None:
    inbox, stream = opened()
    batch(stream, 0)
    stream.disconnected()
    inbox.take()
    assert stream.credit.grant() is None


@pytest.mark.parametrize("when", ["disconnected", "connecting"])
@pytest.mark.parametrize("asked", [True, False], ids=["asked in vain", "not asked yet"])
def test_what_was_consumed_without_a_way_back_is_acknowledged_with_the_answer(
    when: str, asked: bool
) -> None:
    """Else the window of the new channel might never open: nothing more comes to be consumed."""
    inbox, stream = opened(window=2000)
    calls: list[int] = []
    inbox.window.on_consumed = lambda credit, stage: calls.append(stage)
    batch(stream, 0)
    batch(stream, 1)
    stream.disconnected()
    if when == "disconnected":
        entries(inbox)
    assert stream.connect(Route(), 0) == (2000 if when == "disconnected" else 0)
    if when == "connecting":
        entries(inbox)
    if asked:
        assert stream.credit.grant() is None
    calls.clear()
    stream.opened("topic", "msgpack", 2, 2, 1)
    assert calls == ([] if when == "disconnected" else [2])
    if when == "connecting":
        assert stream.credit.grant() == (2, 2000)
    calls.clear()
    batch(stream, 2)
    entries(inbox)
    assert calls == [2], "an ACK that was lost with the link must not silence the next ones"
