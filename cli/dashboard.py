"""``pubsubd dashboard``: a page in the browser that shows what flows, and what is wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pubsub.cli.command import (
    OK,
    Failure,
    coordinator_option,
    credential_options,
    end_signals,
    guard_of_command,
    make_peer,
    run,
    say,
)
from pubsub.cli.serving import is_exposed, log_level_option, log_to, many_files, told_by_stdin
from pubsub.cli.systemd import Notifier
from pubsub.config import Address, is_loopback, is_wildcard, parse_address
from pubsub.trust.files import read_private

__all__ = ["HTTP", "check_dashboard", "dashboard"]

HTTP = Address("127.0.0.1", 7780)
"""Where a dashboard listens that is told nothing else."""
SHORTEST = 16
"""Characters that a token has at least: others of the machine may try many."""


@dataclass(frozen=True)
class _Plan:
    """What a dashboard is to do, checked."""

    http: Address
    names: tuple[str, ...]
    token: str
    token_file: str | None  # where its users find the token; None: in the link
    metrics_token: str | None
    open_metrics: bool
    tls: tuple[str, str] | None  # certificate and key
    context: ssl.SSLContext | None


def _env(name: str) -> dict[str, Any]:
    """An option that may be in the environment, for a dashboard that a coordinator starts."""
    return {"envvar": f"PUBSUB_DASHBOARD_{name}", "show_envvar": True}


@click.command(
    epilog="Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed (such as: the port is in use), 2 "
    "used wrongly."
)
@click.option(
    "--http",
    metavar="HOST:PORT",
    default=str(HTTP),
    show_default=True,
    help="Where to listen. Other than loopback: only with --tls-cert. Port 0: any free one.",
)
@coordinator_option()
@credential_options
@click.option(
    "--token-file",
    metavar="FILE",
    help="The token, in a file that nobody else can read. Default: a new one at each start, in the "
    "link that is printed.",
    **_env("TOKEN_FILE"),
)
@click.option(
    "--tls-cert",
    metavar="FILE",
    help="Serve https, with this certificate (PEM), and its chain.",
    **_env("TLS_CERT"),
)
@click.option(
    "--tls-key",
    metavar="FILE",
    help="Its private key (PEM). Default: in the same file.",
    **_env("TLS_KEY"),
)
@click.option(
    "--name",
    "names",
    metavar="NAME",
    multiple=True,
    help="A name under which browsers reach it, beside those of this machine. May be repeated.",
    **_env("NAME"),
)
@click.option(
    "--metrics-token-file",
    metavar="FILE",
    help="Another token, with which /metrics can be read and nothing else.",
    **_env("METRICS_TOKEN_FILE"),
)
@click.option(
    "--open-metrics",
    is_flag=True,
    help="Let everybody read /metrics who can connect.",
    **_env("OPEN_METRICS"),
)
@log_level_option
@click.option(
    "--while-stdin",
    is_flag=True,
    help="End when standard input does, as when the program that has started it is gone.",
)
def dashboard(coordinator: str | None, log_level: str, while_stdin: bool, **options: Any) -> int:
    """Show in a browser what flows, and what is wrong.

    It prints a link that opens it. Whoever has the link sees all topics, and messages of those that
    he peeks at, as far as the key or the certificate of this command may; nobody else does, and
    nothing can be changed there. While nobody looks at it, nothing is measured anywhere.

    \b
    pubsubd dashboard
    ssh -L 7780:127.0.0.1:7780 HOST   # on another machine: the link works there

    /metrics is for Prometheus and wants the token as a bearer; /health says that it runs.
    """
    plan = _planned(**options)
    many_files()
    log_to(log_level)
    guard_of_command()
    return run(_serve(plan, coordinator, while_stdin))


def check_dashboard(args: Sequence[str]) -> None:
    """Raise what a dashboard with these arguments would fail with at once."""
    with dashboard.make_context("dashboard", [*args]) as context:
        params = dict(context.params)
        for other in ("coordinator", "log_level", "while_stdin"):
            del params[other]
        _planned(**params)


def _planned(
    http: str,
    token_file: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    names: Sequence[str],
    metrics_token_file: str | None,
    open_metrics: bool,
) -> _Plan:
    try:
        import_module("pubsub.dashboard")
    except ImportError as error:
        raise Failure(str(error)) from None
    host, free = (http.removesuffix(":0"), True) if http.endswith(":0") else (http, False)
    try:
        address = parse_address(f"{host}:1" if free else http, what="--http")
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if free:
        address = address._replace(port=0)
    exposed = is_exposed(address.host, "--http")
    if tls_key is not None and tls_cert is None:
        raise click.UsageError("--tls-key is of no use without --tls-cert")
    if exposed and tls_cert is None:
        raise click.UsageError(
            f"--http {address} can be reached from other machines, and who listens on the network "
            "would read the token: give a certificate by --tls-cert FILE, or listen on 127.0.0.1 "
            f"and reach it by `ssh -L {HTTP.port}:127.0.0.1:{HTTP.port} HOST`"
        )
    if metrics_token_file is not None and open_metrics:
        raise click.UsageError("--metrics-token-file and --open-metrics exclude each other")
    tls = None if tls_cert is None else (tls_cert, tls_key or tls_cert)
    return _Plan(
        http=address,
        names=(*_own_names(address.host), *names),
        token=_token(token_file) if token_file is not None else secrets.token_urlsafe(32),
        token_file=token_file,
        metrics_token=None if metrics_token_file is None else _token(metrics_token_file),
        open_metrics=open_metrics,
        tls=tls,
        context=None if tls is None else _load(_new_context(), tls),
    )


def _own_names(host: str) -> list[str]:
    """By which browsers may know who listens there. (The address that they connect to is one.)"""
    if is_loopback(host):
        return ["localhost", "127.0.0.1", "::1"]
    name = socket.gethostname()
    own = ["localhost", name, name.partition(".")[0]]
    return own if is_wildcard(host) else [host, *own]


def _token(path: str) -> str:
    """What a file with a token has in it."""
    token = read_private(path, "token file").decode(errors="replace").strip()
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise Failure(
            f"token file {path} has no token, of at least {SHORTEST} letters and digits: make one "
            f"by `openssl rand -hex 32 > {path}`"
        )
    return token


def _new_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(context: ssl.SSLContext, tls: tuple[str, str]) -> ssl.SSLContext:
    """Use what the files have now, for who connects from now on."""
    certificate, key = tls
    read_private(key, "TLS key")
    try:
        context.load_cert_chain(certificate, key, password="")
    except FileNotFoundError:
        raise Failure(f"--tls-cert {certificate} is not there") from None
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        where = certificate if certificate == key else f"{certificate} and {key}"
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise Failure(
            f"{where}: no certificate in PEM with its private key, which no password hides ({why})"
        ) from None
    return context


async def _serve(plan: _Plan, coordinator: str | None, while_stdin: bool) -> int:
    from pubsub.dashboard import Access, Dashboard

    notifier = Notifier()
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def renew() -> None:
        if plan.context is not None and plan.tls is not None:
            try:
                _load(plan.context, plan.tls)
            except click.ClickException as error:
                say(f"{error.format_message()}: the one before is used on", by="pubsubd")

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, renew)
    if while_stdin:
        await told_by_stdin(told)
    peer = make_peer("pubsubd dashboard", coordinator, None)
    access = Access(
        *(plan.token, plan.names),
        metrics_token=plan.metrics_token,
        open_metrics=plan.open_metrics,
    )
    server = Dashboard(peer, access)
    with end_signals(lambda code: told.set()):
        try:
            try:
                addresses = await server.start(*plan.http, plan.context)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise Failure(
                        f"{plan.http} is in use: another dashboard may be running (--http "
                        f"{plan.http.host}:0 takes any free port)"
                    ) from None
                why = os.strerror(error.errno) if error.errno else str(error)
                raise Failure(f"cannot listen on {plan.http}: {why}") from None
            status = f"dashboard on {_link(plan, addresses[0][1])}"
            say(status, by="pubsubd")
            notifier.ready(status.partition("?")[0])
            await told.wait()
            notifier.stopping()
        finally:
            await server.close()
            await peer.close(linger=0)
    return OK


def _link(plan: _Plan, port: int) -> str:
    """What a person opens."""
    host = plan.http.host
    if is_wildcard(host):
        host = socket.gethostname()
    scheme = "http" if plan.context is None else "https"
    where = f"{scheme}://{Address(host, port)}/"
    if plan.token_file is not None:
        return f"{where}, with the token in {Path(plan.token_file)}"
    return f"{where}?token={plan.token}"
