"""Two users of one machine, for whom nothing is configured: each has a coordinator, and neither
reads what is the other's.

Each has a home of its own. Where the tests are root's, they are two users of the system, too.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from pubsub.links import unix
from pubsub.trust.keys import KEY_BYTES
from tests.cli.processes import Start, execute
from tests.faults.worker import Worker, start_worker, until

pytestmark = [pytest.mark.loop, pytest.mark.by_hand]

PORTS = 10
"""Ports that a process looks at where nothing is configured."""
STRANGE = 54_321
"""A number that no user has, and so no home."""


class User(NamedTuple):
    """One of them.

    Attributes:
        home: what only he can read.
        env: what his processes have.
    """

    home: Path
    env: dict[str, str]

    @property
    def secret(self) -> Path:
        return self.home / "pubsubd" / "secret"


def is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


@pytest.fixture(params=["two homes", "two users"])
def users(request: pytest.FixtureRequest) -> Iterator[tuple[User, User]]:
    apart = request.param == "two users"
    if apart and not is_root():
        pytest.skip("only root can be two users")
    found = []
    for uid in (STRANGE, STRANGE + 1):
        # not below pytest's own directory, through which nobody else may go
        home = Path(tempfile.mkdtemp(prefix=f"pubsubd-{uid}-"))
        env = {"XDG_CONFIG_HOME": str(home)}
        if apart:
            os.chown(home, uid, uid)
            env["PUBSUB_TEST_UID"] = str(uid)
        found.append(User(home, env))
    yield found[0], found[1]
    for user in found:
        shutil.rmtree(user.home)


@pytest.fixture
def port() -> int:
    """The first of some that are free, above those that other tests take."""
    for first in range(32_000, 32_760, PORTS):
        with ExitStack() as taken:
            try:
                for number in range(first, first + PORTS):
                    sock = taken.enter_context(socket.socket())
                    sock.bind(("127.0.0.1", number))
            except OSError:
                continue
            return first
    raise AssertionError("no ten ports are free")


def process(start: Start, user: User, port: int) -> Worker:
    """One of his, with nothing configured but which port is looked at first."""
    worker = start_worker(start, None, (), **user.env)
    worker.default_coordinator(port=port)
    worker.peer(name="a")
    return worker


class Pair:
    """Two processes of a user: one publishes, the other subscribes."""

    def __init__(self, start: Start, user: User, port: int) -> None:
        self._start: Callable[[], Worker] = lambda: process(start, user, port)
        self.here: Worker | None = None
        self.there: Worker | None = None
        self.stream = ""

    def next(self) -> None:
        """Start one more of them."""
        if self.there is None:
            self.there = self._start()
            self.there.sub(name="a", topic="t")
            self.there.sub(name="a", topic="**")
        else:
            self.here = self._start()
            self.stream = self.here.pub(name="a", topic="t", rate=200)

    def hears_itself_alone(self) -> None:
        assert self.here is not None
        assert self.there is not None
        self.there.reach(name="a", due={self.stream: self.here.counts()["a"] + 100})
        put = self.here.stop()["a"]
        report = self.there.reach(name="a", due={self.stream: put})
        assert report["got"] == {self.stream: put}
        assert list(report["publishers"]) == [self.stream]
        assert report["lost"] == 0


@pytest.mark.parametrize("order", ["aabb", "abab", "abba"])
def test_g6_two_users_start_in_any_order_and_neither_reads_the_others(
    order: str, start: Start, users: tuple[User, User], port: int
) -> None:
    pairs = {name: Pair(start, user, port) for name, user in zip("ab", users, strict=True)}
    for name in order:
        pairs[name].next()
    for pair in pairs.values():
        assert pair.here is not None
        assert pair.there is not None
        embedded = [worker.embedded(name="a") for worker in (pair.there, pair.here)]
        assert embedded == [True, False]  # each user has one, in his first process
    for pair in pairs.values():
        pair.hears_itself_alone()
    first, second = (user.secret.read_bytes() for user in users)
    assert len(first) == len(second) == KEY_BYTES
    assert first != second
    for user in users:
        status = user.secret.stat()
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert stat.S_IMODE(user.secret.parent.stat().st_mode) == 0o700
        if "PUBSUB_TEST_UID" in user.env:
            assert status.st_uid == int(user.env["PUBSUB_TEST_UID"])
        assert list(user.secret.parent.iterdir()) == [user.secret]


def test_g7_where_the_first_users_coordinator_goes_each_still_finds_his_own(
    start: Start, users: tuple[User, User], port: int
) -> None:
    """The port that is free then is nearer to both of them."""
    first, second = (process(start, user, port) for user in users)
    for worker in (first, second):
        worker.sub(name="a", topic="t")
    other = process(start, users[1], port)
    stream = other.pub(name="a", topic="t", rate=200)
    second.reach(name="a", due={stream: 100})
    first.kill()
    late = process(start, users[1], port)
    late.sub(name="a", topic="t")
    late.reach(name="a", due={stream: other.counts()["a"] + 100})
    assert not late.embedded(name="a")
    put = other.stop()["a"]
    assert second.reach(name="a", due={stream: put})["lost"] == 0


def test_all_of_one_users_processes_at_once_have_one_secret(
    start: Start, users: tuple[User, User], port: int
) -> None:
    workers = [start_worker(start, None, (), **users[0].env) for _ in range(4)]
    for worker in workers:
        worker.default_coordinator(port=port)
    for worker in workers:  # all of them make it
        worker.tell("peer", name="a")
    for worker in workers:
        worker.answer()
    for worker in workers[:3]:
        worker.sub(name="a", topic="t")
    stream = workers[3].pub(name="a", topic="t", rate=200)
    for worker in workers[:3]:
        worker.reach(name="a", due={stream: 100})
    assert sum(worker.embedded(name="a") for worker in workers) == 1
    assert list(users[0].secret.parent.iterdir()) == [users[0].secret]


# --- the file -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing here")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_secret_that_others_may_read_is_refused_with_what_mends_it(
    mode: int, tmp_path: Path
) -> None:
    secret = tmp_path / "pubsubd" / "secret"
    ask = ("pubsub", "put", "t", "1")
    execute(*ask, coordinator="127.0.0.1:1", XDG_CONFIG_HOME=str(tmp_path))
    assert len(secret.read_bytes()) == KEY_BYTES
    secret.chmod(mode)
    refused = execute(*ask, coordinator="127.0.0.1:1", XDG_CONFIG_HOME=str(tmp_path))
    assert refused.code == 1
    (line,) = refused.err.splitlines()
    assert line.startswith(f"pubsub: the user's secret {secret}: other users may ")
    assert line.endswith(f"(mode {mode:04o}), and it holds a secret: chmod 600 {secret}")
    secret.chmod(0o600)
    mended = execute(*ask, coordinator="127.0.0.1:1", XDG_CONFIG_HOME=str(tmp_path))
    assert "no coordinator at 127.0.0.1:1" in mended.err


def refusal(start: Start, env: dict[str, str]) -> str:
    """Why a process has no Peer."""
    worker = start_worker(start, None, (), **env)
    worker.tell("peer", name="a")
    line = worker.running.out()
    assert "AuthError" in line, line
    return line


@pytest.mark.skipif(not is_root(), reason="only root can be another user")
def test_who_has_no_home_is_told_what_to_set(start: Start) -> None:
    without = {"XDG_CONFIG_HOME": "", "XDG_RUNTIME_DIR": "", "HOME": ""}
    line = refusal(start, {**without, "PUBSUB_TEST_UID": str(STRANGE)})
    assert "neither a home directory nor XDG_RUNTIME_DIR" in line
    assert "PUBSUB_KEY_FILE" in line
    assert "PUBSUB_INSECURE=1" in line
    line = refusal(start, {**without, "HOME": "/root", "PUBSUB_TEST_UID": str(STRANGE)})
    assert "/root/.config/pubsubd/secret cannot be made: Permission denied" in line


@pytest.mark.skipif(not is_root(), reason="only root can be another user")
def test_another_users_secret_is_not_taken(start: Start, users: tuple[User, User]) -> None:
    user, other = users
    if "PUBSUB_TEST_UID" not in user.env:
        pytest.skip("both are the same user of the system")
    start_worker(start, None, (), **user.env).peer(name="a")
    until(user.secret.exists)
    line = refusal(start, {**other.env, "XDG_CONFIG_HOME": str(user.home)})
    assert "Permission denied" in line
    user.secret.chmod(0o600)
    os.chown(user.secret, STRANGE + 2, STRANGE + 2)
    line = refusal(start, {**user.env, "PUBSUB_TEST_UID": ""})  # root may read it
    assert f"belongs to another user (number {STRANGE + 2}" in line


@pytest.mark.skipif(not is_root(), reason="only root can be two users")
@pytest.mark.skipif(not unix.available(), reason="there are no Unix sockets")
@pytest.mark.usefixtures("by_unix")
@pytest.mark.parametrize("same", [True, False], ids=["one user", "another user"])
def test_a_users_secret_that_another_has_too_is_good_for_tcp_alone(
    same: bool, start: Start, users: tuple[User, User], port: int
) -> None:
    user, other = users
    if "PUBSUB_TEST_UID" not in user.env:
        pytest.skip("both are the same user of the system")
    there = process(start, user, port)
    there.sub(name="a", topic="t")
    if not same:
        other.secret.parent.mkdir(mode=0o700)
        other.secret.write_bytes(user.secret.read_bytes())
        other.secret.chmod(0o600)
        for path in (other.secret.parent, other.secret):
            os.chown(path, int(other.env["PUBSUB_TEST_UID"]), -1)
    here = process(start, user if same else other, port)
    stream = here.pub(name="a", topic="t", rate=200)
    there.reach(name="a", due={stream: 100})
    put = here.stop()["a"]
    report = there.reach(name="a", due={stream: put})
    assert (report["got"], report["lost"]) == ({stream: put}, 0)
    publisher = report["publishers"][stream]
    if same:
        assert (publisher["way"], publisher["failed"]) == ("unix", [])
        return
    assert publisher["way"] == "direct"
    (why,) = publisher["failed"]
    assert why.startswith("unix: ")
    assert "it is a process of another user, or in another user namespace" in why
    there.log_has(text="is not used, but TCP: it is a process of another user")
