"""The benchmarks: one command that measures this library and its peers side by side.

    python -m benchmarks [--only throughput,latency] [--peers NAME,…] [--json FILE] [--smoke]

How it is made, from the outside in:

================  ==============================================================================
`__main__`        the command line
`running`         rounds: all contenders, interleaved, each measurement in fresh processes
`measuring`       the course of one measurement, as its parent process directs it
`stage`           child processes: started, spoken to, listened to, and never left behind
`child`, `roles`  what runs in a child: publisher, subscriber, the two ends of a round trip
`workloads`       the objects that are sent
`contender`       what a library has to provide to be measured; `contenders/` has one module each
`results`         medians, ratios, and the goals that they are held against
`report`          the table for people and the JSON for programs
`machine`         where it was measured
================  ==============================================================================

What keeps it honest:

- Publisher and subscriber are separate processes, and serialise the same objects themselves.
- The clock starts when a probe has come through and that was reported back. It runs from before
  the first message is sent to when the last one is in the hands of the subscriber's code, on the
  one monotonic clock that all processes of a machine share. (A subscriber's own clock would not
  see the time in which a burst grew that it then gets as one batch.)
- A publisher sends for a given time, not a given number: no queue may swallow the whole run.
- The subscriber counts. A rate with loss is no rate, but a failure.
- All contenders take turns within each round, and the order turns with the rounds, so that what
  else the machine does hits all alike. Figures are medians over the rounds.

To add a peer: one module in `contenders/`, named in its `MODULES`. It derives a class from
`BlockingContender` or `AsyncContender`, with the settings that the peer recommends for speed.
"""
