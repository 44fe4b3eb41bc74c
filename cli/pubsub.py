"""The command ``pubsub``: look at topics, and put messages on them, from a shell."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any, Literal

import click

from pubsub.cli.arguments import (
    PERIOD,
    POSITIVE,
    SIZE,
    Header,
    History,
    Read,
    Topic,
    TopicOrFile,
    fields_of,
    fsync,
    moment,
    rate_of,
    remap,
    where_of,
)
from pubsub.cli.command import (
    Subcommand,
    coordinator_option,
    credential_options,
    guard_of_command,
    log_lines,
    program,
    run,
    show_help,
)
from pubsub.config import coordinators_from
from pubsub.core.topics import check_pattern, check_topic

__all__ = ["main"]

EPILOG = """
Exit codes: 0 done (also when the reader of a pipe had enough), 1 failed, or not all was delivered,
2 used wrongly, 3 --timeout ended it before what was asked for was there, 4 (tail, record) a
publisher was never reached, 130 Ctrl-C, 143 SIGTERM.
"""


pubsub = program(
    "pubsub",
    "Look at topics, and put messages on them.",
    "Messages come straight from the processes that publish them; a coordinator (see pubsubd) "
    "only says where these are.",
    epilog=EPILOG,
)(show_help)


HISTORY = click.option(
    "--history",
    type=History(),
    metavar="N|all",
    default=0,
    help="Begin with so many messages from before, as far as publishers keep them.",
)


class _Put(Subcommand):
    """`put`, where a negative number may be the value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        negative = len(args) > 1 and re.fullmatch(r"-\.?\d.*", args[-1])
        if negative and "--" not in args and not args[-2].startswith("-"):
            args = [*args[:-1], "--", args[-1]]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.possibilities:  # it looks like an option of ours
                raise
            raise click.UsageError(
                f"no such option {error.option_name!r}; a VALUE that begins with a dash stands "
                f"behind two: {ctx.command_path} TOPIC -- VALUE",
                ctx,
            ) from None


@pubsub.command(epilog=EPILOG)
@click.argument(
    "patterns", metavar="TOPIC|PATTERN…", nargs=-1, required=True, type=Topic(check_pattern)
)
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", help="End after so many messages."
)
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="End after so many seconds in which none was shown; with --count: exit code 3. Bounds the "
    "wait for a coordinator too.",
)
@click.option("--timestamps", "times", is_flag=True, help="Show when each message was sent.")
@click.option("--topics", is_flag=True, help="Show each message's topic.")
@click.option("--headers", is_flag=True, help="Show what was put beside each message.")
@HISTORY
@click.option(
    "--since",
    type=Read("time", moment),
    metavar="TIME",
    help="Begin with those that were sent after this, as far as publishers keep them: 30s, 5m, 2h "
    "or 1d ago, 12:30, 2026-05-31T12:30.",
)
@click.option(
    "--where",
    type=Read("expression", where_of),
    metavar="EXPRESSION",
    help="Show those alone of which this is true: 'temp > 30 and room == \"kitchen\"'.",
)
@click.option(
    "--fields",
    type=Read("fields", fields_of),
    metavar="A,B.C",
    help="Show these parts of each value alone: keys and indices, with dots between them.",
)
@click.option(
    "--rate",
    is_flag=True,
    help="Show each second how many messages and bytes come on each topic, and no message.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["json", "repr", "raw"]),
    default="json",
    show_default=True,
    help="How to show a value: as JSON, as Python writes it, or text and bytes as they are.",
)
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Colour the lines; by itself on a terminal, unless NO_COLOR is set.",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Accept pickled messages, which may run code of the sender's choice.",
)
@click.option(
    "--allow-pickle-of-anyone",
    is_flag=True,
    help="The same, with --insecure too, where nobody has shown who sends it.",
)
@click.option(
    "-q", "--quiet", is_flag=True, help="Do not say at the end what was received and lost."
)
@coordinator_option(", where the command runs one itself if there is none")
@credential_options
def tail(**options: Any) -> int:
    """Show the messages of topics as they come, a line each.

    In a PATTERN, * stands for one segment of a topic and ** for any number of them (quote it:
    the shell has a meaning for * too). What is lost is said on standard error. That, a publisher
    that vanished or never was reached, a stream that is refused (see --allow-pickle), and lines
    that were not written when a signal ended it, make the exit code 1.

    \b
    pubsub tail 'sensors/**' --topics --timestamps
    pubsub tail orders | jq .price
    pubsub tail log --format raw > log.txt
    pubsub tail 's/**' --where 'temp > 30 and room == "attic"' --fields temp,at
    pubsub tail orders --since 5m --where 'customer.name in ["ann", "bob"]'

    In EXPRESSION, written as in Python, names are keys of the value, and a.b and a[0] what is in
    it. Else value is the value itself, topic its topic, time when it was sent. There are also
    len(x), lower(text), search(regex, text) and date("2026-05-31"). What a value does not have, or
    cannot be compared, is not shown, and counted at the end. It needs pubsubd[cli].

    With --timestamps, --topics or --headers, lines of JSON are objects of "time", "topic",
    "headers" and "value"; in the other formats these stand before the value, each followed by a
    tab. JSON has no form for
    some values: dates become ISO 8601, bytes {"base64": "…"}, tuples and sets arrays, NaN "NaN",
    numpy arrays nested arrays.
    """
    from pubsub.cli.tail import Wanted, tail

    if sys.stdout is None:
        raise OSError("standard output is closed")
    _exclusive("since", "history")
    for other in ("count", "times", "topics", "history", "since", "where", "fields", "form"):
        _exclusive("rate", other)
    wanted = Wanted(**options)
    log_lines(logging.WARNING if wanted.quiet else logging.INFO)
    return run(tail(wanted))


def _exclusive(one: str, other: str) -> None:
    """Two options of this command are not to be given both."""
    context = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, None)
    if all(context.get_parameter_source(name) not in default for name in (one, other)):
        names = {param.name: max(param.opts, key=len) for param in context.command.params}
        raise click.UsageError(
            f"{names[one]} and {names[other]} exclude each other: leave one of them out", context
        )


@pubsub.command(cls=_Put, epilog=EPILOG)
@click.argument("topic", type=Topic(check_topic))
@click.argument("value")
@click.option("--json-lines", is_flag=True, help="With -: each line is JSON.")
@click.option(
    "--header",
    "headers",
    type=Header(),
    multiple=True,
    help="Put it beside each message, for who looks at headers; may be given again.",
)
@click.option("--rate", type=POSITIVE, metavar="N", help="Put at most so many messages a second.")
@click.option(
    "--wait",
    type=click.IntRange(min=1),
    metavar="N",
    help="Wait for so many subscribers first; exit code 1 if then nobody receives anything.",
)
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="How long to wait for these (default: for ever; then exit code 3), for a tail that takes "
    "nothing any more (default: 10), and for a coordinator, or a subscriber that does not come "
    "(default: 5).",
)
@coordinator_option(", where with --wait the command runs one itself if there is none")
@credential_options
def put(
    value: str,
    json_lines: bool,
    headers: tuple[tuple[str, str | bytes], ...],
    wait: int | None,
    **options: Any,
) -> int:
    """Put a message on a topic.

    VALUE is JSON, or else a plain string; - puts every line of standard input as a message (a
    string; bytes where it is not UTF-8), without the line's end.

    \b
    pubsub put lamp/set '{"on": true}'
    pubsub put greetings hello
    tail -f app.log | pubsub put logs/app -

    It ends when every subscriber has received what was put. All that are there get it, also a
    tail of it however long the input is; --wait waits for those that are still to come. Who has
    not received all of it is said, and makes the exit code 1; that nobody was there does not.
    """
    from pubsub.cli.input import interruptible
    from pubsub.cli.put import Sending, from_json_lines, from_lines, from_text, put

    if value != "-" and json_lines:
        raise click.UsageError("--json-lines goes with -: it is about standard input")
    sending = Sending(wait=wait or 0, headers=dict(headers) or None, **options)
    if sending.coordinator is None:  # it fails at once, with an error that says it all, or waits
        log_lines(logging.INFO if wait else logging.ERROR)
    else:
        log_lines()
    if value != "-":
        return put(sending, [(from_text(value), len(value))])
    if sys.stdin is None:
        raise OSError("standard input is closed")
    with interruptible(sys.stdin.fileno()) as stream:
        return put(sending, from_json_lines(stream) if json_lines else from_lines(stream))


@pubsub.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="As an array of objects, for programs.")
@coordinator_option()
@credential_options
def topics(as_json: bool, coordinator: str | None) -> int:
    """Show the topics and patterns that the coordinator knows.

    The subscribers of a topic are counted with those whose pattern matches it. Of several
    coordinators each shows its own.
    """
    return _list("topics", as_json, coordinator)


@pubsub.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="As an array of objects, for programs.")
@coordinator_option()
@credential_options
def peers(as_json: bool, coordinator: str | None) -> int:
    """Show the processes that the coordinator knows.

    "away" are those whose connection was lost a moment ago. Of several coordinators each shows
    its own.
    """
    return _list("peers", as_json, coordinator)


@pubsub.command(epilog=EPILOG)
@click.argument(
    "topic",
    metavar="[TOPIC|PATTERN]",
    required=False,
    type=Topic(check_pattern, warns=False),
)
@click.option("--json", "as_json", is_flag=True, help="As an array of objects, for programs.")
@coordinator_option()
@credential_options
def doctor(topic: str | None, coordinator: str | None, as_json: bool) -> int:
    """Find out why nothing arrives.

    Looks at the settings and credentials that a program started here would have, dials each
    coordinator, peer and relay, and sends messages of its own through two Peers. Of a TOPIC it
    says who publishes it, what may be meant instead, and what comes within 2 seconds. Each line
    says what is, and, where something is wrong, what to do; then the exit code is 1.

    Run it where something is missing, as the program there is run.
    """
    from pubsub.cli.doctor import doctor

    return run(doctor(topic, coordinator, as_json))


@pubsub.command(epilog=EPILOG)
@click.argument("what", metavar="TOPIC|PATTERN|FILE", type=TopicOrFile(check_pattern))
@click.option("--json", "as_json", is_flag=True, help="As one object, for programs.")
@coordinator_option()
@credential_options
def info(what: str | Path, coordinator: str | None, as_json: bool) -> int:
    """Show who publishes and subscribes a topic, and why it is slow; or what is in a FILE.

    Asks every process for what it knows of itself, and looks for a second or a few. A line that
    begins with WRONG names what keeps messages from coming, or makes them late; then the exit code
    is 1. Looking changes nothing: no message is subscribed.

    What is a file, or ends in .mcap, is a recording: when it was made, and of each topic how many
    messages, by how many publishers and in which codec, and what was lost. One whose recorder was
    killed is finished by it: what is behind its last whole chunk is cut off, and its index written.
    """
    if isinstance(what, Path):
        from pubsub.cli import recordings

        return recordings.info(str(what), as_json=as_json)
    from pubsub.cli.info import info

    return run(info(what, coordinator, as_json))


LINES = click.option(
    "-n", "--count", "lines", type=click.IntRange(min=1), metavar="N", help="End after N seconds."
)


@pubsub.command(epilog=EPILOG)
@click.argument(
    "topics", metavar="TOPIC|PATTERN…", nargs=-1, required=True, type=Topic(check_pattern)
)
@LINES
@click.option("--json", "as_json", is_flag=True, help="Each line as an object, for programs.")
@coordinator_option()
@credential_options
def rate(topics: tuple[str, ...], lines: int | None, coordinator: str | None, as_json: bool) -> int:
    """Show how many messages and bytes are put on topics, a line a second.

    Adds up what the publishing processes tell of themselves: no message is subscribed, so looking
    changes nothing. VARIES is the standard deviation over the last 10 seconds.
    """
    from pubsub.cli.speed import rate

    return run(rate(topics, coordinator, lines, as_json))


@pubsub.command(epilog=EPILOG)
@click.argument("topic", metavar="TOPIC|PATTERN", type=Topic(check_pattern))
@LINES
@click.option("--json", "as_json", is_flag=True, help="Each line as an object, for programs.")
@coordinator_option()
@credential_options
def delay(topic: str, lines: int | None, coordinator: str | None, as_json: bool) -> int:
    """Show how long messages take from where they are put to here, a line a second.

    Subscribes as an observer, so that no publisher waits for it. It is measured by the clocks of
    both machines; by how much these differ is said at the end, as far as can be known.
    """
    from pubsub.cli.delay import delay

    return run(delay(topic, coordinator, lines, as_json))


@pubsub.command(epilog=EPILOG)
@click.option(
    "--size",
    type=click.IntRange(min=0, max=64 * 1024 * 1024),
    metavar="BYTES",
    default=100,
    show_default=True,
    help="The size of each message.",
)
@click.option(
    "--seconds",
    type=POSITIVE,
    metavar="SECONDS",
    default=3.0,
    show_default=True,
    help="For how long messages are put as fast as it goes.",
)
@click.option(
    "-n", "--count", type=click.IntRange(min=1), metavar="N", help="Put so many, instead."
)
@click.option("--json", "as_json", is_flag=True, help="As an object, for programs.")
@click.option(
    "--answer",
    is_flag=False,
    flag_value="",
    type=Topic(lambda name: check_topic(name) if name else ""),
    metavar="[NAME]",
    help="Be the other side, for one measurement from elsewhere; says what to start there.",
)
@click.option(
    "--with", "partner", type=Topic(check_topic), metavar="NAME", help="Measure with that side."
)
@click.option("--while-stdin", is_flag=True, hidden=True)
@coordinator_option(", where the command runs one itself if there is none")
@credential_options
def bench(answer: str | None, while_stdin: bool, **options: Any) -> int:
    """Measure what goes through between a publisher and a subscriber.

    By itself between two processes of this machine, which meet through the coordinator as any two
    programs do. Between two machines:

    \b
    there$ pubsub bench --answer
    pubsub: answers; start the other side by `pubsub bench --with pubsub-bench/…`
    here$ pubsub bench --with pubsub-bench/… --size 10000

    First messages go there and back, one after the other; then as many are put as go through.
    Messages are bytes, on topics that are nobody else's. If any was lost, the exit code is 1.
    """
    from pubsub.cli.bench import Asked, answering, bench

    _exclusive("answer", "partner")
    _exclusive("seconds", "count")
    log_lines(logging.WARNING)
    if answer is not None:
        for other in ("size", "seconds", "count", "as_json"):
            _exclusive("answer", other)
        return run(answering(answer, options["coordinator"], while_stdin))
    return run(bench(Asked(**options)))


@pubsub.command(epilog=EPILOG)
@coordinator_option()
@credential_options
def top(coordinator: str | None) -> int:
    """Show what flows, and how it stands, live.

    All topics, from there the streams of one, and from there a process: ? says which keys there
    are, and q ends it. Needs the extra pubsubd[top]. Where the output is no terminal, one table of
    the topics is printed, for which the extra is not needed.
    """
    from pubsub.cli.top import new_loop, top

    return run(top(coordinator), new_loop)


TOPICS = click.option(
    "--topics",
    type=Topic(check_pattern),
    multiple=True,
    metavar="TOPIC|PATTERN",
    help="Only these; may be given several times.",
)
FORCE = click.option(
    "-f", "--force", "overwrite", is_flag=True, help="Overwrite a file that is there."
)


@pubsub.command(epilog=EPILOG)
@click.argument(
    "patterns", metavar="TOPIC|PATTERN…", nargs=-1, required=True, type=Topic(check_pattern)
)
@click.option("-o", "--output", "path", required=True, metavar="FILE", help="The file to write.")
@HISTORY
@click.option("--limit-size", type=SIZE, metavar="SIZE", help="End at so many bytes: 500MB, 10GB.")
@click.option("--limit-time", type=PERIOD, metavar="TIME", help="End after so long: 90s, 10m, 1h.")
@click.option(
    "--rotate-size",
    type=SIZE,
    metavar="SIZE",
    help="Begin a new file at so many bytes; files are numbered, run-0001.mcap the first.",
)
@click.option(
    "--rotate-time", type=PERIOD, metavar="TIME", help="The same after so long; may go with it."
)
@click.option(
    "--fsync",
    type=Read("policy", fsync),
    metavar="never|chunk|TIME",
    default="never",
    show_default=True,
    help="When the disk is made to hold what was written: only for where machines fail.",
)
@click.option(
    "--compression",
    type=click.Choice(["zstd", "lz4", "none"]),
    default="zstd",
    show_default=True,
    help="How it is compressed.",
)
@FORCE
@click.option(
    "-q", "--quiet", is_flag=True, help="Do not say at the end what was recorded and lost."
)
@coordinator_option(", where the command runs one itself if there is none")
@credential_options
def record(**options: Any) -> int:
    """Record topics into a file.

    It writes what comes as it comes, and makes no publisher wait. Ctrl-C and SIGTERM finish the
    file, and so does a limit. What was lost is said, and stands in the file; that, and a publisher
    that vanished, make the exit code 1. A recorder that is killed leaves a file that can be read up
    to about its last second.

    \b
    pubsub record 'sensors/**' -o run.mcap
    pubsub record orders --rotate-time 1h --limit-size 10GB -o orders.mcap
    pubsub info run.mcap
    pubsub replay run.mcap --rate 2x

    The file is MCAP, which other tools open; the package of that name comes with
    pip install "pubsubd[record]".
    """
    from pubsub.cli.recordings import Wanted, record

    wanted = Wanted(**options)
    log_lines(logging.WARNING if wanted.quiet else logging.INFO)
    return record(wanted)


@pubsub.command(epilog=EPILOG)
@click.argument("paths", metavar="FILE…", nargs=-1, required=True)
@TOPICS
@click.option(
    "--rate",
    type=Read("rate", rate_of),
    metavar="RATE",
    default="1x",
    show_default=True,
    help="How fast: 2x, 0.5x, or max: as fast as subscribers take it.",
)
@click.option("--loop", is_flag=True, help="Begin again at its end, until Ctrl-C.")
@click.option(
    "--remap",
    type=Read("remap", remap),
    multiple=True,
    metavar="OLD=NEW",
    help="Publish a topic under another name; may be given several times.",
)
@click.option(
    "--wait",
    type=click.IntRange(min=1),
    metavar="N",
    help="Wait for so many subscribers first, of all its topics together; exit code 1 if then "
    "nobody receives anything.",
)
@click.option(
    "--timeout",
    type=POSITIVE,
    metavar="SECONDS",
    help="How long to wait for these, and for a tail that takes nothing any more, as of put.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not say at the end what was replayed.")
@coordinator_option(", where the command runs one itself if there is none")
@credential_options
def replay(wait: int | None, remap: tuple[tuple[str, str], ...], **options: Any) -> int:
    """Publish again what was recorded.

    Each batch is put when it was, counted from the first one, on the topic that it had and in its
    codec. Nothing of it is decoded, so that it runs no code of a pickle. Who has not received all
    of it is said, and makes the exit code 1. Several files are one recording.

    \b
    pubsub replay run.mcap --wait 1
    pubsub replay run.mcap --rate max --topics 'sensors/*'
    pubsub replay run.mcap --loop --remap sensors/a=test/a
    """
    from pubsub.cli.replay import Wanted, replay

    wanted = Wanted(wait=wait or 0, remap=dict(remap), **options)
    log_lines(logging.WARNING if wanted.quiet else logging.INFO)
    return replay(wanted)


@pubsub.command(epilog=EPILOG)
@click.argument("path", metavar="FILE")
@click.option("-o", "--output", "to", required=True, metavar="OUT", help="The file to write.")
@TOPICS
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Decode pickled messages, which may run code of the choice of who wrote the file.",
)
@FORCE
def export(**options: Any) -> int:
    """Write a recording for other tools, such as Foxglove.

    OUT is MCAP too, with one message of JSON for each of FILE (as `tail` shows it; what is no
    object is the "value" of one) and a schema for each topic.

    \b
    pubsub export run.mcap -o run-json.mcap
    """
    from pubsub.cli.exporting import Wanted, export

    return export(Wanted(**options))


def _list(what: Literal["topics", "peers"], as_json: bool, coordinator: str | None) -> int:
    from pubsub.cli.asking import find_default
    from pubsub.cli.listing import show

    guard = guard_of_command()
    addresses, configured = coordinators_from(coordinator, {})
    return show(what, addresses if configured else [find_default(guard)], guard, as_json=as_json)


main = pubsub


if __name__ == "__main__":
    main()
