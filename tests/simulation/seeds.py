"""Seeds that once found something, with the profile under which they did. They stay.

A seed means the same run only as long as the world draws the same; what each of these found also
has a test of its own, in `test_found.py` or beside the core that was wrong.
"""

from __future__ import annotations

__all__ = ["SEEDS"]

SEEDS: tuple[tuple[int, str], ...] = (
    # a slow link on which a large message was written was taken for dead
    (2, "calm"),
    (39, "calm"),
    (4, "discovery"),
    # a coordinator that restarted twice: a Sub older than the Pub was taken for a younger one
    (234, "discovery"),
    # an empty answer made a Sub give up a stream that was being subscribed: it came twice
    (63, "discovery"),
    # a Sub with history that attached while a Pub was being closed was cut off in the middle
    (1356, "links"),
    (1363, "links"),
    # a connection broke while its Peer was being closed, and a timer was set that nobody stops
    (1519, "chaos"),
    (2114, "chaos"),
    # a PONG that had waited for a full socket was written behind GOODBYE and end of file
    (1392, "calm"),
    # the model forgot what a stream had lost before it was given up and came back
    (148, "chaos"),
    # the model took a process that died, with its last END, for one that lives
    (529, "deaths"),
)
