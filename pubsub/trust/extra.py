"""The package `cryptography`, as far as it is used here.

Whoever needs it imports it from this module, and this module where it needs it: where the package
is missing, that raises an `AuthError` that says what to install.
"""

from __future__ import annotations

from pubsub.trust.pairs import ec, missing

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as error:
    raise missing(error) from error

__all__ = [
    "Encoding",
    "ExtendedKeyUsageOID",
    "InvalidSignature",
    "NameOID",
    "NoEncryption",
    "PrivateFormat",
    "PublicFormat",
    "UnsupportedAlgorithm",
    "ec",
    "hashes",
    "load_pem_private_key",
    "x509",
]
