"""Issued certificates in use, from the commands that make them to their end: programs with other
rights, a certificate that is issued anew, one that is revoked, and one that expires."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from pubsub import AuthError, Peer
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from pubsub.core.rights import Rights
from pubsub.links.renewal import Renewal
from pubsub.trust.credentials import credentials_from
from pubsub.trust.files import write_file
from pubsub.trust.guard import Holder
from tests.cli.processes import Running, Start, daemon, execute
from tests.faults.flow import flow
from tests.integration.support import LONG, eventually

pytest.importorskip("cryptography", reason="certificates need the extra pubsubd[tls]")

from pubsub.trust import issuing
from pubsub.trust.authority import Authority, pem_of_key
from pubsub.trust.pairs import new_key
from pubsub.trust.reading import pem_of

pytestmark = [pytest.mark.loop, pytest.mark.by_hand]

RATE = 1_000


# --- by the commands ----------------------------------------------------------------------------


class Programs:
    """A CA, and programs that have a certificate of it each; all by the commands."""

    def __init__(self, start: Start, ca: Path) -> None:
        self._start = start
        self.ca = ca
        self.cert("init", str(ca))

    def cert(self, *args: str) -> None:
        made = execute("pubsubd", "cert", *args)
        assert (made.code, made.out) == (0, b""), made.err

    def issue(self, name: str, *rights: str) -> None:
        self.cert("issue", str(self.ca), name, *rights)

    def env(self, name: str) -> dict[str, str]:
        return {"PUBSUB_CERT": str(self.ca / f"{name}.pem")}

    def coordinator(self) -> Running:
        self.issue("head", "--coordinator")
        os.environ.update(self.env("head"))
        try:
            running, self.address = daemon(self._start)
        finally:
            del os.environ["PUBSUB_CERT"]
        return running

    def run(self, name: str, *args: str) -> Running:
        return self._start(*args, coordinator=self.address, **self.env(name))

    def end(self, name: str, *args: str) -> tuple[int, list[str], str]:
        """Run it to its end: exit code, output, and the last line on standard error."""
        result = execute(*args, coordinator=self.address, **self.env(name))
        return result.code, result.lines, (result.err.splitlines() or [""])[-1]


@pytest.fixture
def programs(start: Start, tmp_path: Path) -> Programs:
    return Programs(start, tmp_path / "ca")


@pytest.mark.slow
def test_two_programs_of_different_rights(programs: Programs) -> None:
    programs.coordinator()
    programs.issue("stove", "--publish", "kitchen/**", "--subscribe", "config/*")
    programs.issue("display", "--subscribe", "kitchen/*", "--list")
    tail = programs.run("display", "pubsub", "tail", "**", "-n", "1", "--format", "json")
    put = ("pubsub", "put", "kitchen/temp", "21", "--wait", "1")
    assert programs.end("stove", *put)[:2] == (0, [])
    assert "21" in tail.out()
    assert tail.wait() == 0

    refused = programs.end("stove", "pubsub", "put", "attic/temp", "1")
    assert refused[:2] == (1, [])
    assert "'stove' may not publish 'attic/temp': it may publish 'kitchen/**'" in refused[2]
    refused = programs.end("display", "pubsub", "put", "kitchen/temp", "1")
    assert refused[:2] == (1, [])
    assert "'display' may not publish 'kitchen/temp': it may publish nothing" in refused[2]
    refused = programs.end("stove", "pubsub", "tail", "kitchen/temp", "-n", "1")
    assert refused[:2] == (1, [])
    assert "'stove' may not subscribe 'kitchen/temp': it may subscribe 'config/*'" in refused[2]

    there = [
        programs.run("display", "pubsub", "tail", "kitchen/*"),
        programs.run("stove", "pubsub", "tail", "config/*"),
    ]

    def topics(name: str) -> list[str]:
        code, lines, err = programs.end(name, "pubsub", "topics")
        assert code == 0, err
        return sorted(line.split()[0] for line in lines)

    until_true(lambda: "config/*" in topics("stove") and "kitchen/*" in topics("display"))
    assert "config/*" not in topics("display")
    code, lines, err = programs.end("display", "pubsub", "peers")
    assert code == 0, err
    assert len([line for line in lines if "127.0.0.1:" in line]) >= 2
    refused = programs.end("stove", "pubsub", "peers")
    assert refused[:2] == (1, [])
    assert "pubsubd cert issue … --list" in refused[2]
    for tail in there:
        tail.interrupt()
        tail.wait()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_pubsubd_that_is_told_by_a_signal(programs: Programs) -> None:
    """It takes a certificate that was issued over its own, and cuts who was revoked."""
    coordinator = programs.coordinator()
    programs.issue("stove", "--publish", "kitchen/**")
    programs.issue("display", "--subscribe", "kitchen/*")
    tail = programs.run("display", "pubsub", "tail", "kitchen/*")
    put = ("pubsub", "put", "kitchen/temp", "1", "--wait", "1")
    assert programs.end("stove", *put)[:2] == (0, [])
    tail.out()
    programs.issue("head", "--coordinator")
    coordinator.signal(signal.SIGHUP)
    assert programs.end("stove", *put)[:2] == (0, [])
    tail.out()
    programs.cert("revoke", str(programs.ca), "display")
    coordinator.signal(signal.SIGHUP)  # the list lies beside its certificate

    def refused() -> bool:
        code, _, err = programs.end("display", "pubsub", "topics")
        assert code == 0 or "the certificate of 'display' was revoked" in err
        return code == 1

    until_true(refused)
    assert programs.end("stove", "pubsub", "topics")[0] == 0
    line = tail.err()
    while "the certificate of 'display' was revoked" not in line:
        line = tail.err()
    tail.interrupt()


def until_true(condition: Callable[[], Any]) -> None:
    """A few times: each is a process of its own."""
    for _ in range(20):
        if condition():
            return
    raise AssertionError("it did not happen")


# --- in one process -----------------------------------------------------------------------------

EVERY = {
    "head": Rights(coordinator=True),
    "here": Rights(["t", "u"]),
    "there": Rights((), ["t", "u"]),
}


class Certified:
    """A coordinator, a publisher and a subscriber, each with a certificate, which lies beside no
    list of revoked ones but for the coordinator's."""

    def __init__(self, path: Path) -> None:
        self.ca = path / "ca"
        issuing.init(self.ca)
        self.files = {name: path / name / "its.pem" for name in EVERY}
        for name, rights in EVERY.items():
            self.files[name].parent.mkdir()
            self.issue(name, rights)

    def issue(self, name: str, rights: Rights) -> None:
        made = issuing.issue(self.ca, name, rights, days=30)
        write_file(self.files[name], made.path.read_bytes(), replace=True)

    def issue_for(self, name: str, seconds: float) -> None:
        """As `issue`, with the same rights; it ends that soon."""
        authority = Authority.read(
            (self.ca / "ca.crt").read_bytes(), (self.ca / "ca.key").read_bytes(), "in the test"
        )
        key, now = new_key(), datetime.now(timezone.utc)
        leaf = authority.issue(
            *(name, key.public_key(), EVERY[name]),
            hosts=(),
            first=now - timedelta(minutes=5),
            last=now + timedelta(seconds=seconds),
        )
        text = pem_of(leaf) + pem_of_key(key) + pem_of(authority.certificate)
        write_file(self.files[name], text, replace=True)

    @asynccontextmanager
    async def run(self, **settings: Any) -> AsyncIterator[Certified]:
        guard = credentials_from(Settings(cert=str(self.files["head"])), {}).guard()
        self.coordinator = Coordinator(asyncio.get_running_loop(), settle=0.0, guard=guard)
        self.address = str(await self.coordinator.start("127.0.0.1", 0))
        try:
            async with (
                Peer(self.address, cert=str(self.files["here"]), **settings) as self.here,
                Peer(self.address, cert=str(self.files["there"]), **settings) as self.there,
            ):
                yield self
        finally:
            await self.coordinator.close()

    def looks(self, name: str) -> tuple[Renewal, Holder]:
        if name == "head":
            renewal, guard = self.coordinator.renewal, self.coordinator.guard
        else:
            runtime = {"here": self.here, "there": self.there}[name].runtime
            renewal, guard = runtime.renewal, runtime.guard
        assert isinstance(guard, Holder)
        return renewal, guard

    async def change(self, name: str, rights: Rights) -> None:
        """Issue it anew, and have that one look."""
        renewal, guard = self.looks(name)
        before = guard.own
        self.issue(name, rights)
        renewal.look()
        await eventually(lambda: guard.own != before)

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
        await eventually(
            lambda: [r["state"] for r in self.coordinator.registry.peers()] == ["connected"] * 2
        )


@pytest.mark.parametrize("name", list(EVERY))
async def test_g5_a_certificate_is_issued_anew_under_a_flow_and_nothing_is_lost(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pubsub")
    async with Certified(tmp_path).run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        async with flow(pub, sub, RATE) as flowing:
            await flowing.passes(100)
            identities = machines.here.peer_id, machines.there.peer_id
            _, guard = machines.looks(name)
            stood = guard.own
            theirs = [link for link in machines.links() if stands_on(link, name, machines)]
            assert len(theirs) == 2
            await machines.change(name, EVERY[name])
            await eventually(lambda: not set(machines.links()) & set(theirs))
            await machines.up()
            await flowing.passes(100)
            assert guard.own != stood
            assert (machines.here.peer_id, machines.there.peer_id) == identities
            assert {r["peer_id"] for r in machines.coordinator.registry.peers()} == {*identities}
        assert flowing.got == flowing.put
        assert sub.lost == 0
        assert len(pub.subscribers) == 1
    assert any("closed the connection (rekey)" in r.getMessage() for r in caplog.records)
    for record in caplog.records:
        assert not record.exc_info
        assert record.levelno < logging.WARNING, record.getMessage()


def stands_on(link: Any, name: str, machines: Certified) -> bool:
    """Whether one of its ends is that one."""
    sessions = {
        "here": machines.here.runtime.sessions,
        "there": machines.there.runtime.sessions,
        "head": [*machines.here.runtime.sessions, *machines.there.runtime.sessions],
    }[name]
    between = name != "head" and link.other is not None and link.other.role == "peer"
    return between or any(session.link is link for session in sessions)


async def test_a_right_that_is_lost_with_the_new_certificate_raises_in_what_waits(
    tmp_path: Path,
) -> None:
    async with Certified(tmp_path).run() as machines:
        sub = await machines.there.sub("t", window=1)
        blocked = await machines.here.pub("t", overflow="block", buffer=1)
        keeps = await machines.here.pub("u")
        kept = await machines.there.sub("u")

        async def fill() -> None:
            while True:
                await blocked.put(b"x" * 100_000)

        putting = asyncio.ensure_future(fill())
        await eventually(lambda: blocked._queue)
        await machines.change("here", Rights(["u", "new"]))
        with pytest.raises(AuthError, match=r"'here' may not publish 't': it may publish"):
            await asyncio.wait_for(putting, LONG)
        for _ in range(50):  # what had come is had
            try:
                assert await sub.get(timeout=1) == b"x" * 100_000
            except TimeoutError:
                break
        getting = asyncio.ensure_future(sub.get())
        await asyncio.sleep(0)
        await machines.change("there", Rights((), ["u"]))
        with pytest.raises(AuthError, match=r"'there' may not subscribe 't': it may subscribe 'u'"):
            await asyncio.wait_for(getting, LONG)
        await machines.up()
        keeps.put("goes on")
        assert await kept.get(timeout=LONG) == "goes on"
        await machines.here.pub("new")  # a right that is new acts, too
        with pytest.raises(AuthError, match="may not publish 't'"):
            await machines.here.pub("t")


async def test_a_certificate_that_is_revoked_at_the_coordinator_is_cut_at_both_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Certified(tmp_path).run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        pub.put("before")
        assert await sub.get(timeout=LONG) == "before"
        links = machines.links()
        issuing.revoke(machines.ca, "there")
        revoked = (machines.ca / "revoked.crl").read_bytes()
        (machines.files["head"].parent / "revoked.crl").write_bytes(revoked)
        machines.looks("head")[0].look()  # the others hear of it from the coordinator
        await eventually(lambda: machines.looks("here")[1].revoked == revoked)
        between, hers, his = links
        for link in (between, his):
            await eventually(lambda link=link: link.closing)  # type: ignore[misc]
        await eventually(lambda: not pub._publication.attached)
        await eventually(lambda: not machines.here.runtime.subscribers.served)
        assert not hers.closing
        with pytest.raises(AuthError, match="the certificate of 'there' was revoked"):
            await machines.there.sub("u")
        (session,) = machines.there.runtime.sessions
        assert not session.up
        pub.put("after")
        with contextlib.suppress(TimeoutError):
            raise AssertionError(await sub.get(timeout=0.5))
        await (await machines.here.pub("u")).close()
    said = [r.getMessage() for r in caplog.records]
    assert any("the certificate of 'there' was revoked" in text for text in said)


@pytest.mark.slow
async def test_a_certificate_that_expires_ends_its_links_with_the_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certified = Certified(tmp_path)
    certified.issue_for("there", 4)
    async with certified.run() as machines:
        sub = await machines.there.sub("t")
        pub = await machines.here.pub("t")
        pub.put("before")
        assert await sub.get(timeout=LONG) == "before"
        between, hers, his = machines.links()

        def looked() -> bool:
            for name in EVERY:
                machines.looks(name)[0].look()
            return bool(between.closing and his.closing)

        assert not between.closing
        await eventually(looked)
        assert not hers.closing
        await eventually(lambda: not pub._publication.attached)
        with pytest.raises(AuthError, match="expired"):
            await machines.there.sub("u")
        # one that is issued in its place is taken, and nothing was lost
        pub.put("after")
        machines.issue("there", EVERY["there"])
        machines.looks("there")[0].look()
        assert await sub.get(timeout=LONG) == "after"
        assert sub.lost == 0
    said = [r.getMessage() for r in caplog.records]
    assert any("the certificate of 'there' has expired" in text for text in said)
    assert any("the certificate of this process ends in 0 days" in text for text in said)
