"""What certificates and their files say, and which of them are good.

Rights stand in a certificate as URIs among its alternative names (`pubsub.core.rights`), hosts
beside them, so that any other PKI can issue such certificates as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple, NoReturn

from pubsub.core.rights import NONE, Rights
from pubsub.errors import AuthError
from pubsub.trust.certificates import Card, Revoked
from pubsub.trust.extra import (
    Encoding,
    ExtendedKeyUsageOID,
    InvalidSignature,
    NameOID,
    PublicFormat,
    UnsupportedAlgorithm,
    ec,
    load_pem_private_key,
    x509,
)
from pubsub.trust.pairs import identity_of_spki

__all__ = [
    "BOTH_SIDES",
    "GROUP",
    "LAST_DAY",
    "Bundle",
    "card_of_certificate",
    "certificate_of",
    "certificates_in",
    "der_of",
    "describe",
    "hosts_of",
    "identity_of_certificate",
    "identity_of_key",
    "issuer_of",
    "pem_of",
    "private_key_in",
    "read_bundle",
    "read_revoked",
    "rights_of",
    "text_of",
    "when",
    "when_seconds",
]

LAST_DAY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
"""What RFC 5280 (4.1.2.5) has for "without an end"."""
GROUP = "pubsubd group"
"""The organization that the CA of a group's key names; it is the issuer of all of its
certificates."""
BOTH_SIDES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_PRIVATE = re.compile(
    rb"-----BEGIN ([A-Z ]*)PRIVATE KEY-----\s.*?-----END \1PRIVATE KEY-----", re.DOTALL
)


_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates that are broken, or too new for it."""


def certificate_of(der: bytes) -> x509.Certificate:
    """A certificate as it came over a connection.

    Raises:
        AuthError: it cannot be read.
    """
    try:
        return _whole(x509.load_der_x509_certificate(der))
    except _UNREADABLE as error:
        raise AuthError(f"its certificate cannot be read: {error}") from None


def _whole(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate, with all of it read: by itself it reads a part when that is asked for."""
    _ = certificate.extensions, certificate.subject, certificate.issuer, certificate.public_key()
    return certificate


def card_of_certificate(certificate: x509.Certificate) -> Card:
    """All that is asked of a certificate."""
    rights, _ = rights_of(certificate)
    return Card(
        name=_first(certificate.subject, NameOID.COMMON_NAME),
        identity=identity_of_certificate(certificate),
        rights=rights,
        key_id=_group_of(certificate),
        serial=certificate.serial_number,
        not_after=certificate.not_valid_after_utc.timestamp(),
        hosts=hosts_of(certificate),
        issuer=certificate.issuer.rfc4514_string(),
    )


def identity_of_certificate(certificate: x509.Certificate) -> str:
    """The public key's hash."""
    return identity_of_key(certificate.public_key())


def identity_of_key(public: object) -> str:
    """See `identity_of_spki`."""
    assert hasattr(public, "public_bytes")
    spki = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return identity_of_spki(spki)


def rights_of(certificate: x509.Certificate) -> tuple[Rights, tuple[str, ...]]:
    """The rights that it gives, and a sentence for each of its URIs that gives none."""
    names = _other_names(certificate)
    if names is None:
        return NONE, ()
    return Rights.from_uris(names.get_values_for_type(x509.UniformResourceIdentifier))


def hosts_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The names and addresses under which its holder may say that it is reached."""
    names = _other_names(certificate)
    if names is None:
        return ()
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def issuer_of(certificate: x509.Certificate) -> str:
    """Who issued it."""
    return text_of(certificate.issuer)


def _other_names(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _group_of(certificate: x509.Certificate) -> str:
    """The id of the key that the issuer was derived from, empty for all other issuers. Whoever
    believes it has checked that this issuer is one that it trusts."""
    if _first(certificate.issuer, NameOID.ORGANIZATION_NAME) != GROUP:
        return ""
    return _first(certificate.issuer, NameOID.COMMON_NAME)


def _first(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    value = found[0].value if found else ""
    return value if isinstance(value, str) else ""


def text_of(name: x509.Name) -> str:
    return _first(name, NameOID.COMMON_NAME) or name.rfc4514_string()


def when(at: datetime) -> str:
    """A time for people.

    >>> when(datetime(2027, 2, 26, 10, 30, tzinfo=timezone.utc))
    '2027-02-26 10:30 UTC'
    """
    return f"{at.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def when_seconds(at: float) -> str:
    """A time, in seconds since 1970, for people."""
    return when(datetime.fromtimestamp(at, timezone.utc))


# --- files ----------------------------------------------------------------------------------


class Bundle(NamedTuple):
    """What a certificate file has in it."""

    leaf: x509.Certificate
    """Its holder's."""
    chain: bytes
    """What the holder shows, as PEM, with its private key: for `ssl`, and for nothing else."""
    authorities: tuple[x509.Certificate, ...]
    """Whom the holder trusts."""

    def __repr__(self) -> str:
        return f"<Bundle of {text_of(self.leaf.subject)!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Bundle is not pickled: its private key stays where it is")


def der_of(*certificates: x509.Certificate) -> bytes:
    """Certificates as bytes."""
    return b"".join(each.public_bytes(Encoding.DER) for each in certificates)


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Certificates as text."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def certificates_in(data: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a file.

    Raises:
        AuthError: it has none, or one that cannot be read.
    """
    if b"-----BEGIN CERTIFICATE-----" not in data:
        known = data.lstrip().startswith(b"pubsubd-key-")
        raise AuthError(
            f"{what} is a key file: that belongs into PUBSUB_KEY_FILE"
            if known
            else f"{what} has no certificate in it: `pubsubd cert issue DIR NAME` makes one"
        )
    try:
        return list(map(_whole, x509.load_pem_x509_certificates(data)))
    except _UNREADABLE as error:
        raise AuthError(f"{what} has a certificate that cannot be read: {error}") from None


def read_bundle(data: bytes, what: str, now: float) -> Bundle:
    """What a certificate file has in it, checked: a file that others would refuse is refused here,
    where it can be mended.

    Parameters:
        data: its bytes.
        what: names it, for the errors.
        now: seconds since 1970.

    Raises:
        AuthError: something is missing, does not fit, or is not valid now.
    """
    found = certificates_in(data, what)
    key = private_key_in(data, what)
    identity = identity_of_key(key.public_key())
    leaf = next((c for c in found if identity_of_certificate(c) == identity), None)
    if leaf is None:
        raise AuthError(f"{what}: its private key is that of another certificate")
    if _is_ca(leaf):
        raise AuthError(
            f"{what} is that of a CA, which stays where it is: give each program one that "
            "`pubsubd cert issue DIR NAME` makes"
        )
    authorities = tuple(c for c in found if c is not leaf and _is_ca(c))
    if not any(_issued(leaf, authority) for authority in authorities):
        raise AuthError(
            f"{what} lacks the certificate of {issuer_of(leaf)!r}, which issued it: without that, "
            "nobody else can be checked; add it to the file"
        )
    clock = f"the clock of this machine says {when_seconds(now)}"
    if now > leaf.not_valid_after_utc.timestamp():
        raise AuthError(
            f"{what} expired at {when(leaf.not_valid_after_utc)} ({clock}): renew it "
            "with `pubsubd cert issue`"
        )
    if now < leaf.not_valid_before_utc.timestamp():
        raise AuthError(
            f"{what} is not valid before {when(leaf.not_valid_before_utc)} ({clock}): set the "
            "clock right"
        )
    _check_uses(leaf, what)
    between = [c for c in authorities if c.subject != c.issuer]
    chain = pem_of(leaf) + _PRIVATE.search(data)[0] + b"\n" + pem_of(*between)  # type: ignore[index]
    return Bundle(leaf, chain, authorities)


def private_key_in(data: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    block = _PRIVATE.search(data)
    if block is None:
        raise AuthError(
            f"{what} has no private key in it: name the file that `pubsubd cert issue` wrote"
        )
    try:
        return load_pem_private_key(block[0], None)  # type: ignore[return-value]  # any kind will do
    except TypeError:
        raise AuthError(
            f"{what}: its private key is encrypted, and nobody is there to give the password: "
            "take it off (`openssl pkey`), and keep the file at mode 600"
        ) from None
    except (ValueError, UnsupportedAlgorithm):  # its text may quote what it could not read
        raise AuthError(f"{what}: its private key cannot be read") from None


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_uses(leaf: x509.Certificate, what: str) -> None:
    try:
        uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # for everything
    missing = [use._name for use in BOTH_SIDES if use not in uses]
    if missing:
        raise AuthError(
            f"{what} is not for {' and '.join(missing)}, and a peer is on both sides of "
            "connections: have it issued with both extended key usages"
        )


def describe(data: bytes, what: str, now: float) -> list[tuple[str, str]]:
    """What a file of certificates, or a list of revoked ones, says: a name and a text for each
    line.

    Parameters:
        data: its bytes.
        what: names it, for the errors.
        now: seconds since 1970.

    Raises:
        AuthError: it has neither, or one that cannot be read.
    """
    if b"-----BEGIN X509 CRL-----" in data:
        revoked, found = _read_list(data, what)
        lines = [("revoked", f"list number {revoked.number} of {text_of(found.issuer)!r}")]
        return lines + [("serial", f"{serial:x}") for serial in sorted(revoked.serials)]
    certificates = certificates_in(data, what)
    shown = [c for c in certificates if not _is_ca(c)] or certificates
    lines = []
    for certificate in shown:
        card = card_of_certificate(certificate)
        _, problems = rights_of(certificate)
        kind = "CA" if _is_ca(certificate) else "name"
        lines += [(kind, card.name or "(none)")]
        lines += [("rights", str(card.rights))] if kind == "name" else []
        lines += [("no right", problem) for problem in problems]
        lines += [("host", host) for host in card.hosts]
        lines += [
            ("valid", _validity(certificate, now)),
            ("issued by", issuer_of(certificate)),
            ("serial", f"{card.serial:x}"),
            ("identity", card.identity),
        ]
    if not _is_ca(shown[0]):
        try:
            bundle = read_bundle(data, what, now)
        except AuthError as error:
            lines.append(("not usable", str(error)))
        else:
            names = (text_of(authority.subject) for authority in bundle.authorities)
            lines.append(("trusts", ", ".join(names)))
    return lines


def _validity(certificate: x509.Certificate, now: float) -> str:
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if last == LAST_DAY:
        return "without an end"
    left = timedelta(seconds=last.timestamp() - now)
    if left < timedelta(0):
        state = "expired"
    elif now < first.timestamp():
        state = "not yet"
    elif left < timedelta(days=2):
        state = f"{left / timedelta(hours=1):.0f} h left"
    else:
        state = f"{left / timedelta(days=1):.0f} days left"
    return f"{when(first)} to {when(last)} ({state})"


def read_revoked(data: bytes, authorities: Sequence[x509.Certificate], what: str) -> Revoked:
    """What a list of revoked certificates says.

    Parameters:
        data: as PEM.
        authorities: who may have signed it.
        what: names it, for the errors.

    Raises:
        AuthError: it is none, has no number, or was signed by somebody else.
    """
    revoked, found = _read_list(data, what)
    for authority in authorities:
        if _is_ca(authority) and authority.subject == found.issuer:
            public: Any = authority.public_key()  # of a kind that can sign, or a TypeError
            with suppress(TypeError):
                if found.is_signature_valid(public):
                    return revoked
    raise AuthError(f"{what} is not signed by a CA that is trusted here")


def _read_list(data: bytes, what: str) -> tuple[Revoked, x509.CertificateRevocationList]:
    """What it says, whoever signed it."""
    try:
        found = x509.load_pem_x509_crl(data)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = frozenset(each.serial_number for each in found)
    except x509.ExtensionNotFound:
        raise AuthError(f"{what} has no number, so nobody knows whether it is the newest") from None
    except _UNREADABLE as error:
        raise AuthError(f"{what} is no list of revoked certificates: {error}") from None
    return Revoked(number, serials, found.issuer.rfc4514_string()), found
