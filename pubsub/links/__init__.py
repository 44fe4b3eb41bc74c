"""Connections: bytes and timers in and out of the cores, where they go to and who is let in."""
