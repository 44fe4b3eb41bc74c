"""OpenTelemetry: a trace goes with a message, by any put and any take, and nobody else pays."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="needs opentelemetry-sdk")

from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from pubsub import EncodeError, Message, Peer, Pub, Sub, otel
from pubsub.codec.headers import BatchHeaders
from pubsub.faces import tracing
from pubsub.faces.asyncpub import AsyncPub
from pubsub.faces.blockingpub import BlockingPub
from tests.integration.support import LONG, coordinator_in_loop, coordinator_in_thread, eventually

Spans = Callable[[SpanKind], list[ReadableSpan]]


@pytest.fixture
def provider() -> TracerProvider:
    return TracerProvider()


@pytest.fixture
def spans(provider: TracerProvider) -> Iterator[Spans]:
    """The spans of a kind so far, while all is instrumented."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    otel.instrument(provider)
    yield lambda kind: [span for span in exporter.get_finished_spans() if span.kind is kind]
    otel.uninstrument()


def context(span: Any) -> SpanContext:
    found = span.get_span_context()
    assert isinstance(found, SpanContext)
    return found


def linked(put: ReadableSpan, took: ReadableSpan) -> bool:
    """Whether the one that was taken says that it is the one that was put."""
    return [link.context.span_id for link in took.links] == [context(put).span_id]


async def test_a_put_and_its_take_are_spans_that_are_linked(
    spans: Spans, provider: TracerProvider
) -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("orders/*"), here.pub("orders/eu")
        await pub.wait_for_subscribers(1, LONG)
        with provider.get_tracer("test").start_as_current_span("a request") as request:
            pub.put({"id": 1})
        assert await sub.get(LONG) == {"id": 1}
        (put,), (took,) = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
        assert (put.name, took.name) == ("send orders/eu", "receive orders/eu")
        assert put.parent is not None
        assert put.parent.span_id == context(request).span_id
        assert linked(put, took)
        for span, operation in ((put, "send"), (took, "receive")):
            attributes = dict(span.attributes or {})
            attributes.pop("messaging.message.id", None)
            assert attributes == {
                "messaging.system": "pubsubd",
                "messaging.operation.name": operation,
                "messaging.operation.type": operation,
                "messaging.destination.name": "orders/eu",
            }
        (publisher,) = sub.publishers
        assert (took.attributes or {})["messaging.message.id"] == f"{publisher}/0"


async def take_by_get(sub: Sub, count: int) -> list[Any]:
    return [await sub.get(LONG) for _ in range(count)]


async def take_by_get_many(sub: Sub, count: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < count:
        found += await sub.get_many(2, LONG)
    return found


async def take_by_iteration(sub: Sub, count: int) -> list[Any]:
    found = []
    async for value in sub:
        found.append(value)
        if len(found) == count:
            break
    return found


async def take_messages(sub: Sub, count: int) -> list[Any]:
    found = []
    async for message in sub.messages():
        assert isinstance(message, Message)
        assert message.headers["own"] == "b"
        assert "traceparent" in message.headers
        found.append(message.value)
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("take", [take_by_get, take_by_get_many, take_by_iteration, take_messages])
async def test_every_way_to_take_in_a_loop_makes_one_span_each(
    spans: Spans, take: Callable[[Sub, int], Any]
) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        for n in range(6):
            await pub.put(n, {"own": "b"})
        assert await asyncio.wait_for(take(sub, 6), LONG) == list(range(6))
        puts, took = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
        assert len(puts) == 6
        assert [linked(*both) for both in zip(puts, took, strict=True)] == [True] * 6


@pytest.mark.parametrize(
    "take",
    [
        lambda sub: [sub.get(LONG) for _ in range(6)],
        lambda sub: sub.get_many(6, LONG),
        lambda sub: list(islice(sub, 6)),
        lambda sub: [message.value for message in islice(sub.messages(), 6)],
    ],
)
def test_every_way_to_take_elsewhere_makes_one_span_each(
    spans: Spans, take: Callable[[Sub], list[Any]]
) -> None:
    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        sub, pub = peer.sub("t"), peer.pub("t", overflow="block")
        pub.put(0)
        pub.put_many([1, 2])
        pub.put_many(iter([3, 4, 5]))
        pub.flush(LONG)
        found = take(sub)
        while len(found) < 6:
            found += sub.get_many(6, LONG)
        assert found == list(range(6))
        puts, took = spans(SpanKind.PRODUCER), spans(SpanKind.CONSUMER)
        assert [linked(*both) for both in zip(puts, took, strict=True)] == [True] * 6


@pytest.mark.parametrize("overflow", ["drop", "block"])
async def test_put_many_puts_each_with_its_trace(spans: Spans, overflow: Any) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t", overflow=overflow)
        await pub.put_many([1, 2, 3])
        assert await take_by_get(sub, 3) == [1, 2, 3]
        assert len(spans(SpanKind.PRODUCER)) == len(spans(SpanKind.CONSUMER)) == 3


def test_several_threads_that_take_from_one_sub_have_a_span_for_each_message(spans: Spans) -> None:
    with coordinator_in_thread() as coordinator, Peer(coordinator.address) as peer:
        sub, pub = peer.sub("t"), peer.pub("t")
        pub.put_many(range(2_000))
        found: list[int] = []

        def take() -> None:
            for message in sub.messages():
                assert isinstance(message, Message)
                if message.value is None:
                    return
                assert message.value == message.seq
                found.append(message.value)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in threads:
            pub.put(None)
        for thread in threads:
            thread.join()
        assert sorted(found) == list(range(2_000))
        puts = {context(span).span_id for span in spans(SpanKind.PRODUCER)}
        took = spans(SpanKind.CONSUMER)
        assert {link.context.span_id for span in took for link in span.links} == puts
        assert len(took) == len(puts) == 2_004


async def test_headers_of_ones_own_stay_and_are_not_changed(spans: Spans) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        own: dict[str, str | bytes] = {"unit": "C"}
        pub.put(1, own)
        async for message in sub.messages():
            assert isinstance(message, Message)
            assert {**own, "traceparent": message.headers["traceparent"]} == message.headers
            break
        assert own == {"unit": "C"}


async def test_a_put_that_raises_is_a_span_with_the_error(spans: Spans) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        pub = peer.pub("t")
        bad: Any = ["a"]
        for value, headers in ((object(), None), (1, bad), (1, {"a": 1})):
            with pytest.raises(EncodeError):
                pub.put(value, headers)
        found = spans(SpanKind.PRODUCER)
        assert [span.status.status_code for span in found] == [StatusCode.ERROR] * 3
        assert "headers on topic 't' are a list" in str(found[1].status.description)


async def test_what_is_done_with_a_message_can_go_on_in_its_trace(
    spans: Spans, provider: TracerProvider
) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        pub.put(1)
        async for message in sub.messages():
            assert isinstance(message, Message)
            with provider.get_tracer("test").start_as_current_span(
                "work", context=otel.context_of(message)
            ) as work:
                pass
            break
        (put,) = spans(SpanKind.PRODUCER)
        assert context(work).trace_id == context(put).trace_id


async def test_without_it_the_propagator_alone_does_on_both_ends(provider: TracerProvider) -> None:
    tracer = provider.get_tracer("test")
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        with tracer.start_as_current_span("ours") as ours:
            headers: dict[str, str | bytes] = {}
            propagate.inject(headers)
            pub.put(1, headers)
        async for message in sub.messages():
            assert isinstance(message, Message)
            came = context(trace.get_current_span(propagate.extract(message.headers)))
            assert came.span_id == context(ours).span_id
            break


@pytest.mark.parametrize(
    "headers", [{"traceparent": b"\xff"}, {"traceparent": "garbage"}, {"tracestate": b"a=b"}]
)
async def test_a_strangers_trace_harms_no_take(spans: Spans, headers: Any) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        AsyncPub.put.__wrapped__(pub, 1, headers)  # type: ignore[attr-defined]  # as if not told
        assert await sub.get(LONG) == 1
        (took,) = spans(SpanKind.CONSUMER)
        assert not took.links


def test_headers_that_cannot_be_decoded_have_no_context() -> None:
    message = Message(1, "t", "p", 0, 0.0)
    message._headers = BatchHeaders(b"\xc1", 0, "t", "p")
    assert otel.context_of(message) == {}


async def test_what_a_closed_sub_had_is_no_take_and_counts_as_lost(spans: Spans) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        pub.put_many(range(10))
        assert await take_by_get(sub, 3) == [0, 1, 2]
        sub.close()
        assert sub.lost == 7
        assert len(spans(SpanKind.CONSUMER)) == 3


class Failing:
    """A tracer that does not do what it should."""

    def put(self, topic: str, headers: Any, put: Callable[[Any], Any]) -> Any:
        return put(headers)

    def took(self, message: Message) -> None:
        raise RuntimeError("no span today")


async def test_a_tracer_that_fails_costs_no_message(caplog: pytest.LogCaptureFixture) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t"), peer.pub("t")
        tracing.trace(Failing())
        try:
            pub.put_many(range(3))
            await eventually(lambda: not sub._inbox.empty)
            assert await take_by_get(sub, 3) == [0, 1, 2]
        finally:
            tracing.trace(None)
    assert "no span today" in caplog.text


def test_what_was_instrumented_can_be_as_before(spans: Spans) -> None:
    told: dict[type[Pub], Any] = {form: form.put for form in (AsyncPub, BlockingPub)}
    otel.uninstrument()
    for form, put in told.items():
        assert form.put is put.__wrapped__
    assert Sub._tracer is None
    assert Pub._plain == (list, tuple)


def test_without_the_extra_one_line_says_what_to_install() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None\nimport pubsub.otel"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LONG)
    last = run.stderr.splitlines()[-1]
    assert "pubsub.otel needs opentelemetry" in last
    assert "pip install 'pubsubd[otel]'" in last
