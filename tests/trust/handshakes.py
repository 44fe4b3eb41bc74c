"""TLS without sockets: two ends over `ssl.MemoryBIO`, and files with certificates to try it on."""

from __future__ import annotations

import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from pubsub.core.rights import Rights
from pubsub.trust.authority import Authority, pem_of_key
from pubsub.trust.certificates import Contexts
from pubsub.trust.files import write_file
from pubsub.trust.pairs import new_key
from pubsub.trust.reading import pem_of

__all__ = ["NOW", "Ends", "certificate_file", "shake_hands"]

NOW = datetime.now(timezone.utc)


class Ends(NamedTuple):
    """Both ends of a connection, and what each of them found wrong."""

    server: ssl.SSLObject
    client: ssl.SSLObject
    server_error: ssl.SSLError | None
    client_error: ssl.SSLError | None


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> Ends:
    """Until both ends are done, have exchanged a byte, or have given up."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up),
        server.wrap_bio(up, down, server_side=True),
    ]
    errors: list[ssl.SSLError | None] = [None, None]
    done = [False, False]
    for _ in range(10):
        for number, end in enumerate(ends):
            if errors[number] is not None:
                continue
            try:
                if not done[number]:
                    end.do_handshake()
                    end.write(b"x")
                    done[number] = True
                # In TLS 1.3 the client is done before the server has looked at its certificate.
                end.read(1)
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError as error:
                errors[number] = error
    assert all(done) or any(errors)
    return Ends(ends[1], ends[0], errors[1], errors[0])


def certificate_file(
    path: Path,
    authority: Authority,
    rights: Rights,
    *,
    name: str = "",
    first: datetime = NOW - timedelta(hours=1),
    last: datetime = NOW + timedelta(hours=1),
    trusted: Authority | None = None,
) -> Path:
    """A file as `pubsubd cert issue` writes it, at `path`.

    Parameters:
        trusted: the CA that its holder trusts; default: the one that issued it.
    """
    key = new_key()
    leaf = authority.issue(name or path.stem, key.public_key(), rights, first=first, last=last)
    certificates = [(trusted or authority).certificate]
    write_file(path, pem_of(leaf) + pem_of_key(key) + pem_of(*certificates), replace=True)
    return path


def both_ways(one: Contexts, other: Contexts) -> tuple[Ends, Ends]:
    """With each of them as the server."""
    return shake_hands(one.server, other.client), shake_hands(other.server, one.client)
