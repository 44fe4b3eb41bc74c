"""OpenTelemetry: a span for each put and each take, and the context of a trace in headers.

    import pubsub.otel
    pubsub.otel.instrument()

From then on the process's puts are PRODUCER spans, whose context goes with the message as the
configured propagator writes it (mostly the header ``traceparent``), and its takes CONSUMER spans,
linked to the put. Names and attributes are those of OpenTelemetry's conventions for messaging. The
extra ``pubsubd[otel]`` brings the API; the program brings, and configures, an SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError as error:
    raise ImportError(
        f"pubsub.otel needs {error.name}: python -m pip install 'pubsubd[otel]'", name=error.name
    ) from error
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TracerProvider

from pubsub import DecodeError, Message, __version__
from pubsub.faces import tracing

__all__ = ["context_of", "instrument", "uninstrument"]

Headers = Mapping[str, str | bytes]


def instrument(tracer_provider: TracerProvider | None = None) -> None:
    """Make spans of all puts and takes of this process from now on.

    Parameters:
        tracer_provider: who makes them; default: the one that is configured for the process, also
            where that is done later.

    Example:
        >>> import pubsub.otel
        >>> pubsub.otel.instrument()
        >>> pubsub.otel.uninstrument()
    """
    tracing.trace(_Spans(trace.get_tracer("pubsub", __version__, tracer_provider)))


def uninstrument() -> None:
    """Make no more of them."""
    tracing.trace(None)


def context_of(message: Message) -> Context:
    """The context that came with a message, for a span of what is done with it:
    ``tracer.start_as_current_span("resize", context=context_of(message))``. It is empty where the
    message has none, or headers that cannot be decoded.
    """
    try:
        headers: Headers = message.headers
    except DecodeError:
        headers = {}
    return propagate.extract(headers, Context(), _TEXTS)


class _Texts(Getter[Headers]):
    """The headers that are text: what a stranger sends as bytes, propagators do not expect."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        value = carrier.get(key)
        return [value] if type(value) is str else None

    def keys(self, carrier: Headers) -> list[str]:
        return [name for name, value in carrier.items() if type(value) is str]


_TEXTS = _Texts()


class _Spans:
    """The `Tracer`."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer

    def put(self, topic: str, headers: Headers | None, put: Callable[[Headers | None], Any]) -> Any:
        span = self._tracer.start_span(
            f"send {topic}", kind=SpanKind.PRODUCER, attributes=_attributes("send", topic)
        )
        try:
            if headers is None or isinstance(headers, Mapping):  # else `put` says what is wrong
                carrier = dict(headers or ())
                propagate.inject(carrier, trace.set_span_in_context(span))
                headers = carrier or None
            return put(headers)
        except BaseException as error:
            span.record_exception(error)
            span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
            raise
        finally:
            span.end()

    def took(self, message: Message) -> None:
        came_from = trace.get_current_span(context_of(message)).get_span_context()
        self._tracer.start_span(
            f"receive {message.topic}",
            kind=SpanKind.CONSUMER,
            links=[Link(came_from)] if came_from.is_valid else (),
            attributes={
                **_attributes("receive", message.topic),
                "messaging.message.id": f"{message.publisher}/{message.seq}",
            },
        ).end()


def _attributes(operation: str, topic: str) -> dict[str, str]:
    return {
        "messaging.system": "pubsubd",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": topic,
    }
