"""The process with the coordinator: `pubsubd`, which ends when its parent has gone."""

from __future__ import annotations

import os
import sys
import threading

from pubsub.cli.pubsubd import main


def _leave() -> None:
    sys.stdin.buffer.read()  # until its other end is closed
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_leave, daemon=True).start()
    main()
