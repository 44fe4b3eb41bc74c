"""The handshake: HELLO from the side that dialled, WELCOME or GOODBYE in answer.

Both sides are one small state machine: feed it each event until it knows who the other end is; it
returns that, and what to say, or raises `ProtocolError` with the code that goes into the GOODBYE.
Between HELLO and WELCOME an `Authenticator` of either side may ask, and answer, by AUTH. None does
so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.wire.frames import Event
from pubsub.wire.messages import PROTOCOL_VERSION, Auth, Goodbye, Hello, Welcome

__all__ = ["EVERYTHING", "Acceptor", "Authenticator", "Dialler", "Identity", "Other", "Refused"]


EVERYTHING = frozenset({"*"})
"""The rights of whom nobody asks for any."""


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
    rights: frozenset[str] = EVERYTHING
    """What it may do."""


class Authenticator(Protocol):
    """What one side of one handshake asks of the other end, and answers it, before WELCOME. Its
    methods raise `ProtocolError` with the code ``auth`` to refuse."""

    def challenge(self, hello: Hello) -> Auth | None:
        """The first question to who said that HELLO; None: there is none."""

    def answer(self, auth: Auth) -> Auth | None:
        """The answer to what was asked, or the next question to what was answered; None: nothing
        more is to be asked."""

    @property
    def rights(self) -> frozenset[str]:
        """What the other end may do, as far as it has shown."""


class _Trust:
    """The authenticator of whoever has none."""

    rights = EVERYTHING

    def challenge(self, hello: Hello) -> Auth | None:
        return None

    def answer(self, auth: Auth) -> Auth | None:
        raise ProtocolError(f"{_name(auth)} where WELCOME belongs")


_TRUST = _Trust()


class Dialler:
    """The side that dialled.

    Parameters:
        me: its identity.
        wants: the role it expects to find.
        expects: the identity it wants to meet; ``""``: any.
        authenticator: answers what it is asked.
    """

    def __init__(
        self,
        me: Identity,
        wants: str,
        expects: str = "",
        authenticator: Authenticator = _TRUST,
    ) -> None:
        self.me = me
        self.authenticator = authenticator
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

    def receive(self, event: Event) -> tuple[Auth | None, Other | None]:
        """Take an event: what to answer, and who the other end is, once that is known.

        Raises:
            Refused, AuthError, ProtocolError
        """
        if isinstance(event, Goodbye):
            if event.code == "auth":
                raise AuthError(event.reason)
            raise Refused(event)
        if isinstance(event, Auth):
            return self.authenticator.answer(event), None
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
        rights = self.authenticator.rights
        return None, Other(event.role, event.peer_id, "", 0, event.info, event.settle, rights)


class Acceptor:
    """The side that was dialled.

    Parameters:
        me: its identity.
        takes: the roles that may dial it.
        settle: see `Welcome.settle`.
        authenticator: asks the other end.
    """

    def __init__(
        self,
        me: Identity,
        takes: tuple[str, ...],
        settle: float = 0.0,
        authenticator: Authenticator = _TRUST,
    ) -> None:
        self.me = me
        self.takes = takes
        self.settle = settle
        self.authenticator = authenticator
        self._hello: Hello | None = None  # what was said, once it was

    def opening(self) -> Hello | None:
        """What to say first: nothing."""
        return None

    def receive(self, event: Event) -> tuple[Welcome | Auth | None, Other | None]:
        """Take an event: what to answer, and who the other end is, once that is known.

        Raises:
            ProtocolError: it is none that we talk to; its code and text go into GOODBYE.
        """
        me, hello = self.me, self._hello
        if hello is None:
            self._hello = hello = self._check(event)
            question = self.authenticator.challenge(hello)
        elif isinstance(event, Auth):
            question = self.authenticator.answer(event)
        else:
            raise ProtocolError(f"{_name(event)} where AUTH belongs", code="auth")
        if question is not None:
            return question, None
        rights = self.authenticator.rights
        other = Other(hello.role, hello.peer_id, hello.host, hello.port, hello.info, 0.0, rights)
        return Welcome(PROTOCOL_VERSION, me.role, me.peer_id, self.settle, me.info), other

    def _check(self, event: Event) -> Hello:
        """Whether it is a HELLO of one that we talk to."""
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
        return event


def _name(event: Event) -> str:
    return f"a {type(event).__name__.upper()}"
