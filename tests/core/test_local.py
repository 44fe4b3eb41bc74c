"""A Pub and a Sub in one process: the same promises without a link."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pubsub.core.cursor import SubKey
from pubsub.core.inbox import Inbox
from pubsub.core.local import Local
from pubsub.core.publication import Publication
from pubsub.core.stream import Stream, StreamKey
from pubsub.wire.frames import BATCH_COST, array_header
from tests.wire.buffers import contents, whole


class Process:
    """One peer's local side."""

    def __init__(self) -> None:
        self.outputs = 0
        self.local = Local("me", self.on_output)

    def on_output(self) -> None:
        self.outputs += 1

    def turn(self) -> bool:
        """What the runtime does at the end of a turn; False when there is nothing to do."""
        if not self.outputs:
            return False
        self.outputs = 0
        self.local.pump()
        return True

    def join(self, publication: Publication, inbox: Inbox) -> Stream:
        key = StreamKey("me", publication.stream_id)
        stream = Stream(inbox, key, publication.topic, "local", 10**6)
        inbox.add(stream)
        self.local.join(publication, stream)
        return stream


def pub(
    number: int = 1, *, buffer: int = 10**6, block: bool = False, history: int = 0
) -> Publication:
    made = Publication(
        number,
        f"topic/{number}",
        buffer=buffer,
        block=block,
        history=history,
        join_timeout=5.0,
        resume_timeout=30.0,
        now=0.0,
    )
    made.answered(0.0)
    made.settle()
    return made


def sub(
    number: int = 10,
    *,
    window: int = 10**6,
    history: int | None = 0,
    observer: bool = False,
    latest: bool = False,
) -> Inbox:
    inbox = Inbox(
        number, "topic/*", window=window, history=history, observer=observer, latest=latest
    )

    inbox.window.on_consumed = lambda credit, stage: credit.acknowledge()
    return inbox


def put(publication: Publication, *values: object, buffers: tuple[bytes, ...] = ()) -> int:
    body = array_header(len(values)) + b"".join(map(msgpack.packb, values))
    return publication.append(len(values), body, whole(*buffers), 1.5).size


def values(inbox: Inbox) -> list[object]:
    found: list[object] = []
    while (entry := inbox.take()) is not None:
        if entry.first < entry.end:
            found += msgpack.unpackb(entry.body)[entry.skip :]
    return found


def test_messages_arrive_in_the_next_turn() -> None:
    process, made, inbox = Process(), pub(), sub()
    stream = process.join(made, inbox)
    assert stream.open
    assert process.turn()
    put(made, "a", "b", buffers=(b"large",))
    assert process.outputs == 1
    put(made, "c")
    assert process.outputs == 1
    assert inbox.empty
    assert process.turn()
    entry = inbox.take()
    assert entry is not None
    assert (entry.first, entry.end, entry.sent_at) == (0, 2, 1.5)
    assert tuple(map(contents, entry.buffers)) == (b"large",)
    assert values(inbox) == ["c"]
    assert not process.turn()
    assert len(made.log) == 0  # consumed is acknowledged


def test_g4_a_sub_that_joins_gets_what_is_put_from_then_on() -> None:
    process, made, inbox = Process(), pub(), sub()
    put(made, "before")
    process.join(made, inbox)
    put(made, "after")
    process.turn()
    assert values(inbox) == ["after"]
    assert inbox.lost == 0


@pytest.mark.parametrize(("asked", "expected"), [(0, ["c"]), (1, ["b", "c"]), (None, ["b", "c"])])
def test_history_goes_back(asked: int | None, expected: list[str]) -> None:
    process, made, inbox = Process(), pub(history=1), sub(history=asked)
    put(made, "a")
    put(made, "b")
    process.join(made, inbox)
    put(made, "c")
    process.turn()
    assert values(inbox) == expected


def test_g6_the_window_holds_back_and_opens_again() -> None:
    process, made, inbox = Process(), pub(), sub(window=1000)
    process.join(made, inbox)
    sizes = [put(made, "." * 300, number) for number in range(3)]
    process.turn()
    assert len(inbox._entries) == 1
    assert sizes[0] * 2 > 1000
    for number in range(3):
        assert values(inbox) == ["." * 300, number]
        assert process.turn() == (number < 2)
    assert len(made.log) == 0


def test_g3_what_left_the_log_is_a_gap() -> None:
    process, made, inbox = Process(), pub(buffer=10), sub()
    process.join(made, inbox)
    put(made, "a", "b")
    put(made, "c")
    process.turn()
    assert values(inbox) == ["c"]
    assert inbox.lost == 2


def test_several_subs_share_the_batches_and_not_the_objects() -> None:
    process, made = Process(), pub()
    inboxes = [sub(number) for number in (10, 11)]
    for inbox in inboxes:
        process.join(made, inbox)
    put(made, ["a"])
    process.turn()
    one, two = (values(inbox) for inbox in inboxes)
    assert one == two == [["a"]]
    assert one[0] is not two[0]
    assert {key for _, cursor in made.cursors() if (key := cursor.key)} == {
        SubKey("me", 10),
        SubKey("me", 11),
    }


def test_a_sub_that_is_closed_lets_go() -> None:
    process, made, inbox = Process(), pub(), sub()
    stream = process.join(made, inbox)
    put(made, "a")
    process.local.unsubscribe(stream)
    process.local.unsubscribe(stream)
    assert (made.attached, len(made.log)) == (0, 0)
    process.turn()
    assert inbox.empty
    process.local.ack(stream)
    put(made, "b")
    assert not process.turn()


def test_what_was_taken_is_known_when_a_sub_is_closed() -> None:
    process, made, inbox = Process(), pub(), sub()
    stream = process.join(made, inbox)
    inbox.window.on_consumed = lambda credit, stage: None  # the timer has not come
    put(made, "a")
    process.turn()
    assert values(inbox) == ["a"]
    process.local.unsubscribe(stream)
    assert list(made.leavers) == []
    assert made.reached == 1


def test_g3_the_end_of_a_pub_shows_what_did_not_come() -> None:
    process, made, inbox = Process(), pub(), sub()
    stream = process.join(made, inbox)
    put(made, "a")
    process.turn()
    put(made, "b")
    made.end("closed", "")
    assert stream.ended
    process.turn()
    assert values(inbox) == ["a"]
    assert inbox.lost == 1
    assert inbox.streams == {}
    process.local.ack(stream)


def test_a_pub_that_cannot_be_read_is_left_at_once() -> None:
    process, made, inbox = Process(), pub(), sub()
    error = ValueError("pickle is not allowed")
    inbox.accepts = lambda stream: error
    stream = process.join(made, inbox)
    assert stream.ended
    assert made.attached == 0
    put(made, "a")
    process.turn()
    entry = inbox.take()
    assert entry is not None
    assert entry.error is error
    assert inbox.take() is None


def test_a_sub_may_be_closed_while_it_is_handed_something() -> None:
    process, made, inbox = Process(), pub(), sub()
    stream = process.join(made, inbox)
    put(made, "a")
    put(made, "b")

    def close() -> None:
        inbox.on_entry = lambda: None
        inbox.close()
        inbox.discard()
        process.local.unsubscribe(stream)
        stream.finish()

    inbox.on_entry = close
    process.turn()
    assert inbox.lost == 1
    assert (made.attached, len(made.log)) == (0, 0)


def test_a_new_subscription_of_the_same_sub_takes_the_place_over() -> None:
    process, made, inbox = Process(), pub(), sub()
    process.join(made, inbox)
    again = process.join(made, inbox)
    put(made, "a")
    process.turn()
    assert values(inbox) == ["a"]
    assert made.attached == 1
    process.local.unsubscribe(again)
    assert made.attached == 0


def test_a_flush_is_done_when_the_messages_wait_at_the_sub() -> None:
    process, made, inbox = Process(), pub(), sub()
    process.join(made, inbox)
    put(made, "a")
    done: list[bool] = []
    made.when_received(lambda: done.append(True), observers=False)
    process.turn()
    assert done == [True]
    assert not inbox.empty


def test_a_flush_that_waits_for_the_window_does_not_spin() -> None:
    process, made, inbox = Process(), pub(), sub(window=10)
    process.join(made, inbox)
    put(made, "a")
    put(made, "b")
    done: list[bool] = []
    made.when_received(lambda: done.append(True), observers=False)
    process.turn()
    assert not process.turn(), "it wants another turn while nothing can be done"
    assert done == []
    assert values(inbox) == ["a"]
    assert process.turn()
    assert done == [True]


def test_what_is_overtaken_opens_the_window_within_the_turn() -> None:
    process, made, inbox = Process(), pub(), sub(window=1000, latest=True)
    process.join(made, inbox)
    for number in range(20):
        put(made, number)
    while process.turn():
        pass
    assert values(inbox) == [19]
    assert inbox.lost == 19


class House(RuleBasedStateMachine):
    """Pubs and Subs of one process, against what was put."""

    def __init__(self) -> None:
        super().__init__()
        self.process = Process()
        self.pubs: list[Publication] = []
        self.subs: list[Inbox] = []
        self.put_values: list[list[int]] = []
        self.joined: dict[tuple[int, int], int] = {}  # sub, pub → from where
        self.got: dict[tuple[int, int], list[int]] = {}

    @initialize(
        buffers=st.lists(st.sampled_from([10, 1000, 10**6]), min_size=1, max_size=3),
        windows=st.lists(st.sampled_from([1, 700, 3000]), min_size=1, max_size=3),
    )
    def begin(self, buffers: list[int], windows: list[int]) -> None:
        self.pubs = [pub(number, buffer=size) for number, size in enumerate(buffers)]
        self.subs = [sub(number, window=size) for number, size in enumerate(windows)]
        self.put_values = [[] for _ in self.pubs]

    @rule(who=st.integers(0, 2), which=st.integers(0, 2))
    def join(self, who: int, which: int) -> None:
        who, which = who % len(self.subs), which % len(self.pubs)
        if (who, which) not in self.joined:
            self.joined[who, which] = len(self.put_values[which])
            self.got[who, which] = []
            self.process.join(self.pubs[which], self.subs[who])

    @rule(which=st.integers(0, 2), count=st.integers(1, 3), size=st.sampled_from([0, 500]))
    def put(self, which: int, count: int, size: int) -> None:
        which %= len(self.pubs)
        numbers = range(len(self.put_values[which]), len(self.put_values[which]) + count)
        put(self.pubs[which], *([number, b"." * size] for number in numbers))
        self.put_values[which] += numbers

    @rule()
    def turn(self) -> None:
        self.process.turn()

    @rule(who=st.integers(0, 2))
    def take(self, who: int) -> None:
        self.take_one(who % len(self.subs))

    def take_one(self, who: int) -> bool:
        entry = self.subs[who].take()
        if entry is None:
            return False
        which = entry.stream.key.stream_id
        if entry.first < entry.end:
            decoded = msgpack.unpackb(entry.body)[entry.skip :]
            assert [number for number, _ in decoded] == list(range(entry.first, entry.end))
            self.got[who, which] += range(entry.first, entry.end)
        return True

    @invariant()
    def streams_stay_within_the_window(self) -> None:
        for inbox in self.subs:
            for stream in inbox.streams.values():
                waiting = stream.credit.received - stream.credit.consumed
                # the window and one batch (with what its values add), and a GAP before that
                assert waiting <= inbox.window.size + 3 * 500 + 3 * BATCH_COST

    def teardown(self) -> None:
        for _ in range(1000):
            taken = [self.take_one(who) for who in range(len(self.subs))]
            if not self.process.turn() and not any(taken):
                break
        else:
            pytest.fail("it never comes to rest")
        for who, inbox in enumerate(self.subs):
            due = 0
            for (sub_, which), start in self.joined.items():
                if sub_ == who:
                    got = self.got[who, which]
                    assert got == sorted(set(got))
                    due += len(self.put_values[which]) - start - len(got)
            assert inbox.lost == due
        for publication in self.pubs:
            assert len(publication.log) == 0 or not publication.attached


TestHouse = House.TestCase
TestHouse.settings = settings(max_examples=60, stateful_step_count=40)
