"""Key pairs of processes, and the identity that is made of one.

A process that has a group's key makes its pair at once, and may never need more of `cryptography`
than that: the rest (`pubsub.trust.extra`) takes 25 ms to import, and a first message over loopback
would wait for it.
"""

from __future__ import annotations

import hashlib

from pubsub.errors import AuthError

__all__ = ["ec", "identity_of_pair", "identity_of_spki", "missing", "new_key"]


def missing(error: ImportError) -> AuthError:
    """The package, or a part of it, cannot be imported."""
    return AuthError(
        "TLS and certificates need the package `cryptography`, which cannot be imported here "
        f"({error}): pip install 'pubsubd[tls]'"
    )


try:
    from cryptography.hazmat.primitives.asymmetric import ec
except ImportError as error:
    raise missing(error) from error

_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""What a P-256 key's SubjectPublicKeyInfo (RFC 5480) begins with: its point comes behind."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key. All that are made here are P-256, which every system takes."""
    return ec.generate_private_key(ec.SECP256R1())


def identity_of_pair(private: ec.EllipticCurvePrivateKey) -> str:
    """That of its public key, as `reading.identity_of_key` has it for any kind of key."""
    point = private.public_key().public_numbers()
    return identity_of_spki(_P256 + point.x.to_bytes(32, "big") + point.y.to_bytes(32, "big"))


def identity_of_spki(spki: bytes) -> str:
    """A public key's hash: 32 hexadecimal digits of SHA-256."""
    return hashlib.sha256(spki).hexdigest()[:32]
