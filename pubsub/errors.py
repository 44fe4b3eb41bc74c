"""Every exception that pubsubd raises, as one tree.

::

    PubSubError
    ├── TopicError(ValueError)              a topic or pattern that cannot be used
    ├── EncodeError(TypeError)              a value that the codec cannot carry
    ├── DecodeError(ValueError)             a stream or message that this Sub cannot read
    ├── MessageTooLarge(ValueError)         a message above ``max_message``, or its headers
    ├── Closed                              use of a Pub, Sub or Peer after ``close()``
    ├── WrongContext(RuntimeError)          the blocking form inside an event loop, the
    │                                       async form outside one, or use after a fork
    ├── CoordinatorUnavailable(ConnectionError)
    ├── AuthError(PermissionError)
    ├── ProtocolError                       the other end of a connection broke the protocol
    └── RecordingError(ValueError)          a file that is no recording, or cannot become one

Each class also derives from the built-in that fits, so ``except ValueError`` works, and
carries what it talks about as attributes. ``get(timeout=…)`` and the other calls with a
timeout raise the built-in :class:`TimeoutError`. All of them can be copied and pickled, so that
one that is raised in a process pool arrives as it is.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AuthError",
    "Closed",
    "CoordinatorUnavailable",
    "DecodeError",
    "EncodeError",
    "MessageTooLarge",
    "ProtocolError",
    "PubSubError",
    "RecordingError",
    "TopicError",
    "WrongContext",
]


class PubSubError(Exception):
    """The root of all errors of this library."""

    def __reduce__(self) -> tuple[Any, ...]:
        """By args and fields: the one of `BaseException` calls the class with the message alone."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[PubSubError], args: tuple[Any, ...], fields: dict[str, Any]) -> PubSubError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    return error


class TopicError(PubSubError, ValueError):
    """A topic or pattern that cannot be used.

    Attributes:
        topic: what was given.
    """

    def __init__(self, topic: object, problem: str) -> None:
        self.topic = topic
        self.problem = problem
        super().__init__(problem)


class EncodeError(PubSubError, TypeError):
    """A value that the codec cannot carry. Nothing was put; the Pub goes on as before.

    Attributes:
        topic: the topic of the Pub.
        type_name: the qualified name of the type that could not be encoded.
    """

    def __init__(self, message: str, *, topic: str, type_name: str) -> None:
        self.topic = topic
        self.type_name = type_name
        super().__init__(message)


class DecodeError(PubSubError, ValueError):
    """A stream or message that this Sub cannot or may not decode.

    Attributes:
        topic: the topic of the stream.
        publisher: the address of the Pub, or ``""`` where it is not known.
    """

    def __init__(self, message: str, *, topic: str = "", publisher: str = "") -> None:
        self.topic = topic
        self.publisher = publisher
        super().__init__(message)


class MessageTooLarge(PubSubError, ValueError):
    """A message above the ``max_message`` of the Peer, or more headers than a message may have.
    Nothing was put.

    Attributes:
        topic: the topic of the Pub.
        size: bytes of the encoded message, with its headers; or of the headers that are too much.
        limit: bytes that ``max_message`` allows, or that headers may have.
        headers: how many headers are too much; 0: it is the message.
    """

    def __init__(self, *, topic: str, size: int, limit: int, headers: int = 0) -> None:
        self.topic = topic
        self.size = size
        self.limit = limit
        self.headers = headers
        super().__init__(
            f"{headers:,} header{'s' if headers > 1 else ''} of {size:,} bytes on topic {topic!r}, "
            f"where a message may have {limit:,} bytes of headers: what is large belongs into the "
            "value"
            if headers
            else f"a message of {size:,} bytes on topic {topic!r} is over max_message "
            f"({limit:,} bytes): send it in parts, or raise Peer(max_message=…) at both ends"
        )


class Closed(PubSubError):
    """A Pub, Sub or Peer was used after it was closed."""


class WrongContext(PubSubError, RuntimeError):
    """A call that belongs elsewhere: blocking in an event loop, async outside one, after a fork."""


class CoordinatorUnavailable(PubSubError, ConnectionError):
    """No configured coordinator could be reached in time, or one takes no more Pubs and Subs.

    Attributes:
        problem: what is wrong.
        addresses: ``host:port`` of every coordinator that was tried.

    The message also says what to do, where that is known.
    """

    def __init__(self, problem: str, *, addresses: tuple[str, ...] = (), way_out: str = "") -> None:
        self.problem = problem
        self.addresses = addresses
        super().__init__(f"{problem}: {way_out}" if way_out else problem)


class AuthError(PubSubError, PermissionError):
    """The other end refused this process, or could not prove who it is; or this process has no
    right to a topic, and the message says to which it has."""


class ProtocolError(PubSubError):
    """The other end of a connection broke the protocol.

    Attributes:
        code: the one that goes into GOODBYE, or came in it: see
            `pubsub.wire.messages.GOODBYE_CODES`.
    """

    def __init__(self, message: str, *, code: str = "protocol") -> None:
        self.code = code
        super().__init__(message)


class RecordingError(PubSubError, ValueError):
    """A file that is no recording, or is broken, or cannot become one. See `pubsub.record`.

    Attributes:
        path: of the file.
        problem: what is wrong with it.
    """

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")
