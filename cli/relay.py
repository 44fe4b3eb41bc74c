"""``pubsubd relay``: where peers meet that cannot dial each other."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Sequence

import click

from pubsub.cli.command import (
    OK,
    Failure,
    Subcommand,
    coordinator_option,
    credential_options,
    end_signals,
    guard_of_command,
    run,
    say,
)
from pubsub.cli.serving import (
    encrypt_option,
    is_exposed,
    log_level_option,
    log_to,
    many_files,
    told_by_stdin,
)
from pubsub.cli.systemd import Notifier
from pubsub.config import Address, Settings, coordinators_from
from pubsub.trust.guard import Guard

__all__ = ["check_relay", "relay"]

PORT = 7701
"""Where a relay listens that is told nothing else."""


@click.command(
    cls=Subcommand,
    epilog="Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed (such as: the port is in use), 2 "
    "used wrongly.",
)
@click.option(
    "--host",
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 is all of this machine, :: also those of IPv6.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=PORT,
    show_default=True,
    help="Port to listen on; 0: any free one, which the first line names.",
)
@click.option(
    "--advertise",
    metavar="HOST[:PORT]",
    default=None,
    help="What others are told to dial. Default: the address from which it reaches a coordinator.",
)
@coordinator_option()
@log_level_option
@credential_options
@encrypt_option
@click.option(
    "--while-stdin",
    is_flag=True,
    help="End when standard input does, as when the program that has started it is gone.",
)
def relay(
    host: str,
    port: int,
    advertise: str | None,
    coordinator: str | None,
    log_level: str,
    encrypt: bool | None,
    while_stdin: bool,
) -> int:
    """Run a relay: two programs meet there, neither of which can dial the other.

    It passes bytes on, and keeps and decodes nothing: programs make their own TLS across it. It
    needs the key of the group, or a certificate (pubsubd cert issue DIR NAME --relay), and an
    address that all can dial; they find it through the coordinators.

    \b
    export PUBSUB_KEY_FILE=~/pubsub.key
    pubsubd relay --host 0.0.0.0 --coordinator 10.77.1.1:7700

    SIGHUP has it read its key or certificate anew, as it does each minute. Ctrl-C and SIGTERM end
    it: who meets there meets at another relay, or when it is back.
    """
    log_to(log_level)
    many_files()
    guard = guard_of_command(encrypt=encrypt)
    check_relay(guard)
    is_exposed(host)  # that it is an address at all
    settings = Settings(host=host, port=port, advertise=advertise, name="pubsubd relay")
    where, _ = coordinators_from(coordinator, os.environ)
    return run(_serve(settings, where, guard, while_stdin))


def check_relay(guard: Guard) -> None:
    """Raise Failure where nobody could meet at a relay with these credentials."""
    if not guard.open:
        guard.context_for_relay()
    if not guard.rights.relay:
        raise Failure(
            f"the certificate of {guard.name!r} does not make it a relay: issue one with `pubsubd "
            "cert issue DIR NAME --relay`"
        )


async def _serve(
    settings: Settings, coordinators: Sequence[Address], guard: Guard, while_stdin: bool
) -> int:
    from pubsub.relay.server import Relay  # `pubsubd --help` needs none of it

    notifier = Notifier()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = Relay(loop, coordinators, settings=settings, guard=guard)
    server.on_found = lambda address: say(f"found through {address}", by="pubsubd")

    def renew() -> None:
        with notifier.reloading():
            server.renewal.look()

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, renew)
    if while_stdin:
        await told_by_stdin(told)
    with end_signals(lambda code: told.set()):
        try:
            addresses = await server.start()
        except OSError as error:
            at = Address(settings.host or "", settings.port)
            if error.errno == errno.EADDRINUSE:
                raise Failure(f"{at} is in use: another relay may be running") from None
            raise Failure(f"cannot listen on {at}: {error.strerror or error}") from None
        shown = f"with {guard.label}"
        if guard.open:
            shown = "open to everyone who can reach it (--insecure)"
        status = f"relay on {' and '.join(map(str, addresses))}, {shown}"
        say(status, by="pubsubd")
        notifier.ready(status)
        if guard.open:
            say("--insecure: a relay can read and alter all that passes it", by="pubsubd")
        await told.wait()
        notifier.stopping()
        await server.close()
    return OK
