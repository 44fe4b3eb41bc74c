"""The goals: what this library's figures are to be, most of them as ratios within one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.results import Result, Results

__all__ = ["GOALS", "PEERS", "Goal", "Verdict", "judge"]

PEERS: Final = "every peer"
"""As `against`: the best of the peers, whoever that is; the plain stream is one of them, and who
reaches nobody beyond its host is not."""
ZMQ: Final = ("pyzmq-default", "pyzmq-nodrop")
"""pyzmq blocking: the better of what it can do, where that is a rate at all."""

ZENOH_SHM: Final = ("zenoh-shm", "zenoh-provider")
"""Zenoh's shared memory, as it is shipped and at its best."""

ICEORYX: Final = ("iceoryx2",)

Bound = Literal["least", "most"]


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        title: what it is about.
        workload, figure: what is compared, by name.
        bound: ``"least"`` or ``"most"``: which side of `factor` is good.
        factor: the ratio to reach; without `against`, the figure itself.
        against: contenders to compare with, the best of them, or `PEERS`; ``("self",)``: the same
            face with the workload `beside`; empty: nobody.
        beside: the workload of theirs, if it is another.
        faces: which of our faces it is about; empty: all.
        unit: of a figure that is compared with nobody.
        less: a contender whose figure is first taken off.
        strictly: the bound itself is not good enough.
        each_round: it is the ratio of the worst round, not that of the medians.
    """

    title: str
    workload: str
    figure: str
    bound: Bound
    factor: float
    against: tuple[str, ...] | str = ()
    beside: str = ""
    faces: tuple[str, ...] = ()
    unit: str = ""
    less: str = ""
    strictly: bool = False
    each_round: bool = False

    def met_by(self, ratio: float) -> bool:
        """Whether it is good enough."""
        if self.strictly and ratio == self.factor:
            return False
        return ratio >= self.factor if self.bound == "least" else ratio <= self.factor


_ASYNC, _BLOCKING = ("pubsub-async",), ("pubsub-blocking",)

_REVERSE, _RELAYED, _SPLICE = ("pubsub-reverse",), ("pubsub-relay",), ("relay",)

_PLAIN, _PROOF, _TLS = ("pubsub-plain",), ("pubsub-proof",), ("pubsub-tls",)


def _more(title: str, workload: str, most: float) -> Goal:
    title = f"{title}, TLS: more than plain"
    return Goal(title, workload, "p50", "most", most, faces=_TLS, unit="µs", less=_PLAIN[0])


def _at_least(title: str, workload: str, factor: float, *against: str, beside: str = "") -> Goal:
    return Goal(title, workload, "rate", "least", factor, against, beside)


def _way(title: str, workload: str, factor: float, against: str, faces: tuple[str, ...]) -> Goal:
    return Goal(title, workload, "rate", "least", factor, (against,), faces=faces)


def _first_message(factor: float, faces: tuple[str, ...]) -> Goal:
    title = "first message of a new Sub, as before"
    return Goal(title, "first-message", "p50", "most", factor, ("pyzmq-nodrop",), faces=faces)


def _nothing(title: str, figure: str, unit: str) -> Goal:
    return Goal(f"after SIGKILL of any: {title}", "killed", figure, "most", 0, unit=unit)


def _below(title: str, figure: str, against: tuple[str, ...] | str, faces: tuple[str, ...]) -> Goal:
    return Goal(title, "round-trip", figure, "most", 1.0, against, faces=faces, strictly=True)


GOALS: Final = (
    _at_least("small dict", "small-dict", 1.6, *ZMQ),
    _at_least("int", "int", 2.0, *ZMQ),
    Goal("1 KiB bytes", "1-kib", "rate", "least", 2.0, PEERS),
    _at_least("64 KiB bytes", "64-kib", 0.9, "sockets"),
    _at_least("64 KiB bytes", "64-kib", 2.0, *ZMQ),
    _at_least("8 MiB bytes", "8-mib", 0.75, "sockets"),
    _at_least("8 MiB bytes", "8-mib", 1.2, *ZMQ),
    _at_least("8 MiB numpy array", "8-mib-array", 0.9, "sockets", beside="8-mib"),
    _at_least("8 MiB numpy array", "8-mib-array", 1.2, *ZMQ),
    _at_least("fan-out to 8", "fan-out-8", 1.5, *ZMQ),
    _at_least("fan-out to 32", "fan-out-32", 1.5, *ZMQ),
    Goal("fan-out to 8: publisher's growth", "fan-out-8", "growth_mib", "most", 64, unit="MiB"),
    Goal("fan-out to 32: publisher's growth", "fan-out-32", "growth_mib", "most", 64, unit="MiB"),
    Goal("round trip p50", "round-trip", "p50", "most", 1.2, ("protocol",), faces=_ASYNC),
    Goal("round trip p99", "round-trip", "p99", "most", 1.4, ("protocol",), faces=_ASYNC),
    _below("round trip p50", "p50", PEERS, _ASYNC),
    _below("round trip p99", "p99", PEERS, _ASYNC),
    _below("round trip p50", "p50", ZMQ, _BLOCKING),
    _below("round trip p99", "p99", ZMQ, _BLOCKING),
    Goal("a put each 1 ms, one way, p99", "rate-1k", "p99", "most", 1.3, ("protocol",)),
    _at_least("1,000 topics, in runs", "topics-runs", 0.8, "self", beside="small-dict"),
    _at_least("1,000 topics, each another", "topics-each", 0.3, "self", beside="small-dict"),
    Goal("first message of a new Sub, median", "first-message", "p50", "most", 2_000, unit="µs"),
    Goal("idle process, above a bare one", "idle", "rss_mib", "most", 6, unit="MiB", less="bare"),
    Goal(
        "delay of a small message behind 8 MiB on its link, p99",
        "behind-8-mib",
        "delay_p99",
        "most",
        2_000,
        unit="µs",
    ),
    # --- arrays on one host, and what Unix sockets are for
    _at_least("8 MiB array to 1, one host", "array-1", 0.9, "iceoryx2"),
    _at_least("8 MiB array to 1, one host", "array-1", 5.0, *ZMQ),
    _at_least("8 MiB array to 3, one host", "array-3", 0.75, "iceoryx2"),
    _at_least("8 MiB array to 3, one host", "array-3", 10.0, *ZMQ),
    _at_least("made by `empty`, 8 MiB", "empty-8192", 0.8, "self", beside="empty-64"),
    _at_least("made by `empty`, 32 MiB", "empty-32768", 0.8, "self", beside="empty-64"),
    _at_least("64 KiB bytes, one host", "64-kib", 1.0, *ZENOH_SHM),
    _at_least("64 KiB bytes, one host", "64-kib", 2.5, *ZMQ),
    Goal("1080p frames at 30 Hz to 3, p50", "frames-30-3", "p50", "most", 2_500, unit="µs"),
    Goal("1080p frames at 30 Hz to 3, CPU", "frames-30-3", "cpu_share", "most", 1.5, ICEORYX),
    _below("round trip p50, one host", "p50", ZMQ, ()),
    _below("round trip p99, one host", "p99", ZMQ, ()),
    _below("round trip p50, one host (stretch)", "p50", ICEORYX, ()),
    _below("round trip p99, one host (stretch)", "p99", ICEORYX, ()),
    Goal("1 KiB bytes, in each round", "1-kib", "rate", "least", 1.6, ZMQ, each_round=True),
    _nothing("in /dev/shm", "shm_kib", "KiB"),
    _nothing("descriptors", "descriptors", "more"),
    _nothing("mappings", "mappings", "more"),
    _first_message(1.7, _ASYNC),
    _first_message(2.5, _BLOCKING),
    Goal("idle process, as before", "idle", "rss_mib", "most", 31.5, unit="MiB"),
    Goal("small dict, proof", "tls-small-dict", "rate", "least", 0.95, _PLAIN, faces=_PROOF),
    Goal("small dict, TLS", "tls-small-dict", "rate", "least", 0.75, _PLAIN, faces=_TLS),
    Goal("64 KiB bytes, TLS", "tls-64-kib", "rate", "least", 0.45, _PLAIN, faces=_TLS),
    _more("round trip p50", "tls-round-trip", 35),
    _more("first message of a new process", "tls-first-message", 8_000),
    Goal(
        "a stranger in a handshake",
        "tls-strangers",
        "most_kib",
        "most",
        190,
        faces=_TLS,
        unit="KiB",
    ),
    Goal(
        "delay of a small message behind 8 MiB on its link, p99, TLS",
        "tls-behind-8-mib",
        "delay_p99",
        "most",
        2_000,
        faces=_TLS,
        unit="µs",
    ),
    _way("small dict, reverse", "ways-small-dict", 0.97, "pubsub-direct", _REVERSE),
    _way("64 KiB bytes, reverse", "ways-64-kib", 0.97, "pubsub-direct", _REVERSE),
    _way("small dict, over a relay", "ways-small-dict", 0.9, "pubsub-forwarded", _RELAYED),
    _way("64 KiB bytes, over a relay", "ways-64-kib", 0.9, "pubsub-forwarded", _RELAYED),
    _way("raw stream over a relay", "ways-stream", 0.9, "forwarder", _SPLICE),
    Goal(
        *("a circuit at rest", "ways-circuits", "circuit_kib", "most", 64),
        faces=_SPLICE,
        unit="KiB",
    ),
    Goal("CPU per small dict, at full speed", "small-dict", "cpu_per_million", "most", 0.6, ZMQ),
    Goal("CPU per small dict, at 100,000/s", "rate-100k", "cpu_per_million", "most", 0.6, ZMQ),
)


@dataclass(frozen=True)
class Verdict:
    """What became of a goal for one face.

    Attributes:
        goal: which.
        face: whose.
        ours, theirs: the figures; None where there is none.
        against: whose figure `theirs` is.
        ratio: of the two, or the figure itself where the goal compares with nobody.
        met: None when it could not be judged.
    """

    goal: Goal
    face: str
    ours: float | None
    theirs: float | None
    against: str
    ratio: float | None
    met: bool | None


def judge(goal: Goal, results: Results, kinds: Mapping[str, str]) -> list[Verdict]:
    """Hold a goal against the results. `kinds` are the contenders', by name."""
    ours = [name for name, kind in kinds.items() if kind == "ours"]
    return [
        _judge(goal, face, results, kinds)
        for face in ours
        if (not goal.faces or face in goal.faces) and (goal.workload, face) in results
    ]


def _judge(goal: Goal, face: str, results: Results, kinds: Mapping[str, str]) -> Verdict:
    mine = results[goal.workload, face].median(goal.figure)
    if goal.less and mine is not None:
        base = _median(results.get((goal.workload, goal.less)), goal.figure)
        mine = mine - base if base is not None else None
    if not goal.against:
        met = goal.met_by(mine) if mine is not None else None
        return Verdict(goal, face, mine, None, goal.less, mine, met)
    names: list[str] = []
    if goal.against == PEERS:
        names = [name for name, kind in kinds.items() if kind in ("peer", "baseline")]
    else:
        names = [face if name == "self" else name for name in goal.against]
    workload = goal.beside or goal.workload
    found = {
        name: figure
        for name in names
        if (figure := _median(results.get((workload, name)), goal.figure)) is not None
    }
    if not found:
        return Verdict(goal, face, mine, None, "", None, None)
    # the rival that is hardest to beat
    rival = (max if goal.bound == "least" else min)(found, key=found.__getitem__)
    ratio = mine / found[rival] if mine is not None and found[rival] else None
    if ratio is not None and goal.each_round:
        ours, theirs = results[goal.workload, face], results[workload, rival]
        pairs = zip(ours.rounds, theirs.rounds, strict=False)
        ratios = [one[goal.figure] / other[goal.figure] for one, other in pairs]
        ratio = (min if goal.bound == "least" else max)(ratios)
    met = goal.met_by(ratio) if ratio is not None else None
    return Verdict(goal, face, mine, found[rival], rival, ratio, met)


def _median(result: Result | None, figure: str) -> float | None:
    return result.median(figure) if result is not None else None
