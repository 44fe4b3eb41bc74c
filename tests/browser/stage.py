"""Processes for the browser to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.cli.processes import Running, Start

__all__ = ["HOSTILE", "OPTIONS", "Stage"]

OPTIONS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
HOSTILE = "<img src=x onerror=alert(1)></script>"

SENSORS = f"""
import time
from pubsub import Peer
peer = Peer(name="sensors.py")
pubs = [peer.pub(f"sensors/{{room}}/temp", buffer=2**20) for room in ("kitchen", "attic", "cellar")]
hostile = peer.pub({("hostile/" + HOSTILE)!r})
print("ready", flush=True)
number = 0
while True:
    for pub in pubs:
        pub.put([number, "x" * 200])
    hostile.put({{{HOSTILE!r}: {HOSTILE!r} + chr(0x202e)}})
    number += 1
    time.sleep(0.02)
"""
CONSUMER = """
import sys, threading, time
from pubsub import Peer
peer = Peer(name=sys.argv[2])
sub = peer.sub(sys.argv[1])
pause = 0.0
def listen():
    global pause
    for line in sys.stdin:
        pause = float(line)
threading.Thread(target=listen, daemon=True).start()
print("ready", flush=True)
for message in sub:
    time.sleep(pause)
"""


@dataclass
class Stage:
    """A dashboard, and what it shows."""

    start: Start
    coordinator: str
    link: str

    def _run(self, *args: str) -> Running:
        process = self.start("python", "-c", *args, coordinator=self.coordinator)
        assert process.out() == "ready"
        return process

    def sensors(self) -> Running:
        """Publishes on a few topics, one of them with a hostile name."""
        return self._run(SENSORS)

    def consumer(self, topic: str, name: str) -> Running:
        """Takes messages; a number on its standard input is the seconds for each."""
        return self._run(CONSUMER, topic, name)

    def open(self, page: Any, view: str = "") -> None:
        """Follow the link; then go to a view."""
        page.goto(self.link)
        page.wait_for_selector("#live[data-state=live]")
        if view:
            self.go(page, view)

    def go(self, page: Any, view: str) -> None:
        page.evaluate("view => { location.hash = view }", view)
