"""The commands ``pubsubd key``: make a key for a group."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import click

from pubsub.cli.command import Failure, say, show_help
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key

__all__ = ["key"]

EPILOG = """
Exit codes: 0 written, 1 failed (such as: the file is there), 2 used wrongly.
"""


key = click.group(
    "key",
    epilog=EPILOG,
    invoke_without_command=True,
    help="Make a key for a group of programs that trust each other.",
)(show_help)


@key.command("new", epilog=EPILOG)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE")
def new(file: Path) -> None:
    """Write a new key into a file that only you can read.

    All programs that have it trust each other: copy the file to each host, and set PUBSUB_KEY_FILE
    to it there, for the coordinator and for all programs. A file that is there stays as it is.

    To change a key, put the line of the new one below the old one, everywhere; then move it to the
    first line, everywhere; then take out the old one. Nothing needs to be stopped: all keys of a
    file are trusted, the first is used, and files are read again every minute.
    """
    if str(file) == "-":
        raise click.UsageError(
            "name a file, not standard output: a key that a terminal or a log has shown is no "
            "secret any more"
        )
    made = Key.new()
    try:
        write_file(file, f"{made.text()}\n".encode())
    except FileExistsError:
        what = "is a directory: name a file in it"
        if not file.is_dir():
            what = "is there, and stays as it is: programs may use it; name another file"
        raise Failure(f"{file} {what}") from None
    except FileNotFoundError:
        raise Failure(f"cannot write {file}: there is no directory {file.parent}") from None
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror or error}") from None
    say(f"wrote the key {made.id} to {file}, which only you can read", by="pubsubd")
    say(
        "copy it to each host (such as by `scp -p`), and there set "
        f"PUBSUB_KEY_FILE={quote(str(file.absolute()))} for the coordinator and all programs",
        by="pubsubd",
    )
