"""Each measurement, as its parent process directs it."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.coordinator.bare import bare as bare_peers
from benchmarks.coordinator.crowd import crowd as crowd_of
from benchmarks.coordinator.plan import Plan
from benchmarks.daemons import OPEN, complaints, daemon
from benchmarks.stage import Child, Failed, Stage
from pubsub.coordinator.registry import Registry
from pubsub.wire.handshake import tcp
from pubsub.wire.messages import Register, encode

__all__ = ["MEASURES", "Effort"]

Ask = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Effort:
    """How much of it."""

    plan: Plan = Plan(10_000, 100_000, 1_000)
    rounds: int = 3
    seconds: float = 10.0
    """Of matching, and of idleness."""
    extra: int = 20_000
    """Registrations of which the curve has the mean."""
    sessions: int = 500
    """Peers of a restart that are real sessions; the others are bare."""
    downs: tuple[float, ...] = (0.0, 3.0)
    """Seconds for which the coordinator stays down."""
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    settle: float = 1.0
    """Seconds in which what was set in motion comes to rest."""


SMALL = Effort(Plan(20, 200, 2), 1, 0.3, 200, 5, (0.1,), (200,), 0.05)


def _peers(
    stage: Stage, role: Callable[..., None], there: Child, plan: Plan, numbers: range | None = None
) -> Child:
    some = numbers or range(plan.peers)
    sizes = (plan.peers, plan.topics, plan.patterns)
    return stage.start(role, there.port, *sizes, some.start, some.stop, environment=OPEN)


@contextmanager
def _connected(plan: Plan) -> Iterator[tuple[Child, Ask, dict[str, Any]]]:
    """A coordinator, how to ask its peers, and how these have connected."""
    with Stage() as stage:
        coordinator = daemon(stage)
        ask = partial(stage.ask, _peers(stage, crowd_of, coordinator, plan))
        yield coordinator, ask, ask("connect")


def registrations(effort: Effort) -> dict[str, Any]:
    """How many a second."""
    found: dict[str, Any] = {}
    plan = effort.plan
    for name, each in (("together", 0), ("one_by_one", 1)):
        rounds = []
        for _ in range(effort.rounds):
            with _connected(plan) as (coordinator, ask, connected):
                before = coordinator.cpu()
                done = ask("register", each=each)
                cpu = coordinator.cpu() - before
            rounds.append(
                {
                    "per_second": round(plan.registrations / done["seconds"]),
                    "cpu_us": round(cpu / plan.registrations * 1e6, 1),
                    "coordinator_busy": round(cpu / done["seconds"], 2),
                    "peers_busy": round(done["cpu"] / done["seconds"], 2),
                    "connect_failures": _failures(connected["failures"]),
                }
            )
        found[name] = {
            "per_second": statistics.median(r["per_second"] for r in rounds),
            "cpu_us": statistics.median(r["cpu_us"] for r in rounds),
            "rounds": rounds,
        }
    return found


def matching(effort: Effort) -> dict[str, Any]:
    """How long a new Sub waits, beside 1,000 registrations a second."""
    rounds = []
    with _connected(effort.plan) as (coordinator, ask, _):
        ask("register", each=0)
        time.sleep(effort.settle)
        for _ in range(effort.rounds):
            before = coordinator.cpu()
            done = ask("match", seconds=effort.seconds, rate=1_000, every=0.01)
            cpu = coordinator.cpu() - before
            delays = done["delays"]
            rounds.append(
                {
                    "sub_knows": _spread(told for _, told, _ in delays),
                    "its_publisher_knows": _spread(all_ for many, _, all_ in delays if not many),
                    "all_100_publishers_know": _spread(all_ for many, _, all_ in delays if many),
                    "registrations_per_second": round(done["registered"] / effort.seconds),
                    "coordinator_busy": round(cpu / effort.seconds, 2),
                    "timer_late_p99_ms": round(1e3 * done["late_p99"], 2),
                }
            )
    rounds.sort(key=lambda each: each["sub_knows"]["p99_ms"])
    return {**rounds[len(rounds) // 2], "rounds": rounds}


def memory(effort: Effort) -> dict[str, Any]:
    """KiB for each, and what idle peers cost."""
    plan = effort.plan
    with Stage() as stage:
        coordinator = daemon(stage)
        nothing = coordinator.memory()
        crowd = _peers(stage, crowd_of, coordinator, plan)
        before = coordinator.cpu()
        stage.ask(crowd, "connect")
        handshakes = coordinator.cpu() - before
        time.sleep(effort.settle)
        connected = coordinator.memory()
        stage.ask(crowd, "register", each=0)
        time.sleep(effort.settle)
        all_of_it = coordinator.memory()
        before = coordinator.cpu()
        time.sleep(effort.seconds)
        idle = coordinator.cpu() - before
    return {
        "without_peers_mib": round(nothing / 1024, 1),
        "with_peers_mib": round(connected / 1024, 1),
        "with_registrations_mib": round(all_of_it / 1024, 1),
        "peer_kib": round((connected - nothing) / plan.peers, 2),
        "registration_kib": round((all_of_it - connected) / plan.registrations, 2),
        "connect_cpu_us": round(handshakes / plan.peers * 1e6, 1),
        "idle_cpu_share": round(idle / effort.seconds, 4),
        "idle_cpu_us_per_peer_second": round(idle / effort.seconds / plan.peers * 1e6, 1),
    }


def restart(effort: Effort) -> dict[str, Any]:
    """Seconds until all is known again."""
    found = [_restart(effort, down) for down in effort.downs for _ in range(effort.rounds)]
    return {"seconds": max(each["seconds"] for each in found), "restarts": found}


def _restart(effort: Effort, down: float) -> dict[str, Any]:
    plan, sessions = effort.plan, effort.sessions
    with Stage() as stage:
        first = daemon(stage)
        crowd = _peers(stage, crowd_of, first, plan, range(sessions))
        bare = _peers(stage, bare_peers, first, plan, range(sessions, plan.peers))
        stage.ask(crowd, "connect")
        stage.order(crowd, "register", each=0)
        stage.ask(bare, "start")
        stage.hear(crowd, "answer")
        time.sleep(effort.settle)
        for peers in (crowd, bare):
            stage.ask(peers, "recover", "ready")
        first.end()
        time.sleep(down)
        start = time.monotonic()
        again = daemon(stage, first.port)
        listening = time.monotonic()
        done = [stage.hear(peers, "answer") for peers in (crowd, bare)]
        cpu = again.cpu()
        complained = complaints(again)
    ends = [each["end"] - start for each in done]
    came = [at - start for each in done for at in each["came"]]
    back = Counter(int(at * 10) for at in came)
    answers: Counter[int] = Counter()
    for each in done:
        for at, count in each["answers"]:
            answers[at - int(start * 10)] += count
    # A session tells when an attempt failed, which is up to half a second after it was begun.
    failures = [[at - 5, why, count] for at, why, count in done[0]["failures"]]
    failures += done[1]["failures"]
    up = int(listening * 10) + 1
    return {
        "down": down,
        "seconds": round(max(ends), 2),
        "sessions_seconds": round(ends[0], 2),
        "listening_after": round(listening - start, 2),
        "came_first": round(min(came), 2),
        "came_last": round(max(came), 2),
        "came": [back[tenth] for tenth in range(max(back) + 1)],
        "registered": [answers[tenth] for tenth in range(max(answers) + 1)],
        "failed_while_down": _failures(failures, until=up),
        "failed_while_up": _failures(failures, since=up),
        "complaints": complained,
        "coordinator_busy": round(cpu / max(ends), 2),
    }


def herd(effort: Effort) -> dict[str, Any]:
    """All at one moment, and who is turned away."""
    with Stage() as stage:
        coordinator = daemon(stage)
        peers = _peers(stage, bare_peers, coordinator, effort.plan)
        found = stage.ask(peers, "rush")
        peers.end()
        return {**found, "complaints": complaints(coordinator)}


def curve(effort: Effort) -> dict[str, Any]:
    """Microseconds of processor time for a registration, beside how many."""
    sizes = effort.sizes
    middle = sizes[len(sizes) // 2]
    by_topics = [_point(Plan(min(sizes), size, size // 100), effort) for size in sizes]
    by_peers = [_point(Plan(size // 10, middle, middle // 100), effort) for size in sizes]
    return {"by_topics": by_topics, "by_peers": by_peers}


def _point(plan: Plan, effort: Effort) -> dict[str, Any]:
    with _connected(plan) as (coordinator, ask, _):
        ask("register", each=0)
        costs = []
        for _ in range(2 * effort.rounds + 1):
            before = coordinator.cpu()
            made = ask("more", count=effort.extra)["made"]
            costs.append((coordinator.cpu() - before) / made * 1e6)
    return {
        "peers": plan.peers,
        "topics": plan.topics,
        "patterns": plan.patterns,
        "cpu_us": round(statistics.median(costs), 1),
        "least": round(min(costs), 1),
        "most": round(max(costs), 1),
    }


def topic(effort: Effort) -> dict[str, Any]:
    """What many Subs on one topic cost: pure registry, in this process."""
    points = []
    for size in effort.sizes:
        registry = Registry()
        peers = [f"{number:016x}" for number in range(max(1, size // 100))]
        for peer_id in ["publisher", *peers]:
            registry.connect(peer_id, tcp("127.0.0.1", 1), {}, 0.0)
        for number in range(size):
            sub = Register(number, "sub", "topic", False, False)
            registry.register(peers[number % len(peers)], sub, 0.0)
        start = time.perf_counter()
        pushes = registry.register("publisher", Register(1, "pub", "topic", False, False), 0.0)
        sizes = [(peer_id, len(encode(message))) for peer_id, message in pushes]
        busy = time.perf_counter() - start
        answer = sum(size for peer_id, size in sizes if peer_id == "publisher")
        points.append(
            {
                "subs": size,
                "busy_ms": round(1e3 * busy, 1),
                "answer_kib": round(answer / 1024, 1),
                "told_kib": round(sum(size for _, size in sizes) / 1024, 1),
            }
        )
    return {"subs": points}


def _spread(seconds: Iterable[float]) -> dict[str, float]:
    delays = sorted(1e3 * each for each in seconds)
    if not delays:
        raise Failed("nothing was measured")
    quantiles = {"p50_ms": 0.5, "p99_ms": 0.99, "p999_ms": 0.999, "most_ms": 1.0}
    found = {name: round(_quantile(delays, q), 2) for name, q in quantiles.items()}
    return {"subs": len(delays), **found}


def _quantile(values: list[float], q: float) -> float:
    return values[min(len(values) - 1, int(q * len(values)))]


def _failures(failures: list[list[Any]], since: int = 0, until: int = 1 << 60) -> dict[str, int]:
    found: Counter[str] = Counter()
    for at, why, count in failures:
        if since <= at < until:
            found[why] += count
    return dict(found)


MEASURES = {
    "registrations": registrations,
    "matching": matching,
    "memory": memory,
    "restart": restart,
    "herd": herd,
    "curve": curve,
    "topic": topic,
}
