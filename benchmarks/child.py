"""What a child process runs: one role of one measurement, directed by its parent.

Parent and child speak in lines of JSON: the parent over standard input, the child over what was
its standard output. When the parent is gone, however it went, its end of the pipe closes, and the
child ends at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from typing import IO, Any

from benchmarks import contenders, roles, special
from benchmarks.loops import run

__all__ = ["Control", "main"]


class Control:
    """The child's line to its parent."""

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever else prints, it shall not speak for us
        self._told: dict[str, Any] = {}
        self._changed = threading.Condition()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        while data := os.read(0, 65536):
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                for line in lines:
                    self._told.update(json.loads(line))
                self._changed.notify_all()
        os._exit(1)  # the parent is gone

    def told(self, word: str) -> bool:
        """Whether the parent has said this."""
        return word in self._told

    def wait(self, word: str) -> Any:
        """Wait until the parent says this; what it says of it."""
        with self._changed:
            self._changed.wait_for(lambda: word in self._told)
            return self._told[word]

    def say(self, word: str, **what: Any) -> None:
        """Tell the parent."""
        self._out.write(json.dumps({"word": word, **what}) + "\n")
        self._out.flush()


def main() -> None:
    """Run the role that the parent says, until it is done."""
    control = Control()
    try:
        job = control.wait("job")
        contender = contenders.load(job["module"])[job["contender"]]
        name = job["role"]
        role = (
            special.enter(special.ROLES[name])
            if name in special.ROLES
            else roles.find(name, contender)
        )
        place = control.wait("place")
        result = role(contender, roles.Job(control, place, **job["job"]))
        if result is not None:
            run(result)
    except BaseException:
        control.say("failed", error=traceback.format_exc())
        time.sleep(0.1)
        os._exit(1)
    control.say("done")


if __name__ == "__main__":
    main()
    sys.exit()
