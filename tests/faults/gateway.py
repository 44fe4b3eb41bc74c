"""Address translation, as a router at home or the host of a container does it, for tests: of TCP
over IPv4, packet by packet, in a thread."""

from __future__ import annotations

import os
import select
import struct
import threading
from collections.abc import Mapping
from ipaddress import IPv4Address

__all__ = ["Gateway"]

TCP = 6

Place = tuple[bytes, int]
"""An address and a port."""


class Gateway:
    """Who is behind it dials out under its address, each connection from a port of its own; from
    outside, only what belongs to one of these comes in, and what is for a port that is forwarded.
    The rest gets no answer.

    Parameters:
        tun: the descriptor of an interface, to which all is routed that comes from inside, or is
            for `address`.
        address: the one that those outside see.
        forwarded: ports of it, and where those inside lead.
    """

    def __init__(self, tun: int, address: str, forwarded: Mapping[int, tuple[str, int]]) -> None:
        self._tun = tun
        self._address = IPv4Address(address).packed
        self._forwarded = {
            port: (IPv4Address(host).packed, to) for port, (host, to) in forwarded.items()
        }
        self._out: dict[tuple[Place, Place], int] = {}  # from inside, to outside: our port
        self._in: dict[tuple[Place, int], Place] = {}  # from outside, to our port: inside
        self._port = 40_000
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take it away."""
        os.write(self._stopped, b"x")
        self._thread.join()
        for fd in (self._tun, self._stop, self._stopped):
            os.close(fd)

    def _run(self) -> None:
        while self._stop not in select.select([self._tun, self._stop], [], [])[0]:
            packet = self._translated(bytearray(os.read(self._tun, 65_536)))
            if packet is not None:
                os.write(self._tun, packet)

    def _translated(self, packet: bytearray) -> bytearray | None:
        if packet[0] >> 4 != 4 or packet[9] != TCP:
            return None
        at = (packet[0] & 15) * 4
        source, target = bytes(packet[12:16]), bytes(packet[16:20])
        from_port, to_port = struct.unpack_from("!HH", packet, at)
        if target == self._address:
            outside = source, from_port
            inside = self._in.get((outside, to_port)) or self._forwarded.get(to_port)
            if inside is None:
                return None
            self._out[inside, outside] = to_port
            target, to_port = inside
        else:
            inside, outside = (source, from_port), (target, to_port)
            port = self._out.get((inside, outside))
            if port is None:
                self._port += 1
                port = self._out[inside, outside] = self._port
                self._in[outside, port] = inside
            source, from_port = self._address, port
        before = bytes(packet[12:20] + packet[at : at + 4])
        packet[12:20] = source + target
        struct.pack_into("!HH", packet, at, from_port, to_port)
        after = bytes(packet[12:20] + packet[at : at + 4])
        _correct(packet, 10, before[:8], after[:8])
        _correct(packet, at + 16, before, after)
        return packet


def _correct(packet: bytearray, at: int, before: bytes, after: bytes) -> None:
    """The checksum there, after that change (RFC 1624)."""
    (old,) = struct.unpack_from("!H", packet, at)
    words = f"!{len(before) // 2}H"
    total = (old ^ 0xFFFF) + sum(word ^ 0xFFFF for word in struct.unpack(words, before))
    total += sum(struct.unpack(words, after))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", packet, at, total ^ 0xFFFF)
