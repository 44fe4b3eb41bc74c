"""`pubsubd` as it ships, a child like any other; what it is asked, and what it may take."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Mapping, Sequence

from benchmarks.child import Control
from benchmarks.stage import Child, Stage

__all__ = ["OPEN", "allow_files", "complaints", "daemon"]

OPEN = {"PUBSUB_INSECURE": "1"}
"""Some peers speak the protocol by hand, and know no credentials."""


def pubsubd(control: Control, *arguments: str) -> None:
    """What a child runs."""
    from pubsub.cli.pubsubd import main

    sys.argv[1:] = arguments
    main()


def daemon(
    stage: Stage,
    port: int = 0,
    environment: Mapping[str, str] = OPEN,
    command: Sequence[str] = ("coordinator",),
) -> Child:
    """A coordinator, or what else `pubsubd` runs, that listens.

    Parameters:
        command: which, and what it is told beside its port.
    """
    arguments = (*command, "--port", str(port), "--log-level=info")
    child = stage.start(pubsubd, *arguments, environment=environment)
    child.port = int(child.prints(rf"{command[0]} on 127\.0\.0\.1:(\d+)")[1])
    return child


def complaints(daemon: Child) -> list[str]:
    """What it logged of connections that it cut or turned away, at most ten."""
    lines = daemon.printed().splitlines()
    return [line.strip() for line in lines if " WARNING " in line or " ERROR " in line][:10]


def allow_files(count: int) -> int:
    """Have so many file descriptors, or as many as may be; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < count:
        for limit in ((count, max(count, hard)), (min(count, hard), hard)):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, limit)
                break
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft >= 0 else count
