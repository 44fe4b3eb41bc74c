"""Look into a built wheel, install it into an empty environment elsewhere, and use it.

Usage: python check_wheel.py WHEEL
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

TOPIC = "wheel/check"
MESSAGES = [f"message {i}" for i in range(10)]
DEADLINE = 60.0


def check_content(wheel: Path) -> str:
    """Only ``pubsub`` and its metadata, and all of it; returns the version."""
    version = wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"pubsub", f"pubsubd-{version}.dist-info"}, f"{wheel.name} holds {sorted(tops)}"
    for needed in (
        *("pubsub/__init__.py", "pubsub/py.typed", "pubsub/core/__init__.py"),
        *("pubsub/coordinator/__init__.py", "pubsub/coordinator/server.py"),
        *("pubsub/cli/__init__.py", "pubsub/cli/pubsub.py", "pubsub/cli/pubsubd.py"),
        f"pubsubd-{version}.dist-info/licenses/LICENSE",
    ):
        assert needed in names, f"{wheel.name} lacks {needed}"
    return version


def install(wheel: Path, into: Path) -> Path:
    """An environment with nothing but the wheel and what it requires; returns its commands."""
    venv.create(into, symlinks=os.name != "nt")
    commands = into / ("Scripts" if os.name == "nt" else "bin")
    python = commands / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "-q", str(wheel)], cwd=into, check=True)
    return commands


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def wait_until_listening(port: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        assert process.poll() is None, f"the coordinator exited with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nothing listens on port {port} after {DEADLINE:.0f} s")


def exchange(commands: Path, cwd: Path, env: dict[str, str]) -> None:
    """Ten messages from one process to another, introduced by a third."""
    port = free_port()
    env = {**env, "PUBSUB_COORDINATOR": f"127.0.0.1:{port}"}
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(commands / command[0]), *command[1:]],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    try:
        coordinator = start("pubsubd", "coordinator", "--port", str(port))
        wait_until_listening(port, coordinator)
        tail = start("pubsub", "tail", TOPIC, "-n", str(len(MESSAGES)), "--timeout", "30")
        put = start("pubsub", "put", TOPIC, "-", "--wait", "1", "--timeout", "30")
        put.communicate("".join(f"{message}\n" for message in MESSAGES), timeout=DEADLINE)
        assert put.returncode == 0, f"`pubsub put` exited with {put.returncode}"
        output, _ = tail.communicate(timeout=DEADLINE)
        assert tail.returncode == 0, f"`pubsub tail` exited with {tail.returncode}"
        received = [json.loads(line) for line in output.splitlines()]
        assert received == MESSAGES, f"`pubsub tail` printed {output!r}"
        coordinator.terminate()
        coordinator.wait(DEADLINE)
        assert coordinator.returncode == 0, f"SIGTERM: exit code {coordinator.returncode}"
    finally:
        for process in started:
            process.kill()
            process.communicate()


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    version = check_content(wheel)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PUBSUB"))}
    with tempfile.TemporaryDirectory(prefix="pubsubd-wheel-") as name:
        directory = Path(name).resolve()
        commands = install(wheel, directory / "venv")
        for command in ("pubsub", "pubsubd"):
            run = [str(commands / command), "--version"]
            said = subprocess.run(run, cwd=directory, env=env, check=True, capture_output=True)
            assert version in said.stdout.decode(), f"`{command} --version` said {said.stdout!r}"
        exchange(commands, directory, env)
    print(f"{wheel.name}: content, commands and a ten-message exchange are right")


if __name__ == "__main__":
    main()
