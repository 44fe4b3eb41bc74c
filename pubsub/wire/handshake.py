"""The handshake: HELLO from the side that dialled, WELCOME or GOODBYE in answer.

Both sides are one small state machine: feed it each event until it knows who the other end is; it
returns that, and what to say, or raises `ProtocolError` with the code that goes into the GOODBYE.
Between HELLO and WELCOME an `Authenticator` of each side may ask and answer by AUTH, and it has the
last word on whether the other end is who it says that it is.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Protocol

from pubsub.errors import AuthError, ProtocolError, PubSubError
from pubsub.wire.frames import Event
from pubsub.wire.messages import PROTOCOL_VERSION, Auth, Goodbye, Hello, WayRow, Welcome

__all__ = [
    "ANOTHER",
    "SUBSCRIBER",
    "Acceptor",
    "Authenticator",
    "Dialler",
    "Identity",
    "Other",
    "Refused",
    "Standing",
    "place_of",
    "tcp",
]

SUBSCRIBER = "subscriber"
"""What a publisher wants that was called: a peer, with which it changes parts."""
ANY_COORDINATOR = "coordinator"
"""Whom a claim to a coordinator means: it is made before it is known which one answers, and one
coordinator may be reached by several addresses."""
ANOTHER = "it is another peer than the one asked for"


class Refused(PubSubError):
    """The other end answered the HELLO with GOODBYE.

    Attributes:
        code: of the GOODBYE.
    """

    def __init__(self, goodbye: Goodbye) -> None:
        self.code = goodbye.code
        super().__init__(goodbye.reason)


def tcp(host: str, port: int) -> tuple[WayRow, ...]:
    """The ways of one that is dialled there; none where the port is 0."""
    return (WayRow("tcp", host, port),) if port else ()


def place_of(ways: tuple[WayRow, ...]) -> tuple[str, int]:
    """The first that this version can dial; ``("", 0)``: none."""
    return next(((way.host, way.port) for way in ways if way.kind == "tcp"), ("", 0))


@dataclass(frozen=True, slots=True)
class Identity:
    """Who one end is."""

    role: str
    peer_id: str
    ways: tuple[WayRow, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    host_id: str = ""
    secret: bytes = field(default=b"", repr=False)
    """Random, of this process: what its claims are made of."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity is not pickled: its secret is its process's own")

    @property
    def place(self) -> tuple[str, int]:
        """The host and port at which it is dialled; ``("", 0)``: nowhere."""
        return place_of(self.ways)

    def claim(self, whom: str) -> bytes:
        """What nobody else can say to whom it means: who has heard it once knows the process by it
        again, and cannot pose as it to anybody else."""
        return hmac.digest(self.secret, b"claim " + whom.encode(), "sha256")[:16]


class Standing(NamedTuple):
    """What one end has shown."""

    rights: Any = None
    """What it may do: a `pubsub.core.rights.Rights`; None: nobody asks."""
    name: str = ""
    """That of its certificate; empty: it has none."""
    authenticated: bool = False
    """It has shown that it belongs here."""
    stands_on: frozenset[Any] = frozenset()
    """The keys or certificates that the connection stands on: each counts, or it is over."""
    until: float = float("inf")
    """When that ends, in seconds since 1970."""
    hosts: tuple[str, ...] = ()
    """Where else it may say that it is reached, beside the address from which it comes."""


class Other(NamedTuple):
    """Who the other end turned out to be."""

    role: str
    peer_id: str
    ways: tuple[WayRow, ...]
    info: dict[str, Any]
    settle: float
    claim: bytes = b""
    listens: bool = False
    host_id: str = ""
    standing: Standing = Standing()
    wants: str = ""
    """Of one that has dialled: what it expects to find (see `Hello.wants`)."""

    @property
    def host(self) -> str:
        """Where it can be dialled; empty: nowhere."""
        return place_of(self.ways)[0]

    @property
    def port(self) -> int:
        """The same."""
        return place_of(self.ways)[1]

    @property
    def who(self) -> tuple[str, bytes]:
        """What it must show again when it comes again under this `peer_id`."""
        return self.standing.name, self.claim


class Authenticator(Protocol):
    """What one side of one handshake asks of the other end, and answers it. Its methods raise
    `ProtocolError` with the code ``auth`` to refuse."""

    def meet(self, role: str, peer_id: str) -> None:
        """Before anything is said to who was dialled: whether it may be this one, as far as the
        channel has shown that already. An empty `peer_id`: any."""

    def nonce(self) -> bytes:
        """What a HELLO says; empty: no AUTH is expected."""

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        """The dialled side's question to who said that HELLO; None: there is none."""

    def respond(self, hello: Hello, question: Auth, me: Identity) -> Auth:
        """The dialling side's answer, once the question has shown who asks."""

    def check(self, hello: Hello, answer: Auth, me: Identity) -> None:
        """Whether that answers the dialled side's question."""

    def vouch(self, role: str, peer_id: str) -> Standing:
        """What has been shown by whoever says that it is this one."""


class _Trust:
    """The authenticator of whoever has none."""

    def meet(self, role: str, peer_id: str) -> None:
        pass

    def nonce(self) -> bytes:
        return b""

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        return None

    def respond(self, hello: Hello, question: Auth, me: Identity) -> Auth:
        raise ProtocolError("it asks for credentials, and here are none", code="auth")

    def check(self, hello: Hello, answer: Auth, me: Identity) -> None:
        raise ProtocolError("an AUTH that nobody asked for", code="auth")

    def vouch(self, role: str, peer_id: str) -> Standing:
        return Standing()


_TRUST = _Trust()


class Dialler:
    """The side that dialled.

    Parameters:
        me: its identity.
        wants: the role it expects to find.
        expects: the identity it wants to meet; ``""``: any.
        authenticator: asks the other end, and answers what it is asked.
    """

    def __init__(
        self,
        me: Identity,
        wants: str,
        expects: str = "",
        authenticator: Authenticator = _TRUST,
    ) -> None:
        self.me = me
        self.wants = wants
        self.expects = expects
        self._authenticator = authenticator
        self._hello: Hello | None = None
        self._asked: Auth | None = None

    def opening(self) -> Hello | None:
        """What to say first.

        Raises:
            ProtocolError: the other end is known to be another one: it is told nothing of us.
        """
        me = self.me
        self._authenticator.meet(self.wants, self.expects)
        hello = self._hello = Hello(
            PROTOCOL_VERSION,
            me.role,
            self.wants,
            me.peer_id,
            self.expects,
            self._authenticator.nonce(),
            me.claim(self.expects or ANY_COORDINATOR),
            me.ways,
            bool(me.ways),
            me.host_id,
            me.info,
        )
        return hello

    def receive(self, event: Event) -> tuple[Auth | None, Other | None]:
        """Take an event: what to answer, and who the other end is, once that is known.

        Raises:
            Refused, AuthError, ProtocolError
        """
        if isinstance(event, Goodbye):
            raise _refusal(event)
        if isinstance(event, Auth) and self._asked is None and self._hello is not None:
            self._asked = event
            answer = self._authenticator.respond(self._hello, event, self.me)
            self._check(event.role, event.peer_id)
            return answer, None
        if not isinstance(event, Welcome):
            raise ProtocolError(f"{_name(event)} where WELCOME belongs")
        if event.version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the other end speaks version {event.version} of the protocol, "
                f"this one version {PROTOCOL_VERSION}",
                code="version",
            )
        standing = self._authenticator.vouch(event.role, event.peer_id)
        self._check(event.role, event.peer_id)
        return None, Other(
            *(event.role, event.peer_id, (), event.info, event.settle, event.claim, False),
            *(event.host_id, standing),
        )

    def _check(self, role: str, peer_id: str) -> None:
        asked = self._asked
        if asked is not None and (asked.role, asked.peer_id) != (role, peer_id):
            raise ProtocolError("it has shown that it is another one", code="auth")
        if role != ("peer" if self.wants == SUBSCRIBER else self.wants):
            raise ProtocolError(f"it is a {role}, not a {self.wants}", code="role")
        if self.expects and peer_id != self.expects:
            raise ProtocolError(ANOTHER, code="identity")


class Acceptor:
    """The side that was dialled.

    Parameters:
        me: its identity.
        takes: the roles that may dial it.
        settle: see `Welcome.settle`.
        authenticator: asks the other end.
        admit: raises ProtocolError where it is not to be let in all the same; it is told nothing
            then of what WELCOME says, such as the claim that is for somebody else.
    """

    def __init__(
        self,
        me: Identity,
        takes: tuple[str, ...],
        settle: float = 0.0,
        authenticator: Authenticator = _TRUST,
        admit: Callable[[Other], None] = lambda other: None,
    ) -> None:
        self._admit = admit
        self.me = me
        self.takes = takes
        self.settle = settle
        self._authenticator = authenticator
        self._hello: Hello | None = None  # what was said, once it was

    def opening(self) -> Hello | None:
        """What to say first: nothing."""
        return None

    def receive(self, event: Event) -> tuple[Welcome | Auth | None, Other | None]:
        """Take an event: what to answer, and who the other end is, once that is known.

        Raises:
            ProtocolError: it is none that we talk to; its code and text go into GOODBYE.
            AuthError, Refused: it does not want to talk to us.
        """
        me, hello = self.me, self._hello
        if isinstance(event, Goodbye):  # to what it was asked, or was shown by TLS
            raise _refusal(event)
        if hello is None:
            self._hello = hello = self._take(event)
            question = self._authenticator.challenge(hello, me)
            if question is not None:
                return question, None
        elif isinstance(event, Auth):
            self._authenticator.check(hello, event, me)
        else:
            raise ProtocolError(f"{_name(event)} where AUTH belongs", code="auth")
        standing = self._authenticator.vouch(hello.role, hello.peer_id)
        # only now: who has shown nothing does not learn by trying who this is not
        if hello.peer_id == me.peer_id:
            raise ProtocolError("it says that it is this very peer", code="identity")
        if hello.expects and hello.expects != me.peer_id:
            raise ProtocolError(f"this is peer {me.peer_id}, not {hello.expects}", code="identity")
        other = Other(
            *(hello.role, hello.peer_id, hello.ways, hello.info, 0.0, hello.claim, hello.listens),
            *(hello.host_id, standing, hello.wants),
        )
        self._admit(other)
        claim = me.claim(hello.peer_id)
        welcome = Welcome(
            *(PROTOCOL_VERSION, me.role, me.peer_id, claim, me.host_id, self.settle, me.info)
        )
        return welcome, other

    def _take(self, event: Event) -> Hello:
        """Whether it is a HELLO of one that we talk to."""
        role = self.me.role
        if not isinstance(event, Hello):
            raise ProtocolError(f"{_name(event)} where HELLO belongs")
        if event.wants != role and (role, event.wants) != ("peer", SUBSCRIBER):
            raise ProtocolError(f"this is a {role}, not a {event.wants}", code="role")
        if event.role not in self.takes:
            raise ProtocolError(f"a {role} does not serve a {event.role}", code="role")
        if not event.peer_id:
            raise ProtocolError("a HELLO without a peer_id")
        return event


def _refusal(goodbye: Goodbye) -> PubSubError:
    if goodbye.code == "auth":
        return AuthError(f"it says of this side: {goodbye.reason}")
    return Refused(goodbye)


def _name(event: Event) -> str:
    return f"a {type(event).__name__.upper()}"
