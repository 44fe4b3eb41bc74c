"""Seeds that once found something, with the profile under which they did. They stay.

A seed means the same run only as long as the world draws the same; what each of these found has a
test of its own in `test_found.py`, which does not depend on that.
"""

from __future__ import annotations

__all__ = ["SEEDS"]

SEEDS: tuple[tuple[int, str], ...] = (
    # a slow link on which a large message was written was taken for dead
    (11, "calm"),
    (16, "calm"),
    (0, "discovery"),
    # a coordinator that restarted twice: a Sub older than the Pub was taken for a younger one
    (39, "discovery"),
    (68, "discovery"),
    # an empty answer made a Sub give up a stream that was being subscribed: it came twice
    (75, "discovery"),
    (135, "discovery"),
)
