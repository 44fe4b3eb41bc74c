"""The commands ``pubsub`` and ``pubsubd``: the only place of the package that prints.

What is asked for goes to standard output, all else to standard error, a line each.

=====  =========================================================================================
exit   what it means, of both commands
=====  =========================================================================================
0      done; also when whoever read the output had enough of it (``pubsub tail … | head``), and
       for a coordinator that was told to stop
1      failed; the last line on standard error says why; for ``pubsub tail``, whatever ended it,
       and for ``pubsub put`` also, that not all was delivered (see docs/cli.md)
2      used wrongly: no such option, not a topic, not an address
3      ``--timeout`` ended it before what was asked for was there
130    interrupted by Ctrl-C
143    ended by SIGTERM
=====  =========================================================================================
"""
