"""What a child process runs: one function, directed by its parent.

Parent and child speak in lines of JSON: the parent over standard input, the child over what was
its standard output. When the parent is gone, however it went, its end of the pipe closes, and the
child ends at once. (Nothing is imported here that an idle process would not have.)
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from typing import IO, Any

__all__ = ["Control", "main", "obey"]


class Control:
    """The child's line to its parent.

    Attributes:
        orders: those that are still to be carried out, see `Stage.ask`.
    """

    def __init__(self) -> None:
        self._out: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # whatever else prints, it shall not speak for us
        self._told: dict[str, Any] = {}
        self._changed = threading.Condition()
        self.orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def _listen(self) -> None:
        rest = b""
        while data := os.read(0, 65536):
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                for line in lines:
                    told = json.loads(line)
                    if "do" in told:
                        self.orders.put(told["do"])
                    self._told.update(told)
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


async def obey(control: Control, it: Any) -> None:
    """Carry out order after order, each a method of this, until the parent ends it."""
    import asyncio  # not every child has it

    while True:
        order = await asyncio.to_thread(control.orders.get)
        control.say("answer", **await getattr(it, order.pop("order"))(**order))


def main() -> None:
    """Run the function that the parent names, until it is done."""
    control = Control()
    try:
        job = control.wait("job")
        role = getattr(importlib.import_module(job["module"]), job["role"])
        role(control, *job["args"], **job["how"])
    except BaseException:
        control.say("failed", error=traceback.format_exc())
        time.sleep(0.1)
        os._exit(1)
    control.say("done")


if __name__ == "__main__":
    main()
    sys.exit()
