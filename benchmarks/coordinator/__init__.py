"""How much one coordinator carries: many peers, topics and patterns on one `pubsubd coordinator`.

``python -m benchmarks.coordinator [registrations] [matching] [memory] [restart] [herd] [curve]
[topic] [--json FILE] [--small]``

The coordinator is the command that ships, in a process of its own. Its peers are one other
process: as many `Session` objects as there are peers, each with a connection, a heartbeat and a
backoff of its own, which is all of a peer that a coordinator ever sees. (In *restart* most are
bare sockets with the same backoff, because one process cannot dial for 10,000.) Each peer has
Pubs on topics of its own and Subs on topics of others, so that every Pub matches one Sub on its
very topic and one on a pattern.

- *registrations*: all peers are connected and register what they have, each in one write, as
  peers do when a session is up. From the first write to when the last one has its answer and all
  have been told of all others. Then one registration at a time from each peer.
- *matching*: with all of that registered, 1,000 registrations (and as many removals) a second go
  on, and every few milliseconds a peer makes a new Sub: from its REGISTER to when it has been
  told all its publishers, and to when each of these has been told of it. One Sub in ten is on a
  pattern with 100 publishers.
- *memory*: the coordinator's resident size without peers, with all connected, and with all they
  have registered; and its CPU time while nothing happens but heartbeats.
- *restart*: the coordinator is killed and started again on its port. From the start of the new
  process to when every peer has been told all its matches anew. Who came when, in tenths of a
  second; who was turned away or cut.
- *herd*: the worst case of that: all connections are opened at one moment, by bare sockets that
  wait for nobody. Who was turned away or cut.
- *curve*: processor time of a registration with one match, beside 1,000 to 100,000 topics and
  100 to 10,000 peers.
- *topic*: how long the registry is busy with a Pub on a topic that has so many Subs, and the size
  of what it has then to tell (in one process, without sockets).

Needs Linux (/proc, processor clocks of other processes) and many file descriptors, for which the
limit is raised as far as it may be.

=============  ====================================================================================
`__main__`     the command line
`measuring`    each measurement, as its parent process directs it
`plan`         who registers what, and what each must then be told
`crowd`        the process with the peers
`bare`         the process with the bare peers
`report`       goals and tables
=============  ====================================================================================
"""
