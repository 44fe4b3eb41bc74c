"""The benchmarks: one command that measures this library and its peers side by side.

    make bench                                            all of it, under 20 minutes
    make bench ONLY=throughput,latency PEERS=pyzmq,zenoh  some of it
    make bench ARGS="--write docs"                        docs/benchmarks.md, its chart and figures
    make bench ONLY=arrays,frames,killed                  arrays on one host
    make bench ONLY=tls                                   plain, proof only and TLS
    make bench ONLY=ways                                  direct, reverse and over a relay
    python -m benchmarks --from docs/benchmarks.json      the report again, nothing measured

A workload is a function, its *course*, and a row of `workloads.WORKLOADS`. To see how one is
measured: its row says what is sent and names its course; `measuring.COURSES` says which function
that is; above this function, in `courses`, stand the roles that its processes play. There is one
way to start a process and to talk to it, for all of it: `Stage`.

================  ==============================================================================
`__main__`        the command line
`workloads`       the table: the objects that are sent, and what is measured with them
`courses`         how each kind is measured: `flows`, `times`, `arrays`; of a coordinator and a
                  relay: `returning`, `strangers`, `circuits`
`running`         rounds: all contenders, interleaved, each measurement in fresh processes
`measuring`       one measurement, as its parent process directs it
`stage`           child processes: started, spoken to, listened to, and never left behind
`child`           what runs in a child: one function, and its line to the parent
`roles`           what the roles of contenders have in common
`daemons`         `pubsubd` as a child
`packing`         msgpack as the peers' users would set it up
`contender`       what a library has to provide to be measured; `contenders/` has the modules
`results`         medians and ratios
`goals`           what the figures are held against
`report`          the tables for people and the JSON for programs
`summary`         the few figures that the README shows
`chart`           the same as bars (SVG)
`memory`          of a process
`machine`         where it was measured
`coordinator`     beside all that, a command of its own: how much one coordinator carries
`guarantees`      the same: what slow and what many subscribers cost a publisher
`dask`            the same: beside Dask's own Pub and Sub
================  ==============================================================================

What keeps it honest:

- Publisher and subscriber are separate processes, and serialise the same objects themselves.
- The clock starts when a probe has come through and that was reported back. It runs from before
  the first message is sent to when the last one is in the hands of the subscriber's code, on the
  one monotonic clock that all processes of a machine share. (A subscriber's own clock would not
  see the time in which a burst grew that it then gets as one batch.)
- Arrays are stamped by the publisher and checked by each subscriber, one element of each page.
- A publisher sends for a given time, not a given number: no queue may swallow the whole run.
- The subscriber counts. A rate with loss is no rate: a failure, or, of a contender that is made to
  drop messages, the share that it lost in place of a figure.
- Memory that is touched for the first time, and imports, come before the clock starts.
- All contenders take turns within each round, and the order turns with the rounds, so that what
  else the machine does hits all alike. Figures are medians over the rounds.

To add a peer: one module in `contenders/`, named in its `MODULES`. It derives a class from
`BlockingContender` or `AsyncContender`, with the settings that the peer recommends for speed.
"""
