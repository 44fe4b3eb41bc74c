"""The discovery daemon: maps topics to the addresses of peers, and carries no message.

`registry` decides, without I/O or clock, with what is in `records`; `server` is the asyncio around
it.
"""
