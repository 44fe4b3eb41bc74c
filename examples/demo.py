"""See it work: `make demo`, or ``python examples/demo.py [PORT OF THE COORDINATOR]``.

Four processes, real data: a coordinator, a publisher of this machine's counters, and a
``pubsub tail`` that shows them. In mid-stream the coordinator is killed and later started anew,
and every message is accounted for. Exit code 0 only if not one of them was lost.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

HERE = Path(__file__).resolve().parent
PATIENCE = 10.0
"""Seconds within which whatever is waited for must happen."""

COLOURS = sys.stdout.isatty() and "NO_COLOR" not in os.environ
WIDTH = shutil.get_terminal_size((120, 40)).columns if sys.stdout.isatty() else 10_000


class Failed(Exception):
    """What the demo promises did not happen."""


# --- what is printed --------------------------------------------------------------------------


def style(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOURS else text


def heading(number: int, text: str) -> None:
    print(f"\n{style(f'{number}. {text}', '1')}", flush=True)


def command(text: str) -> None:
    print(f"   {style('$ ' + text, '36')}", flush=True)


def fitting(text: str) -> str:
    """A line that the terminal does not break."""
    line = f"   {text}"
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def output(text: str) -> None:
    print(fitting(text), flush=True)


def remark(text: str) -> None:
    print(style(fitting(text), "2"), flush=True)


# --- the processes ----------------------------------------------------------------------------


class Child:
    """A process of ours, whose lines can be waited for."""

    def __init__(
        self, *args: str, env: dict[str, str], said: Callable[[str], None] = lambda line: None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *args],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the demo, which then ends them all
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.errors: queue.Queue[str] = queue.Queue()
        self._threads = [
            self._read(self.process.stdout, self.lines.put),
            self._read(self.process.stderr, self.errors.put, said),
        ]

    @staticmethod
    def _read(stream: IO[str] | None, *to: Callable[[str], None]) -> threading.Thread:
        def read() -> None:
            assert stream is not None
            for line in stream:
                for take in to:
                    take(line.rstrip("\n"))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def line(self, lines: queue.Queue[str], what: str) -> str:
        try:
            return lines.get(timeout=PATIENCE)
        except queue.Empty:
            code = self.process.poll()
            why = "" if code is None else f"; the process has exited with {code}"
            raise Failed(f"{what}: nothing came within {PATIENCE:g} s{why}") from None

    def end(self, number: int) -> int:
        """Send a signal, and wait for the end; returns the exit code."""
        self.process.send_signal(number)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.process.args!r} does not end") from None
        for thread in self._threads:
            thread.join(PATIENCE)
        return code

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass
class Phase:
    """What came while something was the case."""

    name: str
    numbers: list[int] = field(default_factory=list)


class Demo:
    def __init__(self, port: int) -> None:
        self.port = port
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("PUBSUB_")}
        self.env["PUBSUB_COORDINATOR"] = f"127.0.0.1:{self.port}"
        self.children: list[Child] = []
        self.phases: list[Phase] = []
        self.others: list[str] = []

    def start(self, *args: str, said: Callable[[str], None] = lambda line: None) -> Child:
        child = Child(*args, env=self.env, said=said)
        self.children.append(child)
        return child

    def coordinator(self) -> Child:
        command(f"pubsubd coordinator --port {self.port}")
        child = self.start("-m", "pubsub.cli.pubsubd", "coordinator", "--port", str(self.port))
        output(child.line(child.errors, "the coordinator's first line"))
        return child

    def pubsub(self, *args: str) -> str:
        """The output of one run of `pubsub`."""
        try:
            run = subprocess.run(
                [sys.executable, "-m", "pubsub.cli.pubsub", *args],
                env=self.env,
                capture_output=True,
                text=True,
                encoding="utf-8",
                timeout=PATIENCE,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"pubsub {args[0]} does not end") from None
        if run.returncode:
            raise Failed(f"pubsub {args[0]}: {run.stderr.strip() or run.returncode}")
        return run.stdout

    # --- what it shows -----------------------------------------------------------------------

    def run(self) -> None:
        print(style("pubsubd: from process to process, and nothing is lost", "1"))

        heading(1, "A coordinator. It says who is where; messages never pass through it.")
        coordinator = self.coordinator()

        heading(2, "A publisher: the counters of this machine, ten times a second.")
        command("python examples/counters.py")
        publisher = self.start(str(HERE / "counters.py"), said=self.overheard("the publisher"))
        first = publisher.line(publisher.lines, "the publisher's first line")
        output(first)
        topic = first.split(" on ")[1].split(";")[0]

        heading(3, "A subscriber, which the publisher streams to over a connection of their own.")
        pattern = "machine/*/counters"
        command(f"pubsub tail '{pattern}'")
        tail = self.start(
            *("-m", "pubsub.cli.pubsub", "tail", pattern), said=self.overheard("the subscriber")
        )
        self.phase("with the coordinator")
        self.show(tail, 8)

        heading(4, "The coordinator is killed, in mid-stream.")
        command(f"kill -9 {coordinator.process.pid}")
        coordinator.end(signal.SIGKILL)
        self.drain(tail)  # what was under way does not count
        self.phase("without any coordinator")
        self.show(tail, 8)
        self.tell_overheard()
        remark("… and on, for three seconds")
        self.pass_time(tail, 3.0)
        self.expect(len(self.phases[-1].numbers) > 20, "messages came too slowly")

        heading(5, "A new one on the same port knows nothing. The others tell it who they are.")
        coordinator = self.coordinator()
        self.phase("with the new coordinator")
        self.until_known(topic, tail)
        self.tell_overheard()
        command("pubsub topics")
        for line in self.pubsub("topics").splitlines():
            output(line)
        remark("a new subscriber finds the publisher:")
        command("pubsub tail 'machine/**' -n 3 --format repr")
        for line in self.pubsub(
            *("tail", "machine/**", "-n", "3", "--timeout", "10", "--format", "repr")
        ).splitlines():
            output(line)
        self.pass_time(tail, 0.5)

        heading(6, "Is anything missing?")
        code = tail.end(signal.SIGINT)
        self.expect(code == 130, f"the tail ended with {code}")
        self.drain(tail)
        verdict = last(tail.errors)
        for name, child in (("publisher", publisher), ("coordinator", coordinator)):
            code = child.end(signal.SIGTERM)
            self.expect(code in (0, -signal.SIGTERM), f"the {name} ended with {code}")
        self.summary(verdict)

    def summary(self, verdict: str) -> None:
        numbers = [n for phase in self.phases for n in phase.numbers]
        print(f"   {'':28}{'received':>10}{'lost':>8}")
        before = numbers[0] - 1
        missing = 0
        for phase in self.phases:
            lost = 0
            for n in phase.numbers:
                lost += n - before - 1
                before = n
            missing += lost
            print(f"   {phase.name:28}{len(phase.numbers):>10}{lost:>8}")
        print(f"   {style(f'{chr(61) * 46}', '2')}")
        print(f"   {'in all':28}{len(numbers):>10}{missing:>8}")
        remark("what pubsub tail itself says of it:")
        output(verdict)
        self.expect(numbers == sorted(set(numbers)), "messages came twice or out of order")
        self.expect(missing == 0, f"{missing} messages are missing")
        expected = f"pubsub: received {len(numbers)}, lost 0"
        self.expect(verdict == expected, f"the tail says {verdict!r}")

    # --- messages ----------------------------------------------------------------------------

    def phase(self, name: str) -> None:
        self.phases.append(Phase(name))

    def take(self, tail: Child) -> str:
        """The next message of the stream."""
        line = tail.line(tail.lines, "the stream has stopped")
        self.phases[-1].numbers.append(json.loads(line)["n"])
        return line

    def show(self, tail: Child, count: int) -> None:
        for _ in range(count):
            output(self.take(tail))

    def pass_time(self, tail: Child, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.take(tail)

    def drain(self, tail: Child) -> None:
        while not tail.lines.empty():
            self.take(tail)

    def until_known(self, topic: str, tail: Child) -> None:
        """Wait until publisher and subscriber have registered again."""
        end = time.monotonic() + PATIENCE
        while True:
            self.drain(tail)
            rows: list[dict[str, Any]] = json.loads(self.pubsub("topics", "--json"))
            known = {row["topic"]: (row["publishers"], row["subscribers"]) for row in rows}
            if known.get(topic) == (1, 1):
                return
            self.expect(time.monotonic() < end, f"the new coordinator knows only {known}")

    def overheard(self, who: str) -> Callable[[str], None]:
        return lambda line: self.others.append(f"({who} says) {line}")

    def tell_overheard(self) -> None:
        others, self.others = self.others, []
        for line in others:
            remark(line)

    @staticmethod
    def expect(fact: bool, otherwise: str) -> None:
        if not fact:
            raise Failed(otherwise)

    def kill_all(self) -> None:
        for child in self.children:
            child.kill()


def last(lines: queue.Queue[str]) -> str:
    found = ""
    while not lines.empty():
        found = lines.get()
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def terminated(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    signal.signal(signal.SIGTERM, terminated)
    began = time.monotonic()
    demo = Demo(int(sys.argv[1]) if len(sys.argv) > 1 else free_port())
    try:
        demo.run()
    except Failed as error:
        print(f"\n{style('The demo failed', '1;31')}: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    finally:
        demo.kill_all()
    print(f"\n{style('Nothing was lost.', '1;32')} ({time.monotonic() - began:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
