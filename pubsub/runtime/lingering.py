"""Lingering: waiting until subscribers have received what they are due, and saying who has not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pubsub.core.publication import Publication
from pubsub.links.patience import Patience
from pubsub.support.logs import logger

if TYPE_CHECKING:
    from pubsub.runtime.members import OpenPub
    from pubsub.runtime.runtime import Runtime

__all__ = ["linger", "messages", "received", "say_interrupted", "say_unsent", "unreceived"]

log = logger("pubsub")

LOOK_AGAIN = 0.25
"""Seconds after which a close looks again for whom it waits in vain …"""
SAY_AFTER = 1.0
"""… and after which it says for whom it waits."""
NAMED = 5
"""Pubs that a message for people names at most."""


async def linger(
    runtime: Runtime, pubs: Sequence[OpenPub], seconds: float, by: float, *, last: bool = False
) -> None:
    """Wait until `by`, which is `seconds` after the beginning, until what waits for room has been
    put and every subscriber has received all of it. One line says for whom it waits, when that
    takes long (while a Peer is being closed, only its own close, the `last`, does), and one who
    lacks what at the end."""
    loop = runtime.loop
    began = loop.time()
    said = seconds <= SAY_AFTER
    timer: asyncio.Handle | Patience

    def look() -> None:
        nonlocal said, timer
        timer = Patience(loop, LOOK_AGAIN, look)
        now = loop.time()
        named = not all(session.tried and not session.up for session in runtime.sessions)
        for pub in pubs:
            pub.publication.hurry(now, named=named)
        if now - began >= SAY_AFTER and not said and (last or not runtime.closing):
            said = True
            log.warning(
                "closing waits up to %.0f s more (linger=%g)%s: %s",
                by - now,
                seconds,
                ", and Ctrl-C ends it" if runtime.exiting or runtime.shut_down else "",
                unreceived(pubs),
            )

    tasks = [loop.create_task(_delivered(loop, pub, by)) for pub in pubs]
    timer = loop.call_soon(look)
    try:
        results = await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        timer.cancel()
    for error in results:
        if isinstance(error, Exception):  # one Pub's trouble is no other's
            log.error("internal error while a Pub was ended", exc_info=error)
    lacking = unreceived(pub for pub in pubs if not pub.publication.ended)
    if lacking and seconds > 0:
        took = loop.time() - began
        log.warning("closed after %.1f s (linger=%g): %s", took, seconds, lacking)


async def _delivered(loop: asyncio.AbstractEventLoop, pub: OpenPub, by: float) -> None:
    """Wait until then for one Pub."""
    pub.source.seal()
    queued = pub.source.queued()
    if queued is not None and by > loop.time():
        await asyncio.wait({queued}, timeout=by - loop.time())
    left = max(0, by - loop.time())
    await received(loop, pub.publication, left, observers=True, hurries=True)


async def received(
    loop: asyncio.AbstractEventLoop,
    publication: Publication,
    timeout: float | None,
    *,
    observers: bool = False,
    hurries: bool = False,
) -> bool:
    """Wait until all that is in the log has been received; False when time ran out."""
    arrived = asyncio.Event()
    waiter = publication.when_received(arrived.set, observers=observers, hurries=hurries)
    if waiter is None:
        return True
    timer = None if timeout is None else loop.call_later(timeout, arrived.set)
    try:
        await arrived.wait()
    finally:
        publication.forget_waiter(waiter)
        if timer is not None:
            timer.cancel()
    return not waiter.pending


def unreceived(pubs: Iterable[OpenPub]) -> str:
    """How many messages of which Pubs are not known to have been received, and by whom; empty:
    there are none. May be called from any thread."""
    found = []
    for pub in pubs:
        publication = pub.publication
        put = max(publication.log.next_seq, pub.source.count())
        if count := publication.unreceived(put):
            whom = publication.behind(put) or "subscribers that no coordinator has named yet"
            found.append((count, f"{messages(count)} of Pub({publication.topic!r})", whom))
    named = "; ".join(
        f"{what} {'is' if count == 1 else 'are'} not known to have been received by {whom}"
        for count, what, whom in found[:NAMED]
    )
    if more := sum(count for count, _, _ in found[NAMED:]):
        named += f"; nor {messages(more)} of {len(found) - NAMED} more Pubs"
    return named


def say_interrupted(pubs: Iterable[OpenPub]) -> None:
    """Say what a close that was interrupted has not sent."""
    if lacking := unreceived(pubs):
        log.warning("closing was interrupted: %s", lacking)


def say_unsent(pubs: Iterable[OpenPub]) -> None:
    """Say what was not sent when an event loop was closed whose Peer was still open."""
    if lacking := unreceived(pubs):
        log.warning(
            "an event loop was closed before all was sent (`await pub.close()` before that, or "
            "asyncio.run, sends it): %s",
            lacking,
        )


def messages(count: int) -> str:
    """So many, in words."""
    return f"{count:,} message{'s' if count > 1 else ''}"
