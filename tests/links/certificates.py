"""Certificates for tests, of as many CAs as one wants."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="certificates are made by `cryptography`")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PEM = serialization.Encoding.PEM


def _year(year: int) -> datetime.datetime:
    return datetime.datetime(year, 1, 1)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class CA:
    """One that issues certificates."""

    def __init__(self, name: str = "a CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        self._certificate = (
            self._build(self._name, self._key, 2000, 2100)
            .add_extension(constraints, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def _build(self, name: x509.Name, key: Any, begin: int, end: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder(self._name, name, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_year(begin))
            .not_valid_after(_year(end))
        )

    def issue(self, begin: int = 2001, end: int = 2099) -> bytes:
        """A certificate that is valid in those years, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._build(_named("somebody"), key, begin, end).sign(self._key, hashes.SHA256())
        secret = key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return made.public_bytes(PEM) + secret

    def context(self, *, server: bool, shows: bytes | None) -> ssl.SSLContext:
        """One end that trusts this CA and shows that certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self._certificate.public_bytes(PEM).decode())
        context.options |= ssl.OP_NO_TICKET
        if server:
            context.num_tickets = 0
        if shows is not None:
            with tempfile.NamedTemporaryFile() as file:
                file.write(shows)
                file.flush()
                context.load_cert_chain(file.name)
        return context
