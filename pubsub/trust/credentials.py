"""Credentials: where those of a process come from: an argument, the environment, or its user's
secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from pubsub.config import Settings
from pubsub.errors import AuthError
from pubsub.support.logs import logger
from pubsub.trust.files import read_file
from pubsub.trust.guard import Group, Guard, Holder, Private
from pubsub.trust.keys import Key, read_keys, user_secret

if TYPE_CHECKING:
    from pubsub.trust.certificates import Contexts

__all__ = ["Credentials", "credentials_from"]

log = logger("pubsub")

SETTINGS = ("key_file", "cert", "insecure")
ARGUMENTS = {"key": "key=", **{name: f"{name}=" for name in SETTINGS}, "insecure": "insecure=True"}
ENVIRONMENT = {
    "PUBSUB_KEY_FILE": "key_file",
    "PUBSUB_KEY": "key",
    "PUBSUB_CERT": "cert",
    "PUBSUB_INSECURE": "insecure",
}
REVOKED = "revoked.crl"
YES = ("1", "yes", "true", "on")
NO = ("", "0", "no", "false", "off")


class Credentials(NamedTuple):
    """What was configured.

    Attributes:
        kind: ``key_file``, ``key`` (a key itself), ``cert``, ``insecure``, or ``secret``: nothing
            was.
        value: the path, or the key.
        encrypt: see `Settings.encrypt`.
        source: who set it, for people.
    """

    kind: str
    value: str = ""
    encrypt: bool | None = None
    source: str = ""

    def __repr__(self) -> str:
        return f"<Credentials: {self.kind}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("Credentials are not pickled: they may be a key itself")

    def keys(self) -> tuple[Key, ...]:
        """Those of a group, as they are now.

        Raises:
            AuthError: there are none.
        """
        return (Key.parse(self.value),) if self.kind == "key" else read_keys(self.value)

    def _certificate(self) -> tuple[Contexts, bytes]:
        """It, and what its directory has of the list of revoked ones."""
        from pubsub.trust.certificates import file_contexts

        contexts, revoked = file_contexts(self.value), b""
        beside = os.path.join(os.path.dirname(self.value), REVOKED)
        if os.path.lexists(beside):
            revoked, _ = read_file(beside, "list of revoked certificates")
        return contexts, revoked

    def for_command(self, environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """What gives them to a command of ours that this process starts: its options, and its
        environment (a key itself is in there, which no other user can read)."""
        options: list[str] = []
        env = {name: value for name, value in environ.items() if name not in ENVIRONMENT}
        if self.kind == "key":
            env["PUBSUB_KEY"] = self.value
        elif self.kind == "insecure":
            options = ["--insecure"]
        elif self.kind != "secret":
            options = [f"--{self.kind.replace('_', '-')}", self.value]
        if self.encrypt is not None:
            env["PUBSUB_ENCRYPT"] = str(int(self.encrypt))
        return options, env

    def guard(self, environ: Mapping[str, str] = os.environ) -> Guard:
        """What they mean, read now.

        Raises:
            AuthError: a file is missing, or is not what it should be.
        """
        if self.kind == "insecure":
            return Guard()
        if self.kind == "cert":
            return Holder(self._certificate)
        if self.kind == "secret":
            return Private(user_secret(environ))
        keys, pair = self.keys(), None
        if self.encrypt is not False:
            try:
                from pubsub.trust.certificates import Pair

                pair = Pair.new()
            except AuthError:
                pass  # told where TLS is needed
        return Group(keys, self.keys, self.encrypt, pair)


def credentials_from(
    settings: Settings, environ: Mapping[str, str], key: str | None = None
) -> Credentials:
    """The credentials to use. An argument wins over the environment, and nothing in the environment
    weakens what an argument set.

    Parameters:
        key: a key itself. (No setting: those are shown.)

    Raises:
        TypeError, ValueError: two are set, or what was set does not go together.
    """
    found: dict[str, object] = {
        name: getattr(settings, name) for name in SETTINGS if getattr(settings, name) is not None
    }
    if key is not None:
        if not isinstance(key, str):
            raise TypeError(f"key= is {type(key).__name__}, not the text of a key")
        found["key"] = key
    closed = found.get("insecure") is False
    if closed:  # which says of a key that the environment names nothing
        del found["insecure"]
    kind, value, source = _only(found, ARGUMENTS)
    by_argument = bool(found)
    if not by_argument:
        there = {name: environ.get(name, "").strip() for name in ENVIRONMENT}
        said = there["PUBSUB_INSECURE"]
        if closed or said.lower() in NO:
            there["PUBSUB_INSECURE"] = ""
        elif said.lower() not in YES:  # it may be meant to say no
            raise ValueError(
                f"PUBSUB_INSECURE={said!r}: 1 opens everything to everyone, 0 does not"
            )
        kind, value, source = _only({k: v for k, v in there.items() if v}, {k: k for k in there})
        kind = ENVIRONMENT.get(kind, kind)
    encrypt = settings.encrypt
    said = environ.get("PUBSUB_ENCRYPT", "").strip().lower()
    if encrypt is None and said and (said not in NO or not by_argument):
        encrypt = said not in NO
    if encrypt is not None and kind not in ("key_file", "key"):
        if encrypt and kind == "cert":
            encrypt = None  # it always does
        elif settings.encrypt is not None:
            raise ValueError(
                f"encrypt={encrypt} goes with a key (key_file=, PUBSUB_KEY_FILE), and "
                f"{source or 'none'} is set"
            )
        else:
            encrypt = None
    return Credentials(kind or "secret", str(value), encrypt, source)


def _only(found: Mapping[str, object], names: Mapping[str, str]) -> tuple[str, object, str]:
    if len(found) > 1:
        first, second, *_ = found
        raise ValueError(
            f"{names[first]} and {names[second]} are both set: unset one of them (each says by "
            "itself who this process is)"
        )
    for name, value in found.items():
        return name, value, names[name]
    return "", "", ""
