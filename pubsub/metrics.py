"""Metrics for Prometheus: what `Stats` tell, under names by its conventions.

    pubsub.metrics.register()       # a process's own, beside whatever else it exposes
    exposition(stats)               # of many processes: what a survey has heard of them

Everything is read when it is scraped, and nothing happens in between. A series is one topic of one
process, whatever the number of its Pubs, Subs and subscribers, which come and go: counts are
summed, those that are over among them, and of times and lags the worst one is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import add
from typing import Any, NamedTuple

try:
    from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        f"pubsub.metrics needs {error.name}: python -m pip install 'pubsubd[metrics]'",
        name=error.name,
    ) from error

from pubsub import Peer
from pubsub.stats import PubStats, Stats, SubStats
from pubsub.survey import here

__all__ = ["CONTENT_TYPE", "METRICS", "OTHERS", "Metric", "exposition", "register"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what `exposition` returns."""
LIMIT = 1_000
"""Topics of a process that have series of their own."""
LIMIT_OF_ALL = 10_000
"""Topics of all processes that have, each counted once for each process."""
OTHERS = "(others)"
"""The topic of those that have none: no topic has such a name."""
PROCESS = ("program", "host", "pid")
"""The labels of many processes; Prometheus gives a process that it scrapes itself its ``instance``.
"""
STATES = {
    "pubsub_subscribers": ("attached", "expected", "reconnecting"),
    "pubsub_publishers": ("attached", "connecting", "reconnecting", "vanished", "unreachable"),
}


class Metric(NamedTuple):
    """One of them.

    Attributes:
        name: as a scrape shows it.
        labels: beside those of a process.
        text: what it is.
        joined: how two values become one.
    """

    name: str
    labels: tuple[str, ...]
    text: str
    joined: Callable[[float, float], float] = add


TOPIC = ("topic",)

METRICS = (
    # the process
    Metric("pubsub_info", ("version",), "Version of pubsubd; always 1.", max),
    Metric("pubsub_peers", (), "Peers of the process."),
    Metric(
        "pubsub_coordinator_up", ("coordinator",), "1: there is a session with it; 0: none.", min
    ),
    Metric("pubsub_links", ("role", "state", "way"), "Links with other peers, up or down."),
    Metric("pubsub_link_paused_seconds", (), "For how long a socket has taken nothing more.", max),
    Metric("pubsub_link_round_trip_seconds", (), "What the last heartbeat of a link took.", max),
    Metric(
        "pubsub_loop_late_p99_seconds", (), "How late the event loop is, but for 1 % of times.", max
    ),
    Metric("pubsub_loop_late_max_seconds", (), "How late it was at most in the last minute.", max),
    Metric("pubsub_shared_memory_bytes", (), "Shared memory that holds something."),
    Metric("pubsub_shared_memory_limit_bytes", (), "Shared memory that may."),
    Metric(
        "pubsub_topics_left_out", (), "Topics that are summed under (others): there are too many."
    ),
    Metric(
        "pubsub_rows_left_out", (), "Pubs, Subs and streams that are not told: there are too many."
    ),
    # its Pubs
    Metric("pubsub_pubs", TOPIC, "Pubs that are open."),
    Metric("pubsub_put_messages_total", TOPIC, "Messages put."),
    Metric("pubsub_put_bytes_total", TOPIC, "Bytes put, as the buffer counts them."),
    Metric("pubsub_put_last_timestamp_seconds", TOPIC, "When a message was put last.", max),
    Metric("pubsub_put_waiting", TOPIC, "Puts that wait for room in the buffer."),
    Metric("pubsub_put_waiting_seconds", TOPIC, "For how long the first of them has waited.", max),
    Metric("pubsub_buffer_messages", TOPIC, "Messages in the buffer."),
    Metric("pubsub_buffer_bytes", TOPIC, "Bytes in the buffer."),
    Metric("pubsub_buffer_limit_bytes", TOPIC, "Bytes that may be there."),
    Metric("pubsub_buffer_oldest_seconds", TOPIC, "Age of the oldest message in a buffer.", max),
    Metric(
        "pubsub_buffer_lost_messages_total",
        TOPIC,
        "Messages that left the buffer before a subscriber was sent them, for each that was not.",
    ),
    Metric("pubsub_subscribers", ("topic", "state"), "Subscribers, without observers."),
    Metric(
        "pubsub_subscriber_lag_messages",
        TOPIC,
        "Messages that the slowest subscriber has not taken, observers aside.",
        max,
    ),
    Metric(
        "pubsub_subscriber_idle_seconds",
        TOPIC,
        "For how long a subscriber has taken nothing though it lags, observers aside.",
        max,
    ),
    # its Subs
    Metric("pubsub_subs", TOPIC, "Subs that are open."),
    Metric("pubsub_delivered_messages_total", TOPIC, "Messages taken."),
    Metric("pubsub_delivered_bytes_total", TOPIC, "Bytes taken."),
    Metric(
        "pubsub_lost_messages_total",
        TOPIC,
        "Messages that were due to a Sub and will never be delivered, observers aside.",
    ),
    Metric(
        "pubsub_received_last_timestamp_seconds",
        TOPIC,
        "When the last message was put that has come.",
        max,
    ),
    Metric("pubsub_waiting_messages", TOPIC, "Messages that have come and were not taken."),
    Metric("pubsub_waiting_bytes", TOPIC, "Their bytes."),
    Metric("pubsub_window_bytes", TOPIC, "Bytes that may wait."),
    Metric("pubsub_waiting_oldest_seconds", TOPIC, "Since the first of them was put.", max),
    Metric(
        "pubsub_handling_seconds", TOPIC, "What the program spends on a message, on average.", max
    ),
    Metric(
        "pubsub_stuck_seconds",
        TOPIC,
        "For how long a Sub has taken nothing though something waits.",
        max,
    ),
    Metric("pubsub_publishers", ("topic", "state"), "Streams of publishers."),
)
"""All of them. Those of a Sub have its topic or pattern as their topic."""
JOINED = {metric.name: metric.joined for metric in METRICS}


def register(
    registry: CollectorRegistry | None = None, peer: Peer | None = None, *, limit: int = LIMIT
) -> Collector:
    """Have this process's own metrics in a registry of prometheus_client.

    They are read in the thread that scrapes, whatever the event loops do. For two minutes after a
    scrape the process measures itself (see `Peer.stats`); that of one never scraped costs nothing.

    Parameters:
        registry: default: that of prometheus_client, which ``start_http_server`` exposes.
        peer: whose metrics; default: of all Peers of the process, those included that are made
            later, with what those had counted that are over.
        limit: topics, the oldest, that have series of their own; the others are summed.

    Returns:
        What was registered, for ``registry.unregister``.

    Raises:
        ValueError: the registry has pubsub's metrics already, or the limit is negative.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> from pubsub import Peer
        >>> from pubsub.metrics import register
        >>> registry = CollectorRegistry()
        >>> with Peer() as peer:
        ...     collector = register(registry, peer)
        ...     peer.pub("numbers").put(1)
        ...     registry.get_sample_value("pubsub_put_messages_total", {"topic": "numbers"})
        1
    """
    registry = REGISTRY if registry is None else registry
    collector = _Collector(here if peer is None else lambda: [peer.stats()], (), limit)
    try:
        registry.register(collector)
    except ValueError:
        raise ValueError(
            "this registry has the metrics of pubsub already: register them once, or "
            "`unregister` what the first register() returned"
        ) from None
    return collector


def exposition(stats: Iterable[Stats], *, limit: int = LIMIT_OF_ALL) -> bytes:
    """What several processes tell, in the text format of Prometheus (see `CONTENT_TYPE`), with
    labels that say which one: ``program``, ``host``, ``pid``.

    Parameters:
        stats: of each Peer; not of those that are silent now, whose counts would stand still.
        limit: pairs of a process and a topic, the oldest, that have series of their own; the
            others are summed for each process.

    Raises:
        ValueError: the limit is negative.

    Example:
        >>> from pubsub.metrics import exposition
        >>> from pubsub.stats import PubStats, Stats
        >>> stats = Stats(name="app", host="a", pid=7, pubs=(PubStats(topic="t", put=5),))
        >>> text = exposition([stats]).decode()
        >>> [line for line in text.splitlines() if line.startswith("pubsub_put_messages")]
        ['pubsub_put_messages_total{host="a",pid="7",program="app",topic="t"} 5.0']
    """
    told = list(stats)
    registry = CollectorRegistry()
    registry.register(_Collector(lambda: told, PROCESS, limit))
    return generate_latest(registry)


class _Collector(Collector):
    """Reads when it is asked.

    Parameters:
        read: gives the Stats.
        process: the labels that say of which process something is; none where there is but one.
        limit: see `exposition`.
    """

    def __init__(
        self, read: Callable[[], list[Stats]], process: tuple[str, ...], limit: int
    ) -> None:
        if limit < 0:
            raise ValueError(f"limit={limit}: a number of topics is wanted, 0 or more")
        self._read = read
        self._process = process
        self._limit = limit

    def describe(self) -> Iterator[Any]:
        """Which names there are, without reading anything."""
        for metric in METRICS:
            yield _family(metric, ())

    def collect(self) -> Iterator[Any]:
        """All of it, as it is now."""
        found = _Found(self._read(), bool(self._process), self._limit)
        for metric in METRICS:
            family = _family(metric, self._process)
            for labels, value in found.values[metric.name].items():
                family.add_metric(labels, value)
            yield family


def _family(metric: Metric, process: tuple[str, ...]) -> Any:
    kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
    name = metric.name.removesuffix("_total")
    unit = name.rpartition("_")[2]
    return kind(
        name,
        metric.text,
        labels=(*process, *metric.labels),
        unit=unit if unit in ("seconds", "bytes", "messages") else "",
    )


class _Found:
    """The values of each metric, by their labels."""

    def __init__(self, stats: list[Stats], many: bool, limit: int) -> None:
        self.values: dict[str, dict[tuple[str, ...], float]] = {
            metric.name: {} for metric in METRICS
        }
        self._many = many
        self._own = _named(stats, self._process, limit)
        left_out: dict[tuple[str, ...], set[str]] = {}
        for each in stats:
            process = self._process(each)
            left_out.setdefault(process, set()).update(
                row.topic
                for row in each.counted()
                if row.topic and self._topic(process, row.topic) == OTHERS
            )
            self._of_process(process, each)
            self._of_topics(process, each)
        for process, topics in left_out.items():
            self._tell("pubsub_topics_left_out", process, len(topics))

    def _process(self, stats: Stats) -> tuple[str, ...]:
        return (stats.name, stats.host, str(stats.pid)) if self._many else ()

    def _topic(self, process: tuple[str, ...], topic: str) -> str:
        return topic if (process, topic) in self._own else OTHERS

    def _tell(self, name: str, labels: tuple[str, ...], value: float | None) -> None:
        if value is not None:
            values = self.values[name]
            before = values.get(labels)
            values[labels] = value if before is None else JOINED[name](before, value)

    def _of_process(self, process: tuple[str, ...], stats: Stats) -> None:
        if not stats.peer_id and not self._many:  # what is over, of no Peer
            return
        tell = self._tell
        tell("pubsub_info", (*process, stats.library), 1)
        tell("pubsub_peers", process, 1)
        for coordinator in stats.coordinators:
            tell("pubsub_coordinator_up", (*process, coordinator.address), coordinator.up)
        for link in stats.links:
            state = "up" if link.up else "down"
            tell("pubsub_links", (*process, link.role, state, link.way), 1)
            tell("pubsub_link_paused_seconds", process, link.paused)
            tell("pubsub_link_round_trip_seconds", process, link.round_trip)
        if stats.loop.measured:
            tell("pubsub_loop_late_p99_seconds", process, stats.loop.p99)
            tell("pubsub_loop_late_max_seconds", process, stats.loop.most)
        tell("pubsub_shared_memory_bytes", process, stats.pool)
        tell("pubsub_shared_memory_limit_bytes", process, stats.pool_size)
        tell("pubsub_rows_left_out", process, stats.left_out)

    def _of_topics(self, process: tuple[str, ...], stats: Stats) -> None:
        for row in stats.counted():
            labels = (*process, self._topic(process, row.topic))
            if row.role == "pub":
                self._tell("pubsub_put_messages_total", labels, row.messages)
                self._tell("pubsub_put_bytes_total", labels, row.bytes)
                self._tell("pubsub_buffer_lost_messages_total", labels, row.lost)
            else:
                self._tell("pubsub_delivered_messages_total", labels, row.messages)
                self._tell("pubsub_delivered_bytes_total", labels, row.bytes)
                self._tell("pubsub_lost_messages_total", labels, row.lost)
        for pub in stats.pubs:
            self._of_pub((*process, self._topic(process, pub.topic)), stats.time, pub)
        for sub in stats.subs:
            self._of_sub((*process, self._topic(process, sub.pattern)), stats.time, sub)

    def _of_pub(self, labels: tuple[str, ...], now: float, pub: PubStats) -> None:
        tell = self._tell
        tell("pubsub_pubs", labels, 1)
        tell("pubsub_put_last_timestamp_seconds", labels, _when(now, pub.silent))
        tell("pubsub_put_waiting", labels, pub.waiting)
        tell("pubsub_put_waiting_seconds", labels, pub.waited)
        tell("pubsub_buffer_messages", labels, pub.kept)
        tell("pubsub_buffer_bytes", labels, pub.kept_bytes)
        tell("pubsub_buffer_limit_bytes", labels, pub.buffer)
        tell("pubsub_buffer_oldest_seconds", labels, pub.oldest or 0.0)
        due = [each for each in pub.subscribers if not each.observer]
        self._states("pubsub_subscribers", labels, [each.state for each in due])
        lag, idle = max([each.lag for each in due], default=0), [each.idle or 0.0 for each in due]
        tell("pubsub_subscriber_lag_messages", labels, lag)
        tell("pubsub_subscriber_idle_seconds", labels, max(idle, default=0.0))

    def _of_sub(self, labels: tuple[str, ...], now: float, sub: SubStats) -> None:
        tell = self._tell
        tell("pubsub_subs", labels, 1)
        tell("pubsub_received_last_timestamp_seconds", labels, _when(now, sub.silent))
        tell("pubsub_waiting_messages", labels, sub.waiting)
        tell("pubsub_waiting_bytes", labels, sub.waiting_bytes)
        tell("pubsub_window_bytes", labels, sub.window)
        tell("pubsub_waiting_oldest_seconds", labels, sub.oldest or 0.0)
        tell("pubsub_handling_seconds", labels, sub.handling)
        tell("pubsub_stuck_seconds", labels, sub.stuck or 0.0)
        self._states("pubsub_publishers", labels, [stream.state for stream in sub.streams])

    def _states(self, name: str, labels: tuple[str, ...], states: list[str]) -> None:
        for state in STATES[name]:
            self._tell(name, (*labels, state), states.count(state))


def _named(
    stats: list[Stats], process: Callable[[Stats], tuple[str, ...]], limit: int
) -> set[tuple[tuple[str, ...], str]]:
    """Which topics of which process have series of their own: those that are there for longest, so
    that none changes its place when another comes or ends."""
    since: dict[tuple[tuple[str, ...], str], float] = {}
    for each in stats:
        for row in each.counted():
            if row.topic:
                key = (process(each), row.topic)
                since[key] = min(since.get(key, each.time), each.time - row.age)
    if len(since) <= limit:
        return set(since)
    return set(sorted(since, key=lambda key: (since[key], key))[:limit])


def _when(now: float, ago: float | None) -> float | None:
    return None if ago is None else now - ago
