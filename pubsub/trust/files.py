"""Files with secrets: read only where nobody else may read them, and written whole.

A file is written under another name first and put in place at once, so that whoever reads it at
that moment gets all of it or nothing.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from shlex import quote

from pubsub.errors import AuthError

__all__ = ["MAX_FILE", "open_to_others", "read_file", "read_private", "write_file"]

MAX_FILE = 4 << 20
"""Bytes that a file of keys or certificates, or a list of revoked ones, may have: an endless one
would fill the memory, and a REVOKED carries no more."""

_POSIX = os.name == "posix"  # elsewhere, the bits of a mode say nothing of who may read


def read_private(
    path: str | os.PathLike[str], what: str, *, own: bool = False, missing: str = ""
) -> bytes:
    """What a file with a secret has in it.

    Parameters:
        path: of the file.
        what: it is, such as ``"key file"``, for the errors.
        own: it must belong to the user of this process, too.
        missing: what to do where it is not there, for the error.

    Raises:
        AuthError: it is missing, no file, too large, cannot be read, or others may read or change
            it. The message names what mends it.
    """
    data, status = _read(path, what, missing)
    if _POSIX and own and status.st_uid != os.geteuid():
        raise AuthError(
            f"{what} {path} belongs to another user (number {status.st_uid}, and this process is "
            f"{os.geteuid()}): use one of your own"
        )
    others = open_to_others(status)
    if others:
        raise AuthError(
            f"{what} {path}: other users may {others} it (mode {stat.S_IMODE(status.st_mode):04o}"
            f"), and it holds a secret: chmod 600 {quote(os.fspath(path))}"
        )
    return data


def read_file(path: str | os.PathLike[str], what: str) -> tuple[bytes, str]:
    """What a file has in it, and what other users may do with it: ``"read"``, ``"change"``, or
    nothing.

    Raises:
        AuthError: as `read_private` does, whoever else may read it.
    """
    data, status = _read(path, what)
    return data, open_to_others(status)


def open_to_others(status: os.stat_result) -> str:
    """What others than its owner may do with a file: ``"read"``, ``"change"``, or nothing. Those of
    its group are no others where root has given it to a process of that group, to read: so a secret
    comes into a container that is not root's (a volume of Kubernetes, with ``fsGroup``), and there
    is no other way to let it in. Nor are those of root's own group: what systemd hands to a service
    (``LoadCredential``) has an access list that names its user, and shows as mode 0440 by that."""
    if not _POSIX:
        return ""
    others = status.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if others == stat.S_IRGRP and status.st_uid == 0 != os.geteuid() and _is_ours(status.st_gid):
        return ""
    if others & (stat.S_IRGRP | stat.S_IROTH):
        return "read"
    return "change" if others & (stat.S_IWGRP | stat.S_IWOTH) else ""


def _is_ours(group: int) -> bool:
    return group in (0, os.getegid()) or group in os.getgroups()


def _read(
    path: str | os.PathLike[str], what: str, missing: str = ""
) -> tuple[bytes, os.stat_result]:
    if not os.fspath(path):
        raise AuthError(f"{what}: its name is empty")
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            # The status is of what has been opened: the name may mean another file by now.
            status = os.fstat(descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError
            if not stat.S_ISREG(status.st_mode):
                raise AuthError(
                    f"{what} {path} is a pipe or device, and it is read again and again: put it "
                    "into a file"
                )
            with open(descriptor, "rb", closefd=False) as file:
                data = file.read(MAX_FILE + 1)
        finally:
            os.close(descriptor)
    except AuthError:
        raise
    except IsADirectoryError:
        raise AuthError(f"{what} {path} is a directory: name a file in it") from None
    except FileNotFoundError:
        relative = "" if os.path.isabs(path) else ", seen from the current directory"
        way_out = f": {missing}" if missing else ""
        raise AuthError(f"{what} {path} is not there{relative}{way_out}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AuthError(f"{what} {path} cannot be read: {reason}") from None
    if len(data) > MAX_FILE:
        raise AuthError(f"{what} {path} has more than {MAX_FILE:,} bytes: this is another file")
    return data, status


def write_file(
    path: str | os.PathLike[str], data: bytes, *, mode: int = 0o600, replace: bool = False
) -> None:
    """Write a file whole: it is there with all its bytes and this mode, or not at all.

    Parameters:
        path: of the file; its directory must be there.
        data: all of it.
        mode: by default only its owner reads it; the umask has no say.
        replace: take the place of a file that is there.

    Raises:
        FileExistsError: it is there, and `replace` was not asked for.
        OSError: it cannot be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        _write_new(aside, data, mode)
        if replace:
            os.replace(aside, path)
            return
        try:
            os.link(aside, path)  # unlike a rename, it never takes the place of another file
        except FileExistsError:
            raise
        except OSError:  # such as FAT on a stick: it knows no links
            _write_new(path, data, mode)
    finally:
        with suppress(OSError):
            aside.unlink()


def _write_new(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o600), "wb") as file:
        os.chmod(file.fileno() if os.chmod in os.supports_fd else path, mode)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the name and no bytes
