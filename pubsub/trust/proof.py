"""The mutual proof: each side of a plain connection shows by AUTH that it has the key.

A proof is an HMAC over the whole HELLO, who answered it and with what nonce, and the connection's
two addresses as this side sees them. So it cannot be said again, nor be passed on by somebody who
sits between two connections. A second one, without the addresses, only tells why the first is
wrong.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

import msgpack

from pubsub.config import unmapped
from pubsub.core.rights import EVERYTHING
from pubsub.errors import ProtocolError
from pubsub.trust.keys import Key
from pubsub.wire.handshake import Identity, Standing
from pubsub.wire.messages import Auth, Hello, encode, parse

__all__ = ["Ends", "Proof"]

Ends = tuple[Any, Any]
"""The addresses of a connection, as sockets tell them: of who dialled, and of who was dialled."""

PURPOSE = "proof of loopback connections"
NONCE = 32
SIZE = 32
DIALLED, ANSWERED = "of who dialled", "of who was dialled"


class Proof:
    """What one side of one connection asks and shows. See `Authenticator`.

    Parameters:
        keys: the first is shown, and the other end may show any.
        ends: see `Ends`.
        nonce: random, for this connection alone.
        whose: of the key, in words, for who is refused.
    """

    def __init__(self, keys: Sequence[Key], ends: Ends, nonce: bytes, whose: str) -> None:
        self._keys = keys
        self._ends = [[*_plain(end)] for end in ends]
        self._nonce = nonce
        self._whose = whose
        self._question: Auth | None = None
        self._standing: Standing | None = None

    def meet(self, role: str, peer_id: str) -> None:
        """See `Authenticator`: only AUTH shows who it is."""

    def nonce(self) -> bytes:
        """See `Authenticator`."""
        return self._nonce

    def challenge(self, hello: Hello, me: Identity) -> Auth:
        """See `Authenticator`."""
        if len(hello.nonce) < NONCE:
            raise ProtocolError(
                "no credentials were shown, and a key or secret is asked for here: set "
                "PUBSUB_KEY_FILE to the same key on both sides, or start both as the same user",
                code="auth",
            )
        asked = Auth(me.role, me.peer_id, self._nonce, b"")
        self._question = asked
        return Auth(me.role, me.peer_id, self._nonce, self._prove(ANSWERED, hello, asked))

    def respond(self, hello: Hello, question: Auth, me: Identity) -> Auth:
        """See `Authenticator`."""
        if len(question.nonce) < NONCE:
            raise ProtocolError("its AUTH has no nonce", code="auth")
        hello = parse(msgpack.unpackb(encode(hello)[4:]))  # type: ignore[assignment]  # as it is read
        self._verify(ANSWERED, hello, question, question.proof)
        return Auth(me.role, me.peer_id, b"", self._prove(DIALLED, hello, question))

    def check(self, hello: Hello, answer: Auth, me: Identity) -> None:
        """See `Authenticator`."""
        assert self._question is not None
        self._verify(DIALLED, hello, self._question, answer.proof)

    def vouch(self, role: str, peer_id: str) -> Standing:
        """See `Authenticator`."""
        if self._standing is None:
            raise ProtocolError(
                f"it shows no credentials, and does not ask for {self._whose}", code="auth"
            )
        return self._standing

    def _prove(self, label: str, hello: Hello, asked: Auth) -> bytes:
        key = self._keys[0]
        return _digest(key, label, hello, asked, self._ends) + _digest(
            key, label, hello, asked, None
        )

    def _verify(self, label: str, hello: Hello, asked: Auth, proof: bytes) -> None:
        here, anywhere = proof[:SIZE], proof[SIZE:]
        for key in self._keys:
            if hmac.compare_digest(here, _digest(key, label, hello, asked, self._ends)):
                self._standing = Standing(
                    EVERYTHING, authenticated=True, stands_on=frozenset({key.id, self._keys[0].id})
                )
                return
        if any(
            hmac.compare_digest(anywhere, _digest(key, label, hello, asked, None))
            for key in self._keys
        ):
            raise ProtocolError(
                "it has the key, but sees other addresses (a forwarded port or a tunnel lies "
                "between, or somebody does): use TLS there, by encrypt=True or PUBSUB_ENCRYPT=1",
                code="auth",
            )
        raise ProtocolError(f"it does not have {self._whose}", code="auth")


def _digest(key: Key, label: str, hello: Hello, asked: Auth, ends: Any) -> bytes:
    said = msgpack.packb([label, encode(hello), asked.role, asked.peer_id, asked.nonce, ends])
    return hmac.digest(key.derive(PURPOSE), said, "sha256")


def _plain(end: Any) -> tuple[str, int]:
    """An address of a socket, the same for both ends."""
    return (unmapped(end[0]).partition("%")[0], end[1]) if end else ("", 0)
