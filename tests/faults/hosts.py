"""Several machines for tests: network namespaces on one bridge, with IPv4, IPv6 and names."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

__all__ = ["HOSTS", "Hosts", "hosts"]

HOSTS = {"head": 1, "w1": 11, "w2": 12}
"""What they are called, and the last part of their addresses: 10.77.1.n and fd77:1::n."""

CLONE_NEWNET = 0x40000000

T = TypeVar("T")

_labs = itertools.count()


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Hosts:
    """The machines `HOSTS`, on one network that leads nowhere else."""

    def __init__(self) -> None:
        self._tag = f"ph{os.getpid() % 1_000_000}{next(_labs)}"

    def namespace(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def on(self, host: str) -> tuple[str, ...]:
        """What runs a command there."""
        return ("ip", "netns", "exec", self.namespace(host))

    def within(self, host: str, call: Callable[[], T]) -> T:
        """Call it there: sockets that it makes are that machine's, wherever they are used. ``br``
        is the network itself."""

        def there() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.namespace(host)}") as file:
                if libc.setns(file.fileno(), CLONE_NEWNET):  # of this thread alone
                    raise OSError(ctypes.get_errno(), "setns")
            return call()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(there).result()

    def make(self) -> None:
        bridge = self.namespace("br")
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
        ip("-n", bridge, "link", "set", "bridge", "up")
        names = "127.0.0.1 localhost\n::1 localhost\n"
        names += "".join(f"10.77.1.{n} {name}\nfd77:1::{n} {name}6\n" for name, n in HOSTS.items())
        for host, number in HOSTS.items():
            here = self.namespace(host)
            ip("netns", "add", here)
            etc = Path("/etc/netns", here)
            etc.mkdir(parents=True)
            (etc / "hosts").write_text(names)
            (etc / "resolv.conf").write_text("")
            ip("-n", here, "link", "set", "lo", "up")
            ip("link", "add", "e0", "netns", here, "type", "veth", "peer", "name", host,
               "netns", bridge)  # fmt: skip
            ip("-n", bridge, "link", "set", host, "master", "bridge", "up")
            ip("-n", here, "address", "add", f"10.77.1.{number}/24", "dev", "e0")
            ip("-n", here, "address", "add", f"fd77:1::{number}/64", "dev", "e0", "nodad")
            ip("-n", here, "link", "set", "e0", "up")

    def remove(self) -> None:
        for name in ("br", *HOSTS):
            here = self.namespace(name)
            subprocess.run(["ip", "netns", "delete", here], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", here), ignore_errors=True)


@contextmanager
def _made() -> Iterator[Hosts]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip")
    hosts = Hosts()
    try:
        try:
            hosts.make()
        except (subprocess.CalledProcessError, OSError) as error:
            why = getattr(error, "stderr", None) or str(error).encode()
            pytest.skip(f"no network namespaces here: {why.decode().strip()}")
        yield hosts
    finally:
        hosts.remove()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Removed after the test; skipped where there can be none."""
    with _made() as made:
        yield made
