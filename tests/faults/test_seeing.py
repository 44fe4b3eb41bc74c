"""Eight things that go wrong, each staged with real processes: `pubsub info` names the culprit.

What is asserted is the sentence of the one command that a user would run.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cli.processes import LONG, Running, Start, daemon, execute
from tests.faults.proxy import behind

APP = """
import sys, time
from pubsub import Pub
topic, size, options = sys.argv[1], int(sys.argv[2]), eval(sys.argv[3])
with Pub(topic, **options) as pub:
    pub.wait_for_subscribers()
    print("there", flush=True)
    while True:
        pub.put(bytes(size))
        time.sleep(0.01)
"""
MODEL = """
import sys, time
from pubsub import Sub
with Sub(sys.argv[1], window=int(sys.argv[3])) as sub:
    print("ready", flush=True)
    for value in sub:
        time.sleep(float(sys.argv[2]))
"""
BLOCKS = """
import asyncio, sys, time
from pubsub import Sub
async def main():
    async with Sub(sys.argv[1]) as sub:
        print("ready", flush=True)
        async for value in sub:
            time.sleep(0.6)
            await asyncio.sleep(0.05)
asyncio.run(main())
"""


class Stage:
    """Programs that run, and what `pubsub info` says of them."""

    def __init__(self, start: Start, coordinator: str, path: Path) -> None:
        self.start, self.coordinator, self.path = start, coordinator, path

    def program(self, name: str, text: str, *args: str, **env: str) -> Running:
        file = self.path / name
        file.write_text(text)
        return self.start("python", str(file), *args, coordinator=self.coordinator, **env)

    def app(
        self,
        topic: str = "t",
        size: int = 100,
        options: str = "{}",
        *,
        alone: bool = False,
        **env: str,
    ) -> Running:
        text = APP.replace("pub.wait_for_subscribers()", "") if alone else APP
        return self.program("app.py", text, topic, str(size), options, **env)

    def model(
        self, topic: str = "t", seconds: float = 0.0, window: int = 100_000, **env: str
    ) -> Running:
        running = self.program("model.py", MODEL, topic, str(seconds), str(window), **env)
        assert running.out() == "ready"
        return running

    def why(self, kind: str, pattern: str, topic: str = "t", **env: str) -> None:
        """The command names that cause, in such a sentence; it is asked until it does."""
        until = time.monotonic() + LONG
        while True:
            found = execute("pubsub", "info", topic, "--json", coordinator=self.coordinator, **env)
            said = json.loads(found.text)
            for cause in said["why"]:
                if cause["kind"] == kind and re.search(pattern, cause["sentence"]):
                    assert cause["wrong"]
                    assert found.code == 1
                    return
            assert time.monotonic() < until, (said, found.err)


@pytest.fixture
def stage(start: Start, address: str, tmp_path: Path) -> Stage:
    return Stage(start, address, tmp_path)


def who(name: str, running: Running) -> str:
    """How its process is called, as a pattern."""
    return re.escape(f"{name} (pid {running.process.pid} on {os.uname().nodename})")


def test_nothing_wrong(stage: Stage) -> None:
    model = stage.model()
    app = stage.app()
    assert app.out() == "there"
    until = time.monotonic() + LONG
    while (found := execute("pubsub", "info", "t", coordinator=stage.coordinator)).code:
        assert time.monotonic() < until, found  # a busy machine may hold up a loop for a moment
    assert re.search(who("app.py", app), found.text)
    assert re.search(who("model.py", model), found.text)
    assert found.err == "pubsub: nothing is wrong, as far as 2 processes tell\n"


def test_a_slow_handler(stage: Stage) -> None:
    model = stage.model(seconds=0.05)
    stage.app()
    stage.why(
        "slow",
        rf"^{who('model.py', model)} spends \d\d+ ms in its code per message, and takes [\d.]+ a "
        r"second of the [\d.]+ that are put: [\d,]+ messages wait, the oldest for [\d.]+ s$",
    )


def test_a_blocked_loop(stage: Stage) -> None:
    model = stage.program("model.py", BLOCKS, "t")
    assert model.out() == "ready"
    stage.app()
    stage.why(
        "loop", rf"^the event loop of {who('model.py', model)} was blocked for up to \d[\d.]* m?s "
    )


@pytest.mark.parametrize("which", ["subscriber", "publisher"])
def test_a_stopped_process(stage: Stage, which: str) -> None:
    model = stage.model()
    app = stage.app()
    assert app.out() == "there"
    name, stopped = ("model.py", model) if which == "subscriber" else ("app.py", app)
    stopped.signal(signal.SIGSTOP)
    try:
        stage.why(
            "stopped", rf"^{who(name, stopped)}[ ,].*does not answer: it hangs, or was stopped"
        )
    finally:
        stopped.signal(signal.SIGCONT)


@pytest.mark.parametrize("window", [100_000, 8 * 1024 * 1024])
async def test_a_narrow_network(stage: Stage, window: int) -> None:
    async with behind(stage.coordinator) as (peer, proxy):
        model = await asyncio.to_thread(stage.model, window=window)
        pub = peer.pub("t")
        await pub.wait_for_subscribers(1, LONG)
        proxy.bandwidth = 200_000

        async def put() -> None:
            while True:
                await pub.put(bytes(20_000))
                await asyncio.sleep(0.01)

        putting = asyncio.ensure_future(put())
        try:
            sentence = (
                rf"^the network from .* to {who('model.py', model)} takes [\d.]+ [KM]iB a second, "
                r"and [\d,]+ of 't' wait for it$"
            )
            await asyncio.to_thread(stage.why, "network", sentence)
        finally:
            putting.cancel()
            await peer.close(0.0)


def test_a_full_buffer(stage: Stage) -> None:
    model = stage.model(seconds=3600)
    app = stage.app(size=10_000, options="dict(overflow='block', buffer=200_000)")
    assert app.out() == "there"
    stage.why(
        "full",
        rf"^1 put on 't' waits in {who('app.py', app)} for room in its buffer of 195 KiB, "
        rf"for at least .*, because of {who('model.py', model)} \(has taken nothing for \d+ s; ",
    )
    stage.why("stuck", rf"^{who('model.py', model)} has taken nothing of 't' for at least")


def test_a_dead_publisher(stage: Stage) -> None:
    model = stage.model()
    app = stage.app()
    assert app.out() == "there"
    app.signal(signal.SIGKILL)
    app.wait()
    stage.why(
        "vanished",
        r"which published 't', has vanished without a goodbye: it was killed, or its machine or "
        rf"network is gone \(says {who('model.py', model)}\)$",
    )


def test_a_wrong_topic(stage: Stage) -> None:
    model = stage.model("sensors/tmep")
    stage.app("sensors/temp", alone=True)
    stage.why(
        "unpublished",
        rf"^nobody publishes 'sensors/tmep', which {who('model.py', model)} subscribes: perhaps "
        "'sensors/temp' is meant$",
        "sensors/tmep",
    )


def test_no_rights(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="needs the extra pubsubd[tls]")
    monkeypatch.delenv("PUBSUB_INSECURE", raising=False)
    monkeypatch.delenv("PUBSUB_KEY_FILE", raising=False)
    ca = tmp_path / "ca"
    assert execute("pubsubd", "cert", "init", str(ca)).code == 0

    def issue(name: str, *rights: str) -> str:
        made = execute("pubsubd", "cert", "issue", str(ca), name, *rights)
        assert made.code == 0, made
        return str(ca / f"{name}.pem")

    _, address = daemon(start, 0, "--cert", issue("head", "--coordinator"))
    stage = Stage(start, address, tmp_path)
    its = issue("model", "--subscribe", "lamps/**")
    model = stage.model("**", PUBSUB_CERT=its)
    stage.app("sensors/temp", alone=True, PUBSUB_CERT=issue("app", "--publish", "sensors/**"))
    stage.why(
        "unmatched",
        rf"^{who('model.py', model)} subscribes '\*\*', and gets nothing of 'sensors/temp' from "
        "app.py .*: it has no right to it",
        "sensors/temp",
        PUBSUB_CERT=issue("admin", "--subscribe", "**", "--list"),
    )
    stage.why(  # as that program is run
        "rights",
        r"^this certificate may neither subscribe nor publish 'sensors/temp': it may subscribe "
        r"'lamps/\*\*', and may publish nothing$",
        "sensors/temp",
        PUBSUB_CERT=its,
    )
