"""The commands ``pubsubd cert``: a CA, what it issues and revokes, and what a certificate says."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from pubsub.cli.command import say, show_help
from pubsub.core.rights import Rights
from pubsub.core.topics import check_pattern
from pubsub.errors import TopicError
from pubsub.faces.foreign import foreign_wildcard
from pubsub.support.host import this_host
from pubsub.trust.files import read_file

# What makes certificates needs `cryptography`, without which `pubsubd --help` works too: the
# commands import it where they use it.

__all__ = ["cert"]

EPILOG = """
Exit codes: 0 done, 1 failed (such as: there is no CA), 2 used wrongly.
"""

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


cert = click.group(
    "cert",
    epilog=EPILOG,
    invoke_without_command=True,
    help="Make, show and revoke certificates: for programs that may do different things.\n\n"
    "`pubsubd key new` makes what is simpler: one key, with which all may do everything.",
)(show_help)


@cert.command(epilog=EPILOG)
@click.argument("directory", type=_DIRECTORY, metavar="DIR")
def init(directory: Path) -> None:
    """Make a CA: what issues certificates to programs.

    Its private key never leaves the directory, which belongs on a machine that you trust more than
    the others.
    """
    from pubsub.trust.issuing import init

    init(directory)
    here = quote(str(directory))
    say(f"made a CA in {directory}; {directory / 'ca.key'} never leaves it", by="pubsubd")
    say(
        f"next: `pubsubd cert issue {here} head --coordinator` for the coordinator, and for each "
        f"program such as `pubsubd cert issue {here} lamp --publish 'lamps/**' --subscribe "
        "'config/*'`",
        by="pubsubd",
    )


def _patterns(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    try:
        patterns = tuple(map(check_pattern, values))
    except TopicError as error:
        raise click.UsageError(f"--{param.name}: {error}", ctx) from None
    for foreign in filter(None, map(foreign_wildcard, patterns)):
        say(foreign, by="pubsubd")
    return patterns


@cert.command(epilog=EPILOG)
@click.argument("directory", type=_DIRECTORY, metavar="DIR")
@click.argument("name")
@click.option(
    "--publish",
    multiple=True,
    metavar="PATTERN",
    callback=_patterns,
    help="Topics that it may publish; may be given several times.",
)
@click.option(
    "--subscribe",
    multiple=True,
    metavar="PATTERN",
    callback=_patterns,
    help="Topics that it may subscribe; may be given several times.",
)
@click.option("--coordinator", is_flag=True, help="It may be a coordinator.")
@click.option("--relay", is_flag=True, help="It may be a relay.")
@click.option("--list", "list_", is_flag=True, help="It may ask a coordinator for all its peers.")
@click.option(
    "--days",
    type=click.IntRange(1, 36500),
    metavar="N",
    default=90,
    show_default=True,
    help="For how long it is valid.",
)
@click.option(
    "--advertise",
    multiple=True,
    metavar="HOST",
    help="A name or address under which it may say that it is reached, beside the one that its "
    "connections come from; may be given several times.",
)
def issue(
    directory: Path,
    name: str,
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    coordinator: bool,
    relay: bool,
    list_: bool,
    days: int,
    advertise: tuple[str, ...],
) -> None:
    """Issue a certificate for a program, with what it may do: DIR/NAME.pem.

    The file has the certificate, its private key, and the certificate of the CA. Copy it to the
    host of the program, and set PUBSUB_CERT to it there. In a PATTERN, as in that of a Sub, * is
    one segment and ** any number of them.

    To renew one, issue it again with the same NAME before it expires, and copy it again: programs
    read it within a minute, and stay who they are. The earlier one is valid until it expires or is
    revoked.
    """
    rights = Rights(publish, subscribe, coordinator, relay, list_)
    if rights == Rights():
        raise click.UsageError(
            f"{name!r} could do nothing: say what it may, by --publish, --subscribe, "
            "--coordinator, --relay or --list"
        )
    from pubsub.trust.authority import says_host
    from pubsub.trust.issuing import check_name, issue
    from pubsub.trust.reading import when_seconds

    try:
        check_name(name)
        for host in advertise:
            says_host(host)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    path, card, before = issue(directory, name, rights, days=days, hosts=advertise)
    say(
        f"wrote {path}, which only you can read: {name!r} {card.rights}, until "
        f"{when_seconds(card.not_after)}",
        by="pubsubd",
    )
    if before is not None:
        say(
            f"the one that {name!r} had before is valid until {when_seconds(before.timestamp())}, "
            f"too: `pubsubd cert revoke {quote(str(directory))} {name}` would revoke both",
            by="pubsubd",
        )
    program = "pubsubd coordinator" if coordinator else "the program"
    say(
        f"copy it to where {name!r} runs (such as by `scp -p`), and start {program} there with "
        f"PUBSUB_CERT={quote(path.name)}",
        by="pubsubd",
    )


@cert.command(epilog=EPILOG)
@click.argument("directory", type=_DIRECTORY, metavar="DIR")
@click.argument("name")
def revoke(directory: Path, name: str) -> None:
    """Revoke all certificates that were issued for NAME so far.

    Writes DIR/revoked.crl, a list that the CA has signed; the one with the highest number holds.
    Copy it to where the certificate of each coordinator lies, which tells all programs. Who is to
    go on under this name gets a new certificate afterwards.
    """
    from pubsub.trust.issuing import revoke

    path, number, new = revoke(directory, name)
    if not new:
        say(f"all certificates of {name!r} are revoked already, see {path}", by="pubsubd")
        return
    count = "the certificate" if new == 1 else f"{new} certificates"
    say(f"revoked {count} of {name!r}: wrote {path}, number {number}", by="pubsubd")
    say(
        "copy it to the directory where each coordinator has its certificate: they tell all "
        "programs within a minute",
        by="pubsubd",
    )


@cert.command(epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
def show(file: Path) -> None:
    """Say in words what a certificate is, whose, and what it allows.

    FILE is one that `cert issue` wrote, the certificate of a CA, or a list of revoked ones. Private
    keys are not shown.
    """
    data, others = read_file(file, "certificate file")
    from pubsub.trust.reading import describe

    lines = describe(data, f"certificate file {file}", this_host().wall_clock())
    if others and b"PRIVATE KEY-----" in data:
        lines.append(
            (
                "not usable",
                f"other users may {others} it, and it has a private key: chmod 600 "
                f"{quote(str(file))}",
            )
        )
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name:{width}}  {text}")
