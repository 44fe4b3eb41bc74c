"""Settings of a peer: one frozen structure, its defaults, and what the environment says."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, NamedTuple

__all__ = [
    "BATCH_BYTES",
    "DEFAULT_COORDINATOR",
    "FOREVER",
    "KIB",
    "KINDS",
    "LOCALHOST",
    "MAX_WAYS",
    "MIB",
    "UNIX",
    "Address",
    "Settings",
    "Way",
    "advertise_from",
    "coordinators_from",
    "is_loopback",
    "is_wildcard",
    "name_here",
    "parse_address",
    "parse_advertise",
    "seconds",
    "unmapped",
    "whole",
]

KIB = 1024
MIB = 1024 * KIB
BATCH_BYTES = 64 * KIB
"""A batch is closed when it has so many bytes, or at the end of the loop's turn."""


class Address(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


UNIX = "unix"
KINDS = (UNIX, "direct", "reverse", "relay")
"""Of ways, the best first."""
LOCALHOST = ".localhost"
"""How the host of a Unix socket ends: for all that is decided by hosts, it is on loopback."""


def name_here(host_id: str, peer_id: str) -> str:
    """The name of a peer's Unix socket. Its `host_id` is in it, so that on another host, or in
    another network namespace, nothing has the same name; and a peer whose directory several hosts
    share knows those of its own by how they begin."""
    digest = hashlib.sha256(f"{host_id} {peer_id}".encode()).hexdigest()
    return f"{host_id[:8]}-{digest[:24]}"


class Way(NamedTuple):
    """Where a peer can be reached, and who told it: a coordinator, the program, or, for one of the
    addresses that a name means, the way that has the name; for a Unix socket, the way that leads
    there by TCP."""

    host: str
    port: int
    told_by: object = None
    kind: str = "direct"
    """``unix``: we dial its Unix socket, on the host of both; ``direct``: we dial it by TCP;
    ``reverse``: it has dialled us, from there; ``relay``: both have dialled the relay that is
    there."""

    @property
    def address(self) -> Address:
        """What is dialled."""
        return Address(self.host, self.port)

    @property
    def rank(self) -> int:
        """How good it is: 0 is the best."""
        return KINDS.index(self.kind)

    def __str__(self) -> str:
        if self.kind == UNIX:
            return f"{self.kind} {self.told_by}"
        if self.kind != "direct":
            return f"{self.kind} {self.address}"
        if isinstance(self.told_by, Way) and self.told_by.host != self.host:
            return f"{self.told_by} ({self.host})"
        return str(self.address)


_LOOPBACK = re.compile(
    r"127(?:\.\d{1,3}){3}|::1|(?:0{1,4}:){7}0{0,3}1|(?:.+\.)?localhost\.?", re.IGNORECASE
)


def is_loopback(host: str) -> bool:
    """Whether this address or name leads whoever dials it to a machine of its own."""
    return _LOOPBACK.fullmatch(unmapped(host)) is not None


def unmapped(host: str) -> str:
    """An IPv4 address as such, which a socket of both families shows as an IPv6 address."""
    v4 = host.removeprefix("::ffff:")
    return host if ":" in v4 else v4


def is_wildcard(host: str) -> bool:
    """Whether this stands for every address of a machine, as ``0.0.0.0``, ``::`` and ``""`` do:
    one can listen there, and nobody else can dial it."""
    return not host.strip("0.:")


DEFAULT_COORDINATOR = Address("127.0.0.1", 7700)
"""Used where nothing is configured; here the first process starts a coordinator in itself."""

_ADDRESS = re.compile(
    r"(?:tcp://)?(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%[^:\s/\[\]%]+)?)\]|(?P<host>[^:\s/\[\]]+)):(?P<port>\d{1,5})"
)


def parse_address(text: str, *, what: str = "address") -> Address:
    """``host:port`` or ``[v6]:port`` as an :class:`Address`.

    Raises:
        ValueError: naming `what`, the text and the form that is right.
    """
    match = _ADDRESS.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        right = _in_brackets(text.strip()) if isinstance(text, str) else None
        if right is not None:
            raise ValueError(
                f"{what} {text!r} is not host:port: an IPv6 address stands in brackets, as in "
                f"{right}"
            )
        raise ValueError(f"{what} {text!r} is not host:port, such as 127.0.0.1:7700")
    port = int(match["port"])
    if not 0 < port < 65536:
        raise ValueError(f"{what} {text!r}: port {port} is not between 1 and 65535")
    return Address(match["v6"] or match["host"], port)


_V6 = re.compile(
    r"(?=.*::|(?:[^:]*:){7})(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f.]+(?:%[^:\s/\[\]%]+)?"
)


def _in_brackets(text: str) -> str | None:
    """What was meant by an IPv6 address without its brackets; None: this is none."""
    host, _, port = text.removeprefix("tcp://").rpartition(":")
    if _V6.fullmatch(host) and port.isdigit():
        return f"[{host}]:{port}"
    whole = f"{host}:{port}"
    return f"[{whole}]:{DEFAULT_COORDINATOR.port}" if _V6.fullmatch(whole) else None


_HOST = re.compile(r"[^:\s/\[\]]+|[0-9A-Fa-f.]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[^:\s/\[\]%]+)?")


def parse_advertise(text: str, port: int, *, what: str = "advertise") -> list[Address]:
    """``host``, at this port, or ``host:port``, or several, separated by commas.

    Raises:
        ValueError: naming `what`, the text and the form that is right.
    """
    found = [_advertised(each.strip(), port, what) for each in text.split(",")]
    if len(found) >= MAX_WAYS:
        raise ValueError(f"{what} {text[:40]!r}… names {len(found)} addresses, over {MAX_WAYS - 1}")
    return found


MAX_WAYS = 8
"""Places at which one peer may say that it is reached."""


def _advertised(text: str, port: int, what: str) -> Address:
    if len(text) > 255:
        raise ValueError(f"{what} {text[:40]!r}… has {len(text)} characters, over 255")
    found = Address(text, port) if _HOST.fullmatch(text) else parse_address(text, what=what)
    if is_wildcard(found.host):
        raise ValueError(
            f"{what} {text!r} stands for all addresses of a machine, and nobody can dial that: "
            "name one of them"
        )
    return found


def advertise_from(environ: Mapping[str, str]) -> str | None:
    """What ``PUBSUB_ADVERTISE`` says, if anything.

    Raises:
        ValueError: it is neither ``host`` nor ``host:port``.
    """
    text = environ.get("PUBSUB_ADVERTISE") or None
    if text is not None:
        parse_advertise(text, 0, what="PUBSUB_ADVERTISE")
    return text


def coordinators_from(
    given: str | Address | tuple[str, int] | list[str] | None, environ: Mapping[str, str]
) -> tuple[tuple[Address, ...], bool]:
    """The coordinators to use, and whether anybody configured them.

    An argument wins over ``PUBSUB_COORDINATOR``, which wins over the default. Each may name
    several, separated by commas.

    Returns:
        the addresses without repetition, and False where they are only the default (which is
        what permits the embedded coordinator).

    Raises:
        ValueError, TypeError: for what is not ``host:port``.
    """
    what = "coordinator"
    if given is None:
        given = environ.get("PUBSUB_COORDINATOR", "").strip() or None
        what = "PUBSUB_COORDINATOR"
    if given is None:
        return (DEFAULT_COORDINATOR,), False
    if isinstance(given, tuple) and len(given) == 2:
        host, port = given
        if isinstance(port, int) or ":" not in host:  # else two texts
            given = str(Address(host, port))
    if not isinstance(given, (str, tuple, list)):
        raise TypeError(f'coordinator {given!r} is neither "host:port" nor a list of such')
    texts: list[str] = given.split(",") if isinstance(given, str) else [str(t) for t in given]
    found = tuple(dict.fromkeys(parse_address(t, what=what) for t in texts if t.strip()))
    if not found:
        raise ValueError(f"{what} {given!r} names no host:port")
    return found, True


FOREVER = 1e8
"""Seconds, about three years: more than that, event loops do not count."""


def seconds(name: str, value: Any) -> float | None:
    """A time to wait, as every call and setting takes it; None for any.

    Any real number will do: an int, a float, one of numpy's, a Fraction, a Decimal. Above
    `FOREVER`, and infinite, is for ever; below 0 is 0. A bool is refused: who says ``get(True)``
    means something else.

    Raises:
        TypeError: it is no number of seconds.
        ValueError: it is NaN.
    """
    kind = type(value)
    if value is None or ((kind is float or kind is int) and 0 <= value <= FOREVER):
        return value  # type: ignore[no-any-return]  # with half the work for what is given mostly
    if isinstance(value, bool) or not isinstance(value, (Real, Decimal)):
        raise TypeError(f"{name}={value!r} is not a number of seconds")
    try:
        number = float(value)
    except OverflowError:
        number = FOREVER if value == abs(value) else 0.0
    except ValueError:  # a Decimal's signalling NaN
        number = math.nan
    if number != number:
        raise ValueError(f"{name}={value!r} is not a number of seconds: it is NaN")
    return min(max(number, 0.0), FOREVER)


def whole(name: str, value: Any, least: int) -> int:
    """A count, as every call and setting takes it: an int, also one of numpy's, and no bool.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} is not a whole number")
    if value < least:
        raise ValueError(f"{name}={value!r} is below {least}")
    return int(value)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a peer can be told. Times in seconds, sizes in bytes."""

    host: str | None = None
    """Address to listen on; None: the one from which the coordinator is reached."""
    port: int = 0
    """Port to listen on; 0: any free one."""
    advertise: str | None = None
    """``host`` or ``host:port`` that other peers are told to dial, beside where we listen; several
    are separated by commas. None: where we listen."""
    listen: bool = True
    """False: nobody can dial this process. It dials its subscribers itself, where they can be
    dialled, and meets them at a relay elsewhere."""
    name: str = ""
    """What ``pubsub peers`` shows for this process; empty: the program's name."""
    key_file: str | None = None
    """File with the key of a group (`pubsubd key new`); all who have it trust each other."""
    cert: str | None = None
    """File with an issued certificate (`pubsubd cert issue`): who this process is, with what
    rights."""
    insecure: bool | None = None
    """True: no credentials; everybody who can connect may read and publish. False: not even where
    ``PUBSUB_INSECURE`` is set."""
    encrypt: bool | None = None
    """With a key: True: TLS on loopback too; False: nowhere, only who has the key is let in (for
    closed fast networks; both ends must say so); None: TLS between machines."""
    ping_interval: float = 5.0
    """How often each side of a connection asks the other for a sign of life."""
    ping_timeout: float = 15.0
    """A connection on which nothing came for so long is dead."""
    connect_timeout: float = 5.0
    """How long to try for a coordinator before `CoordinatorUnavailable`, and for one dial. For one
    that accepts the connection and does not answer, because it is busy or stopped, six times."""
    handshake_timeout: float = 5.0
    """How long a new connection may take to say who it is."""
    join_timeout: float = 5.0
    """How long a Pub holds its messages for a subscriber that is expected, and how long a Sub waits
    to be ready for a publisher that is connected and does not answer."""
    resume_timeout: float = 30.0
    """How long a Pub holds its messages for a subscriber whose link broke."""
    linger: float = 5.0
    """How long `close()` and the end of the process wait for subscribers to get what is due."""
    ack_delay: float = 0.02
    """At most so long after taking a message its acknowledgement is sent."""
    shared_memory: int = 256 * MIB
    """Memory for large values (arrays, bytes), which the Subs of this host are shown without a
    copy. While it is full, and where this system has none, they travel as all else; 0: always."""
    max_message: int = 256 * MIB
    """The largest encoded message that is sent. One that comes may be larger by as much as others
    could stand before it in its batch (64 KiB); beyond that, it is a gap."""
    max_channels: int = 65_536
    """Channels that one link may hold open."""
    max_unauthenticated: int = 8_192
    """Connections that have not yet said who they are."""

    def __post_init__(self) -> None:
        for each in fields(self):
            name, value = each.name, getattr(self, each.name)
            if each.type == "int":
                object.__setattr__(self, name, whole(name, value, 0))
            elif each.type == "float":
                number = seconds(name, value)
                if number is None:
                    raise TypeError(f"{name}=None is not a number of seconds")
                if value < 0:  # a call may have waited too long already; a setting has not
                    raise ValueError(f"{name}={value!r} is negative")
                object.__setattr__(self, name, number)
            elif each.type in ("bool", "bool | None") and not (
                isinstance(value, bool) or (value is None and "None" in each.type)
            ):
                raise TypeError(f"{name}={value!r} is neither True nor False")
        for name in ("key_file", "cert"):
            path = getattr(self, name)
            if path is not None:
                if not isinstance(path, (str, os.PathLike)) or not str(path):
                    raise TypeError(f"{name}={path!r} is not the path of a file")
                object.__setattr__(self, name, os.fspath(path))
        for name in ("ping_interval", "ping_timeout", "handshake_timeout", "max_message"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0")
        if self.ping_timeout <= self.ping_interval:
            raise ValueError(
                f"ping_timeout ({self.ping_timeout} s) must be longer than "
                f"ping_interval ({self.ping_interval} s)"
            )
        if self.advertise is not None:
            if not isinstance(self.advertise, str):
                raise TypeError(f"advertise={self.advertise!r} is not a string")
            parse_advertise(self.advertise, 0)
        if not self.listen and (self.host is not None or self.port or self.advertise):
            raise ValueError(
                "listen=False: nobody can dial this Peer, so host, port and advertise say nothing"
            )
        if not isinstance(self.name, str):
            raise TypeError(f"name={self.name!r} is not a string")
        if len(self.name) > 255:
            raise ValueError(f"name {self.name[:40]!r}… has {len(self.name)} characters, over 255")
        if self.port > 65535:
            raise ValueError(f"port {self.port} is not between 0 and 65535")

    @property
    def max_batch(self) -> int:
        """Bytes of the largest batch: the largest message, behind others that were put with it."""
        array_head = 5
        return array_head + BATCH_BYTES + self.max_message
