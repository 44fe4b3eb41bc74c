"""One snapshot of a process, as frozen rows; and how it travels.

On the wire each row is an array of its fields in their order. A later version adds fields at the
end, each with a default: `Stats.from_rows` takes what it knows, and fills in what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from pubsub.support.about import plain

__all__ = [
    "CoordinatorStats",
    "LinkStats",
    "LoopStats",
    "PastStats",
    "PubStats",
    "Rates",
    "Stats",
    "StreamStats",
    "SubStats",
    "SubscriberStats",
]

R = TypeVar("R")

MOST = 500_000
"""Values that one process may tell: more than one with as many Pubs and Subs as are told does. To
read them takes about a second."""
LARGEST = 2**64
"""No number is larger, so that a sum over processes, and what is shown of it, stays a number."""


class Rates(NamedTuple):
    """Means a second, over the last 1, 10 and 60 s. While nobody has asked for a second yet, all
    three are the mean since it was made (`Stats.watched` is 0 then)."""

    second: float = 0.0
    ten: float = 0.0
    minute: float = 0.0


class SubscriberStats(NamedTuple):
    """A Sub, as a Pub knows it."""

    name: str = ""
    """``host:port#n``; see `Pub.subscribers`."""
    peer_id: str = ""
    sub_id: int = 0
    state: str = ""
    """``attached``, ``expected`` or ``reconnecting``."""
    way: str = ""
    """``unix``, ``direct``, ``reverse``, ``relay`` or ``local``; empty: there is none now."""
    observer: bool = False
    lag: int = 0
    """Messages put that it has not taken."""
    unsent: int = 0
    """Those of them that were not sent to it yet."""
    lost: int = 0
    """Messages that left the buffer before they could be sent, or were too large for it."""
    full: bool = False
    """Its window is full: what waits is not sent before it takes something."""
    holds: bool = False
    """The oldest message of the buffer is kept for it."""
    idle: float | None = None
    """Seconds for which it has taken nothing though it lags, as long as was looked; None: it takes,
    or lags by nothing."""


class PubStats(NamedTuple):
    """A Pub."""

    stream_id: int = 0
    topic: str = ""
    codec: str = ""
    overflow: str = "drop"
    put: int = 0
    """Messages, since it was made."""
    bytes: int = 0
    """Of them, encoded."""
    rate: Rates = Rates()
    """Messages a second."""
    byte_rate: Rates = Rates()
    silent: float | None = None
    """Seconds since the last put; None: there was none."""
    kept: int = 0
    """Messages in its log: those that some subscriber still needs, and history."""
    kept_bytes: int = 0
    buffer: int = 0
    """Bytes that may be there."""
    oldest: float | None = None
    """Age of the oldest of them in seconds; None: there is none."""
    lost: int = 0
    """Messages that a subscriber lost here: summed over all, with those that are gone."""
    waiting: int = 0
    """Puts that wait for room."""
    waited: float = 0.0
    """Seconds for which the first of them has waited, as long as was looked."""
    waits_for: tuple[str, ...] = ()
    """For whom, and why, each in words."""
    age: float = 0.0
    """Seconds since it was made."""
    subscribers: tuple[SubscriberStats, ...] = ()


class StreamStats(NamedTuple):
    """A Pub, as a Sub knows it."""

    publisher: str = ""
    """See `Message.publisher`."""
    peer_id: str = ""
    stream_id: int = 0
    topic: str = ""
    state: str = ""
    """``attached``, ``connecting``, ``reconnecting``, ``vanished`` or ``unreachable``."""
    way: str = ""
    """As `SubscriberStats.way`."""
    delivered: int = 0
    lost: int = 0
    silent: float | None = None
    """Seconds since the last message was put that has come; None: none has."""


class SubStats(NamedTuple):
    """A Sub."""

    sub_id: int = 0
    pattern: str = ""
    keep: str = "all"
    observer: bool = False
    delivered: int = 0
    """Messages that were taken."""
    bytes: int = 0
    rate: Rates = Rates()
    """Messages taken a second."""
    byte_rate: Rates = Rates()
    silent: float | None = None
    """Seconds since the last message was put that has come; None: none has."""
    lost: int = 0
    lost_by: tuple[tuple[str, int], ...] = ()
    """``(reason, messages)``, with the reasons of a `Gap`."""
    waiting: int = 0
    """Messages that have come and were not taken."""
    waiting_bytes: int = 0
    window: int = 0
    """Bytes that may be."""
    oldest: float | None = None
    """Seconds since the first of them was put; None: none waits."""
    takes: bool = False
    """Somebody waits for a message now."""
    handling: float | None = None
    """Mean seconds that the program spends on a message, over the last 10 s: from the taking of a
    batch to that of the next, without what it waited; None: it has taken none while it was
    watched."""
    stuck: float | None = None
    """Seconds for which it has taken nothing though something waits, as long as was looked; None:
    it takes, or nothing waits."""
    age: float = 0.0
    """Seconds since it was made."""
    streams: tuple[StreamStats, ...] = ()


class LinkStats(NamedTuple):
    """A link with another peer."""

    role: str = ""
    """What the other end is: ``publisher`` or ``subscriber``."""
    peer_id: str = ""
    up: bool = False
    way: str = ""
    """As `SubscriberStats.way`: the one that it has, or had last."""
    bytes_in: int = 0
    bytes_out: int = 0
    in_rate: Rates = Rates()
    """Bytes a second."""
    out_rate: Rates = Rates()
    round_trip: float | None = None
    """Seconds that the last heartbeat and its answer took; None: there was none yet (a busy link
    has none)."""
    paused: float = 0.0
    """Seconds for which the socket has taken nothing more; 0: it takes."""
    pausing: float = 0.0
    """Part of the last 10 s in which it took nothing more, from 0 to 1."""


class LoopStats(NamedTuple):
    """How late the event loop is with what is due: it runs other code meanwhile, or waits for the
    processor. Measured by a timer while somebody asks."""

    p50: float = 0.0
    """Seconds, over the last minute."""
    p99: float = 0.0
    most: float = 0.0
    measured: int = 0
    """How often it was measured; 0: not yet."""


class CoordinatorStats(NamedTuple):
    """A coordinator."""

    address: str = ""
    up: bool = False
    trouble: str = ""
    """Why it is not up, or of no use, in one short line; empty: it is."""


class PastStats(NamedTuple):
    """What the Pubs, or the Subs, of one topic that are over had counted."""

    role: str = ""
    """``pub`` or ``sub``."""
    topic: str = ""
    """Or pattern; empty: of all those that have no row of their own, because there are too many."""
    messages: int = 0
    """Put, or taken."""
    bytes: int = 0
    lost: int = 0
    """As `PubStats.lost`, or as in `SubStats.lost_by` without those of observers."""
    age: float = 0.0
    """Seconds since the first of them was made."""


class Stats(NamedTuple):
    """How the Pubs, Subs, links, loop and coordinators of a process stand."""

    peer_id: str = ""
    name: str = ""
    """What the program calls itself; by default its file."""
    pid: int = 0
    host: str = ""
    address: str = ""
    """``host:port`` that others dial; empty: they cannot."""
    library: str = ""
    """Version of pubsubd."""
    time: float = 0.0
    """When this was so: seconds since 1970, by its clock."""
    age: float = 0.0
    """Seconds since the Peer was made."""
    watched: float = 0.0
    """Seconds for which it has been measured, 60 at most; 0: it begins now, and all rates are means
    since the Pub, Sub or link was made."""
    pubs: tuple[PubStats, ...] = ()
    subs: tuple[SubStats, ...] = ()
    links: tuple[LinkStats, ...] = ()
    loop: LoopStats = LoopStats()
    coordinators: tuple[CoordinatorStats, ...] = ()
    pool: int = 0
    """Bytes of shared memory that hold something."""
    pool_size: int = 0
    """Bytes that may."""
    left_out: int = 0
    """Pubs, Subs and streams that are not told, because there are too many."""
    past: tuple[PastStats, ...] = ()
    """What those had counted that are over."""

    @property
    def who(self) -> str:
        """Which process it is, for people: ``model.py (pid 71 on host)``."""
        return f"{self.name or 'python'} (pid {self.pid} on {self.host or 'an unknown host'})"

    def counted(self) -> Iterator[PastStats]:
        """What all Pubs and Subs have counted, those that are over and those that are there."""
        yield from self.past
        for pub in self.pubs:
            yield PastStats("pub", pub.topic, pub.put, pub.bytes, pub.lost, pub.age)
        for sub in self.subs:
            lost = 0 if sub.observer else sum(count for _, count in sub.lost_by)
            yield PastStats("sub", sub.pattern, sub.delivered, sub.bytes, lost, sub.age)

    @classmethod
    def from_rows(cls, rows: Sequence[Any]) -> Stats:
        """What `rows` of another process say: arrays in arrays, of this version or another.

        Raises:
            ValueError: they are none, or far more than any process has to tell.
        """
        _check_size(rows)
        return _build(cls, rows)


# --- reading what another process says ----------------------------------------------------------


def _check_size(rows: object) -> None:
    """Look at no more than `MOST` values, however they are nested."""
    left, within = MOST, [rows]
    while within:
        inner = within.pop()
        if isinstance(inner, (list, tuple)):
            left -= len(inner)
            if left < 0:
                raise ValueError(f"a Stats has at most {MOST:,} values")
            within += inner


def _build(cls: type[R], rows: object) -> R:
    """A row of this class, each field checked; what an older version does not say has its default,
    and what a newer one says besides is passed over."""
    if not isinstance(rows, (list, tuple)):
        raise ValueError(f"a {cls.__name__} is an array, not {type(rows).__name__}")
    readers = _readers(cls)  # type: ignore[arg-type]
    return cls(*(read(value) for (_, read), value in zip(readers, rows, strict=False)))


@lru_cache(None)
def _readers(cls: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    hints = get_type_hints(cls)
    return tuple((name, _reader(name, hints[name])) for name in cls._fields)


def _reader(name: str, kind: Any) -> Callable[[Any], Any]:
    """What makes a value of that type, or raises ValueError."""
    if isinstance(kind, type) and hasattr(kind, "_fields"):
        return lambda value: _build(kind, value)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and inner[-1] is Ellipsis:
        read = _reader(name, inner[0])
        return lambda value: tuple(read(each) for each in _array(name, value))
    if origin is tuple:
        reads = [_reader(name, each) for each in inner]
        return lambda value: tuple(
            read(each) for read, each in zip(reads, _array(name, value), strict=True)
        )
    if inner:  # or None
        (only,) = (each for each in inner if each is not type(None))
        read = _reader(name, only)
        return lambda value: None if value is None else read(value)
    return partial(_plain_value, name, kind)


def _array(name: str, value: Any) -> Sequence[Any]:
    if isinstance(value, (list, tuple)):
        return value
    raise ValueError(f"{name} is an array, not {type(value).__name__}")


def _plain_value(name: str, kind: type, value: Any) -> Any:
    if kind is str and isinstance(value, str):
        return plain(value, 4096)  # it is shown to people, in terminals and pages
    if kind is float:
        if type(value) in (int, float) and abs(value) <= LARGEST:
            return float(value)
    elif type(value) is kind and (type(value) is not int or 0 <= value < LARGEST):
        return value
    raise ValueError(f"{name} is {kind.__name__}, not {_shown(value)}")


def _shown(value: object) -> str:
    """A value that is in no field's place. What is nested, or long, has no `repr` that ends soon,
    or at all."""
    if isinstance(value, str):
        return repr(value[:60])
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < LARGEST else "one of more than 64 bits"
    return f"a {type(value).__name__}"
