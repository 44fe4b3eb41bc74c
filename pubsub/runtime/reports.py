"""What a runtime says of a Pub or Sub that gets or reaches less than its program may think."""

from __future__ import annotations

from collections.abc import Sequence

from pubsub.config import Settings, is_loopback, is_wildcard
from pubsub.core.publication import Leaver
from pubsub.core.rights import SHOWN, Rights, in_words
from pubsub.runtime.lingering import messages
from pubsub.runtime.members import OpenPub
from pubsub.support.logs import logger

__all__ = ["MEET", "say_out_of_reach", "say_shut", "say_what_is_covered"]

log = logger("pubsub")

MEET = 5.0
"""Seconds that a subscriber to which no other way leads has to be met at a relay."""


def say_shut(topic: str, who: Leaver, settings: Settings) -> None:
    """A subscriber was cut off, because it held up a Pub that waits for all."""
    log.warning(
        "Pub(%r, overflow='block'): the subscriber %s is cut off, because it has let nothing "
        "be sent to it for %g s (resume_timeout): it lacks %s",
        *(topic, who.name, settings.resume_timeout, messages(who.lacks)),
        topic=topic,
        address=who.name,
    )


def say_what_is_covered(pattern: str, rights: Rights) -> None:
    """A Sub whose pattern is wider than its right gets a part of what it asks for."""
    part = rights.part(pattern)
    if part and not rights.covers(pattern):
        log.warning(
            "Sub(%r) gets only what this process may subscribe as well: %s",
            *(pattern, in_words(part, SHOWN)),
            topic=pattern,
        )


def say_out_of_reach(
    pub: OpenPub, hosts: Sequence[str], coordinator: str, settings: Settings, *, given: bool
) -> None:
    """A subscriber on another machine, which reaches the coordinator there, cannot reach us: said
    once for each Pub.

    Parameters:
        hosts: where this process can be dialled.
        given: the program names the coordinators, and the environment does not change that.
    """
    if pub.out_of_reach or not all(map(is_loopback, hosts)):
        return
    pub.out_of_reach = True
    if settings.advertise:
        way_out = f"advertise={settings.advertise!r} must be what others can dial"
    elif settings.host and not is_wildcard(settings.host):
        way_out = f"Peer(host={settings.host!r}) must be an address that others can dial"
    elif given:
        way_out = f"name its coordinator as {coordinator}"
    else:
        way_out = f"start it with PUBSUB_COORDINATOR={coordinator}, or with Peer(host=…)"
    log.error(
        "a subscriber on another machine wants %r, and this Peer can be reached on its own "
        "machine only, because it listens on %s: %s",
        *(pub.publication.topic, " and ".join(hosts), way_out),
        topic=pub.publication.topic,
    )
