"""What is over stays in the sums."""

from __future__ import annotations

from pubsub.stats import PastStats, PubStats, Stats, SubStats
from pubsub.stats.past import MOST, Past


def test_all_of_one_topic_are_one_row_and_as_old_as_the_first() -> None:
    past = Past()
    past.add(PastStats("pub", "t", 3, 30, 1, age=2.0), now=10.0)
    past.add(PastStats("pub", "t", 4, 40, 0, age=1.0), now=20.0)
    past.add(PastStats("sub", "t", 5, 50, 0, age=1.0), now=20.0)
    assert past.rows(20.0) == (
        PastStats("pub", "t", 7, 70, 1, age=12.0),
        PastStats("sub", "t", 5, 50, 0, age=1.0),
    )


def test_what_has_no_row_of_its_own_is_summed() -> None:
    past = Past()
    for number in range(MOST + 10):
        past.add(PastStats("pub", f"t{number}", 1), now=1.0)
    past.add(PastStats("sub", "more", 1), now=1.0)
    past.add(PastStats("pub", "t0", 1), now=1.0)
    rows = {(row.role, row.topic): row.messages for row in past.rows(1.0)}
    assert len(rows) == MOST + 2
    assert (rows["pub", "t0"], rows["pub", ""], rows["sub", ""]) == (2, 10, 1)
    assert sum(rows.values()) == MOST + 12


def test_a_whole_process_is_taken_with_what_is_there_and_what_was() -> None:
    stats = Stats(
        time=100.0,
        pubs=(PubStats(topic="t", put=2, bytes=20, lost=1, age=5.0),),
        subs=(
            SubStats(pattern="t", delivered=3, lost=9, lost_by=(("overflow", 4),)),
            SubStats(pattern="t", delivered=3, lost_by=(("overflow", 4),), observer=True),
        ),
        past=(PastStats("pub", "t", 10, 100, 0, age=7.0),),
    )
    past = Past()
    past.take(stats)
    assert past.rows(101.0) == (
        PastStats("pub", "t", 12, 120, 1, age=8.0),
        PastStats("sub", "t", 6, 0, 4, age=1.0),
    )
