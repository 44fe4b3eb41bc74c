"""Certificates as a process uses them: its own, whom it trusts, and what those of others say.

TLS 1.3 on both sides of every connection, and both show a certificate. There are two ways to get
there. From a group's key each process derives the same CA, and issues itself a certificate in
memory: no files, nothing to manage. Or a file has what `pubsubd cert issue` made.

What reads and makes certificates is `pubsub.trust.reading` and `pubsub.trust.authority`; they are
imported where they are needed, because they need the extra ``pubsubd[tls]``.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from pubsub.core.rights import Rights
from pubsub.errors import AuthError
from pubsub.support.host import this_host
from pubsub.trust.files import read_private
from pubsub.trust.keys import Key

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = [
    "Card",
    "Contexts",
    "Pair",
    "Revoked",
    "card_of",
    "file_contexts",
    "group_contexts",
    "identity_of",
    "revoked_by",
]


@dataclass(frozen=True)
class Card:
    """What a certificate says of its holder. Whoever believes it has checked the certificate."""

    name: str
    """Of the program it was issued for; empty for one of a group."""
    identity: str
    """The hash of the holder's public key: 32 hexadecimal digits."""
    rights: Rights
    key_id: str
    """`Key.id` of the key whose CA issued it; empty for one from a file."""
    serial: int
    not_after: float
    """When it expires, in seconds since 1970."""
    hosts: tuple[str, ...] = ()
    """Names and addresses under which its holder may say that it is reached."""
    issuer: str = ""
    """The CA that issued it, in the form of RFC 4514."""


class Contexts(NamedTuple):
    """What TLS of a process is made with."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    own: Card
    """What others read of it."""
    authorities: Sequence[x509.Certificate] = ()
    """Those who may have issued the certificates of others, and revoked them."""


class Revoked(NamedTuple):
    """A list of revoked certificates, signed by the CA that issued them."""

    number: int
    """Of two lists of one issuer, the one with the higher number holds."""
    serials: frozenset[int]
    issuer: str

    def has(self, card: Card) -> bool:
        """Whether a certificate is revoked. Each CA counts for itself, so a number alone is not
        enough."""
        return card.serial in self.serials and card.issuer == self.issuer


class Pair:
    """The key pair of a process, in memory alone, for as long as it lives.

    A changed key of the group certifies the same pair anew, so its identity stays. It cannot be
    pickled, and shows no secret.

    Attributes:
        identity: the hash of its public key: 32 hexadecimal digits.
    """

    __slots__ = ("_private", "identity")

    def __init__(self, private: ec.EllipticCurvePrivateKey) -> None:
        from pubsub.trust.pairs import identity_of_pair

        self._private = private
        self.identity = identity_of_pair(private)

    @classmethod
    def new(cls) -> Pair:
        """One that nobody has yet.

        Raises:
            AuthError: the extra ``pubsubd[tls]`` is missing.
        """
        from pubsub.trust.pairs import new_key

        return cls(new_key())

    def __repr__(self) -> str:
        return f"<Pair {self.identity}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Pair is not pickled: it is the identity of one process")


def identity_of(der: bytes) -> str:
    """The identity of a certificate's holder.

    Raises:
        AuthError: it cannot be read.
    """
    return card_of(der).identity


def card_of(der: bytes) -> Card:
    """What a certificate says, as `ssl.SSLObject.getpeercert(True)` gives it.

    Raises:
        AuthError: it cannot be read.
    """
    from pubsub.trust.reading import card_of_certificate, certificate_of

    return card_of_certificate(certificate_of(der))


def group_contexts(keys: Sequence[Key], pair: Pair) -> Contexts:
    """TLS of a process of a group: all who have one of the keys are trusted.

    Parameters:
        keys: the first one is used; there is at least one.
        pair: the process's own.

    Raises:
        AuthError: the extra ``pubsubd[tls]`` is missing.
    """
    from pubsub.trust.authority import Authority, group_leaf, pem_of_key
    from pubsub.trust.reading import card_of_certificate, pem_of

    authorities = [Authority.of_group(key) for key in keys]
    leaf = group_leaf(authorities[0], pair._private.public_key())
    chain = pem_of(leaf) + pem_of_key(pair._private)
    return _contexts(chain, [a.certificate for a in authorities], card_of_certificate(leaf))


def file_contexts(path: str | os.PathLike[str]) -> Contexts:
    """TLS of a process that has a certificate in a file: with its private key, and with the
    certificates of the CAs that it trusts.

    Raises:
        AuthError: the extra ``pubsubd[tls]`` is missing; or the file is missing, can be read by
            other users, lacks something, or has a certificate that is not valid now.
    """
    data = read_private(path, "certificate file", missing="issue one with `pubsubd cert issue`")
    from pubsub.trust.reading import card_of_certificate, read_bundle

    what = f"certificate file {path}"
    bundle = read_bundle(data, what, this_host().wall_clock())
    try:
        return _contexts(bundle.chain, bundle.authorities, card_of_certificate(bundle.leaf))
    except ssl.SSLError as error:
        raise AuthError(f"{what} is not taken by the TLS of this machine: {error}") from None


def revoked_by(contexts: Contexts, data: bytes, what: str) -> Revoked:
    """What a list of revoked certificates says to the holder of a certificate.

    Raises:
        AuthError: it is none, or no CA that is trusted has signed it.
    """
    from pubsub.trust.reading import read_revoked

    return read_revoked(data, contexts.authorities, what)


def _contexts(chain: bytes, authorities: Sequence[x509.Certificate], own: Card) -> Contexts:
    from pubsub.trust.reading import der_of

    trusted = der_of(*authorities)
    with _as_file(chain) as path:
        server = _context(ssl.PROTOCOL_TLS_SERVER, path, trusted)
        server.num_tickets = 0
        client = _context(ssl.PROTOCOL_TLS_CLIENT, path, trusted)
        return Contexts(server, client, own, authorities)


def _context(side: int, chain: str, trusted: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who it is, the certificate says, and not an address
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whoever is named, also if no root
    context.options |= ssl.OP_NO_TICKET  # a session that is taken up again skips all checks
    context.load_verify_locations(cadata=trusted)
    context.load_cert_chain(chain)
    return context


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path for what takes nothing else: in memory where the system can do that, and else a file
    that only this user reads, and that is gone at once."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("pubsubd")
        with open(descriptor, "wb") as memory:
            memory.write(data)
            memory.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    descriptor, path = tempfile.mkstemp(prefix="pubsubd-")
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        yield path
    finally:
        os.unlink(path)
