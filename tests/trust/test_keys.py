"""Keys: their form, what is derived, which files are taken, and the secret of a user."""

from __future__ import annotations

import copy
import os
import pickle
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pubsub.errors import AuthError
from pubsub.trust import keys
from pubsub.trust.files import MAX_FILE, read_private, write_file
from pubsub.trust.keys import KEY_BYTES, Key, read_keys, user_secret

posix = pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing here")


def key_file(path: Path, *lines: str, mode: int = 0o600) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(mode)
    return path


# --- their form ---------------------------------------------------------------------------------


def test_a_key_is_read_as_it_was_written() -> None:
    key = Key.new()
    text = key.text()
    assert text.startswith("pubsubd-key-1:")
    assert len(text) == len("pubsubd-key-1:") + 48
    assert Key.parse(text) == key
    assert Key.parse(f"  {text}\r\n") == key
    assert Key.parse(text).id == key.id


def test_the_form_of_a_key_stays_what_it_is() -> None:
    """Files of today are read by all later versions, and derive the same."""
    key = Key(bytes(range(32)))
    assert key.text() == "pubsubd-key-1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh_qnMFh"
    assert key.id == "06cf7897"
    assert key.derive("a purpose", 8).hex() == "853052da26fbe1d7"


def test_keys_differ() -> None:
    first, second = Key.new(), Key.new()
    assert first != second
    assert first.id != second.id
    assert first.text() != second.text()
    assert first != first.text()
    assert len({first, Key.parse(first.text()), second}) == 2


def test_every_wrong_character_is_found() -> None:
    text = Key.new().text()
    for place in range(len(text)):
        wrong = text[:place] + ("B" if text[place] != "B" else "C") + text[place + 1 :]
        with pytest.raises(AuthError):
            Key.parse(wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("correct horse battery staple", "a password is no key, either"),
        ("", "make one with `pubsubd key new FILE`"),
        ("pubsubd-key-2:abc", "update pubsubd here"),
        ("pubsubd-key-1:abcxyz", "is cut or damaged (48 letters, digits, - or _"),
        ("pubsubd-key-1:" + "A" * 47 + "=", "is cut or damaged"),
        ("pubsubd-key-1:" + "A" * 48, "its checksum is wrong"),
        ("-----BEGIN PRIVATE KEY-----", "belongs into PUBSUB_CERT"),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(text: str, says: str) -> None:
    with pytest.raises(AuthError) as caught:
        Key.parse(text, what="PUBSUB_KEY")
    assert str(caught.value).startswith("PUBSUB_KEY is ")
    assert says in str(caught.value)
    secret = text.rpartition(":")[2]
    assert not secret or secret not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 5"):
        Key(b"12345")


def test_hkdf_is_that_of_rfc_5869() -> None:
    """Beside the one of `cryptography`, for lengths of one block and of several."""
    hkdf = pytest.importorskip("cryptography.hazmat.primitives.kdf.hkdf").HKDF
    from cryptography.hazmat.primitives import hashes

    key = Key(b"k" * 32)
    for length in (1, 31, 32, 33, 64, 1000, 8160):
        other = hkdf(hashes.SHA256(), length, b"pubsubd key 1", b"some purpose")
        assert key.derive("some purpose", length) == other.derive(b"k" * 32)
    assert key.derive("some purpose") != key.derive("other purpose")
    for length in (0, -1, 8161):
        with pytest.raises(ValueError, match="HKDF"):
            key.derive("x", length)


def test_no_text_of_a_key_shows_its_secret() -> None:
    key = Key(b"secret__" * 4)
    shown = f"{key} {key!r} {[key]} {key.id}"
    assert shown.startswith(f"<Key {key.id}>")
    for secret in ("secret", b"secret".hex(), key.text()[14:30]):
        assert secret not in shown
    assert not hasattr(key, "__dict__")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="a Key is not pickled"):
            pickle.dumps(key, protocol)
    with pytest.raises(TypeError, match="a Key is not pickled"):
        copy.deepcopy({"key": key})


# --- files --------------------------------------------------------------------------------------


def test_a_file_may_have_several_keys_and_comments(tmp_path: Path) -> None:
    first, second = Key.new(), Key.new()
    path = key_file(
        *(tmp_path / "keys", "# from 2027 on", first.text(), "", f"  {second.text()}  "),
        *("# and once more:", first.text()),
    )
    assert read_keys(path) == (first, second)
    assert read_keys(str(path)) == (first, second)


def test_a_file_of_an_editor_of_windows_is_read(tmp_path: Path) -> None:
    key = Key.new()
    path = tmp_path / "key"
    write_file(path, b"\xef\xbb\xbf" + f"# key\r\n{key.text()}\r\n".encode())
    assert read_keys(path) == (key,)


def test_each_wrong_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    good = Key.new().text()
    wrong = good[:-1] + ("A" if good[-1] != "A" else "B")
    for lines, says in (
        ((), " has no key in it: make one with `pubsubd key new FILE`"),
        (("# nothing", ""), " has no key in it: "),
        ((good, "password"), ": line 2 is no key (a password is no key, either)"),
        (("", wrong), ": line 2 is damaged (its checksum is wrong)"),
        ((good, good[:-2]), ": line 2 is cut or damaged"),
    ):
        path = key_file(tmp_path / "key", *lines)
        with pytest.raises(AuthError) as caught:
            read_keys(path)
        assert str(caught.value).startswith(f"key file {path}{says}")
        assert good[20:40] not in str(caught.value)


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b"#" * (MAX_FILE + 1))
    for name in ("binary", "large"):
        (tmp_path / name).chmod(0o600)
    for path, says in (
        (tmp_path / "none", f"/none is not there: make one with `pubsubd key new {tmp_path}/none`"),
        ("a b", "a b is not there, seen from the current directory: make one with `pubsubd key "),
        ("a b", "`pubsubd key new 'a b'`, or copy that of the group"),
        (tmp_path, f"{tmp_path} is a directory: name a file in it"),
        (tmp_path / "binary", "is no text: make one with `pubsubd key new FILE`"),
        (tmp_path / "large", f"has more than {MAX_FILE:,} bytes"),
        ("", "its name is empty"),
        ("a\0b", "embedded null"),
    ):
        with pytest.raises(AuthError, match="key file") as caught:
            read_keys(path)
        assert says in str(caught.value)


@posix
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(AuthError, match="is a pipe or device"):
        read_keys(tmp_path / "pipe")


@posix
@pytest.mark.parametrize(
    ("mode", "what"),
    [(0o640, "read"), (0o604, "read"), (0o644, "read"), (0o620, "change"), (0o602, "change")],
)
def test_a_file_that_others_may_use_is_refused_with_what_mends_it(
    tmp_path: Path, mode: int, what: str
) -> None:
    key = Key.new()
    path = key_file(tmp_path / "a key", key.text(), mode=mode)
    with pytest.raises(AuthError) as caught:
        read_keys(path)
    text = str(caught.value)
    assert f"other users may {what} it (mode {mode:04o})" in text
    assert text.endswith(f": chmod 600 '{path}'")
    assert subprocess.run(text.rpartition(": ")[2], shell=True).returncode == 0
    assert read_keys(path) == (key,)


OURS, ANOTHER = 4242, 4243
"""Groups: one of the process that reads, and one that is not."""


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="root gives files to others")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "me", "taken"),
    [
        (0, OURS, 0o440, 1000, True),
        (0, OURS, 0o640, 1000, True),
        (0, 0, 0o440, 1000, True),  # with an access list that names us
        (0, 0, 0o444, 1000, False),
        (0, ANOTHER, 0o440, 1000, False),  # somebody has made it too open
        (0, OURS, 0o460, 1000, False),
        (0, OURS, 0o444, 1000, False),
        (0, OURS, 0o450, 1000, False),
        (1001, OURS, 0o440, 1000, False),  # whose it is may change it
        (1000, OURS, 0o440, 1000, False),  # and we ourselves could mend that
        (0, OURS, 0o440, 0, False),
    ],
)
def test_a_file_that_root_lets_a_group_of_ours_read_is_taken(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: int,
    group: int,
    mode: int,
    me: int,
    taken: bool,
) -> None:
    """As a secret volume of Kubernetes gives it to a process that is not root, and a credential of
    systemd."""
    key = Key.new()
    path = key_file(tmp_path / "key", key.text())
    os.chown(path, owner, group)
    path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: me)
    monkeypatch.setattr(os, "getegid", lambda: me)
    monkeypatch.setattr(os, "getgroups", lambda: [me, OURS])
    if taken:
        assert read_keys(path) == (key,)
        assert b"pubsubd-key" in read_private(path, "certificate file")
        with pytest.raises(AuthError, match="belongs to another user"):
            read_private(path, "the user's secret", own=True)
    else:
        with pytest.raises(AuthError, match="other users may read it"):
            read_keys(path)


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = key_file(tmp_path / "key", mode=0o200)
    with pytest.raises(AuthError, match="cannot be read: Permission denied"):
        read_keys(path)


# --- writing ------------------------------------------------------------------------------------


@posix
def test_a_file_is_written_with_its_mode_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o022, 0o777):
        path = tmp_path / f"{umask}"
        before = os.umask(umask)
        try:
            write_file(path, b"data")
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == b"data"
    assert len(list(tmp_path.iterdir())) == 3  # and nothing beside them


def test_a_file_takes_no_place_unasked(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_file(path, b"one")
    with pytest.raises(FileExistsError):
        write_file(path, b"two")
    assert path.read_bytes() == b"one"
    write_file(path, b"three", replace=True)
    assert path.read_bytes() == b"three"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_written_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "file"
    write_file(path, b"one")
    with pytest.raises(FileExistsError):
        write_file(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


# --- the secret of a user -----------------------------------------------------------------------


def test_the_secret_of_a_user_is_made_once(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    secret = user_secret(environ)
    assert user_secret(environ) == secret
    path = tmp_path / ".config" / "pubsubd" / "secret"
    assert len(path.read_bytes()) == KEY_BYTES
    assert Key(path.read_bytes()) == secret
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_the_secret_lies_where_xdg_says(tmp_path: Path) -> None:
    user_secret({"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "config")})
    assert (tmp_path / "config" / "pubsubd" / "secret").exists()
    assert not (tmp_path / "home").exists()
    # A relative path is to be ignored.
    user_secret({"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": "relative"})
    assert (tmp_path / "home" / ".config" / "pubsubd" / "secret").exists()


def test_all_threads_and_processes_that_begin_at_once_have_one_secret(tmp_path: Path) -> None:
    source = (
        "import os; from pubsub.trust.keys import user_secret\n"
        "input(); print(user_secret(os.environ).id)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", source],
            env={**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": ""},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(user_secret({"HOME": str(tmp_path)}).id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found += [process.communicate(timeout=40)[0].strip() for process in processes]
    assert len(found) == 12
    assert len(set(found)) == 1


def test_who_was_quicker_made_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look whether it is there and the making, another process made it."""
    make = keys._make_secret

    def later(path: Path) -> None:
        make(path)
        first.append(path.read_bytes())
        make(path)

    first: list[bytes] = []
    monkeypatch.setattr(keys, "_make_secret", later)
    assert user_secret({"HOME": str(tmp_path)}) == Key(first[0])


@posix
def test_without_a_home_the_runtime_directory_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    (tmp_path / "file").touch()
    secret = runtime / "pubsubd" / "secret"
    for home in ("/dev/null", str(tmp_path / "file")):
        user_secret({"HOME": home, "XDG_RUNTIME_DIR": str(runtime)})
        secret.unlink()
    monkeypatch.setattr(keys, "_home_of_user", lambda: "")
    user_secret({"XDG_RUNTIME_DIR": str(runtime)})
    assert secret.exists()


def test_without_any_place_the_error_names_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_home_of_user", lambda: "")
    with pytest.raises(AuthError) as caught:
        user_secret({})
    for part in ("neither a home directory nor XDG_RUNTIME_DIR", "PUBSUB_KEY_FILE"):
        assert part in str(caught.value)
    assert "PUBSUB_INSECURE=1" in str(caught.value)
    with pytest.raises(AuthError, match=r"/dev/null/.config/pubsubd/secret cannot be made: Not a"):
        user_secret({"HOME": "/dev/null"})


@posix
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    user_secret(environ)
    path = tmp_path / ".config" / "pubsubd" / "secret"
    path.chmod(0o644)
    with pytest.raises(AuthError, match=f"chmod 600 {path}"):
        user_secret(environ)
    assert not (tmp_path / "run").exists()


@posix
def test_a_secret_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_secret({"HOME": str(tmp_path)})
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(AuthError, match=f"belongs to another user .*this process is {other}"):
        user_secret({"HOME": str(tmp_path)})


@posix
def test_root_makes_no_secret_in_the_home_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sudo` may have it: that user could not read it."""
    home = tmp_path / "home"
    home.mkdir()
    if os.geteuid() == 0:
        os.chown(home, 1000, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(AuthError, match=f"cannot be made: {home} is not root's"):
        user_secret({"HOME": str(home)})
    assert list(home.iterdir()) == []


def test_a_damaged_secret_is_named(tmp_path: Path) -> None:
    user_secret({"HOME": str(tmp_path)})
    path = tmp_path / ".config" / "pubsubd" / "secret"
    path.write_bytes(b"short")
    with pytest.raises(AuthError, match=r"is damaged \(5 bytes, not 32\): remove it"):
        user_secret({"HOME": str(tmp_path)})
