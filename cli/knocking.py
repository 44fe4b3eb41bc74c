"""Knocking: who answers where somebody is said to be, how soon, and why nobody does.

A real handshake, as any program would have it, and then a small question and a large one: where
only what is large gets no answer, packets are lost that are too large for the way.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from time import perf_counter
from typing import Literal

from pubsub.cli.findings import Fault, Met
from pubsub.config import Address, Settings, Way
from pubsub.errors import PubSubError
from pubsub.links.keeping import Attempt, dial, explain
from pubsub.links.link import Link, State
from pubsub.runtime.coordinator_link import FOREIGN
from pubsub.support.about import about
from pubsub.trust.guard import Guard, is_auth
from pubsub.wire.frames import Event
from pubsub.wire.handshake import Authenticator, Dialler, Identity, Other
from pubsub.wire.messages import End, Goodbye, Ping, Pong, Subscribe, encode

__all__ = ["DIAL", "KNOCK", "knock"]

DIAL = 3.0
"""Seconds for a connection, and then for the handshake."""
ANSWER = 2.0
"""Seconds for the answer to a question on an open connection."""
KNOCK = 2 * DIAL + 4 * ANSWER
"""Seconds for all that `knock` does."""
MANY_PINGS = 900
"""As many as may come before one was answered, and some: 13 KiB, more than any packet has."""
MANY_SUBSCRIBES = 400
"""Of a stream that does not exist: 12 KiB, and 20 KiB of answers."""
NOBODYS = 2**32 - 2
"""The number of a stream that no Pub ever gets. (The one above is that of the stats.)"""


class _Talk:
    """A connection on which a small and a large question are asked; its endpoint and its core."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.other: Other | None = None
        self._awaited = 0  # the token of a PONG, or how many channels are to END
        self._answer: asyncio.Future[bool] = loop.create_future()

    def opened(self, link: Link, other: Other) -> _Talk:
        """See `Endpoint`: this was told to its `Attempt`."""
        link.endpoint, self.other = self, other
        return self

    def closed(self, link: Link, error: Exception | None) -> None:
        """See `Endpoint`."""
        self._answered(False)

    def receive(self, event: Event) -> None:
        """See `Core`."""
        if (isinstance(event, Pong) and event.token == self._awaited) or (
            isinstance(event, End) and event.channel == self._awaited
        ):
            self._answered(True)

    def pump(self, budget: int) -> Sequence[bytes]:
        """See `Core`."""
        return ()

    def _answered(self, well: bool) -> None:
        if not self._answer.done():
            self._answer.set_result(well)

    async def ask(self, link: Link, messages: Sequence[Ping | Subscribe]) -> bool:
        """Whether the last of these is answered in time. They are written at once."""
        last = messages[-1]
        self._awaited = last.token if isinstance(last, Ping) else last.channel
        self._answer = self._loop.create_future()
        link.write(b"".join(map(encode, messages)))
        await asyncio.wait({self._answer}, timeout=ANSWER)
        return self._answer.done() and self._answer.result()


def _large(wants: str) -> list[Ping | Subscribe]:
    """Questions that together fill several packets, and, of a peer, whose answers do so too."""
    if wants == "peer":
        return [
            Subscribe(n, NOBODYS, 0, None, 0, 0, True, False, 0) for n in range(MANY_SUBSCRIBES)
        ]
    return [Ping(2**40 + n) for n in range(MANY_PINGS)]


async def knock(
    at: Address, wants: Literal["peer", "coordinator", "relay"], guard: Guard
) -> tuple[Met | Fault, Link]:
    """Dial that number, and ask who is there."""
    loop = asyncio.get_running_loop()
    settings = Settings(connect_timeout=DIAL, handshake_timeout=DIAL)
    talk = _Talk(loop)
    attempt = Attempt(loop, settings, bytearray(64 * 1024), talk.opened)
    role = "client" if wants == "coordinator" else "peer"
    # an identity of its own, as when one is probed: nobody takes it for a subscriber
    me = Identity(role, f"{guard.new_id()}-asks", info=about("pubsub doctor"))

    async def introduce(local_host: str, authenticator: Authenticator) -> Dialler:
        return Dialler(me, wants, "", authenticator)

    link = attempt.link
    try:
        await attempt.make(dial(link, Way(*at), DIAL, guard), introduce)
        other = talk.other
        assert other is not None
        began = perf_counter()  # uvloop counts whole milliseconds
        if not await talk.ask(link, [Ping(1)]):
            return Fault(at, "mute", "says who it is, and then does not answer"), link
        seconds = perf_counter() - began
        large = await talk.ask(link, _large(wants))
        return Met(at, other.peer_id, other.info, seconds, other.settle, large), link
    except (OSError, PubSubError, asyncio.TimeoutError) as error:
        fault = fault_of(at, error, dialled=link.state is not State.CONNECTING)
        if fault.kind == "mute" and await _lives(at):
            text = "takes the connection, and answers what is small, but not what is large"
            fault = Fault(at, "large", text)
        return fault, link
    finally:
        link.goodbye() if talk.other is not None else link.abort()


async def _lives(at: Address) -> bool:
    """Whether the process that has not answered does anything about a connection that ends with
    its first few bytes. What is shown by TLS is more than a packet on many a way."""
    try:
        connecting = asyncio.open_connection(*at)
        reader, writer = await asyncio.wait_for(connecting, ANSWER)
    except (OSError, asyncio.TimeoutError):
        return False
    try:
        writer.write(encode(Goodbye("closing", "")))
        await asyncio.wait_for(reader.read(1), ANSWER)
        return True
    except asyncio.TimeoutError:
        return False
    except OSError:  # it was cut
        return True
    finally:
        writer.close()


def fault_of(at: Address, error: Exception, *, dialled: bool = True) -> Fault:
    """Why nobody was met there. `dialled`: something has left this machine."""
    code = getattr(error, "code", "")
    text = explain(error)
    if isinstance(error, ConnectionRefusedError):
        kind = "refused"
    elif isinstance(error, (TimeoutError, asyncio.TimeoutError)):
        kind, text = "silent", f"no answer within {DIAL:g} s, not even a refusal"
    elif isinstance(error, socket.gaierror):
        kind = "name"
    elif is_auth(error):
        kind = "auth" if dialled else "own"
    elif code == "timeout":
        kind, text = "mute", f"takes the connection, and does not answer within {DIAL:g} s"
    else:
        kind = "foreign" if code in (*FOREIGN, "version") else "other"
    return Fault(at, kind, text)
