"""A CA: who may say who somebody is.

There are two kinds. The CA of a group is derived from its key, so that all processes that have the
key have the CA, and each issues its own certificate to itself. All others are made once, and kept
in a directory (`pubsub.trust.issuing`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import NoReturn

from pubsub.core.rights import EVERYTHING, Rights
from pubsub.errors import AuthError
from pubsub.trust.extra import (
    Encoding,
    NameOID,
    NoEncryption,
    PrivateFormat,
    ec,
    hashes,
    x509,
)
from pubsub.trust.keys import Key
from pubsub.trust.pairs import new_key
from pubsub.trust.reading import (
    BOTH_SIDES,
    GROUP,
    LAST_DAY,
    certificates_in,
    identity_of_certificate,
    identity_of_key,
    private_key_in,
    text_of,
)

__all__ = [
    "CLOCK_DIFFERENCE",
    "FIRST_DAY",
    "Authority",
    "group_leaf",
    "pem_of_key",
    "says_host",
]

FIRST_DAY = datetime(1970, 1, 1, tzinfo=timezone.utc)
"""From then on, what needs no clock is valid: also where a machine begins at 1970."""
CLOCK_DIFFERENCE = timedelta(minutes=5)
"""By how much the clock of a machine may be behind the one where a certificate was issued."""

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Authority:
    """A CA: its certificate and its private key. It cannot be pickled.

    Attributes:
        certificate: what others need to check those that it issues.
    """

    __slots__ = ("_key", "certificate")

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def new(cls, name: str) -> Authority:
        """One that nobody knows yet."""
        return cls._made(_name("pubsubd", name), new_key(), x509.random_serial_number())

    @classmethod
    def of_group(cls, key: Key) -> Authority:
        """The one of a group, the same in all processes that have its key."""
        # 128 bits more than the order has: so all numbers below it are as likely as they should be.
        number = int.from_bytes(key.derive("certificate authority", 48), "big")
        private = ec.derive_private_key(1 + number % (_P256_ORDER - 1), ec.SECP256R1())
        serial = int.from_bytes(key.derive("certificate authority: serial", 16), "big")
        return cls._made(_name(GROUP, key.id), private, 1 + serial)

    @classmethod
    def _made(cls, name: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int) -> Authority:
        public = key.public_key()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(FIRST_DAY)
            .not_valid_after(LAST_DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def issue(
        self,
        name: str,
        public: ec.EllipticCurvePublicKey,
        rights: Rights,
        *,
        hosts: Iterable[str] = (),
        first: datetime = FIRST_DAY,
        last: datetime = LAST_DAY,
    ) -> x509.Certificate:
        """A certificate for who has the private key of `public`.

        Parameters:
            name: of the program that it is for; empty for none.
            public: its public key.
            rights: what it may do.
            hosts: under which names or addresses it may say that it is reached.
            first, last: when it is valid.
        """
        others: list[x509.GeneralName] = [says_host(host) for host in hosts]
        others += map(x509.UniformResourceIdentifier, rights.to_uris())
        made = (
            x509.CertificateBuilder()
            .subject_name(_name("pubsubd", name))
            .issuer_name(self.certificate.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(BOTH_SIDES), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        if others:
            made = made.add_extension(x509.SubjectAlternativeName(others), critical=False)
        return made.sign(self._key, hashes.SHA256())

    def revoke(self, serials: Iterable[int], number: int, at: datetime) -> bytes:
        """A list of revoked certificates, as PEM.

        Parameters:
            serials: of all that are revoked.
            number: of the list; the one with the highest holds.
            at: the time.
        """
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(at - CLOCK_DIFFERENCE)
            .next_update(LAST_DAY)  # it holds until there is another one
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        for serial in sorted(serials):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            made = made.add_revoked_certificate(entry.build())
        return made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def private_pem(self) -> bytes:
        """Its private key: for the file of the CA, and for nothing else."""
        return pem_of_key(self._key)

    def __repr__(self) -> str:
        return f"<Authority {text_of(self.certificate.subject)!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Authority is not pickled: its private key stays where it is")

    @classmethod
    def read(cls, certificate: bytes, key: bytes, where: str) -> Authority:
        """One that was kept in two files, as PEM.

        Parameters:
            where: names them, for the errors.

        Raises:
            AuthError: one of them cannot be read, or they do not belong together.
        """
        found, *_ = certificates_in(certificate, f"the certificate {where}")
        private = private_key_in(key, f"the key {where}")
        if identity_of_key(private.public_key()) != identity_of_certificate(found):
            raise AuthError(f"the certificate and the key {where} do not belong together")
        return cls(found, private)


def _name(organization: str, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            *([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def group_leaf(authority: Authority, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
    """The certificate that a process of a group issues to itself: it may do everything, always."""
    return authority.issue("", public, EVERYTHING)


def says_host(host: str) -> x509.GeneralName:
    """A host as it stands in a certificate.

    Raises:
        ValueError: it is neither an address nor a name of a host.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        plain = host.encode("idna").decode()
    except UnicodeError:
        plain = ""
    if not re.fullmatch(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", plain):
        raise ValueError(f"host {host!r} is neither an address nor a name, and has no port")
    return x509.DNSName(plain)


def pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as text: for a file that only its owner reads."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
