"""The guard: what a process's credentials mean for each of its connections.

Which channel it has is decided here alone: plain and open, plain with a mutual proof, or TLS. The
side that dials chooses; the side that is dialled sees by the first byte what was chosen, and says
whether it takes that. Nobody who has credentials speaks to anybody without, and nothing is tried
again in a weaker form. (All kinds of credentials stand here, one below the other: what one of them
must not let in is seen beside what another does.)
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from pubsub.config import is_loopback, unmapped
from pubsub.core.rights import EVERYTHING, Rights
from pubsub.errors import AuthError, ProtocolError
from pubsub.support.host import this_host
from pubsub.trust.keys import Key
from pubsub.trust.proof import NONCE, Ends, Proof
from pubsub.wire.handshake import ANOTHER, Authenticator, Identity, Standing
from pubsub.wire.messages import Auth, Hello

if TYPE_CHECKING:
    from pubsub.trust.certificates import Card, Contexts, Pair, Revoked

__all__ = ["IMPOSTOR", "Der", "Group", "Guard", "Holder", "Private", "is_auth"]

IMPOSTOR = "it is not the process that came as this peer before"
"""Of one that claims an identity that another has: whoever came first keeps it."""
ROLES = ("coordinator", "relay")
"""Those that only a certificate gives; everybody may be a peer, or ask."""
Der = Callable[[], bytes]
"""The certificate of the other end of a TLS connection, once that is up."""


class Guard:
    """Of a process that has no credentials: every connection is plain, and open to everybody."""

    open = True
    local = False
    """Whether it is let in from this machine alone."""
    grouped = True
    """Whether a key, and not a certificate, is what others are to have."""
    renews = False
    """Whether what it stands on may change."""
    until = float("inf")
    """When its own certificate ends, in seconds since 1970."""
    revoked = b""
    """The newest list of revoked certificates, as others are to have it; empty: there is none."""

    def new_id(self) -> str:
        """A `peer_id` for who has these credentials: where they bind it to anything, nobody else
        can come under it; else a random one."""
        return this_host().entropy(8).hex()

    @property
    def rights(self) -> Rights:
        """What this process may do, as others see it."""
        return EVERYTHING

    @property
    def name(self) -> str:
        """That of its certificate; empty: it has none."""
        return ""

    @property
    def label(self) -> str:
        """What it is that this process shows, for people; empty: nothing."""
        return ""

    def learn(self, revoked: bytes) -> bool:
        """A list of revoked certificates; returns whether it is newer than what was known.

        Raises:
            AuthError: it is none, or nobody who is trusted has signed it.
        """
        return False

    def read(self) -> Any:
        """What its files have now, for `renew`. Called in any thread.

        Raises:
            AuthError, OSError: they are missing, or not what they should be.
        """

    def renew(self, found: Any) -> None:
        """New connections go by that."""

    def context(self, host: str) -> SSLContext | None:
        """To dial that address, a number: by TLS, with this; None: plain.

        Raises:
            AuthError: it is not to be dialled with these credentials.
        """
        return None

    def context_for_relay(self) -> SSLContext | None:
        """To begin a connection over a relay: always by TLS, since the relay is neither of the two
        ends; None: plain, where everything is open.

        Raises:
            AuthError: these credentials do not go over a relay.
        """
        return None

    def takes_tls(self) -> SSLContext | None:
        """For who was dialled by TLS; None: that is not taken.

        Raises:
            AuthError: it would be, but something is missing here.
        """
        return None

    def check_user(self, user: int | None) -> None:
        """Whether a process of that user may be at the other end of a Unix socket; None: it is no
        such one, or its system does not say.

        Raises:
            AuthError: no.
        """

    def check_coordinator(self, *, exposed: bool) -> None:
        """See that this process can be a coordinator, maybe one that other machines reach: else
        everybody would refuse it, or be refused.

        Raises:
            AuthError: these credentials do not make it one, or TLS is needed and cannot be made.
        """
        if not self.rights.coordinator:
            raise AuthError(
                f"the certificate of {self.name!r} does not make it a coordinator: issue one with "
                "`pubsubd cert issue DIR NAME --coordinator`"
            )
        _ = self.takes_tls() if exposed else self.context("127.0.0.1")

    def dials(self, ends: Ends, der: Der | None) -> Authenticator:
        """What to ask whoever was dialled: over TLS, where there is a `der`."""
        return _Open()

    def takes(self, ends: Ends, der: Der | None) -> Authenticator:
        """What to ask whoever has dialled."""
        return _Open()

    def host_id(self) -> str:
        """See `Hello.host_id`."""
        return hmac.digest(self._host_key(), _machine(), "sha256")[:16].hex()

    def _host_key(self) -> bytes:
        return b"pubsubd host"

    def counts(self, standing: Standing) -> bool:
        """Whether a connection that stands on that may go on."""
        return True

    def objection(self, host: str, source: str, standing: Standing) -> str:
        """Why others are not told to dial that host, which one who comes from `source` says that it
        is reached at; empty: they are. (Whoever could name any would have all others dial it.)"""
        if is_loopback(source) or _same(host, source):
            return ""
        return "start the coordinator with --trust-advertise, or give all a key"

    def twin(self) -> Guard:
        """For another part of the same process that has an identity of its own."""
        return self


class _Open:
    """See `Authenticator`: nobody asks for anything. One that has credentials is told so: it would
    not speak to this side."""

    def meet(self, role: str, peer_id: str) -> None:
        pass

    def nonce(self) -> bytes:
        return b""

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        if hello.nonce:
            raise ProtocolError(
                "here everything is open (--insecure, PUBSUB_INSECURE), and who has credentials "
                "speaks to nobody without: give both sides the same",
                code="auth",
            )
        return None

    def respond(self, hello: Hello, question: Auth, me: Identity) -> Auth:
        raise ProtocolError(
            "it asks for credentials, and here everything is open: set PUBSUB_KEY_FILE to its key, "
            "and not PUBSUB_INSECURE",
            code="auth",
        )

    def check(self, hello: Hello, answer: Auth, me: Identity) -> None:
        raise ProtocolError("an AUTH that nobody asked for", code="auth")

    def vouch(self, role: str, peer_id: str) -> Standing:
        return Standing(EVERYTHING)


class _Refusing(_Open):
    """See `Authenticator`: what came is a HELLO, and no HELLO counts on this channel."""

    def __init__(self, why: str) -> None:
        self._why = why

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        raise ProtocolError(self._why, code="auth")


class Private(Guard):
    """Of a process that nothing was configured for: those of the same user on the same machine, by
    a secret that only they can read."""

    open = False
    local = True

    def __init__(self, secret: Key) -> None:
        self._keys: tuple[Key, ...] = (secret,)
        self._whose = "the secret of this user"

    @property
    def label(self) -> str:
        """See `Guard`."""
        return self._whose

    def context(self, host: str) -> SSLContext | None:
        """See `Guard`."""
        if not is_loopback(host):
            raise AuthError(_NOTHING.format(host=host))
        return None

    def context_for_relay(self) -> SSLContext | None:
        """See `Guard`."""
        raise AuthError(
            "over a relay there is always TLS, and the secret of this user has none: make a key by "
            "`pubsubd key new FILE`, copy it to each machine, and set PUBSUB_KEY_FILE to it"
        )

    def check_user(self, user: int | None) -> None:
        """See `Guard`. Root reads the secret anyway. Who is nobody here, whatever he is in another
        user namespace, is not known to be this user, even where this is nobody too."""
        if self.local and user is not None and user not in {os.geteuid(), 0} - {_nobody()}:
            raise AuthError(
                "it is a process of another user, or in another user namespace "
                f"(uid {user}, not {os.geteuid()})"
            )

    def dials(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        return self._proof(ends)

    def takes(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        if not _on_loopback(ends):
            return _Refusing(
                "it comes from another machine, and here no key is set: make one by `pubsubd key "
                "new FILE`, copy it to each machine, and set PUBSUB_KEY_FILE to it"
            )
        return self._proof(ends)

    def _proof(self, ends: Ends) -> Proof:
        return Proof(self._keys, ends, this_host().entropy(NONCE), self._whose)

    def _host_key(self) -> bytes:
        return self._keys[0].derive("host identity")

    def objection(self, host: str, source: str, standing: Standing) -> str:
        """See `Guard`: who is dialled must show who it is anyway."""
        return ""

    def counts(self, standing: Standing) -> bool:
        """See `Guard`."""
        return standing.stands_on <= {key.id for key in self._keys}


_NOTHING = (
    "{host} is on another machine, and no key is set: make one by `pubsubd key new FILE`, copy it "
    "to each machine, and set PUBSUB_KEY_FILE to it there (or PUBSUB_INSECURE=1, where everyone "
    "on the network may read and publish)"
)


class Group(Private):
    """Of a process that has a key of a group: all who have it trust each other. The proof on
    loopback, TLS elsewhere.

    Parameters:
        keys: the first is used, all are trusted.
        read: reads them again.
        encrypt: True: TLS on loopback, too; False: the proof alone, everywhere.
    """

    local = False
    renews = True

    def __init__(
        self,
        keys: tuple[Key, ...],
        read: Callable[[], tuple[Key, ...]],
        encrypt: bool | None,
        pair: Pair | None,
    ) -> None:
        super().__init__(keys[0])
        self._read = read
        self._keys = keys
        self._whose = f"the key {keys[0].id} of this group"  # a stranger may read it
        self._encrypt = encrypt
        self._pair = pair
        self._contexts: Contexts | None = None

    def new_id(self) -> str:
        """See `Guard`."""
        return self._pair.identity if self._pair is not None else super().new_id()

    def _secured(self) -> Contexts:
        if self._contexts is None:
            from pubsub.trust.certificates import group_contexts

            if self._pair is None:
                raise AuthError(MISSING)
            self._contexts = group_contexts(self._keys, self._pair)
        return self._contexts

    def context(self, host: str) -> SSLContext | None:
        """See `Guard`."""
        if self._encrypt is False or (is_loopback(host) and not self._encrypt):
            return None
        return self._secured().client

    def context_for_relay(self) -> SSLContext | None:
        """See `Guard`."""
        if self._encrypt is False:
            raise AuthError(
                "over a relay there is always TLS, and encrypt=False (PUBSUB_ENCRYPT=0) has none: "
                "leave that out, on all sides"
            )
        return self._secured().client

    def takes_tls(self) -> SSLContext | None:
        """See `Guard`."""
        return None if self._encrypt is False else self._secured().server

    def dials(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        return self._proof(ends) if der is None else self._shown(der)

    def takes(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        if der is not None:
            return self._shown(der)
        if self._encrypt is False or (_on_loopback(ends) and not self._encrypt):
            return self._proof(ends)
        return _Refusing(PLAIN)

    def _shown(self, der: Der) -> Authenticator:
        assert self._pair is not None
        return _Shown(der, self)

    @property
    def own(self) -> str:
        """The key by which others are shown that this process belongs to the group."""
        return self._keys[0].id

    def bound(self, card: Card) -> str:
        """With what the `peer_id` of its holder begins."""
        return card.identity

    def standing(self, card: Card, own: Any) -> Standing:
        """What the holder of a certificate of the group may do who was shown that of ours."""
        return Standing(card.rights, "", True, frozenset({card.key_id, own}), card.not_after)

    def twin(self) -> Group:
        """See `Guard`."""
        pair = None if self._pair is None else type(self._pair).new()
        return Group(self._keys, self._read, self._encrypt, pair)

    def read(self) -> tuple[Key, ...]:
        """See `Guard`."""
        return self._read()

    def renew(self, found: tuple[Key, ...]) -> None:
        """See `Guard`."""
        if found != self._keys:
            self._keys = found
            self._contexts = None


PLAIN = (
    "it speaks plain where TLS belongs: set PUBSUB_KEY_FILE to the same key on both sides (or "
    "PUBSUB_CERT, where certificates are used)"
)
MISSING = (
    "connections to other machines are TLS, and `cryptography`, which makes their certificates, is "
    "not installed: pip install 'pubsubd[tls]'"
)


class Holder(Guard):
    """Of a process that has an issued certificate: TLS everywhere, and rights.

    Parameters:
        read: reads the certificate.
    """

    open = False
    grouped = False
    renews = True

    def __init__(self, read: Callable[[], tuple[Contexts, bytes]]) -> None:
        self._read = read
        self._lists: dict[str, Revoked] = {}  # the newest of each CA
        self._contexts, revoked = read()
        if revoked:
            self.learn(revoked)

    @property
    def rights(self) -> Rights:
        """See `Guard`."""
        return self._contexts.own.rights

    @property
    def name(self) -> str:
        """See `Guard`."""
        return self._contexts.own.name

    @property
    def label(self) -> str:
        """See `Guard`."""
        return f"the certificate of {self.name!r}"

    def new_id(self) -> str:
        """See `Guard`: there may be several processes with one certificate, so they differ in what
        comes behind the name's digest."""
        return self.bound(self._contexts.own) + super().new_id()

    def context(self, host: str) -> SSLContext | None:
        """See `Guard`."""
        return self._contexts.client

    def context_for_relay(self) -> SSLContext | None:
        """See `Guard`."""
        return self._contexts.client

    def takes_tls(self) -> SSLContext | None:
        """See `Guard`."""
        return self._contexts.server

    def dials(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        assert der is not None
        return _Shown(der, self)

    def takes(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        return _Refusing(PLAIN) if der is None else _Shown(der, self)

    def read(self) -> tuple[Contexts, bytes]:
        """See `Guard`."""
        return self._read()

    def renew(self, found: tuple[Contexts, bytes]) -> None:
        """See `Guard`."""
        contexts, revoked = found
        if contexts.own.name != self.name:  # under another, others would take us for an impostor
            raise AuthError(
                f"the certificate file is that of {contexts.own.name!r} now, and this process is "
                f"{self.name!r}: start it anew"
            )
        self._contexts = contexts
        if revoked:
            self.learn(revoked)

    def learn(self, revoked: bytes) -> bool:
        """See `Guard`."""
        from pubsub.trust.certificates import revoked_by

        found = revoked_by(self._contexts, revoked, "the list of revoked certificates")
        known = self._lists.get(found.issuer)
        newer = known is None or found.number > known.number
        if newer:
            self.revoked = revoked
            self._lists[found.issuer] = found
        return newer

    def bound(self, card: Card) -> str:
        """With what the `peer_id` of its holder begins: made of the name, which a renewed
        certificate keeps. (Were it not, who has learned a `peer_id` could come first under it, and
        keep the one out whose it is.)"""
        return hashlib.sha256(card.name.encode()).hexdigest()[:32]

    def standing(self, card: Card, own: Any) -> Standing:
        """What the holder of that certificate may do who was shown that of ours.

        Raises:
            ProtocolError: nothing: it was revoked.
        """
        if any(each.has(card) for each in self._lists.values()):
            raise ProtocolError(f"the certificate of {card.name!r} was revoked", code="auth")
        stands_on = frozenset({(card.issuer, card.serial), own})
        return Standing(card.rights, card.name, True, stands_on, card.not_after, card.hosts)

    def objection(self, host: str, source: str, standing: Standing) -> str:
        """See `Guard`."""
        here = is_loopback(host) and is_loopback(source)
        if here or any(_same(host, known) for known in (source, *standing.hosts)):
            return ""
        return f"issue the certificate of {standing.name!r} with --advertise {host}"

    @property
    def own(self) -> tuple[str, int]:
        """The certificate that others were shown: with a new one, they are to be shown that."""
        return "own", self._contexts.own.serial

    def counts(self, standing: Standing) -> bool:
        """See `Guard`."""
        gone = {(each.issuer, serial) for each in self._lists.values() for serial in each.serials}
        return self.own in standing.stands_on and gone.isdisjoint(standing.stands_on)

    @property
    def until(self) -> float:  # type: ignore[override]
        """See `Guard`."""
        return self._contexts.own.not_after


class _Shown(_Open):
    """See `Authenticator`: TLS has shown the certificate of the other end.

    The `peer_id` begins with what lasts: the public key in a group, the name of an issued one.
    """

    def __init__(self, der: Der, guard: Group | Holder) -> None:
        self._der = der
        self._guard = guard
        self._own = guard.own  # it may be another one when the handshake is over

    def meet(self, role: str, peer_id: str) -> None:
        card = self._card(role)
        if peer_id and not peer_id.startswith(self._guard.bound(card)):
            raise ProtocolError(ANOTHER, code="identity")
        self._guard.standing(card, self._own)

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        return None

    def vouch(self, role: str, peer_id: str) -> Standing:
        card = self._card(role)
        if not peer_id.startswith(self._guard.bound(card)):
            raise ProtocolError("its certificate is that of another peer", code="auth")
        return self._guard.standing(card, self._own)

    def _card(self, role: str) -> Card:
        """What the other end has shown.

        Raises:
            ProtocolError: it cannot be read, or has not that role.
        """
        from pubsub.trust.certificates import card_of

        try:
            card = card_of(self._der())
        except AuthError as error:
            raise ProtocolError(str(error), code="auth") from None
        if role in ROLES and not getattr(card.rights, role):
            raise ProtocolError(
                f"the certificate of {card.name!r} does not make it a {role} "
                f"(pubsubd cert issue … --{role})",
                code="auth",
            )
        return card


def is_auth(error: Exception) -> bool:
    """Whether a connection failed because one side has not shown what the other asks for."""
    return isinstance(error, AuthError) or getattr(error, "code", "") == "auth"


def _on_loopback(ends: Ends) -> bool:
    return all(end and is_loopback(end[0]) for end in ends)


def _same(host: str, other: str) -> bool:
    """Whether both are the same address, however they are written, or the same name."""
    try:
        return ip_address(unmapped(host)) == ip_address(unmapped(other))
    except ValueError:
        return host.lower() == other.lower()


def _nobody() -> int:
    """As whom the kernel shows users that this user namespace does not have."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 65534


def _machine() -> bytes:
    """What the processes of one kernel and one network have in common."""
    found = []
    asked: tuple[Callable[[], str], ...] = (
        Path("/proc/sys/kernel/random/boot_id").read_text,
        lambda: os.readlink("/proc/self/ns/net"),
    )
    for read in asked:
        try:
            found.append(read())
        except OSError:  # another system than Linux
            found.append(str(this_host().name()))
    return "\n".join(found).encode()
