"""Keys: what all processes of a group have, or all of a user, and what is derived from it.

A key is 256 random bits. No use of it shows it: each purpose has a secret of its own, derived by
HKDF-SHA256 (RFC 5869), and so is the short name by which logs tell keys apart. Only keys of the
form that ``pubsubd key new`` writes are taken, so that nobody uses a password: whoever sees what
was made of one could try all likely passwords.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import NoReturn

from pubsub.errors import AuthError
from pubsub.trust.files import read_private, write_file

__all__ = ["KEY_BYTES", "Key", "read_keys", "user_secret"]

KEY_BYTES = 32
_CHECK_BYTES = 4
_MARK = "pubsubd-key-"
_PREFIX = f"{_MARK}1:"
_FORM = re.compile(rf"{re.escape(_PREFIX)}([A-Za-z0-9_-]{{48}})")  # 36 bytes, nothing to pad
_SALT = b"pubsubd key 1"


class Key:
    """A secret that some processes have and others do not. Equal keys are equal.

    Neither ``repr`` nor ``str`` shows it, and it cannot be pickled.

    Parameters:
        secret: `KEY_BYTES` random bytes.

    Attributes:
        id: 8 hexadecimal digits by which logs tell keys apart; they say nothing of the secret.
    """

    __slots__ = ("_secret", "id")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = bytes(secret)
        self.id = self.derive("id", 4).hex()

    @classmethod
    def new(cls) -> Key:
        """One that nobody has yet."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def parse(cls, text: str, *, what: str = "the key") -> Key:
        """The key that `text` wrote.

        Parameters:
            text: one line, as in a key file.
            what: where it stands, for the errors, which do not show it.

        Raises:
            AuthError: it is of another form, or a character of it is wrong.
        """
        text = text.strip()
        match = _FORM.fullmatch(text)
        if match is None:
            raise AuthError(f"{what} {_other_form(text)}")
        both = base64.urlsafe_b64decode(match[1])
        secret, check = both[:KEY_BYTES], both[KEY_BYTES:]
        if not hmac.compare_digest(check, _checksum(secret)):
            raise AuthError(
                f"{what} is damaged (its checksum is wrong): copy it once more from where it was "
                "made"
            )
        return cls(secret)

    def text(self) -> str:
        """The secret as a line of text: for the file that ``pubsubd key new`` writes, and for
        nothing else."""
        both = self._secret + _checksum(self._secret)
        return _PREFIX + base64.urlsafe_b64encode(both).decode()

    def derive(self, purpose: str, length: int = 32) -> bytes:
        """A secret for one purpose alone, from which neither the key nor others can be told.

        Parameters:
            purpose: names it; the same purpose gives the same bytes in all processes.
            length: bytes wanted, at most 8,160.
        """
        if not 0 < length <= 255 * 32:
            raise ValueError(f"HKDF-SHA256 derives 1 to 8,160 bytes, not {length}")
        extracted = hmac.digest(_SALT, self._secret, "sha256")
        found = block = b""
        for number in range(1, -(-length // 32) + 1):
            block = hmac.digest(extracted, block + purpose.encode() + bytes([number]), "sha256")
            found += block
        return found[:length]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Key {self.id}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Key is not pickled, so that it does not leave its process unseen: name its file "
            "where it is needed"
        )


def _checksum(secret: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + secret).digest()[:_CHECK_BYTES]


def _other_form(text: str) -> str:
    """What is wrong with a text that is no key, without a character of it."""
    if text.startswith(_PREFIX):
        return (
            f"is cut or damaged (48 letters, digits, - or _ belong behind {_PREFIX}, not "
            f"{len(text) - len(_PREFIX)} characters): copy it once more from where it was made"
        )
    if text.startswith(_MARK):
        return "is of a form that this version does not know: update pubsubd here"
    if "-----BEGIN" in text:
        return "is a certificate or a private key: that belongs into PUBSUB_CERT"
    return "is no key (a password is no key, either): make one with `pubsubd key new FILE`"


def read_keys(path: str | os.PathLike[str]) -> tuple[Key, ...]:
    """The keys of a file, a line each: the first is used, all are trusted.

    Empty lines, and those that begin with ``#``, say nothing.

    Raises:
        AuthError: it is missing, cannot be read, can be read by other users, has no key, or has a
            line that is none. The message names the file, the line, and what to do.
    """
    make = f"make one with `pubsubd key new {quote(os.fspath(path))}`, or copy that of the group"
    data = read_private(path, "key file", missing=make)
    try:
        lines = data.decode("utf-8-sig").splitlines()  # some editors begin a file with a mark
    except UnicodeDecodeError:
        raise AuthError(
            f"key file {path} is no text: make one with `pubsubd key new FILE`"
        ) from None
    found: dict[Key, None] = {}
    for number, line in enumerate(map(str.strip, lines), 1):
        if line and not line.startswith("#"):
            found[Key.parse(line, what=f"key file {path}: line {number}")] = None
    if not found:
        raise AuthError(f"key file {path} has no key in it: make one with `pubsubd key new FILE`")
    return tuple(found)


# --- the secret of a user -------------------------------------------------------------------


def user_secret(environ: Mapping[str, str]) -> Key:
    """The key of all processes of this user on this machine, made on first use.

    It lies in ``$XDG_CONFIG_HOME/pubsubd/secret`` (by default ``~/.config``), or, where this user
    has no home to write to, in ``$XDG_RUNTIME_DIR/pubsubd/secret``.

    Raises:
        AuthError: there is neither of them, or the file belongs to somebody else, can be read by
            others, or is damaged.
    """
    problems = []
    for directory in _directories(environ):
        path = directory / "pubsubd" / "secret"
        try:
            if not path.exists():
                _make_secret(path)
        except OSError as error:
            problems.append(f"{path} cannot be made: {error.strerror or error}")
            continue
        return _read_secret(path)
    why = "; ".join(problems) or "this user has neither a home directory nor XDG_RUNTIME_DIR"
    raise AuthError(
        f"no place for the secret by which this user's processes know each other ({why}): set "
        "PUBSUB_KEY_FILE to a file that `pubsubd key new FILE` made, or PUBSUB_INSECURE=1 where "
        "everyone on this machine may read and publish everything"
    )


def _directories(environ: Mapping[str, str]) -> Iterator[Path]:
    home = environ.get("HOME") or environ.get("USERPROFILE") or _home_of_user()
    for name, default in (
        ("XDG_CONFIG_HOME", os.path.join(home, ".config") if home else ""),
        ("XDG_RUNTIME_DIR", ""),
    ):
        named = environ.get(name, "")
        directory = named if os.path.isabs(named) else default  # others are to be ignored, says XDG
        if os.path.isabs(directory):
            yield Path(directory)


def _home_of_user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_dir
    except (ImportError, KeyError):  # Windows; a container whose user has no name
        return ""


def _make_secret(path: Path) -> None:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # `sudo` may keep the home of who calls it, who could not read there what root makes.
        there = next(folder for folder in path.parents if folder.exists())
        if there.stat().st_uid != 0:
            raise PermissionError(f"{there} is not root's")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):  # another process was quicker: its secret is ours
        write_file(path, secrets.token_bytes(KEY_BYTES))


def _read_secret(path: Path) -> Key:
    secret = read_private(path, "the user's secret", own=True)
    if len(secret) != KEY_BYTES:
        raise AuthError(
            f"the user's secret {path} is damaged ({len(secret)} bytes, not {KEY_BYTES}): remove "
            "it, and start this user's programs anew"
        )
    return Key(secret)
