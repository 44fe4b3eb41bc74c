"""The discovery daemon: maps topics to the addresses of peers, and carries no message.

`registry` decides, without I/O or clock; `server` is the asyncio around it.
"""
