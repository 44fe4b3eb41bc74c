"""No secret in any text: what stands for credentials shows none, however it is looked at, and the
suite would find one that was said (see `secrecy`)."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import pickle
import pprint
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pubsub import Peer
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from pubsub.errors import AuthError
from pubsub.trust.credentials import credentials_from
from pubsub.trust.files import write_file
from pubsub.trust.guard import Group, Private
from pubsub.trust.keys import Key, read_keys
from pubsub.trust.proof import Proof
from pubsub.wire.handshake import Identity
from tests import secrecy

ENDS = (("127.0.0.1", 1), ("127.0.0.1", 2))


@pytest.fixture
def key() -> Key:
    return Key.new()


def secret_of(key: Key) -> bytes:
    return key._secret


def forms(secret: bytes) -> list[str]:
    """How it might be seen."""
    import base64

    return [
        secret.hex(),
        repr(secret)[2:-1],
        base64.urlsafe_b64encode(secret).decode()[:42],
        base64.b64encode(secret).decode()[:42],
        str(list(secret))[1:-1],
    ]


def shown(thing: Any) -> str:
    """All texts that Python makes of it: by itself, within others, in a traceback with all that
    stands there, and in a log line."""

    def fails() -> None:
        within = {"thing": thing, "others": [thing, (thing,)]}
        assert within
        raise ValueError(thing)

    out = io.StringIO()
    handler = logging.StreamHandler(out)
    try:
        fails()
    except ValueError as error:
        error.__context__ = None  # of what else was handled at this time
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        out.writelines(told.format())
        record = logging.LogRecord("x", 50, __file__, 1, "%s %r", (thing, thing), sys.exc_info())
        handler.emit(record)
    print(repr(thing), str(thing), f"{thing}", [thing], {thing.__class__: thing}, file=out)
    pprint.pprint(thing, out)
    return out.getvalue()


def pickled(thing: Any) -> bytes:
    """In all ways that it can be; nothing where it cannot."""
    found = b""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        try:
            found += pickle.dumps(thing, protocol)
        except (TypeError, AttributeError, pickle.PicklingError):
            continue
    return found


def things(key: Key, path: Path) -> dict[str, Callable[[], Any]]:
    """What stands for credentials."""
    env = {"PUBSUB_KEY": key.text()}

    def group() -> Any:
        return Group((key,), lambda: (key,), None, None)

    return {
        "key": lambda: key,
        "keys": lambda: read_keys(path),
        "settings": lambda: Settings(key_file=str(path)),
        "credentials of a key": lambda: credentials_from(Settings(), env),
        "credentials of a file": lambda: credentials_from(Settings(key_file=str(path)), {}),
        "guard of a key": lambda: credentials_from(Settings(), env).guard(env),
        "guard of a file": lambda: credentials_from(Settings(key_file=str(path)), {}).guard({}),
        "group": group,
        "twin": lambda: group().twin(),
        "private": lambda: Private(key),
        "proof": lambda: Proof((key,), ENDS, bytes(32), "the key"),
        "authenticator": lambda: group().dials(ENDS, None),
    }


NAMES = list(things(Key.new(), Path()))


@pytest.mark.parametrize("name", NAMES)
def test_what_stands_for_credentials_shows_none(name: str, key: Key, tmp_path: Path) -> None:
    write_file(tmp_path / "key", f"{key.text()}\n".encode())
    thing = things(key, tmp_path / "key")[name]()
    text, data = shown(thing), pickled(thing)
    for form in forms(secret_of(key)):
        assert form not in text
        assert form.encode() not in data
    assert secret_of(key) not in data
    assert not secrecy.has_secret(text)


def test_an_identity_shows_nothing_that_its_claims_are_made_of() -> None:
    secret = os.urandom(16)
    me = Identity("peer", "me", secret=secret)
    text, data = shown(me), pickled(me)
    for form in forms(secret):
        assert form[:20] not in text
    assert secret not in data


@pytest.mark.parametrize("encrypt", [None, True])
async def test_a_peer_and_a_coordinator_show_none_and_log_none(
    encrypt: bool | None, key: Key, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if encrypt:
        pytest.importorskip("cryptography")
    caplog.set_level(logging.DEBUG)
    write_file(tmp_path / "key", f"{key.text()}\n".encode())
    settings: dict[str, Any] = {"key_file": str(tmp_path / "key"), "encrypt": encrypt}
    guard = credentials_from(Settings(**settings), {}).guard()
    coordinator = Coordinator(asyncio.get_running_loop(), guard=guard, settle=0.0)
    address = str(await coordinator.start("127.0.0.1", 0))
    write_file(tmp_path / "other", f"{Key.new().text()}\n".encode())
    try:
        async with Peer(address, **settings) as here, Peer(address, **settings) as there:
            sub = await there.sub("t")
            pub = await here.pub("t")
            pub.put(1)
            assert await sub.get(timeout=20) == 1
            with pytest.raises(AuthError) as refused:
                async with Peer(address, key_file=str(tmp_path / "other")) as other:
                    await other.sub("t")
            texts = [shown(x) for x in (here, here.runtime, coordinator, pub, sub, refused.value)]
            texts += [shown(here.runtime.snapshot()), shown(sub.publishers)]
            data = b"".join(map(pickled, (here, here.settings, pub, sub, refused.value)))
    finally:
        await coordinator.close()
    text = "\n".join([*texts, caplog.text])
    assert "the connection is cut" in text
    for form in forms(secret_of(key)):
        assert form not in text
        assert form.encode() not in data
    assert secret_of(key) not in data
    assert not secrecy.has_secret(text)


# --- the check itself ---------------------------------------------------------------------------


def test_a_secret_that_was_said_is_found(key: Key) -> None:
    secret = secret_of(key)
    for text in (
        key.text(),
        f"PUBSUB_KEY={key.text()}",
        secret.hex(),
        repr(secret),
        f"[{secret!r}]",
    ):
        assert secrecy.found_in([("log", f"before {text} after")]) == ["log"]
    assert secrecy.found_in([("log", f"{key!r} {key.id} {bytes(32)!r} {'x' * 64}")]) == []


def test_a_secret_that_another_process_has_said_is_found() -> None:
    code = "from pubsub.trust.keys import Key; print(Key.new().text())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    secrecy.said(b"nothing to see\n")
    assert secrecy.said_by_processes() == ""
    secrecy.said(said)
    assert secrecy.said_by_processes() == said.decode()


def test_a_test_that_says_a_secret_fails(talkative: Path) -> None:
    """With its process, its log, and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(talkative)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "a secret was said in: Captured stdout call" in done.stdout, done.stdout
    assert "a secret was said in: Captured log call" in done.stdout
    assert "a secret was said in: processes" in done.stdout
    assert "4 passed, 3 errors" in done.stdout


@pytest.fixture
def talkative() -> Iterator[Path]:
    """A module of tests of which three say a secret."""
    path = Path(__file__).parent / f"test_made_{os.getpid()}.py"
    path.write_text(
        "import logging\n"
        "from pubsub.trust.keys import Key\n"
        "from tests.cli.processes import execute\n"
        "code = 'from pubsub.trust.keys import Key; print(Key.new().text())'\n"
        "def test_silent(): Key.new()\n"
        "def test_print(): print(Key.new().text())\n"
        "def test_log(): logging.getLogger('pubsub').warning(Key.new()._secret.hex())\n"
        "def test_process(): execute('python', '-c', code)\n"
    )
    yield path
    path.unlink()
