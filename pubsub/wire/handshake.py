"""The handshake: HELLO from the side that dialled, WELCOME or GOODBYE in answer.

Both sides are one small state machine: feed it the first event, it returns what to answer and
who the other end is, or raises `ProtocolError` with the code that goes into the GOODBYE.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.wire.frames import Event
from pubsub.wire.messages import PROTOCOL_VERSION, Auth, Goodbye, Hello, Welcome

__all__ = ["Acceptor", "Dialler", "Identity", "Other", "Refused"]


class Refused(PubSubError):
    """The other end answered the HELLO with GOODBYE.

    Attributes:
        code: of the GOODBYE.
    """

    def __init__(self, goodbye: Goodbye) -> None:
        self.code = goodbye.code
        super().__init__(goodbye.reason)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who one end is."""

    role: str
    peer_id: str
    host: str = ""
    port: int = 0
    info: dict[str, Any] = field(default_factory=dict)


class Other(NamedTuple):
    """Who the other end turned out to be."""

    role: str
    peer_id: str
    host: str
    port: int
    info: dict[str, Any]
    settle: float


class Dialler:
    """The side that dialled.

    Parameters:
        me: its identity.
        wants: the role it expects to find.
        expects: the identity it wants to meet; ``""``: any.
    """

    def __init__(self, me: Identity, wants: str, expects: str = "") -> None:
        self.me = me
        self.wants = wants
        self.expects = expects

    def opening(self) -> Hello | None:
        """What to say first."""
        me = self.me
        return Hello(
            PROTOCOL_VERSION,
            me.role,
            self.wants,
            me.peer_id,
            self.expects,
            me.host,
            me.port,
            me.info,
        )

    def receive(self, event: Event) -> tuple[Welcome | None, Other]:
        """Take the first event: nothing to answer, and who the other end is.

        Raises:
            Refused, AuthError, ProtocolError
        """
        if isinstance(event, Goodbye):
            if event.code == "auth":
                raise AuthError(event.reason)
            raise Refused(event)
        if not isinstance(event, Welcome):
            raise ProtocolError(f"{_name(event)} where WELCOME belongs")
        if event.version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the other end speaks version {event.version} of the protocol, "
                f"this one version {PROTOCOL_VERSION}",
                code="version",
            )
        if event.role != self.wants:
            raise ProtocolError(f"it is a {event.role}, not a {self.wants}", code="role")
        if self.expects and event.peer_id != self.expects:
            raise ProtocolError("it is another peer than the one asked for", code="identity")
        return None, Other(event.role, event.peer_id, "", 0, event.info, event.settle)


class Acceptor:
    """The side that was dialled.

    Parameters:
        me: its identity.
        takes: the roles that may dial it.
        settle: see `Welcome.settle`.
    """

    def __init__(self, me: Identity, takes: tuple[str, ...], settle: float = 0.0) -> None:
        self.me = me
        self.takes = takes
        self.settle = settle

    def opening(self) -> Hello | None:
        """What to say first: nothing."""
        return None

    def receive(self, event: Event) -> tuple[Welcome | None, Other]:
        """Take the first event: what to answer, and who the other end is.

        Raises:
            ProtocolError: it is none that we talk to; its code and text go into GOODBYE.
        """
        me = self.me
        if isinstance(event, Auth):
            raise ProtocolError("authentication is not part of this version", code="auth")
        if not isinstance(event, Hello):
            raise ProtocolError(f"{_name(event)} where HELLO belongs")
        if event.wants != me.role:
            raise ProtocolError(f"this is a {me.role}, not a {event.wants}", code="role")
        if event.role not in self.takes:
            raise ProtocolError(f"a {me.role} does not serve a {event.role}", code="role")
        if not event.peer_id:
            raise ProtocolError("a HELLO without a peer_id")
        if event.peer_id == me.peer_id:
            raise ProtocolError("it says that it is this very peer", code="identity")
        if event.expects and event.expects != me.peer_id:
            raise ProtocolError(f"this is peer {me.peer_id}, not {event.expects}", code="identity")
        other = Other(event.role, event.peer_id, event.host, event.port, event.info, 0.0)
        return Welcome(PROTOCOL_VERSION, me.role, me.peer_id, self.settle, me.info), other


def _name(event: Event) -> str:
    return f"a {type(event).__name__.upper()}"
