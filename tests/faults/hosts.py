"""Several machines for tests: network namespaces on bridges, with IPv4, IPv6 and names."""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

import pytest

from tests.faults.gateway import Gateway

__all__ = ["HOSTS", "Hosts", "Lab", "hosts", "lab"]

HOSTS = {"head": 1, "w1": 11, "w2": 12}
"""What they are called, and the last part of their addresses: 10.77.1.n and fd77:1::n."""

CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000

NO_SYN = (  # classic BPF: drop TCP with SYN and without ACK, over IPv4 without options and IPv6
    "14,40 0 0 12,21 0 4 2048,48 0 0 23,21 0 8 6,48 0 0 47,5 0 0 4,"
    "21 0 5 34525,48 0 0 20,21 0 3 6,48 0 0 67,84 0 0 18,21 1 0 2,6 0 0 4294967295,6 0 0 2"
)
LARGE = (  # over IPv4 from one address, with more than 1,314 bytes in all
    "8,40 0 0 12,21 0 4 2048,32 0 0 26,21 0 2 {},128 0 0 0,37 1 0 1314,6 0 0 4294967295,6 0 0 2"
)

T = TypeVar("T")

_labs = itertools.count()


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


class Lab:
    """Networks that lead nowhere else, and machines on them."""

    def __init__(self) -> None:
        self._tag = f"ph{os.getpid() % 1_000_000}{next(_labs)}"
        self._networks: dict[str, tuple[str, str]] = {}
        self._made: list[str] = []
        self._gateways: list[Gateway] = []
        self._names: dict[str, str] = {"localhost": "127.0.0.1\n::1"}

    def namespace(self, host: str) -> str:
        return f"{self._tag}-{host}"

    def on(self, host: str) -> tuple[str, ...]:
        """What runs a command there."""
        return ("ip", "netns", "exec", self.namespace(host))

    def run(self, host: str, *command: str) -> str:
        """Run it there, to its end; returns what it says."""
        done = subprocess.run([*self.on(host), *command], check=True, capture_output=True)
        return done.stdout.decode()

    def within(self, host: str, call: Callable[[], T]) -> T:
        """Call it there: sockets that it makes are that machine's, wherever they are used. ``br``
        is the networks themselves."""

        def there() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.namespace(host)}") as file:
                if libc.setns(file.fileno(), CLONE_NEWNET):  # of this thread alone
                    raise OSError(ctypes.get_errno(), "setns")
            return call()

        with ThreadPoolExecutor(1) as pool:
            return pool.submit(there).result()

    def _namespace(self, host: str) -> str:
        here = self.namespace(host)
        self._made.append(host)
        ip("netns", "add", here)
        ip("-n", here, "link", "set", "lo", "up")
        return here

    def network(self, name: str, ipv4: str = "", ipv6: str = "") -> None:
        """A network whose machines have addresses that begin so: ``10.77.1.`` and ``fd77:1::``."""
        if not self._networks:
            self._namespace("br")
        self._networks[name] = ipv4, ipv6
        ip("-n", self.namespace("br"), "link", "add", name, "type", "bridge")
        ip("-n", self.namespace("br"), "link", "set", name, "up")

    def host(self, host: str, /, **networks: int) -> None:
        """A machine, with its number on each of its networks; its interfaces have their names, and
        the other end of its only one has its own."""
        here, bridges = self._namespace(host), self.namespace("br")
        etc = Path("/etc/netns", here)
        etc.mkdir(parents=True)
        (etc / "resolv.conf").write_text("")
        (etc / "hosts").write_text("")
        for network, number in networks.items():
            port = host if len(networks) == 1 else f"{host}-{network}"
            ip("link", "add", network, "netns", here, "type", "veth", "peer", "name", port,
               "netns", bridges)  # fmt: skip
            ip("-n", bridges, "link", "set", port, "master", network, "up")
            ipv4, ipv6 = self._networks[network]
            if ipv4:
                ip("-n", here, "address", "add", f"{ipv4}{number}/24", "dev", network)
            if ipv6:
                ip("-n", here, "address", "add", f"{ipv6}{number}/64", "dev", network, "nodad")
            ip("-n", here, "link", "set", network, "up")

    def names(self, **names: str) -> None:
        """What these names mean, on every machine."""
        self._names.update(names)
        text = "".join(
            f"{address} {name}\n" for name, all in self._names.items() for address in all.split()
        )
        for host in self._made[1:]:
            # in place: a process there has this very file as its /etc/hosts
            (Path("/etc/netns", self.namespace(host)) / "hosts").write_text(text)

    def route(self, host: str, to: str, *how: str) -> None:
        """``route("w1", "default", "via", "10.77.1.1")``"""
        ip("-n", self.namespace(host), "route", "replace", to, *how)

    def forwards(self, host: str) -> None:
        """It is a router."""
        self.run(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")

    def lets_out_only(self, host: str) -> None:
        """A firewall: nobody can open a connection to this machine; what tries gets no answer."""
        self._drop(host, NO_SYN)

    def swallows_large(self, host: str, source: str) -> None:
        """What comes there from that address in packets of more than 1,300 bytes is lost, and
        nobody is told."""
        self._drop(host, LARGE.format(int(IPv4Address(source))))

    def _drop(self, host: str, bytecode: str) -> None:
        """Drop what comes there and for which that program (classic BPF) returns 2."""
        for _, network in self.within(host, socket.if_nameindex):
            if network == "lo":
                continue
            try:
                self.run(host, "tc", "qdisc", "replace", "dev", network, "clsact")
                self.run(
                    *(host, "tc", "filter", "add", "dev", network, "ingress"),
                    *("bpf", "da", "bytecode", bytecode),
                )
            except (subprocess.CalledProcessError, OSError) as error:
                pytest.skip(f"no packet filter here: {_why(error)}")

    def cut(self, host: str, *others: str) -> None:
        """Nothing goes from this machine to those addresses."""
        for other in others:
            ip("-n", self.namespace(host), "route", "replace", "blackhole", other)

    def mend(self, host: str, *others: str) -> None:
        """It goes again."""
        for other in others:
            ip("-n", self.namespace(host), "route", "delete", "blackhole", other)

    def translates(
        self, host: str, inside: str, outside: str, address: str, **forwarded: tuple[str, int]
    ) -> None:
        """This machine gives those on the network `inside` a way out under one address of the
        network `outside`, which is its alone; of others' connections, those to a port of it that is
        forwarded get in: ``p7800=("172.18.0.2", 7800)``."""

        def tun() -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR)
            flags = IFF_TUN | IFF_NO_PI
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"tun", flags))
            return fd

        try:
            fd = self.within(host, tun)
        except OSError as error:
            pytest.skip(f"no address translation here: /dev/net/tun: {error}")
        here = self.namespace(host)
        self.forwards(host)
        self.run(host, "sysctl", "-qw", f"net.ipv4.conf.{outside}.proxy_arp=1")
        ip("-n", here, "link", "set", "tun", "up")
        ip("-n", here, "route", "add", address, "dev", "tun")
        ip("-n", here, "route", "add", "default", "dev", "tun", "table", "7")
        ip("-n", here, "rule", "add", "iif", inside, "lookup", "7")
        ports = {int(name[1:]): place for name, place in forwarded.items()}
        self._gateways.append(Gateway(fd, address, ports))

    def remove(self) -> None:
        for gateway in self._gateways:
            gateway.close()
        for name in self._made:
            here = self.namespace(name)
            subprocess.run(["ip", "netns", "delete", here], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", here), ignore_errors=True)


class Hosts(Lab):
    """The machines `HOSTS`, on one network."""

    def make(self) -> None:
        self.network("e0", "10.77.1.", "fd77:1::")
        for host, number in HOSTS.items():
            self.host(host, e0=number)
        names = {name: f"10.77.1.{number}" for name, number in HOSTS.items()}
        names.update({f"{name}6": f"fd77:1::{number}" for name, number in HOSTS.items()})
        self.names(**names)


def _why(error: Exception) -> str:
    why: bytes = getattr(error, "stderr", None) or str(error).encode()
    return why.decode().strip()


L = TypeVar("L", bound=Lab)


@contextmanager
def _made(lab: L, make: Callable[[L], None]) -> Iterator[L]:
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the command ip")
    try:
        try:
            make(lab)
        except (subprocess.CalledProcessError, OSError) as error:
            pytest.skip(f"no network namespaces here: {_why(error)}")
        yield lab
    finally:
        lab.remove()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Removed after the test; skipped where there can be none."""
    with _made(Hosts(), Hosts.make) as made:
        yield made


@pytest.fixture
def lab() -> Iterator[Lab]:
    """The same, with one network, ``lan``, of both families, and nobody on it yet."""
    with _made(Lab(), lambda lab: lab.network("lan", "10.77.1.", "fd77:1::")) as made:
        yield made
