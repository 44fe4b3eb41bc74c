"""How each kind of workload is measured: the roles that its children play, and below them the
course, by which the parent directs these.

Throughput, as an example (`flows`)::

    publisher               parent                 subscriber
    at (where I am)  ─────▶        ─────▶  place
    probes ═══════════════════════════════▶ the first
                                   ◀─────  proven
                     ◀─────  proven
    start; messages, end marker ══════════▶ counts; end
    sent             ─────▶        ◀─────  received
                     ◀─────  over
    cost             ─────▶        ─────▶  over

A round trip goes the same way with two ends, each of which proves what it hears from the other.
Several subscribers each go the way of the one. `measuring.COURSES` is the table of them. (Nothing
is imported here: a child has only what its own role needs.)
"""
