"""The commands as real processes, for tests: started, listened to line by line, always ended."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from tests import secrecy

__all__ = ["LONG", "Result", "Running", "daemon", "execute", "processes"]

LONG = 40.0
"""Seconds after which what must happen is taken not to happen."""


def _command(args: tuple[str, ...]) -> list[str]:
    """``pubsub tail …`` as this Python runs it; ``python …`` is this Python itself."""
    if args[0] == "python":
        return [sys.executable, *args[1:]]
    return [sys.executable, "-m", f"pubsub.cli.{args[0]}", *args[1:]]


def _environment(coordinator: str | None, more: dict[str, str]) -> dict[str, str]:
    env = {**os.environ, **more}
    if coordinator is not None:
        env["PUBSUB_COORDINATOR"] = coordinator
    return env


@dataclass
class Result:
    """How a command ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def execute(
    *args: str, coordinator: str | None = None, stdin: bytes | str = b"", **env: str
) -> Result:
    """Run a command to its end."""
    run = subprocess.run(
        _command(args),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env=_environment(coordinator, env),
        timeout=LONG,
    )
    secrecy.said(run.stdout + run.stderr)
    return Result(run.returncode, run.stdout, run.stderr.decode())


class Running:
    """A command that runs.

    Parameters:
        args: ``"pubsub", "tail", …`` or ``"python", "-c", …``.
        coordinator: what PUBSUB_COORDINATOR says.
        stdout: a file for its output; default: a pipe, which `out` reads.
        read: False: nobody reads the pipe before `read_on`.
        prefix: a command that runs the command.
    """

    def __init__(
        self,
        *args: str,
        coordinator: str | None = None,
        stdout: IO[bytes] | None = None,
        read: bool = True,
        prefix: tuple[str, ...] = (),
        **env: str,
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, *_command(args)],
            stdin=subprocess.PIPE,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(coordinator, env),
        )
        self._out: queue.Queue[bytes | None] = queue.Queue()
        self._err: queue.Queue[bytes | None] = queue.Queue()
        self._listening: list[threading.Thread] = []
        self._listen(self.process.stderr, self._err)
        if read and stdout is None:
            self.read_on()

    def _listen(self, stream: IO[bytes] | None, lines: queue.Queue[bytes | None]) -> None:
        def listen() -> None:
            assert stream is not None
            with stream:  # who reads it closes it: closed by another, the read would fail
                for line in stream:
                    secrecy.said(line)
                    lines.put(line)
            lines.put(None)

        thread = threading.Thread(target=listen, daemon=True)
        self._listening.append(thread)
        thread.start()

    def read_on(self) -> None:
        """Read its output from now on."""
        self._listen(self.process.stdout, self._out)

    def out(self) -> str:
        """The next line of its output."""
        return self._next(self._out, "output")

    def err(self) -> str:
        """The next line on standard error."""
        return self._next(self._err, "standard error")

    def _next(self, lines: queue.Queue[bytes | None], what: str) -> str:
        try:
            line = lines.get(timeout=LONG)
        except queue.Empty:
            raise AssertionError(f"no line on {what} within {LONG:g} s") from None
        assert line is not None, f"{what} has ended; standard error: {self._rest(self._err)}"
        return line.decode().rstrip("\n")

    @staticmethod
    def _all(lines: queue.Queue[bytes | None]) -> Iterator[bytes]:
        while True:
            try:
                line = lines.get(timeout=LONG)
            except queue.Empty:
                raise AssertionError(f"no end of lines within {LONG:g} s") from None
            if line is None:
                return
            yield line

    def _rest(self, lines: queue.Queue[bytes | None]) -> list[str]:
        return [line.decode().rstrip("\n") for line in self._all(lines)]

    def send(self, data: bytes | str) -> None:
        """To its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(data.encode() if isinstance(data, str) else data)
        self.process.stdin.flush()

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)
        if number == signal.SIGSTOP:  # on a busy machine, its threads may run on for a moment
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.signal(signal.SIGINT)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(LONG)

    def end(self) -> tuple[int, list[str], list[str]]:
        """Wait for its end: exit code, the lines not yet read of its output and of its errors."""
        code = self.wait()
        return code, self._rest(self._out), self._rest(self._err)

    def rest_of_output(self) -> bytes:
        """The bytes not yet read of its output, up to its end."""
        return b"".join(self._all(self._out))

    def rest_of_errors(self) -> list[str]:
        """The lines not yet read of its standard error, up to its end."""
        return self._rest(self._err)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._listening:
            thread.join(LONG)  # a child of the process may have its outputs for a moment longer
        streams = [self.process.stdin]
        if len(self._listening) < 2:  # nobody reads its output
            streams.append(self.process.stdout)
        for stream in streams:
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass


Start = Callable[..., Running]


@contextmanager
def processes() -> Iterator[Start]:
    """What starts `Running` processes, and ends all of them."""
    running: list[Running] = []

    def start(*args: str, **options: Any) -> Running:
        process = Running(*args, **options)
        running.append(process)
        return process

    try:
        yield start
    finally:
        for process in running:
            process.kill()


def daemon(start: Start, port: int = 0, *more: str) -> tuple[Running, str]:
    """A `pubsubd coordinator` that listens, and where."""
    process = start("pubsubd", "coordinator", "--port", str(port), *more)
    line = process.err()
    assert line.startswith("pubsubd: coordinator on "), line
    return process, line.removeprefix("pubsubd: coordinator on ").split(",")[0]
