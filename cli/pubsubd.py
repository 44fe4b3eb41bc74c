"""The command ``pubsubd``: runs the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import socket
import sys

import click

from pubsub.cli.command import FAILED, OK, Failure, end_signals, program, run, say
from pubsub.config import DEFAULT_COORDINATOR, Address

__all__ = ["main"]

EPILOG = """
Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed (such as: the port is in use), 2 used
wrongly.
"""


@program(
    "pubsubd",
    "The daemon of pubsubd, the brokerless publish-subscribe runtime.",
    "It runs once for a group of machines, or not at all: on a single one the first process "
    "starts a coordinator in itself.",
    epilog=EPILOG,
)
@click.pass_context
def pubsubd(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@pubsubd.command(epilog=EPILOG)
@click.option(
    "--host",
    metavar="ADDRESS",
    default=DEFAULT_COORDINATOR.host,
    show_default=True,
    help="Address to listen on. Other than loopback: only with --insecure.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=DEFAULT_COORDINATOR.port,
    show_default=True,
    help="Port to listen on; 0: any free one, which the first line names.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    default="warning",
    show_default=True,
    help="What to log on standard error.",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Listen on any address, though nothing checks yet who connects.",
)
def coordinator(host: str, port: int, log_level: str, insecure: bool) -> int:
    """Run a coordinator: tells subscribers where publishers are, and carries no message.

    It may be stopped and started at any time: streams go on meanwhile, and all that it knows its
    peers tell it again when it comes back. But a program to which no coordinator is named, neither
    in its code nor by PUBSUB_COORDINATOR, uses the default address and becomes the coordinator
    itself as soon as there is none; the port is then in use for as long as it lives. With
    PUBSUB_COORDINATOR=127.0.0.1:7700 set for all programs none of them does that.

    Ctrl-C and SIGTERM end it.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    _take_descriptors()
    address = Address(host, port)
    exposed = not _is_loopback(address)
    if exposed and not insecure:
        raise click.UsageError(
            f"--host {host} can be reached from other machines, and nothing checks yet who "
            "connects (authentication is not there yet): where everyone on that network may "
            "publish and subscribe, add --insecure"
        )
    return run(_serve(address, exposed))


def _take_descriptors() -> None:
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


def _is_loopback(address: Address) -> bool:
    """Whether only this machine can reach it."""
    if not address.host:
        return False
    try:
        found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise Failure(f"--host {address.host}: {error.strerror or error}") from None
    return all(ipaddress.ip_address(str(row[4][0]).split("%")[0]).is_loopback for row in found)


async def _serve(address: Address, exposed: bool) -> int:
    from pubsub.coordinator.server import Coordinator  # `pubsubd --help` needs none of it

    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def stop(code: int) -> None:
        if not told.done():
            told.set_result(code)

    server = Coordinator(loop)
    with end_signals(stop):
        try:
            where = await server.start(*address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                say(_in_use(address), by="pubsubd")
            else:
                why = os.strerror(error.errno) if error.errno else str(error)
                say(f"cannot listen on {address}: {why}", by="pubsubd")
            return FAILED
        note = ", open to everyone who can reach it (--insecure)" if exposed else ""
        say(f"coordinator on {where}{note}", by="pubsubd")
        await told
        await server.close()
    return OK


def _in_use(address: Address) -> str:
    """Who may have the port already, and what to do about it."""
    text = f"{address} is in use: another coordinator may be running"
    if address.port == DEFAULT_COORDINATOR.port:
        text += (
            ", or a program that uses the default address has taken over as coordinator: end that "
            f"one, and set PUBSUB_COORDINATOR={DEFAULT_COORDINATOR} for the programs, so that "
            "none of them takes over"
        )
    return text


def main() -> None:
    """Entry point."""
    pubsubd()


if __name__ == "__main__":
    main()
