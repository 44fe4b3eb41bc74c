"""Each cause that has a sentence: from what processes tell, who is named, and by which numbers."""

from __future__ import annotations

from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.stats import (
    CoordinatorStats,
    LinkStats,
    LoopStats,
    PubStats,
    Rates,
    Stats,
    StreamStats,
    SubscriberStats,
    SubStats,
)
from pubsub.stats.cause import FAULT, WEIGHTS
from pubsub.stats.ends import Mute
from pubsub.stats.why import Cause, causes

APP = "app.py (pid 71 on a)"
MODEL = "model.py (pid 72 on b)"
AT = "10.0.0.1:4000"
CALLED = "10.0.0.2:5000"
UP = (CoordinatorStats("10.0.0.9:7700", True),)


def rates(a_second: float) -> Rates:
    return Rates(a_second, a_second, a_second)


def row(**more: Any) -> SubscriberStats:
    """The Sub of `model`, as the Pub of `app` knows it: it takes all."""
    known = {"name": f"{CALLED}#1", "peer_id": "m", "sub_id": 1, "state": "attached"}
    return SubscriberStats(**{**known, "way": "direct", **more})


def stream(**more: Any) -> StreamStats:
    """The Pub of `app`, as the Sub of `model` knows it."""
    known = {"publisher": f"{AT}#1", "peer_id": "a", "stream_id": 1, "topic": "t"}
    return StreamStats(
        **{**known, "state": "attached", "way": "direct", "delivered": 500, "silent": 0.1, **more}
    )


def pub(*subscribers: SubscriberStats, **more: Any) -> PubStats:
    known = {"stream_id": 1, "topic": "t", "put": 500, "rate": rates(100.0), "silent": 0.01}
    room = {"buffer": 64 * 1024**2, "age": 60.0}
    return PubStats(**{**known, **room, "subscribers": subscribers, **more})


def sub(*streams: StreamStats, **more: Any) -> SubStats:
    known = {"sub_id": 1, "pattern": "t", "delivered": 500, "rate": rates(100.0), "age": 60.0}
    return SubStats(**{**known, "takes": True, "handling": 0.001, "streams": streams, **more})


def app(*pubs: PubStats, **more: Any) -> Stats:
    link = LinkStats("subscriber", "m", True, "direct", out_rate=rates(3_145_728.0))
    who = {"peer_id": "a", "name": "app.py", "pid": 71, "host": "a", "address": AT}
    return Stats(
        **{**who, "watched": 5.0, "pubs": pubs, "links": (link,), "coordinators": UP, **more}
    )


def model(*subs: SubStats, **more: Any) -> Stats:
    link = LinkStats("publisher", "a", True, "direct")
    who = {"peer_id": "m", "name": "model.py", "pid": 72, "host": "b", "address": CALLED}
    return Stats(
        **{**who, "watched": 5.0, "subs": subs, "links": (link,), "coordinators": UP, **more}
    )


def only(found: list[Cause], kind: str) -> Cause:
    (cause,) = found
    assert cause.kind == kind, cause
    return cause


# --- nothing is the matter ----------------------------------------------------------------------

HEALTHY = {
    "a stream that flows": [app(pub(row())), model(sub(stream()))],
    "nobody is there": [],
    "a process without Pubs and Subs": [Stats("a")],
    "a burst that is being taken": [
        app(pub(row(lag=900, unsent=100, holds=True), kept=900, oldest=0.2)),
        model(sub(stream(), takes=False, waiting=800, oldest=0.2)),
    ],
    "a link that is full at its best": [
        app(
            pub(row(lag=900, unsent=800, holds=True), oldest=0.1, rate=rates(50_000.0)),
            links=(LinkStats("subscriber", "m", True, "unix", pausing=0.9),),
        ),
        model(sub(stream())),
    ],
    "puts that wait for a moment": [
        app(pub(row(lag=9, holds=True), overflow="block", waiting=1, waited=0.1)),
        model(sub(stream())),
    ],
    "a long handler without anything that waits": [
        app(pub(row())),
        model(sub(stream(), takes=False, handling=9.0, rate=rates(0.0))),
    ],
    "history that is kept": [app(pub(row(), kept=100, oldest=600.0)), model(sub(stream()))],
    "one that was just made": [
        app(pub(age=0.2, put=0, silent=None, rate=Rates())),
        model(sub(age=0.2, delivered=0)),
    ],
    "a loop that is a little late": [
        app(pub(row()), loop=LoopStats(0.001, 0.02, 0.1, 1200)),
        model(sub(stream())),
    ],
}


@pytest.mark.parametrize("asked", ["t", "**", None])
@pytest.mark.parametrize("what", HEALTHY)
def test_where_nothing_is_the_matter_nothing_is_said(what: str, asked: str | None) -> None:
    told = HEALTHY[what]
    found = causes(told, asked)
    if asked is not None and not any(each.pubs for each in told):
        found = [cause for cause in found if cause.kind != "unpublished"]  # nobody publishes it
    assert found == []


# --- consumers ----------------------------------------------------------------------------------


def test_a_slow_consumer_is_named_with_its_numbers() -> None:
    slow = sub(*(stream(),), takes=False, waiting=200, oldest=7.1, rate=rates(24.0), handling=0.041)
    cause = only(causes([app(pub(row(lag=212))), model(slow)], "t"), "slow")
    assert cause.sentence == (
        f"{MODEL} spends 41 ms in its code per message, and takes 24 a second of the 100 that are "
        "put: 212 messages wait, the oldest for 7.1 s"
    )
    assert (cause.topic, cause.publisher, cause.subscriber) == ("t", APP, MODEL)
    assert cause.weight >= FAULT


def test_a_consumer_that_is_slow_with_something_else_is_told_apart() -> None:
    slow = sub(stream(), takes=False, waiting=200, oldest=7.1, rate=rates(24.0), handling=0.002)
    cause = only(causes([model(slow)], "t"), "slow")
    assert "takes 24 messages of 't' a second, though it spends but 2.0 ms on each" in (
        cause.sentence
    )


def test_a_consumer_that_takes_nothing_is_named() -> None:
    stuck = sub(stream(), takes=False, waiting=30, oldest=12.0, rate=Rates())
    cause = only(causes([app(pub(row(lag=30, idle=4.0))), model(stuck)]), "stuck")
    assert cause.sentence == (
        f"{MODEL} has taken nothing of 't' for at least 4.0 s: 30 messages wait, the oldest for "
        "12 s"
    )
    never = stuck._replace(delivered=0)
    cause = only(causes([app(pub(row(lag=30, idle=4.0))), model(never)]), "stuck")
    assert f"{MODEL} has not taken a message of 't' yet: 30 messages wait" in cause.sentence


def test_one_that_keeps_the_latest_is_said_to_do_so_and_is_no_fault() -> None:
    latest = sub(
        stream(), keep="latest", takes=False, waiting=1, oldest=2.0, lost_by=(("conflated", 5000),)
    )
    cause = only(causes([app(pub(row(lag=1))), model(latest)]), "conflated")
    assert "5,000 messages were overtaken" in cause.sentence
    assert cause.weight < FAULT


def test_what_was_lost_is_said_by_whom_of_whom_and_why() -> None:
    loser = sub(
        stream(lost=12), lost=15, lost_by=(("overflow", 10), ("too large", 2), ("conflated", 3))
    )
    found = causes([app(pub(row(lost=12))), model(loser)])
    assert [cause.kind for cause in found] == ["lost", "conflated"]
    assert found[0].sentence == (
        f"{MODEL} has lost 12 messages of 't' of {APP}: 10 because they had left the buffer "
        "before it took them, 2 because they are larger than its max_message"
    )


def test_what_ails_an_observer_is_no_fault() -> None:
    behind = {"lag": 620, "unsent": 600, "lost": 9, "observer": True}
    pausing = sub(
        stream(lost=9),
        takes=False,
        waiting=20,
        oldest=6.4,
        observer=True,
        lost_by=(("overflow", 9),),
    )
    late = LoopStats(0.1, 0.9, 0.9, 100)
    for told in (
        [app(pub(row(**behind))), model(pausing._replace(rate=rates(24.0)), loop=late)],
        [app(pub(row(**behind, idle=9.0))), model(pausing._replace(rate=Rates()))],
        [app(pub(row(**behind, idle=9.0)))],
        [app(pub(row(**behind)))],
    ):
        found = causes(told, "t")
        assert found
        assert all(cause.weight < FAULT for cause in found), found


def test_what_one_lost_that_tells_nothing_is_said_by_the_pub() -> None:
    cause = only(causes([app(pub(row(lost=7)))]), "lost")
    assert cause.sentence.startswith(f"{CALLED} lost 7 messages of 't' at {APP}: they left its")


def test_what_a_pub_dropped_for_one_that_takes_nothing_is_lost_and_does_not_wait() -> None:
    gone = pub(row(lag=900, unsent=890, lost=700, idle=9.0), buffer=1024)
    stuck = sub(stream(), takes=False, waiting=10, oldest=9.0, rate=Rates())
    found = causes([app(gone), model(stuck)], "t")
    assert [cause.kind for cause in found] == ["stuck", "lost"]
    assert found[0].sentence.endswith("for at least 9.0 s: 200 messages wait, the oldest for 9.0 s")
    assert found[1].sentence.startswith(f"{MODEL} lost 700 messages of 't' at {APP}: they left its")
    knows = stuck._replace(streams=(stream(lost=700),), lost_by=(("overflow", 700),))
    assert [cause.kind for cause in causes([app(gone), model(knows)])] == ["stuck", "lost"]


# --- processes ----------------------------------------------------------------------------------


def test_a_blocked_loop_is_named_at_either_end() -> None:
    blocked = LoopStats(0.001, 0.2, 0.84, 1200)
    cause = only(causes([app(pub(row()), loop=blocked), model(sub(stream()))]), "loop")
    assert f"the event loop of {APP} was blocked for up to 840 ms" in cause.sentence
    assert (cause.publisher, cause.subscriber) == (APP, "")
    cause = only(causes([app(pub(row())), model(sub(stream()), loop=blocked)], "t"), "loop")
    assert (cause.publisher, cause.subscriber) == ("", MODEL)
    assert not causes([app(pub(row())), Stats("x", loop=blocked)], None)  # it has no part in it


def test_a_blocked_loop_explains_a_link_that_takes_nothing() -> None:
    waits = pub(row(lag=900, unsent=800, holds=True), oldest=3.0)
    link = LinkStats("subscriber", "m", True, "direct", pausing=0.9, paused=2.0)
    late = model(sub(stream()), loop=LoopStats(0.1, 0.9, 0.9, 100))
    only(causes([app(waits, links=(link,)), late]), "loop")


def test_a_stopped_subscriber_is_named_by_the_pub_that_waits_for_it() -> None:
    told = [app(pub(row(lag=40, idle=12.0)))]
    cause = only(causes(told, "t", mute=[Mute("m", MODEL, CALLED, "")]), "stopped")
    assert cause.sentence == (
        f"{MODEL} has taken nothing of 't' for at least 12 s, and does not answer: it hangs, or "
        "was stopped (Ctrl-Z, a debugger); 40 messages wait for it"
    )
    assert only(causes(told, "t"), "stopped").subscriber == CALLED  # all that is known of it
    by_address = causes(told, "t", mute=[Mute("", MODEL, CALLED, "")])
    assert only(by_address, "stopped").subscriber == MODEL


def test_a_subscriber_that_hardly_runs_is_named_by_the_pub_that_waits_for_it() -> None:
    mute = [Mute("m", MODEL, CALLED, "")]
    cause = only(causes([app(pub(row(lag=441)))], "t", mute=mute), "slow")
    assert cause.sentence == (
        f"{MODEL} is 4.4 s behind with 't', and does not answer: its event loop hardly runs, "
        "because it computes, sleeps or waits without await; 441 messages wait for it"
    )
    assert cause.subscriber == MODEL
    assert not causes([app(pub(row(lag=9)))], "t", mute=mute)  # these are on the way


def test_a_stopped_publisher_is_named_by_the_sub_that_waits_for_it() -> None:
    told = [model(sub(stream(silent=9.0)))]
    cause = only(causes(told, "t", mute=[Mute("a", APP, AT, "")]), "stopped")
    assert f"{APP}, which publishes 't', does not answer" in cause.sentence
    assert f"{MODEL} has got nothing for 9.0 s" in cause.sentence
    assert causes(told, "t") == []  # that one process tells nothing here says nothing by itself


def test_a_coordinator_that_is_not_reached_is_named_once() -> None:
    down = (CoordinatorStats("10.0.0.9:7700", False, "connection refused"),)
    told = [app(pub(row()), coordinators=down), model(sub(stream()), coordinators=down)]
    cause = only(causes(told, "t"), "coordinator")
    assert cause.sentence.startswith(
        f"{APP}, {MODEL} cannot reach the coordinator at 10.0.0.9:7700 (connection refused)"
    )


# --- the way between them -----------------------------------------------------------------------


def test_a_narrow_network_is_named_with_what_it_takes() -> None:
    waits = pub(row(lag=15, unsent=11, holds=True), oldest=3.0)
    link = LinkStats(
        "subscriber", "m", True, "direct", pausing=0.8, out_rate=rates(3 * 1024 * 1024.0)
    )
    cause = only(causes([app(waits, links=(link,)), model(sub(stream()))]), "network")
    assert cause.sentence == (
        f"the network from {APP} to {MODEL} takes 3.0 MiB a second, and 11 of 't' wait for it"
    )


def test_a_network_that_lets_nothing_through_is_named() -> None:
    waits = pub(row(lag=15, unsent=0, holds=True, idle=6.0), oldest=6.0)
    cause = only(causes([app(waits), model(sub(stream(silent=6.0)))]), "network")
    assert "has let nothing through for 6.0 s: 15 of 't' wait for it" in cause.sentence


def test_a_full_window_is_the_consumers_and_not_the_networks() -> None:
    waits = pub(row(lag=150, unsent=110, holds=True, full=True), oldest=3.0)
    link = LinkStats("subscriber", "m", True, "direct", pausing=0.8)
    slow = sub(stream(), takes=False, waiting=40, oldest=3.0, rate=rates(10.0), handling=0.1)
    only(causes([app(waits, links=(link,)), model(slow)]), "slow")


def test_puts_that_wait_are_said_with_for_whom() -> None:
    why = f"{CALLED}#1 (has taken nothing for 12 s; as long as its link lives)"
    held = row(lag=900, holds=True)
    full = pub(*(held,), overflow="block", waiting=3, waited=12.0, waits_for=(why,), buffer=1024**2)
    cause = only(causes([app(full), model(sub(stream()))]), "full")
    assert cause.sentence == (
        f"3 puts on 't' wait in {APP} for room in its buffer of 1.0 MiB, for at least 12 s, "
        f"because of {MODEL} (has taken nothing for 12 s; as long as its link lives)"
    )
    assert cause.subscriber == MODEL


def test_a_dead_publisher_is_named_until_another_is_there() -> None:
    gone = stream(state="vanished", peer_id="dead", publisher="10.0.0.7:1#1", silent=20.0)
    cause = only(causes([model(sub(gone))], "t"), "vanished")
    assert "10.0.0.7:1, which published 't', has vanished without a goodbye" in cause.sentence
    assert f"(says {MODEL})" in cause.sentence
    found = causes([app(pub(row())), model(sub(gone, stream()))], "t")
    assert only(found, "replaced").weight < FAULT


def test_one_that_is_not_reached_is_told_apart_from_one_that_is_dead() -> None:
    lost = stream(state="unreachable")
    cause = only(causes([model(sub(lost))], "t"), "unreachable")
    assert f"{AT}, which published 't', is not reached" in cause.sentence
    cause = only(causes([app(pub()), model(sub(lost))], "t"), "unreachable")
    assert f"no way leads from {MODEL} to {APP}, which lives" in cause.sentence


def test_a_link_that_is_made_again_is_said() -> None:
    cause = only(causes([app(pub()), model(sub(stream(state="reconnecting")))]), "reconnecting")
    assert f"the link from {APP} to {MODEL} for 't' broke" in cause.sentence
    cause = only(causes([app(pub(row(state="expected", lag=3)))]), "reconnecting")
    assert f"a coordinator says that {CALLED} subscribes 't'" in cause.sentence


# --- who does not meet --------------------------------------------------------------------------


def test_a_wrong_topic_is_named_from_both_sides() -> None:
    told = [app(pub(topic="sensors/temp")), model(sub(pattern="Sensors/tmep"))]
    cause = only(causes(told, "Sensors/tmep"), "unpublished")
    assert cause.sentence == (
        f"nobody publishes 'Sensors/tmep', which {MODEL} subscribes: perhaps 'sensors/temp' is "
        "meant"
    )
    assert only(causes(told), "unpublished").sentence == cause.sentence
    cause = only(causes(told, "sensors/temp"), "unsubscribed")
    assert cause.sentence == (
        f"nobody subscribes 'sensors/temp', which {APP} publishes; 'Sensors/tmep' is subscribed, "
        "in vain"
    )


def test_a_topic_that_nobody_has_is_said_and_who_may_have_it_that_does_not_answer() -> None:
    cause = only(causes([app(pub())], "x/y"), "unpublished")
    assert cause.sentence == "nobody publishes or subscribes 'x/y'"
    cause = only(causes([], "x/y", mute=[Mute("", MODEL)]), "unpublished")
    assert f"(unless {MODEL} does, which does not answer)" in cause.sentence


def test_a_sub_without_a_right_to_what_it_subscribes_is_named() -> None:
    told = [app(pub()), model(sub(pattern="**"))]
    cause = only(causes(told, "t"), "unmatched")
    assert cause.sentence.startswith(
        f"{MODEL} subscribes '**', and gets nothing of 't' from {APP}: it has no right to it"
    )
    assert causes([app(pub(), left_out=1), told[1]]) == []  # it may be that this is not told


def test_two_that_ask_different_coordinators_are_named() -> None:
    elsewhere = (CoordinatorStats("10.0.0.8:7700", True),)
    cause = only(causes([app(pub()), model(sub(), coordinators=elsewhere)], "t"), "unmatched")
    assert "different coordinators (10.0.0.8:7700 and 10.0.0.9:7700)" in cause.sentence


def test_that_nobody_subscribes_or_nothing_is_put_is_said_of_what_is_asked_for_alone() -> None:
    quiet = app(pub(row(), silent=180.0, rate=Rates()))
    assert causes([quiet, model(sub(stream()))]) == []
    cause = only(causes([quiet, model(sub(stream()))], "t"), "silent")
    assert cause.sentence == f"nothing was put on 't' for 3 min (by {APP})"
    assert cause.weight < FAULT
    never = app(pub(row(), put=0, silent=None, rate=Rates()))
    cause = only(causes([never, model(sub(stream(silent=None)))], "t"), "silent")
    assert cause.sentence == f"nothing was put on 't' yet, since {APP} made its Pub 60 s ago"
    assert only(causes([app(pub())], "t"), "unsubscribed").publisher == APP


def test_the_cause_stands_before_what_it_causes() -> None:
    stopped = pub(row(lag=900, holds=True, idle=12.0), overflow="block", waiting=1, waited=11.0)
    found = causes([app(stopped)], "t", mute=[Mute("m", MODEL)])
    assert [cause.kind for cause in found] == ["stopped", "full"]


# --- whatever is told ---------------------------------------------------------------------------

WORDS = st.sampled_from(
    ["", "a", "m", "t", "t/x", "**", "attached", "vanished", "expected", "drop"]
)


def any_of(kind: Any) -> st.SearchStrategy[Any]:
    """Anything that `Stats.from_rows` lets pass."""
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        hints = get_type_hints(kind)
        return st.builds(kind, *(any_of(hints[name]) for name in kind._fields))
    inner = get_args(kind)
    if get_origin(kind) is tuple and inner[-1] is Ellipsis:
        return st.lists(any_of(inner[0]), max_size=3).map(tuple)
    if get_origin(kind) is tuple:
        return st.tuples(*map(any_of, inner))
    if inner:
        return st.one_of([any_of(each) for each in inner])
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    plain: dict[Any, st.SearchStrategy[Any]] = {
        str: WORDS,
        int: st.sampled_from([0, 1, 2, 2**64 - 1]),
        float: st.sampled_from([0.0, -1.0, 0.5, 20.0, 1e300]) | numbers,
        bool: st.booleans(),
        type(None): st.none(),
    }
    return plain[kind]


@given(
    st.lists(any_of(Stats), max_size=3),
    st.none() | st.sampled_from(["t", "**", "t/x"]),
    st.lists(any_of(Mute), max_size=2),
)
def test_whatever_is_told_each_cause_is_a_line_of_a_known_kind(
    told: list[Stats], topic: str | None, mute: list[Mute]
) -> None:
    found = causes(told, topic, mute=mute)
    assert len(set(found)) == len(found)
    assert [cause.weight for cause in found] == sorted((c.weight for c in found), reverse=True)
    for cause in found:
        assert cause.kind in WEIGHTS
        assert cause.sentence.isprintable()
