"""The pictures of docs/seeing.md, of real processes: ``python -m tests.browser.screenshots``."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser.stage import OPTIONS
from tests.cli.processes import daemon, processes

IMAGES = Path(__file__).parents[2] / "docs" / "images"
MINUTE = 62_000  # milliseconds, for curves that are whole
ROLES = """
import random, sys, time
from pubsub import Peer
role = sys.argv[1]
peer = Peer(name=f"{role}.py")
if role == "house":
    rooms = ("attic", "cellar", "garage", "kitchen")
    pubs = [peer.pub(f"sensors/{room}/{what}") for room in rooms for what in ("humidity", "temp")]
    while True:
        for pub in pubs:
            if random.random() < 0.8:
                pub.put({"value": round(random.gauss(20, 3), 2), "unit": "°C"})
        time.sleep(random.choice((0.03, 0.05, 0.08)))
elif role == "camera":
    pub = peer.pub("camera/front", buffer=2 * 2**20)
    while True:
        pub.put(b"frame" * 4000)
        time.sleep(0.015)
elif role == "model":
    found = peer.pub("camera/faces")
    for frame in peer.sub("camera/front", window=2**20):
        time.sleep(0.06)
        if random.random() < 0.3:
            found.put({"faces": random.randrange(4)})
elif role == "alarm":
    alarms = peer.pub("alarms")
    for message in peer.sub("sensors/*/temp"):
        if message["value"] > 25:
            alarms.put({"too hot": message["value"]})
else:
    topics = {"store": "sensors/**", "screen": "alarms", "door": "camera/faces"}
    for message in peer.sub(topics.get(role, "sensor/kitchen/temp")):
        pass
"""


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    with (
        processes() as start,
        sync_playwright() as playwright,
        tempfile.TemporaryDirectory() as folder,
    ):
        process, address = daemon(start, 0, "--http", "127.0.0.1:0")
        process.err()
        link = re.findall(r"http\S+", process.err())[0]
        for role in ("house", "camera", "model", "alarm", "store", "screen", "door", "report"):
            start("python", "-c", ROLES, role, coordinator=address)
        context = playwright.chromium.launch_persistent_context(
            *(folder,),
            executable_path=shutil.which("chromium"),
            headless=True,
            args=OPTIONS,
            viewport={"width": 1160, "height": 690},
        )
        page = context.pages[0]
        page.goto(link)
        page.wait_for_timeout(MINUTE)
        shoot(page, "topics")
        page.evaluate("() => { location.hash = '#/graph' }")
        page.wait_for_timeout(3_000)
        page.set_viewport_size({"width": 1160, "height": 560})
        shoot(page, "graph")
        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 1160, "height": 760})
        page.evaluate("() => { location.hash = '#/topic/camera%2Ffront' }")
        page.wait_for_timeout(3_000)
        shoot(page, "topic")
        context.close()


def shoot(page: Any, name: str) -> None:
    page.mouse.move(0, 0)
    page.screenshot(path=IMAGES / f"dashboard-{name}.png")


if __name__ == "__main__":
    main()
