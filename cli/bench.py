"""``pubsub bench``: what the network between two programs gives."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from pubsub import Peer
from pubsub.cli.command import (
    FAILED,
    OK,
    Failure,
    end_signals,
    given_credentials,
    guard_of_command,
    make_peer,
    say,
)
from pubsub.cli.measuring import Flood, Measuring, answer, limit_of, own_name, percentiles
from pubsub.cli.rate import in_bytes
from pubsub.cli.serving import told_by_stdin
from pubsub.cli.terminal import printable
from pubsub.config import Settings

__all__ = ["Asked", "answering", "bench"]

TURNS = 1000
"""Messages that go there and back, one after the other …"""
TURNING = 2.0
"""… and seconds for them."""
WARM_UP = 0.5
"""Seconds of putting that do not count, and for which a new Pub may keep what it has for others."""
JOIN = 1.0
"""Seconds for which it keeps that."""
PATIENCE = 2.0
"""Seconds after which it is said for whom this waits."""
END = 3.0
"""Seconds for it to end."""

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """What is to be measured."""

    coordinator: str | None
    size: int
    seconds: float
    count: int | None
    partner: str | None
    """The name under which somebody answers; None: a process of this command does."""
    as_json: bool


async def bench(asked: Asked) -> int:
    """Measure and print; returns the exit code."""
    return await _until_signal(_bench(asked))


async def answering(name: str, coordinator: str | None, while_stdin: bool) -> int:
    """Answer one `bench`; returns the exit code. Without a name, say one."""
    return await _until_signal(_answering(name, coordinator, while_stdin))


async def _until_signal(work: Any) -> int:
    """The code of the work, or of the signal that has ended it."""
    task: asyncio.Task[int] = asyncio.ensure_future(work)
    codes: list[int] = []

    def told(code: int) -> None:
        codes.append(code)
        task.cancel()

    with end_signals(told):
        await asyncio.wait({task})
    return codes[0] if task.cancelled() and codes else task.result()


async def _bench(asked: Asked) -> int:
    name = asked.partner or _own_name()
    peer = make_peer("pubsub bench", asked.coordinator, JOIN, Settings().connect_timeout)
    try:
        if asked.partner is None:
            async with _child(peer, name, asked.coordinator) as gone:
                return _show(asked, *await _first(_measure(peer, name, asked), gone))
        return _show(asked, *await _measure(peer, name, asked))
    except TimeoutError as error:
        raise Failure(f"the side that answers is gone, or too slow: {error}") from None
    finally:
        await peer.close(0.0)


def _own_name() -> str:
    name = own_name(guard_of_command(), "pubsub-bench")
    if name is None:
        raise Failure(
            "this certificate has no pattern of which it may both publish and subscribe a topic"
        )
    return name


async def _measure(peer: Peer, name: str, asked: Asked) -> tuple[list[float], Flood, Any]:
    """Measure; who waits longer than a moment is told for whom."""
    word = asyncio.get_running_loop().call_later(
        PATIENCE, say, f"measures with `pubsub bench --answer {name}`, once that is there …"
    )
    try:
        async with Measuring.between(peer, name, asked.size) as measuring:
            word.cancel()
            turns = await measuring.turns(TURNS, TURNING)
            await measuring.flood(None, WARM_UP)
            flood = await measuring.flood(asked.count, asked.seconds)
            return turns, flood, measuring.way
    finally:
        word.cancel()


async def _first(work: Any, gone: Awaitable[int]) -> Any:
    """What the work gives, unless the process that it needs ends before."""
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Failure(f"the process that answers has ended with {ending.result()}")
        return working.result()
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.wait({working, ending})


@asynccontextmanager
async def _child(peer: Peer, name: str, coordinator: str | None) -> AsyncIterator[Awaitable[int]]:
    """Within: another process answers. It ends with this one, however that ends."""
    options = ["--answer", name, "--while-stdin"]
    if coordinator is not None:
        options += ["--coordinator", coordinator]
    for option, value in given_credentials().items():
        flag = "--" + option.replace("_", "-")
        options += [flag] if value is True else [flag, str(value)]
    async with peer:  # its coordinator is there, should it be this process
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pubsub.cli.pubsub", "bench", *options),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for this one to pass on
        )
        try:
            yield process.wait()
        finally:
            assert process.stdin is not None
            process.stdin.close()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), END)
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _answering(name: str, coordinator: str | None, while_stdin: bool) -> int:
    told = asyncio.Event()
    if while_stdin:
        await told_by_stdin(told)
    elif not name:
        name = _own_name()
        say(f"answers; start the other side by `pubsub bench --with {name}`")
    peer = make_peer("pubsub bench --answer", coordinator, JOIN, Settings().connect_timeout)
    working = asyncio.ensure_future(answer(peer, name))
    ending = asyncio.ensure_future(told.wait())
    try:
        await asyncio.wait({working, ending}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return OK
    finally:
        for task in (working, ending):
            task.cancel()
        await asyncio.wait({working, ending})
        await peer.close(0.0)


def _show(asked: Asked, turns: list[float], flood: Flood, way: Any) -> int:
    median, most = percentiles(turns)
    rate = flood.messages / flood.seconds
    limit = limit_of(flood, asked.size, median)
    if asked.as_json:
        row = {
            "size": asked.size,
            "messages": flood.messages,
            "seconds": round(flood.seconds, 3),
            "messages_per_second": round(rate, 1),
            "bytes_per_second": round(rate * asked.size, 1),
            "lost": flood.lost,
            "round_trips": len(turns),
            "round_trip_p50": round(median, 6),
            "round_trip_p99": round(most, 6),
            "way": way["way"],
            "failed": way["failed"],
            "publisher_busy": round(flood.publisher, 3),
            "subscriber_busy": round(flood.subscriber, 3),
            "limit": limit,
        }
        click.echo(json.dumps(row, indent=2, ensure_ascii=False))
    else:
        kind = f"bytes, {asked.size:,} each"
        lines = {
            "throughput": f"{rate:,.0f} messages/s, {in_bytes(rate * asked.size)}/s",
            "round trip": f"p50 {median * 1000:.3f} ms, p99 {most * 1000:.3f} ms (of {len(turns)})",
            "lost": f"{flood.lost:,} of {flood.messages + flood.lost:,}",
            "messages": f"{kind}, for {flood.seconds:.1f} s",
            "way": "; ".join((way["way"] or "none", *way["failed"])),
            "limit": limit,
        }
        for label, text in lines.items():
            click.echo(printable(f"{label:<10}  {text}"))
    return FAILED if flood.lost else OK
