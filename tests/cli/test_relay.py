"""`pubsubd relay`, and the relay beside a coordinator, as processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

pytest.importorskip("cryptography", reason="certificates are made by `cryptography`")

from pubsub.cli.asking import ask
from pubsub.config import Address, parse_address
from pubsub.trust.certificates import Pair
from pubsub.trust.guard import Group
from pubsub.trust.keys import Key
from pubsub.wire.handshake import tcp
from pubsub.wire.messages import RelayRow
from tests.cli.processes import LONG, Running, Start, execute
from tests.relay.meeting import Door

RELAY = re.compile(r"pubsubd: relay on (127\.0\.0\.1:\d+), with the key (\w+) of this group")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    assert execute("pubsubd", "key", "new", str(path)).code == 0
    return path


def group(path: Path) -> Group:
    keys = (Key.parse(path.read_text().split()[-1]),)
    return Group(keys, lambda: keys, None, Pair.new())


def coordinator(start: Start, key: Path, *args: str) -> tuple[Running, Address]:
    process = start("pubsubd", "coordinator", "--port", "0", "--key-file", str(key), *args)
    return process, parse_address(process.err().split()[-1])


def relays(where: Address, key: Path, count: int) -> list[RelayRow]:
    """Those that a coordinator knows, once there are so many."""
    until = time.monotonic() + LONG
    while True:
        rows = ask(where, "relays", group(key))
        if len(rows) == count:
            at = [(row["peer_id"], parse_address(row["address"])) for row in rows]
            return [RelayRow(peer_id, tcp(*address)) for peer_id, address in at]
        assert time.monotonic() < until, rows
        time.sleep(0.05)


def its_relay(process: Running) -> tuple[int, str]:
    """The process of a coordinator's relay, and where it listens."""
    started = re.fullmatch(r"pubsubd: its relay is process (\d+)", process.err())
    assert started is not None
    says = RELAY.match(process.err())
    assert says is not None
    assert process.err().startswith("pubsubd: found through ")
    return int(started[1]), says[1]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    try:  # nobody may be there to take note of its end
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_gone(pid: int) -> None:
    until = time.monotonic() + LONG
    while not gone(pid):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_relay_says_where_it_is_and_with_what_and_ends_quietly(
    start: Start, key: Path, number: int
) -> None:
    there, where = coordinator(start, key)
    process = start(
        *("pubsubd", "relay", "--port", "0", "--key-file", str(key)), coordinator=str(where)
    )
    line = process.err()
    says = RELAY.match(line)
    assert says is not None, line
    assert process.err() == f"pubsubd: found through {where}"
    (row,) = relays(where, key, 1)
    assert row.ways[0][1:] == parse_address(says[1])
    process.signal(signal.SIGHUP)
    process.signal(number)
    assert process.end() == (0, [], [])
    relays(where, key, 0)
    there.signal(signal.SIGTERM)
    there.end()


def test_a_relay_says_that_it_is_found_when_it_is_let_in_and_else_what_is_wrong(
    start: Start, key: Path, tmp_path: Path
) -> None:
    there, where = coordinator(start, key)
    other = tmp_path / "other"
    assert execute("pubsubd", "key", "new", str(other)).code == 0
    for path, place, why in (
        (other, where, "key"),
        (key, Address("127.0.0.1", 9), "nothing listens there"),
    ):
        process = start(
            *("pubsubd", "relay", "--port", "0", "--key-file", str(path)), coordinator=str(place)
        )
        assert RELAY.match(process.err())
        said = process.err()
        assert f"not found through the coordinator at {place}: " in said
        assert why in said.partition(str(place))[2]
        process.signal(signal.SIGTERM)
        assert process.end() == (0, [], [])
    there.signal(signal.SIGTERM)
    there.end()


def test_an_insecure_relay_says_what_it_can_do(start: Start) -> None:
    process = start("pubsubd", "relay", "--port", "0", "--insecure", coordinator="127.0.0.1:9")
    assert "open to everyone who can reach it (--insecure)" in process.err()
    assert process.err() == "pubsubd: --insecure: a relay can read and alter all that passes it"
    process.signal(signal.SIGTERM)
    assert process.end()[0] == 0


def test_a_relay_refuses_what_nobody_could_use(tmp_path: Path, key: Path) -> None:
    alone = execute("pubsubd", "relay", "--port", "0")
    assert alone.code == 1
    assert "over a relay there is always TLS, and the secret of this user has none" in alone.err
    plain = execute("pubsubd", "relay", "--port", "0", "--key-file", str(key), "--no-encrypt")
    assert plain.code == 1
    assert "encrypt=False" in plain.err
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = execute("pubsubd", "relay", "--port", port, "--key-file", str(key))
    assert taken.code == 1
    assert "is in use: another relay may be running" in taken.err
    for command in (["init", str(tmp_path / "ca")], ["issue", str(tmp_path / "ca"), "x", "--list"]):
        assert execute("pubsubd", "cert", *command).code == 0
    (cert,) = (tmp_path / "ca").rglob("x.pem")
    no = execute("pubsubd", "relay", "--port", "0", "--cert", str(cert))
    assert (no.code, "does not make it a relay" in no.err) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_relay_of_a_coordinator_ends_with_it_however_that_ends(
    start: Start, key: Path, number: int
) -> None:
    process, where = coordinator(start, key, "--relay")
    pid, _ = its_relay(process)
    relays(where, key, 1)
    process.signal(number)
    process.wait()
    wait_until_gone(pid)


def test_a_busy_relay_and_one_that_is_killed_keep_nobody_from_the_coordinator(
    start: Start, key: Path
) -> None:
    """While circuits carry as much as they can, and while the relay is killed and started anew."""
    process, where = coordinator(start, key, "--relay")
    pid, _ = its_relay(process)
    (row,) = relays(where, key, 1)

    async def busy() -> tuple[float, int]:
        s, p = Door(group(key)), Door(group(key))
        p.relays.meet([row], None)
        end = await s.reach(p, row)
        assert end.link is not None
        link, loop = end.link, asyncio.get_running_loop()
        (served,) = p.served
        assert served.link is not None
        heard = 0

        def note(event: object) -> None:
            nonlocal heard
            heard += 1

        served.receive = note  # type: ignore[method-assign]
        from pubsub.wire.messages import Subscribed, encode

        frames = encode(Subscribed(0, "t" * 1000, "msgpack", 0, 0, 0)) * 100

        async def pour() -> None:
            while True:
                if not link.paused:
                    link.write(frames)
                await asyncio.sleep(0)

        pouring = asyncio.ensure_future(pour())
        slowest = 0.0
        for _ in range(20):
            began = loop.time()
            await asyncio.to_thread(ask, where, "peers", group(key))
            slowest = max(slowest, loop.time() - began)
        pouring.cancel()
        await s.close()
        await p.close()
        return slowest, heard

    slowest, heard = asyncio.run(busy())
    assert heard > 1_000
    assert slowest < 1.0
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert ask(where, "peers", group(key)) == []
    assert time.monotonic() - began < 1.0
    assert re.fullmatch(r"pubsubd: its relay ended with -9, and is started anew", process.err())
    again, _ = its_relay(process)
    assert again != pid
    until = time.monotonic() + 5
    while [r.peer_id for r in relays(where, key, 1)] == [row.peer_id]:
        assert time.monotonic() < until
    assert time.monotonic() - began < 5
    process.signal(signal.SIGTERM)
    assert process.end()[0] == 0
    wait_until_gone(again)
