"""Keys that are changed while everything goes on, as docs/security.md says: the new one is added,
is moved to the first line, and the old one is taken out, on one machine after the other."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pubsub import AuthError, Peer
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from pubsub.links.renewal import Renewal
from pubsub.trust.credentials import credentials_from
from pubsub.trust.files import write_file
from pubsub.trust.guard import Group
from pubsub.trust.keys import Key, read_keys
from tests.cli.processes import Start, daemon, execute
from tests.faults.flow import flow
from tests.faults.worker import start_worker
from tests.integration.support import LONG, break_links, eventually

pytestmark = [pytest.mark.loop, pytest.mark.by_hand]

RATE = 2_000
OLD, NEW = Key.new(), Key.new()
STEPS = [(OLD, NEW), (NEW, OLD), (NEW,)]
CHANNELS = ["proof", "tls"]


def write(path: Path, *keys: Key) -> None:
    lines = "".join(f"{key.text()}\n" for key in keys)
    write_file(path, lines.encode(), replace=True)


class Machines:
    """A coordinator, a publisher and a subscriber, each with a key file of its own."""

    def __init__(self, path: Path, channel: str) -> None:
        self.files = {name: path / name for name in ("coordinator", "here", "there")}
        self.encrypt = True if channel == "tls" else None
        for file in self.files.values():
            write(file, OLD)

    def settings(self, name: str) -> dict[str, Any]:
        return {"key_file": str(self.files[name]), "encrypt": self.encrypt}

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Machines]:
        guard = credentials_from(Settings(**self.settings("coordinator")), {}).guard()
        self.coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=guard)
        self.address = str(await self.coordinator.start("127.0.0.1", 0))
        try:
            async with (
                Peer(self.address, **self.settings("here")) as self.here,
                Peer(self.address, **self.settings("there")) as self.there,
            ):
                yield self
        finally:
            await self.coordinator.close()

    def looks(self) -> dict[str, tuple[Renewal, Any]]:
        return {
            "coordinator": (self.coordinator.renewal, self.coordinator.guard),
            "here": (self.here.runtime.renewal, self.here.runtime.guard),
            "there": (self.there.runtime.renewal, self.there.runtime.guard),
        }

    async def change(self, name: str, *keys: Key) -> None:
        """Write that one's file, and have it look."""
        write(self.files[name], *keys)
        renewal, guard = self.looks()[name]
        assert isinstance(guard, Group)
        renewal.look()
        await eventually(lambda: guard._keys == keys)

    def links(self) -> list[Any]:
        """That between the two, and their sessions."""
        ends = [*self.there.runtime.publishers.remotes.values()]
        found = [end.link for end in (*ends, *self.here.runtime.sessions)]
        return [*found, *(session.link for session in self.there.runtime.sessions)]

    async def up(self) -> None:
        """Wait until all of them are."""
        await eventually(
            lambda: all(link is not None and link.other is not None for link in self.links())
        )
        await eventually(lambda: len(list(self.coordinator.registry.peers())) == 2)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["coordinator", "here", "there"])
@pytest.mark.parametrize("channel", CHANNELS)
async def test_g5_a_key_is_changed_under_a_flow_and_nothing_is_lost(
    channel: str, first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if channel == "tls":
        pytest.importorskip("cryptography")
    caplog.set_level(logging.INFO, "pubsub")
    order = [first, *({"coordinator", "here", "there"} - {first})]
    async with Machines(tmp_path, channel).run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        async with flow(pub, sub, RATE) as flowing:
            await flowing.passes(100)
            stood = machines.links()
            for step in STEPS:
                for name in order:
                    await machines.change(name, *step)
                    await flowing.passes(100)
                    if step != (NEW,):
                        assert machines.links() == stood  # they stand on what is there yet
                    break_links(machines.there)  # between one who has changed and one who has not
                    await flowing.passes(100)
                    await machines.up()
                    newcomer = await machines.there.sub("t")
                    await newcomer.get(timeout=LONG)
                    await newcomer.close()
                    stood = machines.links()
            await flowing.passes(100)
        assert flowing.got == flowing.put
        assert sub.lost == 0
        await eventually(lambda: len(pub.subscribers) == 1)  # the newcomers have left
        (how,) = pub.subscribers.values()
        assert how["lost"] == 0
        with pytest.raises(AuthError, match=r"another key|does not have the key"):
            write(tmp_path / "late", OLD)
            async with Peer(
                machines.address, key_file=str(tmp_path / "late"), encrypt=machines.encrypt
            ) as late:
                await late.sub("t")
    assert not [r for r in caplog.records if r.exc_info]


@pytest.mark.parametrize("channel", CHANNELS)
async def test_g5_what_stood_on_a_key_that_is_gone_is_ended_and_dialled_again(
    channel: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if channel == "tls":
        pytest.importorskip("cryptography")
    caplog.set_level(logging.INFO, "pubsub")
    async with Machines(tmp_path, channel).run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        async with flow(pub, sub, RATE) as flowing:
            await flowing.passes(100)
            for step in STEPS[:2]:
                for name in machines.files:
                    await machines.change(name, *step)
            await flowing.passes(100)
            stood = machines.links()
            assert all(OLD.id in link.other.standing.stands_on for link in stood)
            for name in machines.files:
                await machines.change(name, NEW)
            await eventually(lambda: not set(machines.links()) & set(stood))
            await machines.up()
            await flowing.passes(100)
            for link in machines.links():
                assert link.other.standing.stands_on == {NEW.id}
        assert sub.lost == 0
        assert flowing.got == flowing.put
    assert any("closed the connection (rekey)" in r.getMessage() for r in caplog.records)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], "a change is no trouble"


@pytest.mark.parametrize("channel", CHANNELS)
async def test_who_has_only_the_old_key_stays_out(channel: str, tmp_path: Path) -> None:
    """Also one that was in, and whose file nobody changed."""
    if channel == "tls":
        pytest.importorskip("cryptography")
    async with Machines(tmp_path, channel).run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        async with flow(pub, sub, RATE) as flowing:
            await flowing.passes(100)
            for step in STEPS:
                for name in ("coordinator", "here"):
                    await machines.change(name, *step)
            await eventually(lambda: not pub._publication.attached)
            (session,) = machines.there.runtime.sessions
            await eventually(lambda: not session.up and isinstance(session.failure, Exception))
            got = flowing.got
            for _ in range(20):
                await flowing.checked(0.02)
            assert flowing.got <= got + RATE  # what was on its way
            got = flowing.got
            await eventually(lambda: flowing.put > got + 100)
            with pytest.raises(AuthError):
                await machines.there.sub("u")
            assert flowing.got == got
            # its file is changed at last
            await machines.change("there", NEW)
            await flowing.passes(100)
        assert flowing.got == flowing.put
        assert sub.lost == 0


def broken(path: Path, how: str) -> str:
    """Spoil the file; returns what is to be said of it."""
    if how == "missing":
        path.unlink()
        return f"key file {path} is not there"
    if how == "empty":
        path.write_text("")
        return f"key file {path}"
    if how == "half":
        path.write_text(NEW.text()[:40] + "\n")
        return f"key file {path}"
    if how == "open":
        write(path, NEW)
        path.chmod(0o644)
        return f"chmod 600 {path}"
    path.unlink()
    path.mkdir()
    return f"key file {path} is a directory"


@pytest.mark.parametrize("how", ["missing", "empty", "half", "open", "directory"])
async def test_a_file_that_is_missing_or_broken_changes_nothing_and_is_warned_of(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Machines(tmp_path, "proof").run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        async with flow(pub, sub, RATE) as flowing:
            await flowing.passes(100)
            links = machines.links()
            for name, (renewal, guard) in machines.looks().items():
                expected = broken(machines.files[name], how)
                for times in (1, 2):  # each time that it looks
                    renewal.look()

                    def warned(expected: str = expected) -> int:
                        texts = [r.getMessage() for r in caplog.records]
                        said = [text for text in texts if expected in text]
                        assert all("what was read before still counts" in text for text in said)
                        return len(said)

                    await eventually(lambda times=times, warned=warned: warned() == times)  # type: ignore[misc]
                assert guard._keys == (OLD,)
            assert machines.links() == links
            break_links(machines.there)
            await flowing.passes(100)
            newcomer = await machines.there.sub("t")
            await newcomer.get(timeout=LONG)
        assert sub.lost == 0
    with pytest.raises(AuthError):  # nobody starts with such a file
        Peer(machines.address, **machines.settings("here"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("channel", CHANNELS)
def test_g5_processes_and_a_pubsubd_that_is_told_by_a_signal(
    channel: str, start: Start, tmp_path: Path
) -> None:
    if channel == "tls":
        pytest.importorskip("cryptography")
    file, old, new = tmp_path / "key", tmp_path / "old", tmp_path / "new"
    write(file, OLD)
    write(old, OLD)
    write(new, NEW)
    env = {"PUBSUB_KEY_FILE": str(file), **({"PUBSUB_ENCRYPT": "1"} if channel == "tls" else {})}
    os.environ.update(env)
    try:
        coordinator, address = daemon(start)
        here, there = (start_worker(start, address) for _ in range(2))
    finally:
        for name in env:
            del os.environ[name]
    there.peer(name="a")
    there.sub(name="a", topic="t")
    here.peer(name="a")
    stream = here.pub(name="a", topic="t", rate=RATE)
    here.attached(name="a", n=1)

    def enters(key: Path) -> bool:
        more = {**env, "PUBSUB_KEY_FILE": str(key)}
        result = execute("pubsub", "topics", coordinator=address, **more)
        assert result.code == 0 or "key" in result.err
        return result.code == 0

    def flows() -> None:
        there.reach(name="a", due={stream: here.counts()["a"] + RATE})

    assert (enters(old), enters(new)) == (True, False)
    for step in STEPS:
        write(file, *step)
        assert read_keys(file) == step
        coordinator.signal(signal.SIGHUP)
        for worker in (here, there):
            worker.renew(name="a")
        flows()
    until_true(lambda: not enters(old))
    assert enters(new)
    for worker in (here, there):
        worker.session(name="a", up=True)
    flows()
    put = here.stop()["a"]
    report = there.reach(name="a", due={stream: put})
    assert (report["got"], report["lost"]) == ({stream: put}, 0)
    write_file(file, b"no key\n", replace=True)
    coordinator.signal(signal.SIGHUP)
    line = coordinator.err()
    while "what was read before still counts" not in line:
        line = coordinator.err()
    assert f"key file {file}" in line
    assert enters(new)


def until_true(condition: Any) -> None:
    """A few times: each is a process of its own."""
    for _ in range(20):
        if condition():
            return
    raise AssertionError("it did not happen")
