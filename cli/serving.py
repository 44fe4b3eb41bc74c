"""What the daemons have in common: options, logging, descriptors, where they may listen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import click

from pubsub.cli.command import Failure
from pubsub.cli.systemd import Formatter
from pubsub.links import listening

__all__ = [
    "encrypt_option",
    "is_exposed",
    "log_level_option",
    "log_to",
    "many_files",
    "told_by_stdin",
]

log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    show_default=True,
    help="What to log on standard error.",
)
encrypt_option = click.option(
    "--encrypt/--no-encrypt",
    default=None,
    help="With a key: TLS on loopback too; or nowhere, where all others say so, too. Default: TLS "
    "between machines.",
)


def log_to(level: str) -> None:
    """Log from this level on, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter())
    logging.basicConfig(handlers=[handler], level=level.upper())


def many_files() -> None:
    """As many file descriptors as this process may have: one for each peer. What it may have is
    often much more than what it gets unasked, which is kept low for programs that use select()."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS says that there is no limit, and has one
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def is_exposed(host: str, option: str = "--host") -> bool:
    """Whether other machines may reach a daemon that listens there."""
    try:
        return listening.is_exposed(host)
    except OSError as error:
        raise Failure(f"{option} {host}: {error.strerror or error}") from None


async def told_by_stdin(told: asyncio.Event) -> None:
    """From now on, set it when standard input ends: whoever has started this process is gone,
    however that came."""
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: _Parent(told), sys.stdin)


class _Parent(asyncio.Protocol):
    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    def connection_lost(self, exc: Exception | None) -> None:
        self._told.set()
