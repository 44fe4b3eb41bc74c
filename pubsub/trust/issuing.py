"""A CA in a directory: what it issues and revokes, and where it keeps that.

::

    DIR/ca.key        its private key; it never leaves the directory
    DIR/ca.crt        its certificate, which is also in each file that it issues
    DIR/issued        what it has issued: serial number, time of expiry and name, a line each
    DIR/NAME.pem      what it has issued for NAME: certificate, private key, the CA's certificate
    DIR/revoked.crl   what it has revoked, signed
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from pubsub.core.rights import Rights
from pubsub.errors import AuthError
from pubsub.support.host import this_host
from pubsub.trust.authority import CLOCK_DIFFERENCE, Authority, pem_of_key
from pubsub.trust.certificates import Card, Revoked
from pubsub.trust.files import read_file, read_private, write_file
from pubsub.trust.pairs import new_key
from pubsub.trust.reading import card_of_certificate, pem_of, read_revoked

__all__ = ["Issued", "Revocation", "check_name", "init", "issue", "revoke"]

_NAME = re.compile(r"\w[\w.@-]*")
_LONGEST_NAME = 64
"""Bytes that X.509 gives a common name."""
_OWN_NAMES = frozenset({"ca", "issued", "revoked"})


class Issued(NamedTuple):
    """What was issued."""

    path: Path
    card: Card
    before: datetime | None
    """Until when the last one of that name is valid, unless it is revoked; None: it is the first,
    or no other is valid."""


class Revocation(NamedTuple):
    """What was revoked."""

    path: Path
    number: int
    """Of the list."""
    new: int
    """Certificates that were not in it before."""


def check_name(name: str) -> str:
    """The name, if a program can have it: it is the name of a file, too.

    Raises:
        ValueError: it is empty, too long, or has other characters than letters, digits and
            ``_ . @ -``; or the files of the CA have it.
    """
    if len(name.encode(errors="replace")) > _LONGEST_NAME:
        raise ValueError(f"the name {name[:20]!r}… has more than {_LONGEST_NAME} bytes")
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"the name {name!r} must begin with a letter or digit, and have only these and _ . @ -"
        )
    if name.lower() in _OWN_NAMES:
        raise ValueError(f"the name {name!r} is that of a file of the CA: take another one")
    return name


def init(directory: Path) -> Authority:
    """Make a CA in a directory, which is made where it is missing.

    Raises:
        FileExistsError: there is one.
        OSError: it cannot be written.
    """
    if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
        raise FileExistsError(
            f"{directory} has a CA in it, which stays as it is: name another directory"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = Authority.new(f"pubsubd CA {os.urandom(4).hex()}")
    write_file(directory / "ca.key", authority.private_pem())
    write_file(directory / "ca.crt", pem_of(authority.certificate), mode=0o644)
    return authority


def issue(
    directory: Path, name: str, rights: Rights, *, days: int, hosts: Sequence[str] = ()
) -> Issued:
    """Issue a certificate, as a file that takes the place of an earlier one of this name.

    Parameters:
        directory: of the CA.
        name: who it is for, see `check_name`.
        rights: what that one may do.
        days: for how long.
        hosts: names and addresses under which it may say that it is reached.

    Raises:
        AuthError: there is no CA, or its files are damaged or can be read by others.
        ValueError: a name or host cannot be one.
        OSError: it cannot be written.
    """
    check_name(name)
    now = _now()
    with _locked(directory):
        authority = _authority(directory)
        revoked = _revoked(directory, authority).serials
        earlier = [
            last
            for serial, last, known in _issued(directory)
            if known == name and last > now and serial not in revoked
        ]
        key = new_key()
        leaf = authority.issue(
            *(name, key.public_key(), rights),
            hosts=hosts,
            first=now - CLOCK_DIFFERENCE,
            last=now + timedelta(days=days),
        )
        card = card_of_certificate(leaf)
        # First the record: else what is not in it could not be revoked.
        with open(
            os.open(directory / "issued", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
            "w",
            encoding="utf-8",
        ) as record:
            record.write(f"{card.serial:x} {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ} {name}\n")
            record.flush()
            os.fsync(record.fileno())
        path = directory / f"{name}.pem"
        write_file(
            path, pem_of(leaf) + pem_of_key(key) + pem_of(authority.certificate), replace=True
        )
    return Issued(path, card, max(earlier, default=None))


def revoke(directory: Path, name: str) -> Revocation:
    """Revoke all certificates that were issued for a name so far, and write the list of revoked
    ones, with a higher number.

    Raises:
        AuthError: there is no CA, its files are damaged or can be read by others, or nothing was
            issued for this name.
        OSError: it cannot be written.
    """
    path = directory / "revoked.crl"
    with _locked(directory):
        authority = _authority(directory)
        known = _issued(directory)
        found = {serial for serial, _, other in known if other == name}
        if not found:
            names = ", ".join(sorted({other for *_, other in known})) or "none"
            raise AuthError(
                f"no certificate was issued in {directory} for {name!r}; those that were: {names}"
            )
        before = _revoked(directory, authority)
        new = len(found - before.serials)
        if not new:
            return Revocation(path, before.number, 0)
        number = before.number + 1
        write_file(
            path, authority.revoke(found | before.serials, number, _now()), mode=0o644, replace=True
        )
    return Revocation(path, number, new)


def _now() -> datetime:
    return datetime.fromtimestamp(int(this_host().wall_clock()), timezone.utc)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One at a time: of two that revoke at once, one would take the other's place."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        raise _no_authority(directory) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _authority(directory: Path) -> Authority:
    if not (directory / "ca.key").exists():
        raise _no_authority(directory)
    key = read_private(directory / "ca.key", "the CA's key")
    certificate, _ = read_file(directory / "ca.crt", "the CA's certificate")
    return Authority.read(certificate, key, f"in {directory}")


def _no_authority(directory: Path) -> AuthError:
    made = f"`pubsubd cert init {quote(os.fspath(directory))}`"
    return AuthError(f"there is no CA in {directory}: {made} makes one")


def _issued(directory: Path) -> list[tuple[int, datetime, str]]:
    """Serial number, time of expiry and name of all that were issued."""
    path = directory / "issued"
    if not path.exists():
        return []
    data, _ = read_file(path, "the record of what was issued")
    try:
        rows = [line.split(" ", 2) for line in data.decode().splitlines()]
        return [
            (int(serial, 16), datetime.fromisoformat(last.replace("Z", "+00:00")), name)
            for serial, last, name in rows
        ]
    except ValueError:  # of a decoder, too
        raise AuthError(f"the record of what was issued, {path}, is damaged") from None


def _revoked(directory: Path, authority: Authority) -> Revoked:
    path = directory / "revoked.crl"
    if not path.exists():
        return Revoked(0, frozenset(), "")
    data, _ = read_file(path, "the list of revoked certificates")
    return read_revoked(data, [authority.certificate], f"the list of revoked certificates {path}")
