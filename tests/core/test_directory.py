"""The directory: the union of what the coordinators say, also while one is forgetful."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pubsub.config import Way, name_here
from pubsub.core.directory import Directory
from pubsub.core.stream import StreamKey
from pubsub.wire.messages import Match, MatchedPub
from tests.wire.said import matched

ONE, TWO = "coordinator one", "coordinator two"


def match(
    sub_id: int = 1,
    added: str | list[MatchedPub] = "",
    removed: str = "",
    *,
    complete: bool = True,
) -> Match:
    """A MATCH about peers that are letters."""
    rows = tuple(
        matched(peer, "host", 1, 5, "topic", False) if isinstance(peer, str) else peer
        for peer in added
    )
    return Match(sub_id, 0, complete, rows, tuple((peer, 5) for peer in removed))


def keys(peers: str) -> list[StreamKey]:
    return [StreamKey(peer, 5) for peer in peers]


def listed(directory: Directory, sub_id: int = 1) -> str:
    return "".join(peer for peer in "abcd" if directory.listed(sub_id, StreamKey(peer, 5)))


def test_what_is_added_is_listed_until_it_is_removed() -> None:
    directory = Directory()
    assert directory.match(ONE, match(added="ab")) == []
    assert listed(directory) == "ab"
    assert directory.match(ONE, match(removed="ac", added="d")) == keys("a")
    assert listed(directory) == "bd"


def test_each_sub_has_a_list_of_its_own() -> None:
    directory = Directory()
    directory.match(ONE, match(1, "a"))
    directory.match(ONE, match(2, "b"))
    assert (listed(directory, 1), listed(directory, 2), listed(directory, 3)) == ("a", "b", "")
    directory.drop(1)
    directory.drop(3)
    assert (listed(directory, 1), listed(directory, 2)) == ("", "b")
    directory.restart(ONE)
    assert listed(directory, 2) == "b"


def test_what_one_coordinator_lists_is_not_gone_when_another_removes_it() -> None:
    directory = Directory()
    directory.match(ONE, match(added="ab"))
    directory.match(TWO, match(added="bc"))
    assert directory.match(ONE, match(removed="ab")) == keys("a")
    assert listed(directory) == "bc"
    assert directory.match(TWO, match(removed="b")) == keys("b")


def test_g7_a_coordinator_that_came_back_empty_takes_nothing_away_before_it_has_said_all() -> None:
    directory = Directory()
    directory.match(ONE, match(added="abc"))
    directory.restart(ONE)
    assert listed(directory) == "abc"
    assert directory.match(ONE, match(added="a", complete=False)) == []
    assert listed(directory) == "abc"
    assert directory.match(ONE, match(removed="b", complete=False)) == keys("b")
    directory.restart(ONE)  # again, in the middle
    assert listed(directory) == "ac"
    assert directory.match(ONE, match(added="d", complete=False)) == []
    assert directory.match(ONE, match(added="c")) == keys("a")
    assert listed(directory) == "cd"


def test_g7_another_coordinator_keeps_what_the_restarted_one_has_forgotten() -> None:
    directory = Directory()
    directory.match(ONE, match(added="ab"))
    directory.match(TWO, match(added="b"))
    directory.restart(ONE)
    assert directory.match(ONE, match()) == keys("a")
    assert listed(directory) == "b"


def test_a_coordinator_that_never_said_anything_may_restart() -> None:
    directory = Directory()
    directory.restart(ONE)
    assert listed(directory) == ""


def told(directory: Directory, peer: str = "a") -> list[tuple[str, int, object]]:
    return [way[:3] for way in directory.ways(peer)]


def test_each_coordinators_address_of_a_peer_is_a_way_while_it_lists_anything_of_it() -> None:
    directory = Directory()
    assert told(directory) == []
    directory.match(ONE, match(1, "a"))
    directory.match(ONE, match(2, "a"))
    directory.match(TWO, match(1, added=[matched("a", "other", 2, 5, "topic", False)]))
    assert told(directory) == [("host", 1, ONE), ("other", 2, TWO)]
    directory.match(ONE, match(1, added=[matched("a", "moved", 3, 5, "topic", False)]))
    assert told(directory) == [("moved", 3, ONE), ("other", 2, TWO)], "the last that it told"
    directory.match(ONE, match(1, removed="a"))
    assert len(told(directory)) == 2, "it is listed for another Sub"
    directory.drop(2)
    assert told(directory) == [("other", 2, TWO)]
    directory.restart(TWO)
    assert told(directory) == [("other", 2, TWO)]
    directory.match(TWO, match(1))
    assert told(directory) == []


def test_an_address_that_is_none_is_no_way() -> None:
    directory = Directory()
    directory.match(ONE, match(added=[matched("a", "", 0, 5, "topic", False)]))
    assert listed(directory) == "a"
    assert told(directory) == []


def test_what_a_coordinator_said_under_one_name_counts_until_it_has_said_it_under_the_other() -> (
    None
):
    directory = Directory()
    directory.match(ONE, match(added="ab"))
    directory.match(TWO, match(added="b"))
    directory.hand_over(ONE, TWO)
    assert listed(directory) == "ab"
    assert told(directory) == [("host", 1, TWO)]
    assert directory.match(TWO, match()) == keys("a")
    directory.hand_over(TWO)
    assert listed(directory) == ""
    assert told(directory, "b") == []
    directory.hand_over(TWO)


class Union(RuleBasedStateMachine):
    """Against plain sets per coordinator."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Directory()
        self.rows: dict[tuple[str, int], set[str]] = {}
        self.stale: dict[tuple[str, int], set[str]] = {}

    def all_of(self, sub_id: int) -> set[str]:
        return {
            peer
            for known in (self.rows, self.stale)
            for (_, sub), peers in known.items()
            if sub == sub_id
            for peer in peers
        }

    @rule(
        source=st.sampled_from([ONE, TWO]),
        sub_id=st.integers(1, 2),
        added=st.sets(st.sampled_from("abcd")),
        removed=st.sets(st.sampled_from("abcd")),
        complete=st.booleans(),
    )
    def match(
        self, source: str, sub_id: int, added: set[str], removed: set[str], complete: bool
    ) -> None:
        before = self.all_of(sub_id)
        rows = self.rows.setdefault((source, sub_id), set())
        stale = self.stale.setdefault((source, sub_id), set())
        mentioned = rows | stale | added
        rows |= added
        stale -= added
        rows -= removed
        stale -= removed
        if complete:
            stale.clear()
        gone = self.directory.match(
            source, match(sub_id, "".join(added), "".join(removed), complete=complete)
        )
        assert sorted(gone) == sorted(keys("".join(mentioned - self.all_of(sub_id))))
        assert before - self.all_of(sub_id) <= {key.peer_id for key in gone}

    @rule(source=st.sampled_from([ONE, TWO]))
    def restart(self, source: str) -> None:
        self.directory.restart(source)
        for (of, sub_id), rows in self.rows.items():
            if of == source:
                self.stale.setdefault((of, sub_id), set()).update(rows)
                rows.clear()

    @rule(source=st.sampled_from([ONE, TWO]), hand_over=st.booleans())
    def leave(self, source: str, hand_over: bool) -> None:
        to = {ONE: TWO, TWO: ONE}[source]
        self.directory.hand_over(source, to if hand_over else None)
        for sub_id in (1, 2):
            left = self.rows.pop((source, sub_id), set()) | self.stale.pop((source, sub_id), set())
            if hand_over:
                known = self.rows.get((to, sub_id), set())
                self.stale.setdefault((to, sub_id), set()).update(left - known)

    @rule(sub_id=st.integers(1, 2))
    def drop(self, sub_id: int) -> None:
        self.directory.drop(sub_id)
        for known in (self.rows, self.stale):
            for pair in [pair for pair in known if pair[1] == sub_id]:
                del known[pair]

    @invariant()
    def alike(self) -> None:
        for sub_id in (1, 2):
            assert set(listed(self.directory, sub_id)) == self.all_of(sub_id)
        for peer in "abcd":
            sources = {
                source
                for known in (self.rows, self.stale)
                for (source, _), peers in known.items()
                if peer in peers
            }
            ways = self.directory.ways(peer)  # all tell the same
            assert {way.told_by for way in ways} <= sources
            assert len(ways) == bool(sources)


TestUnion = Union.TestCase
TestUnion.settings = settings(max_examples=50)


def test_g6_a_coordinator_lists_so_many_for_a_sub_and_what_it_says_beyond_is_not_heard() -> None:
    directory = Directory(2)
    directory.match(ONE, match(1, "ABC"))
    assert [bool(directory.ways(peer)) for peer in "ABC"] == [True, True, False]
    directory.match(ONE, match(2, "C"))
    assert directory.ways("C"), "it is another Sub"
    assert not directory.listed(1, StreamKey("C", 5))
    assert directory.match(ONE, match(1, "", "AC")) == [StreamKey("A", 5)]
    directory.match(ONE, match(1, "C"))
    assert directory.listed(1, StreamKey("C", 5)), "there is room now"


def test_a_peer_of_this_host_has_a_unix_socket_before_its_addresses() -> None:
    directory = Directory(host_id="0123456789")
    here = matched("a", "host", 1, 5, "topic", False)._replace(host_id="0123456789")
    there = here._replace(peer_id="b", host_id="another")
    mute = here._replace(peer_id="c", ways=())  # it does not listen
    directory.match(ONE, match(added=[here, there, mute]))
    tcp = Way("host", 1, ONE)
    name = f"{name_here('0123456789', 'a')}.localhost"
    assert directory.ways("a") == [Way(name, 0, tcp, "unix"), tcp]
    assert (directory.ways("b"), directory.ways("c")) == ([tcp], [])
    directory.hand_over(ONE, TWO)
    tcp = tcp._replace(told_by=TWO)
    assert directory.ways("a") == [Way(name, 0, tcp, "unix"), tcp]
    assert name_here("0123456789", "a") != name_here("0123456780", "a") != name_here("0", "b")
