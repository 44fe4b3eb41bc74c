"""The commands ``pubsub`` and ``pubsubd``: the only place of the package that prints.

What is asked for goes to standard output, all else to standard error, a line each. What each exit
code means is in docs/cli.md.
"""
