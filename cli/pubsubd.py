"""The command ``pubsubd``: runs the coordinator or a relay, and makes keys and certificates."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import click

from pubsub.cli.asking import ask, check
from pubsub.cli.certs import cert
from pubsub.cli.command import (
    OK,
    Failure,
    check_coordinator,
    credential_options,
    end_signals,
    given_credentials,
    guard_of_command,
    program,
    run,
    say,
    show_help,
)
from pubsub.cli.dashboard import HTTP, check_dashboard
from pubsub.cli.dashboard import dashboard as dashboard_command
from pubsub.cli.keys import key
from pubsub.cli.relay import check_relay
from pubsub.cli.relay import relay as relay_command
from pubsub.cli.serving import encrypt_option, is_exposed, log_level_option, log_to, many_files
from pubsub.cli.systemd import Notifier
from pubsub.config import (
    DEFAULT_COORDINATOR,
    FOREVER,
    MAX_WAYS,
    Address,
    coordinators_from,
    is_loopback,
    is_wildcard,
)
from pubsub.errors import CoordinatorUnavailable, PubSubError
from pubsub.relay.child import Child
from pubsub.runtime.coordinator_link import PORTS
from pubsub.trust.guard import Guard

__all__ = ["main"]

EPILOG = """
Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed (such as: the port is in use), 2 used
wrongly.
"""


pubsubd = program(
    "pubsubd",
    "The daemon of pubsubd, the brokerless publish-subscribe runtime.",
    "It runs once for a group of machines, or not at all: on a single one the first process "
    "starts a coordinator in itself.",
    epilog=EPILOG,
)(show_help)


@pubsubd.command(epilog=EPILOG)
@click.option(
    "--host",
    metavar="ADDRESS",
    default=DEFAULT_COORDINATOR.host,
    show_default=True,
    help="Address to listen on; 0.0.0.0 is all of this machine, :: also those of IPv6. Other than "
    "loopback: only with a key or a certificate (or --insecure).",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=DEFAULT_COORDINATOR.port,
    show_default=True,
    help="Port to listen on; 0: any free one, which the first line names.",
)
@log_level_option
@credential_options
@click.option(
    "--trust-advertise",
    is_flag=True,
    help="Tell others to dial whatever address a program says that it has. Default: so it is with "
    "a key; else the one from which it comes is told, or one that its certificate names.",
)
@encrypt_option
@click.option(
    "--relay",
    is_flag=True,
    help="Run a relay beside it, as a process of its own, at the same address: see `pubsubd relay "
    "--help`.",
)
@click.option(
    "--relay-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=0,
    show_default=True,
    help="Port of that relay; 0: any free one.",
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    default=None,
    help=f"Run a dashboard there, such as {HTTP}, as a process of its own: see `pubsubd dashboard "
    "--help`.",
)
def coordinator(
    host: str,
    port: int,
    log_level: str,
    trust_advertise: bool,
    encrypt: bool | None,
    relay: bool,
    relay_port: int,
    http: str | None,
) -> int:
    """Run a coordinator: tells subscribers where publishers are, and carries no message.

    On one machine it needs nothing: the programs of one user know each other by a secret. For
    several machines, make a key, and copy it to each of them:

    \b
    pubsubd key new ~/pubsub.key
    export PUBSUB_KEY_FILE=~/pubsub.key
    pubsubd coordinator --host 0.0.0.0

    SIGHUP has it read its key or certificate anew, as it does each minute. docs/security.md says
    who is protected from whom, and how programs can have different rights.

    It may be stopped and started at any time: streams go on meanwhile, and all that it knows its
    peers tell it again when it comes back. But a program to which no coordinator is named, neither
    in its code nor by PUBSUB_COORDINATOR, uses the default address and becomes the coordinator
    itself as soon as there is none; the port is then in use for as long as it lives. With
    PUBSUB_COORDINATOR=127.0.0.1:7700 set for all programs none of them does that.

    Ctrl-C and SIGTERM end it.
    """
    log_to(log_level)
    many_files()
    address = Address(host, port)
    exposed = is_exposed(host)
    guard = guard_of_command(encrypt=encrypt)
    if exposed and guard.local:
        raise click.UsageError(
            f"--host {host} can be reached from other machines, and no key says who may connect "
            "from there: make one by `pubsubd key new FILE`, copy it to each machine, and set "
            "PUBSUB_KEY_FILE to it (or add --insecure, where everyone on that network may publish "
            "and subscribe)"
        )
    guard.check_coordinator(exposed=exposed)
    beside: dict[str, list[str]] = {}
    if http is not None:
        beside["dashboard"] = ["--http", http, "--log-level", log_level]
        check_dashboard(beside["dashboard"])
    if relay:
        check_relay(guard)
        more = beside["relay"] = [
            "--host",
            host,
            "--port",
            str(relay_port),
            "--log-level",
            log_level,
        ]
        if encrypt is not None:
            more.append("--encrypt" if encrypt else "--no-encrypt")
    return run(_serve(address, exposed, guard, trust_advertise, beside))


async def _serve(
    address: Address,
    exposed: bool,
    guard: Guard,
    trust_advertise: bool,
    commands: Mapping[str, Sequence[str]],
) -> int:
    from pubsub.coordinator.server import Coordinator  # `pubsubd --help` needs none of it

    notifier = Notifier()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = Coordinator(loop, guard=guard, trust_advertise=trust_advertise)
    server.renewal.start()
    children: list[Child] = []

    def renew() -> None:
        with notifier.reloading():
            server.renewal.look()
            for child in children:
                child.renew()

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, renew)
    with end_signals(lambda code: told.set()):
        try:
            await server.start(*address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Failure(_in_use(address)) from None
            why = os.strerror(error.errno) if error.errno else str(error)
            raise Failure(f"cannot listen on {address}: {why}") from None
        note = ", open to everyone who can reach it (--insecure)" if guard.open else ""
        status = f"coordinator on {' and '.join(map(str, server.addresses))}{note}"
        say(status, by="pubsubd")
        notifier.ready(status)
        if exposed:
            say(_how_to_reach(server.addresses), by="pubsubd")
        beside = await asyncio.to_thread(_beside, server.addresses, guard)
        if beside:
            say(beside, by="pubsubd")
        for command, args in commands.items():
            first, also = _for_relay(server.addresses, guard)
            args = [*_credentials(), *(also if command == "relay" else ()), *args]
            children.append(Child(command, first, args, say=partial(say, by="pubsubd")))
            children[-1].start()
        await told.wait()
        notifier.stopping()
        await asyncio.gather(*(child.close() for child in children))
        await server.close()
    return OK


def _credentials() -> list[str]:
    """Those of this command, as options of another one."""
    options: list[str] = []
    for name, value in given_credentials().items():
        options.append(f"--{name.replace('_', '-')}")
        if value is not True:
            options.append(str(value))
    return options


def _for_relay(listening: Sequence[Address], guard: Guard) -> tuple[Address, list[str]]:
    """Where a relay beside it finds it, which is how others are told to reach the relay; and the
    other addresses, so that one of another network reaches it too."""
    first, *more = _reachable(listening)
    others = [each.host for each in more if not is_loopback(each.host)]
    if guard.open or not others:  # nobody would be told
        return first, []
    return first, ["--advertise", ",".join([first.host, *others][: MAX_WAYS - 1])]


def _beside(listening: Sequence[Address], guard: Guard) -> str:
    """What to say of another coordinator of this machine, which programs find that name none."""
    here = [each.host for each in listening if each.port == DEFAULT_COORDINATOR.port]
    if any(is_loopback(host) or is_wildcard(host) for host in here):
        return ""  # it is this one
    try:
        ask(DEFAULT_COORDINATOR, "topics", guard, timeout=1.0)
    except PubSubError:
        return ""
    return (
        f"another coordinator runs at {DEFAULT_COORDINATOR} on this machine, perhaps in a program: "
        "programs for which PUBSUB_COORDINATOR is not set use that one, and do not find those of "
        "this one"
    )


def _how_to_reach(listening: Sequence[Address]) -> str:
    """What to give to the programs of all machines."""
    found = [each for each in _reachable(listening) if not is_loopback(each.host)]
    first, *more = found or [Address(socket.gethostname(), listening[0].port)]
    also = f"; or at {', '.join(map(str, more))}" if more else ""
    return f"programs on this machine and others reach it with PUBSUB_COORDINATOR={first}{also}"


def _reachable(listening: Sequence[Address]) -> list[Address]:
    """By which addresses one that listens there is reached, those for other machines first."""
    found: dict[Address, None] = {}
    for host, port in listening:
        hosts = [*_own_addresses(ipv6=":" in host), "127.0.0.1"] if is_wildcard(host) else [host]
        found.update({Address(host, port): None for host in hosts})
    return sorted(found, key=lambda each: is_loopback(each.host))


def _own_addresses(*, ipv6: bool) -> list[str]:
    """Those of this machine, as far as they can be found out, the most used first."""
    found = [*_of_the_way_out(socket.AF_INET, "192.0.2.1")]
    with contextlib.suppress(OSError):  # Linux
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        found += [a.split()[-1] for a, b in pairwise(lines) if b.strip() == "/32 host LOCAL"]
    if ipv6:
        found += _of_the_way_out(socket.AF_INET6, "2001:db8::1")
        with contextlib.suppress(OSError):
            for line in Path("/proc/net/if_inet6").read_text().splitlines():
                digits, _, _, scope, *_ = line.split()
                if scope == "00":  # of the whole network, not of one cable
                    found.append(str(ipaddress.IPv6Address(bytes.fromhex(digits))))
    return found


def _of_the_way_out(family: int, anywhere: str) -> Iterator[str]:
    """The address from which this machine would reach others; nothing is sent."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((anywhere, 9))
        yield sock.getsockname()[0]


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


@pubsubd.command(epilog="Exit codes: 0 a coordinator answers, 1 none does, 2 used wrongly.")
@click.argument(
    "address",
    metavar="[HOST:PORT[,…]]",
    required=False,
    envvar="PUBSUB_COORDINATOR",
    callback=check_coordinator,
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True, max=FOREVER),
    metavar="SECONDS",
    default=5.0,
    show_default=True,
    help="How long it has for all of it.",
)
@credential_options
def health(address: str | None, timeout: float) -> None:
    """Whether a coordinator answers: for whoever starts one and looks after it.

    Connects as a program does, with the credentials that this command has, and asks a small
    question. It says nothing where all is well. Of several coordinators, or of a name with several
    addresses, one has to answer. Default: PUBSUB_COORDINATOR, else the one of this user on this
    machine.

    \b
    HEALTHCHECK CMD ["pubsubd", "health", "127.0.0.1:7700"]
    """
    named, configured = coordinators_from(address, {})
    if not configured:  # others of the machine may have the first ports
        host, port = DEFAULT_COORDINATOR
        named = tuple(Address(host, port + n) for n in range(PORTS))
    try:
        check(named, guard_of_command(), timeout)
    except CoordinatorUnavailable as error:
        raise Failure(error.problem) from None


pubsubd.add_command(relay_command)
pubsubd.add_command(dashboard_command)
pubsubd.add_command(key)
pubsubd.add_command(cert)

main = pubsubd


if __name__ == "__main__":
    main()
