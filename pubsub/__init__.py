"""Publish and subscribe straight from process to process, in pure asyncio Python.

    from pubsub import Pub, Sub

A coordinator (``pubsubd coordinator``) only maps topics to addresses; messages go directly from
each publisher to every subscriber. Nothing is ever lost in silence. See `Pub`, `Sub`, `Peer`.
"""

# The faces are there once they are imported: a Pub or Sub becomes the one that fits.
from importlib.util import find_spec as _find_spec

from pubsub._version import __version__
from pubsub.codec.own_codecs import Codec
from pubsub.codec.own_types import register
from pubsub.errors import (
    AuthError,
    Closed,
    CoordinatorUnavailable,
    DecodeError,
    EncodeError,
    MessageTooLarge,
    ProtocolError,
    PubSubError,
    RecordingError,
    TopicError,
    WrongContext,
)
from pubsub.faces import asyncpub as asyncpub
from pubsub.faces import asyncsub as asyncsub
from pubsub.faces import blockingpub as blockingpub
from pubsub.faces import blockingsub as blockingsub
from pubsub.faces.coordinating import Coordinator, new_key
from pubsub.faces.message import Gap, Message
from pubsub.faces.peer import Peer, connect
from pubsub.faces.pub import Pub
from pubsub.faces.sub import Sub

if _find_spec("pubsub.coordinator") is None:  # else a thread would miss it, much later
    raise ImportError(
        f"{__file__} is a source file of pubsubd, and not what is installed: start Python in "
        "another folder, or `pip install -e .` in this one"
    )

__all__ = [
    "AuthError",
    "Closed",
    "Codec",
    "Coordinator",
    "CoordinatorUnavailable",
    "DecodeError",
    "EncodeError",
    "Gap",
    "Message",
    "MessageTooLarge",
    "Peer",
    "ProtocolError",
    "Pub",
    "PubSubError",
    "RecordingError",
    "Sub",
    "TopicError",
    "WrongContext",
    "__version__",
    "connect",
    "new_key",
    "register",
]
