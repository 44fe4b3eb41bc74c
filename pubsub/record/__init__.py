"""Record what is published into files, read them and publish them again.

    from pubsub import record

    with record.Recorder("run.mcap", "sensors/**"):
        ...
    with record.open("run.mcap") as recording:
        for value in recording:
            ...

A file is MCAP, which other tools open too; ``pubsub record``, ``info``, ``replay`` and ``export``
are the same from a shell. Needs ``pip install "pubsubd[record]"``. See docs/recording.md.
"""

from __future__ import annotations

from pubsub.record.recorder import Recorder
from pubsub.record.recording import Recording, open

__all__ = ["Recorder", "Recording", "open"]
