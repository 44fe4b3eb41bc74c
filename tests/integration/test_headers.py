"""Headers arrive with their messages, whatever the road, the codec and the form of the Pub."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack
import pytest

import pubsub
from pubsub import EncodeError, Message, MessageTooLarge, Peer, Pub, Sub, WrongContext
from pubsub.config import MIB, parse_address
from pubsub.core.serving import Serving
from pubsub.links import memory, unix
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from pubsub.wire.frames import array_header
from tests.integration import test_taking
from tests.integration.support import (
    LONG,
    break_links,
    coordinator_in_loop,
    coordinator_in_thread,
    default_guard,
    eventually,
)
from tests.relay.meeting import a_relay

HEADERS: dict[str, str | bytes] = {
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "key": b"\0\xff",
}
LARGE = 200_000

Pair = tuple[Pub, Sub]


@asynccontextmanager
async def pair(way: str = "tcp", **options: Any) -> AsyncIterator[Pair]:
    """A Pub and a Sub over that way."""
    of_sub = {key: options.pop(key) for key in ("keep", "window", "history") if key in options}
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(coordinator_in_loop())
        shared = 64 * MIB if way == "memory" else 0
        here = await stack.enter_async_context(Peer(address, shared_memory=shared))
        there = here
        if way != "local":
            there = await stack.enter_async_context(Peer(address))
        sub = await there.sub("t", **of_sub)
        pub = here.pub("t", **options)
        await pub.wait_for_subscribers(1, LONG)
        yield pub, sub


async def take(sub: Sub, count: int) -> list[Message]:
    """The next messages; gaps are passed over."""
    found: list[Message] = []

    async def go_on() -> None:
        async for event in sub.messages():
            if isinstance(event, Message):
                found.append(event)
                if len(found) == count:
                    break

    await asyncio.wait_for(go_on(), LONG)
    return found


async def exchange(pub: Pub, sub: Sub) -> None:
    """Messages with and without headers, small and large, in one batch and alone."""
    sent: list[tuple[bytes, Any]] = [
        *((b"plain", {}), (b"headed", HEADERS), (b"again", {}), (b"empty", {"": ""})),
        *((b"x" * LARGE, HEADERS), (b"y" * LARGE, {}), (b"last", {"é": "ö" * 30_000})),
    ]
    for value, headers in sent:
        await pub.put(value, headers or None)
    found = await take(sub, len(sent))
    assert [(message.value, message.headers) for message in found] == sent
    assert [message.seq for message in found] == list(range(found[0].seq, found[0].seq + len(sent)))


@pytest.mark.parametrize("codec", ["msgpack", "raw"])
@pytest.mark.parametrize("way", ["local", "tcp", "socket", "memory"])
async def test_headers_arrive_on_every_way(
    way: str, codec: Any, request: pytest.FixtureRequest
) -> None:
    if way == "tcp":
        request.getfixturevalue("by_tcp")
    elif way == "socket" and not unix.available():
        pytest.skip("no Unix sockets")
    elif way == "memory" and not memory.available():
        pytest.skip("no memory is shared on this system")
    async with pair(way, codec=codec) as (pub, sub):
        for _ in range(5):  # of shared memory, the first ones go by the socket
            await exchange(pub, sub)
        (how,) = sub.publishers.values()
        assert how["way"] == {"local": "local", "tcp": "direct"}.get(way, "unix")
        assert sub.lost == 0


async def test_headers_arrive_with_pickles(by_tcp: None) -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub = await there.sub("t", allow_pickle="anyone")
        pub = here.pub("t", codec="pickle")
        await pub.wait_for_subscribers(1, LONG)
        await exchange(pub, sub)


@pytest.mark.parametrize("relayed", [False, True])
async def test_headers_arrive_over_tls_and_a_relay(
    relayed: bool, by_tcp: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    monkeypatch.setenv("PUBSUB_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("PUBSUB_ENCRYPT", "1")
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(coordinator_in_loop())
        if relayed:
            known = (parse_address(address),)
            relay = await stack.enter_async_context(a_relay(default_guard(), known))
            await eventually(lambda: all(kept.up for kept in relay.coordinators))
        here = await stack.enter_async_context(Peer(address, listen=not relayed))
        there = await stack.enter_async_context(Peer(address, listen=not relayed))
        sub, pub = await there.sub("t"), here.pub("t")
        await pub.wait_for_subscribers(1, LONG)
        (how,) = sub.publishers.values()
        assert how["way"] == ("relay" if relayed else "direct")
        await exchange(pub, sub)


def test_blocking_pubs_and_subs_have_headers_too(by_tcp: None) -> None:
    with (
        coordinator_in_thread() as coordinator,
        Peer(coordinator.address) as here,
        Peer(coordinator.address) as there,
    ):
        sub, pub = there.sub("t"), here.pub("t", overflow="block", buffer=200_000)
        sent: list[Any] = [(n, HEADERS if n % 3 else {}) for n in range(5_000)]
        sent += [("x" * 100_000, HEADERS)] * 5

        def put() -> None:
            for value, headers in sent:
                pub.put(value, headers=headers or None)

        putting = threading.Thread(target=put)
        putting.start()
        messages = (event for event in sub.messages() if isinstance(event, Message))
        found = list(islice(messages, len(sent)))
        putting.join()
        assert [(message.value, message.headers) for message in found] == sent
        assert sub.lost == 0


async def test_values_alone_are_taken_without_a_look_at_the_headers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[Any] = []
    monkeypatch.setattr("pubsub.codec.headers._unpack", looked.append)
    async with pair() as (pub, sub):
        for n in range(4):
            pub.put(n, HEADERS)
        assert await sub.get(LONG) == 0
        assert await sub.get_many(2, LONG) == [1, 2]
        async for value in sub:
            assert value == 3
            break
    assert looked == []


@pytest.mark.parametrize("way", ["local", "tcp"])
async def test_with_keep_latest_the_headers_are_those_of_the_newest(way: str) -> None:
    async with pair(way, keep="latest") as (pub, sub):
        for n in range(10):
            pub.put(n, {"n": str(n)})
        await eventually(lambda: sub.lost == 9)
        (message,) = await take(sub, 1)
        assert (message.value, message.headers) == (9, {"n": "9"})
        pub.put(10)
        pub.put(11, {"n": "11"})
        pub.put(12)
        await eventually(lambda: sub.lost == 11)
        (message,) = await take(sub, 1)
        assert (message.value, message.headers) == (12, {})


async def test_history_brings_headers_and_those_of_a_part_of_a_batch() -> None:
    """A Sub that asks for two of a batch of five gets the whole batch, and passes over three."""
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        pub = await here.pub("t", history=10)
        for n in range(5):
            pub.put(n, {"n": str(n)} if n != 3 else None)
        await pub.flush(LONG)
        sub = await there.sub("t", history=2)
        found = await take(sub, 2)
        assert [(m.value, m.seq, m.headers) for m in found] == [(3, 3, {}), (4, 4, {"n": "4"})]


async def test_headers_of_what_is_sent_again_after_a_broken_link(by_tcp: None) -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t", window=1), here.pub("t")
        await pub.wait_for_subscribers(1, LONG)
        for n in range(20):
            pub.put(n, {"n": str(n)})
            await asyncio.sleep(0)  # a batch each
        found = await take(sub, 5)
        assert break_links(there)
        found += await take(sub, 15)
        assert [(m.value, m.headers["n"]) for m in found] == [(n, str(n)) for n in range(20)]
        assert sub.lost == 0


async def test_headers_count_in_buffer_and_window() -> None:
    headers: dict[str, str | bytes] = {"k": "x" * 50_000}
    async with pair(buffer=300_000, window=100_000) as (pub, sub):
        for _ in range(100):
            pub.put(None, headers)
            await asyncio.sleep(0)
        assert 250_000 < pub._publication.log.size <= 300_000
        assert 0 < sub._inbox.window.consumed + len(sub._inbox.waiting()) < 5
        assert sum(entry.size for entry in sub._inbox.waiting()) <= 100_000 + 51_000


async def test_a_message_with_its_headers_may_not_be_above_max_message() -> None:
    async with coordinator_in_loop() as address, Peer(address, max_message=10_000) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        pub.put(b"x" * 9_000)
        with pytest.raises(MessageTooLarge, match="over max_message"):
            pub.put(b"x" * 9_000, {"k": "x" * 1_000})
        with pytest.raises(MessageTooLarge, match="1 header of 70,001 bytes on topic 't'"):
            pub.put(1, {"k": "x" * 70_000})
        pub.put(b"x" * 8_900, {"k": "x" * 1_000})
        assert [len(message.value) for message in await take(sub, 2)] == [9_000, 8_900]


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("bad", [{"a": 1}, {1: "a"}, ["a"], {"a": "\ud800"}])
def test_bad_headers_put_nothing_and_harm_nothing(bad: Any, blocks: bool) -> None:
    async def in_loop(address: str) -> list[tuple[int, int]]:
        async with Peer(address) as peer:
            sub, pub = await peer.sub("t"), peer.pub("t")
            for step in steps(pub):
                await asyncio.sleep(step)
            return [(m.seq, m.value) for m in await take(sub, 2)]

    def steps(pub: Any) -> Iterator[int]:
        pub.put(1, HEADERS)
        with pytest.raises(EncodeError, match="on topic 't'"):
            pub.put(object() if bad == ["a"] else 0, headers=bad)
        yield 0
        pub.put(2, HEADERS)

    with coordinator_in_thread() as coordinator:
        if not blocks:
            assert asyncio.run(in_loop(coordinator.address)) == [(0, 1), (1, 2)]
            return
        with Peer(coordinator.address) as peer:
            sub = peer.sub("t")
            list(steps(peer.pub("t")))
            found = islice(sub.messages(), 2)
            assert [(m.seq, m.value) for m in found if isinstance(m, Message)] == [(0, 1), (1, 2)]


async def test_a_put_that_waits_for_room_keeps_its_headers() -> None:
    async with pair(overflow="block", buffer=2_000, window=1) as (pub, sub):

        async def put() -> None:
            for n in range(30):
                await pub.put(b"x" * 500, {"n": str(n)})

        putting = asyncio.ensure_future(put())
        found = await take(sub, 30)
        await putting
        assert [message.headers["n"] for message in found] == [str(n) for n in range(30)]


async def test_put_many_has_none_and_goes_with_those_that_have() -> None:
    async with pair() as (pub, sub):
        pub.put(0, HEADERS)
        pub.put_many([1, 2])
        pub.put(3, HEADERS)
        found = await take(sub, 4)
        assert [(m.value, bool(m.headers)) for m in found] == [
            *((0, True), (1, False), (2, False), (3, True)),
        ]


async def test_a_batch_without_headers_is_on_the_wire_as_if_there_were_none(
    by_tcp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a Pub that has put some before."""
    written: list[bytes] = []
    real = Serving._write

    def write(serving: Any, channel: Any, cursor: Any, batch: Any, out: list[Any]) -> None:
        before = len(out)
        real(serving, channel, cursor, batch, out)
        written.append(b"".join(out[before:]))

    monkeypatch.setattr(Serving, "_write", write)
    monkeypatch.setattr(Serving, "offer", lambda self, cursor, batch: self.enqueue(cursor) or True)
    async with pair() as (pub, sub):
        await pub.put(1, HEADERS)
        await take(sub, 1)
        written.clear()
        pub.put({"id": 1})
        pub.put({"id": 2})
        (message, _) = await take(sub, 2)
        body = array_header(2) + b"\x81\xa2id\x01\x81\xa2id\x02"
        was = struct.pack(
            ">IHBIBQBd", 25 + len(body), 0x9507, 0xCE, 0, 0xCF, 1, 0xCB, message.sent_at
        )
        assert written == [was + body]


async def test_an_entry_has_the_headers_undecoded_beside_the_body() -> None:
    for way in ("local", "tcp"):
        async with pair(way) as (pub, sub):
            pub.put(1)
            pub.put(2, {"a": "b"})
            await eventually(lambda: not sub._inbox.empty)
            entry = sub._inbox.peek()
            assert entry is not None
            assert entry.body == array_header(2) + b"\1\2"
            assert msgpack.unpackb(entry.headers, strict_map_key=False) == {1: {"a": "b"}}
            assert await sub.get_many() == [1, 2]
            pub.put(3)
            await eventually(lambda: not sub._inbox.empty)
            entry = sub._inbox.peek()
            assert entry is not None
            assert entry.headers == b""


PUTTING = {
    str(Path(pubsub.__file__).parent / name)
    for name in ("faces/pub.py", "faces/asyncpub.py", "faces/blockingpub.py", "codec/headers.py")
}


@pytest.mark.parametrize("puts", [False, True])
def test_a_put_with_headers_may_be_interrupted_at_any_moment(
    puts: bool, monkeypatch: pytest.MonkeyPatch, uncollected: None
) -> None:
    """By a signal handler that puts, too, or by one that raises: each message has its headers."""
    monkeypatch.setattr(test_taking, "TAKING", PUTTING)
    with coordinator_in_thread() as coordinator, Peer(coordinator.address, linger=0) as peer:
        sub, number = peer.sub("t"), 0
        while True:
            blocking, put = peer.pub("t"), []

            def one_more(n: int) -> None:
                blocking.put(n, {"n": str(n)})  # noqa: B023
                put.append(n)  # noqa: B023

            def handler() -> None:
                if not puts:
                    raise test_taking.Interrupt
                with suppress(WrongContext):  # it is in the middle of encoding
                    one_more(100)

            one_more(0)
            with test_taking.at(number, handler) as moment, suppress(test_taking.Interrupt):
                one_more(1)
            one_more(2)
            blocking.close(LONG)
            messages = islice(sub.messages(), blocking._publication.log.next_seq)
            got = [(m.value, m.headers) for m in messages if isinstance(m, Message)]
            assert got == [(n, {"n": str(n)}) for n, _ in got], moment.where
            values = [n for n, _ in got]
            assert len(set(values)) == len(values), moment.where
            assert set(put) <= set(values), moment.where
            if moment.where is None:
                break
            number += 1
        assert number > 10
