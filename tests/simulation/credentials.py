"""The credentials of simulated processes: who has which guard, and how that changes in mid-world.

What a guard does is the code that ships; the files that it would read are not there, and nothing
here waits for a thread. Of certificates there are two kinds. Those of TLS are real ones. Those of
a world in which rights change are looked up by the address of who shows them, as if TLS had shown
them; so such a world costs no more than an open one, and is the same run every time.

TLS draws randomness of its own, which no seed reaches. What depends on it: bytes, and that an
ECDSA signature has 70 to 72 of them (seldom fewer), each time others. Keys and names come from the
seed all the same, and while TLS is not up the network delivers in one piece what there is (see
`Transport`), so that no choice depends on how long a signature is: times, order and trace of a run
are the same again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from pubsub.core.rights import EVERYTHING, NONE, Rights
from pubsub.errors import ProtocolError
from pubsub.trust.guard import Der, Group, Guard, Holder, Private
from pubsub.trust.keys import Key
from pubsub.trust.proof import Ends
from pubsub.wire.handshake import Authenticator, Identity, Standing
from pubsub.wire.messages import Auth, Hello

if TYPE_CHECKING:
    from pubsub.trust.certificates import Contexts, Pair

__all__ = ["Cards", "Credentials", "credentials_of", "issued"]

USUAL = 71
"""Bytes of a signature, where they matter."""
SERIALS = range(153, 160)
"""Bits of a serial number of 20 bytes."""


class Credentials:
    """What the processes of one world show each other.

    Attributes:
        network: the first digits of all addresses.
        stages: how often they can be changed for others, so that in the end none of the first
            counts any more.
        strangers: the kinds of those that are never let in.
        old: the kind of those that would have been let in before the change; empty: there is none.
        thieves: whether members can claim to be another one, and it takes a claim to see that.
    """

    network = "10.0.0"
    stages = 0
    strangers: tuple[str, ...] = ()
    old = ""
    thieves = False
    tls = False
    changes = False
    """Whether rights change, and are taken back."""

    def guard(self, host: str) -> Guard:
        """That of a process that starts there now."""
        raise NotImplementedError

    def advance(self, host: str, stage: int) -> None:
        """The files of that machine are changed once more."""

    def found(self, host: str) -> Any:
        """What they have now: what `Guard.renew` is told."""

    def strange(self, kind: str, host: str) -> Guard:
        """That of a stranger of such a kind."""
        return Guard()

    def issue(self, host: str, rights: Rights) -> None:
        """Whatever runs there may do that, where anybody asks."""

    def revoke(self, host: str) -> None:
        """The certificate of whatever runs there counts no more, for those who hear of it."""

    def may(self, host: str) -> Rights:
        """What a process there may do now."""
        return EVERYTHING


class Open(Credentials):
    """There are none."""

    def guard(self, host: str) -> Guard:
        """See `Credentials`."""
        return Guard()


class Secret(Credentials):
    """The secret of one user, on one machine."""

    network = "127.0.0"
    strangers = ("open", "other", "raw")
    thieves = True

    def __init__(self, random: Random) -> None:
        self._secret = Key(random.randbytes(32))
        self._other = Key(random.randbytes(32))

    def guard(self, host: str) -> Guard:
        """See `Credentials`."""
        return Private(self._secret)

    def strange(self, kind: str, host: str) -> Guard:
        """See `Credentials`."""
        return Private(self._other) if kind == "other" else Guard()


class Keys(Credentials):
    """The key of a group. It is changed as docs/security.md says: the new line behind the old one,
    then before it, then alone; each on all machines before the next."""

    stages = 3
    old = "old"

    def __init__(self, random: Random) -> None:
        self._random = random
        old, new, other = (Key(random.randbytes(32)) for _ in range(3))
        self._files = ((old,), (old, new), (new, old), (new,))
        self._foreign = (other,)
        self._stage: dict[str, int] = {}
        self._least = 0

    def advance(self, host: str, stage: int) -> None:
        """See `Credentials`."""
        self._stage[host] = self._least = stage

    def found(self, host: str) -> tuple[Key, ...]:
        """See `Credentials`."""
        return self._files[self._stage.get(host, self._least)]

    def guard(self, host: str) -> Guard:
        """See `Credentials`."""
        return self._group(lambda: self.found(host))

    def strange(self, kind: str, host: str) -> Guard:
        """See `Credentials`."""
        keys = {"other": self._foreign, "old": self._files[0], "plain": self.found(host)}.get(kind)
        if keys is None:
            return Guard()
        return self._plain(lambda: keys) if kind == "plain" else self._group(lambda: keys)

    def _plain(self, read: Callable[[], tuple[Key, ...]]) -> Guard:
        return Group(read(), read, False, None)

    def _group(self, read: Callable[[], tuple[Key, ...]]) -> Guard:
        raise NotImplementedError


class Proofs(Keys):
    """Shown by proof alone."""

    strangers = ("open", "other", "raw")
    thieves = True

    def _group(self, read: Callable[[], tuple[Key, ...]]) -> Guard:
        return self._plain(read)


class Tls(Keys):
    """Shown by TLS."""

    strangers = ("open", "other", "raw", "plain")
    tls = True

    def _group(self, read: Callable[[], tuple[Key, ...]]) -> Guard:
        return Group(read(), read, True, _pair(self._random))


class Issued(Credentials):
    """Certificates of a CA, over TLS. They are changed so: each process gets another one, and then
    all that were there before are revoked."""

    stages = 2
    strangers = ("open", "other", "raw", "plain")
    old = "old"
    tls = True

    def __init__(self, random: Random, rights: Cards | None = None) -> None:
        from pubsub.trust.authority import Authority

        self._random = random
        self._rights = rights
        self._authority = Authority.new("simulated")
        self._foreign = Authority.new("another")
        self._stage: dict[str, int] = {}
        self._least = 0
        self._all: dict[tuple[str, int], Contexts] = {}

    def advance(self, host: str, stage: int) -> None:
        """See `Credentials`."""
        self._stage[host] = self._least = stage

    def found(self, host: str) -> tuple[Contexts, bytes]:
        """See `Credentials`."""
        stage = self._stage.get(host, self._least)
        revoked = b""
        if stage == 2:
            revoked = self._revoked()
        return self._contexts(host, 1 if stage else 0), revoked

    def _revoked(self) -> bytes:
        """The list of those that were there before. It travels in messages, so that its length is
        always the same."""
        from cryptography.x509 import load_pem_x509_crl

        from pubsub.trust.authority import FIRST_DAY

        serials = [each.own.serial for (_, number), each in self._all.items() if not number]
        while True:
            made = self._authority.revoke(serials, 1, FIRST_DAY.replace(year=1971))
            if len(load_pem_x509_crl(made).signature) == USUAL:
                return made

    def _contexts(self, host: str, number: int, authority: Any = None) -> Contexts:
        known = self._all.get((host, number))
        if known is None or authority is not None:
            rights = EVERYTHING if self._rights is None else self._rights.may(host)
            known = issued(authority or self._authority, self._random, host, rights)
            if authority is None:
                self._all[host, number] = known
        return known

    def guard(self, host: str) -> Guard:
        """See `Credentials`."""
        return Holder(lambda: self.found(host))

    def issue(self, host: str, rights: Rights) -> None:
        """See `Credentials`."""
        if self._rights is not None:
            self._rights.issue(host, rights)

    def may(self, host: str) -> Rights:
        """See `Credentials`."""
        return EVERYTHING if self._rights is None else self._rights.may(host)

    def strange(self, kind: str, host: str) -> Guard:
        """See `Credentials`."""
        if kind == "plain":
            key = Key(self._random.randbytes(32))
            return Group((key,), lambda: (key,), False, None)
        if kind == "other":
            contexts = self._contexts(host, 0, self._foreign)
        elif kind == "old":
            contexts = self._all[next(host for host, number in self._all if not number), 0]
        else:
            return Guard()
        return Holder(lambda: (contexts, b""))


def _pair(random: Random) -> Pair:
    """A key pair that the seed says, so that its identity is the same again."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from pubsub.trust.certificates import Pair

    return Pair(ec.derive_private_key(1 + random.getrandbits(255), ec.SECP256R1()))


def issued(authority: Any, random: Random, name: str, rights: Rights = EVERYTHING) -> Contexts:
    """What TLS of a process is made with that has a certificate of that CA."""
    from pubsub.trust import certificates
    from pubsub.trust.authority import pem_of_key
    from pubsub.trust.reading import card_of_certificate, pem_of

    private = _pair(random)._private
    leaf = authority.issue(name, private.public_key(), rights)
    while leaf.serial_number.bit_length() not in SERIALS:
        leaf = authority.issue(name, private.public_key(), rights)
    chain = pem_of(leaf) + pem_of_key(private)
    return certificates._contexts(chain, [authority.certificate], card_of_certificate(leaf))


# --- certificates that are looked up ----------------------------------------------------------


class Cards(Credentials):
    """Certificates with rights, as `Named` guards see them: by the address of who shows one."""

    changes = True

    def __init__(self) -> None:
        self._cards: dict[str, tuple[int, Rights]] = {}
        self._serial = 0
        self._revoked: frozenset[int] = frozenset()

    def issue(self, host: str, rights: Rights) -> None:
        """See `Credentials`: in another certificate than it may have had."""
        self._serial += 1
        self._cards[host] = self._serial, rights

    def revoke(self, host: str) -> None:
        """See `Credentials`."""
        self._revoked |= {self._cards[host][0]}

    def card(self, host: str) -> tuple[int, Rights]:
        """Its serial number and rights."""
        return self._cards.get(host, (0, NONE))

    def may(self, host: str) -> Rights:
        """See `Credentials`."""
        serial, rights = self.card(host)
        return NONE if serial in self._revoked else rights

    def is_revoked(self, host: str) -> bool:
        """Whether that of whatever runs there is."""
        return self.card(host)[0] in self._revoked

    def found(self, host: str) -> bytes:
        """See `Credentials`."""
        return json.dumps(sorted(self._revoked)).encode() if self._revoked else b""

    def guard(self, host: str) -> Guard:
        """See `Credentials`."""
        guard = Named(self, host)
        guard.renew(self.found(host))
        return guard


class Named(Guard):
    """Of a process that has a certificate in `Cards`."""

    open = False
    grouped = False
    renews = True

    def __init__(self, cards: Cards, host: str) -> None:
        self.cards = cards
        self._host = host
        self.gone: frozenset[int] = frozenset()

    def new_id(self) -> str:
        """See `Guard`."""
        return f"{self._host} {super().new_id()}"

    @property
    def rights(self) -> Rights:
        """See `Guard`."""
        return self.cards.card(self._host)[1]

    @property
    def name(self) -> str:
        """See `Guard`."""
        return self._host

    def read(self) -> bytes:
        """See `Guard`."""
        return self.cards.found(self._host)

    def renew(self, found: bytes) -> None:
        """See `Guard`."""
        if found:
            self.learn(found)

    def learn(self, revoked: bytes) -> bool:
        """See `Guard`."""
        gone = frozenset(json.loads(revoked))
        newer = gone > self.gone
        if newer:
            self.gone, self.revoked = gone, revoked
        return newer

    def counts(self, standing: Standing) -> bool:
        """See `Guard`."""
        gone = {str(serial) for serial in self.gone}
        return self.own in standing.stands_on and gone.isdisjoint(standing.stands_on)

    @property
    def own(self) -> str:
        """What others were shown: with a new one, they are to be shown that."""
        return f"own {self.cards.card(self._host)[0]}"

    def dials(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        return _Seen(self, ends[1][0])

    def takes(self, ends: Ends, der: Der | None) -> Authenticator:
        """See `Guard`."""
        return _Seen(self, ends[0][0])


class _Seen:
    """See `Authenticator`: asks for nothing, and knows who it is."""

    def __init__(self, guard: Named, host: str) -> None:
        self._guard = guard
        self._host = host
        self._shown = guard.own

    def meet(self, role: str, peer_id: str) -> None:
        self.vouch(role, peer_id or f"{self._host} ")

    def nonce(self) -> bytes:
        return b""

    def challenge(self, hello: Hello, me: Identity) -> Auth | None:
        return None

    def respond(self, hello: Hello, question: Auth, me: Identity) -> Auth:
        raise ProtocolError("nobody asks here", code="auth")

    def check(self, hello: Hello, answer: Auth, me: Identity) -> None:
        raise ProtocolError("an AUTH that nobody asked for", code="auth")

    def vouch(self, role: str, peer_id: str) -> Standing:
        serial, rights = self._guard.cards.card(self._host)
        if serial in self._guard.gone:
            raise ProtocolError(f"the certificate of {self._host} was revoked", code="auth")
        if not peer_id.startswith(f"{self._host} "):
            raise ProtocolError(f"{peer_id!r} is not {self._host}'s", code="auth")
        if role == "coordinator" and not rights.coordinator:
            raise ProtocolError(f"{self._host} is no coordinator", code="auth")
        return Standing(rights, self._host, True, frozenset({str(serial), self._shown}))


def credentials_of(random: Random, profile: str) -> Credentials:
    """Those of a world of a profile."""
    if profile == "keys":
        kinds: Sequence[Any] = (Secret, Proofs, Proofs, Proofs, Tls, Issued)
        made: Credentials = random.choice(kinds)(random)
        return made
    if profile == "rights":
        return Issued(random, Cards()) if random.random() < 0.06 else Cards()
    return Open()
