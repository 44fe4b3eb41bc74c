"""Standard input that a signal interrupts, whenever it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pubsub.cli.input import interruptible


def test_a_pipe_is_read_line_by_line() -> None:
    read, write = os.pipe()
    try:
        with interruptible(read) as stream:
            os.write(write, b"one\ntwo\nth")
            assert [stream.readline(), stream.readline()] == [b"one\n", b"two\n"]
            os.write(write, b"ree")
            os.close(write)
            assert list(stream) == [b"three"]
    finally:
        os.close(read)


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % n for n in range(100_000))
    (tmp_path / "log").write_bytes(data)
    with (tmp_path / "log").open("rb") as file, interruptible(file.fileno()) as stream:
        assert b"".join(stream) == data


def test_a_signal_ends_the_wait_and_the_wakeup_descriptor_is_given_back() -> None:
    code = "import os, signal; input(); os.kill(os.getppid(), signal.SIGINT)"
    sender = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    silent, unused = os.pipe()
    try:
        with pytest.raises(KeyboardInterrupt), interruptible(silent) as stream:
            assert sender.stdin is not None
            sender.stdin.write(b"\n")
            sender.stdin.close()
            stream.readline()
        assert signal.set_wakeup_fd(-1) == -1
        assert sender.wait() == 0
    finally:
        for descriptor in (silent, unused):
            os.close(descriptor)


def test_signals_whose_handlers_return_do_not_end_it() -> None:
    read, write = os.pipe()

    def answer(number: int, frame: object) -> None:
        os.write(write, b"after the signal\n")

    before = signal.signal(signal.SIGUSR1, answer)
    try:
        with interruptible(read) as stream:
            signal.raise_signal(signal.SIGUSR1)
            assert stream.readline() == b"after the signal\n"
    finally:
        signal.signal(signal.SIGUSR1, before)
        os.close(read)
        os.close(write)
