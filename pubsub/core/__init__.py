"""The decisions of pubsubd, sans-I/O.

Nothing here imports asyncio, sockets, threads, clocks or randomness: bytes, time and entropy
are passed in. Everything runs unchanged on uvloop, on asyncio and on a simulated loop.
"""
