"""Libraries with a server between: nats-py and redis-py. The server is part of what is measured,
and runs beside publisher and subscriber."""

from __future__ import annotations

import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contender import PUBSUB, AsyncContender, BlockingContender, Meeting
from benchmarks.packing import packer, unpack

__all__ = ["CONTENDERS", "free_port", "reach", "watched"]


def watched(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A server that runs until this process ends, however it does."""
    # The shell waits on a pipe that only this process holds, and takes the server along.
    watch = '"$@" >/dev/null & cat; kill $!'
    return subprocess.Popen(["sh", "-c", watch, "sh", *command], stdin=subprocess.PIPE)


def reach(server: subprocess.Popen[bytes], name: str, port: int) -> socket.socket:
    """A connection to it, once it listens."""
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1)
        except OSError:
            if server.poll() is not None:
                raise RuntimeError(f"{name} ended with {server.returncode}") from None
            time.sleep(0.02)


def _run(command: Sequence[str], port: int, announce: Callable[[str], None]) -> None:
    """Run a server until this process ends; announce its port once it listens."""
    with watched(command) as server:
        reach(server, command[0], port).close()
        announce(str(port))
        server.wait()


def free_port() -> int:
    """Below those that a system gives to whoever asks for any, so that nobody else gets it before
    the server listens there."""
    while True:
        port = random.randrange(10_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


# --- nats-py ----------------------------------------------------------------------------


def _subject(topic: str) -> str:
    return topic.replace("/", ".")


class _NatsPublisher:
    def __init__(self, client: Any, topics: Sequence[str]) -> None:
        self._client = client
        self._subjects = [_subject(topic) for topic in topics]
        self._pack = packer()

    async def send_all(self, values: Sequence[Any]) -> None:
        publish, pack, subject = self._client.publish, self._pack, self._subjects[0]
        for value in values:
            await publish(subject, pack(value))
        await self._client.flush(60)

    async def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        publish, pack, subjects = self._client.publish, self._pack, self._subjects
        for topic, value in zip(topics, values, strict=True):
            await publish(subjects[topic], pack(value))
        await self._client.flush(60)

    async def close(self) -> None:
        await self._client.close()


class _NatsSubscriber:
    def __init__(self, client: Any, subscription: Any) -> None:
        self._client = client
        self._subscription = subscription
        self._messages = subscription.messages

    async def drain(self) -> tuple[int, Any]:
        n, last = 0, None
        async for message in self._messages:
            value = unpack(message.data)
            if not value:
                break
            n += 1
            last = value
        return n, last

    async def each(self, note: Callable[[Any], object]) -> None:
        async for message in self._messages:
            value = unpack(message.data)
            if not value:
                break
            note(value)

    async def close(self) -> None:
        await self._subscription.unsubscribe()


class _NatsPair:
    def __init__(self, client: Any, subject: str, subscription: Any) -> None:
        self._client = client
        self._subject = subject
        self._next = subscription.messages.__anext__
        self._pack = packer()

    async def send(self, value: Any) -> None:
        await self._client.publish(self._subject, self._pack(value))

    async def receive(self) -> Any:
        return unpack((await self._next()).data)

    async def close(self) -> None:
        await self._client.close()


class Nats(AsyncContender):
    """nats-py with nats-server."""

    name = "nats-py"
    family = "nats"
    title = "nats-py with nats-server"
    how = (
        "on uvloop; `await nc.publish(…)` each, `flush` after each 256; `async for` over "
        "`subscription.messages`, without limits on what is pending; the server's `max_payload` "
        "raised to 64 MB, `max_pending` to 1 GB."
    )
    packages = ("nats", "uvloop")
    programs = ("nats-server",)
    groups = PUBSUB | {"topics"}
    service = True

    def __init__(self) -> None:
        self._client: Any = None

    def serve(self, announce: Callable[[str], None]) -> None:
        port = free_port()
        with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as config:
            config.write(
                f"listen: 127.0.0.1:{port}\nmax_payload: 64MB\nmax_pending: 1GB\n"
                "write_deadline: 60s\n"
            )

        def ready(place: str) -> None:
            Path(config.name).unlink()  # it has been read
            announce(place)

        _run(["nats-server", "-c", config.name, "-l", "/dev/null"], port, ready)

    async def _connect(self, meeting: Meeting) -> Any:
        if self._client is None:  # one connection of a process
            import nats

            self._client = await nats.connect(f"nats://127.0.0.1:{meeting.place}")
        return self._client

    async def _subscribe(self, meeting: Meeting, topic: str) -> Any:
        client = await self._connect(meeting)
        subscription = await client.subscribe(
            _subject(topic), pending_msgs_limit=-1, pending_bytes_limit=-1
        )
        await client.flush()
        return subscription

    async def open_publisher(self, meeting: Meeting) -> _NatsPublisher:
        return _NatsPublisher(await self._connect(meeting), [meeting.topic])

    async def open_subscriber(self, meeting: Meeting) -> _NatsSubscriber:
        return _NatsSubscriber(self._client, await self._subscribe(meeting, meeting.topic))

    async def open_topics(self, meeting: Meeting) -> _NatsPublisher:
        topics = [f"{meeting.topic}/{i}" for i in range(meeting.topics)]
        return _NatsPublisher(await self._connect(meeting), topics)

    async def open_topics_subscriber(self, meeting: Meeting) -> _NatsSubscriber:
        return _NatsSubscriber(self._client, await self._subscribe(meeting, f"{meeting.topic}/*"))

    async def open_pair(self, meeting: Meeting, first: bool) -> _NatsPair:
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        out, into = (there, back) if first else (back, there)
        subscription = await self._subscribe(meeting, into)
        return _NatsPair(self._client, _subject(out), subscription)


# --- redis-py ---------------------------------------------------------------------------


def _redis(meeting: Meeting) -> Any:
    import redis

    return redis.Redis(port=int(meeting.place))


class _RedisPublisher:
    def __init__(self, client: Any, topics: Sequence[str]) -> None:
        self._client = client
        self._topics = topics
        self._pack = packer()

    def send_all(self, values: Sequence[Any]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        publish, pack, topic = pipeline.publish, self._pack, self._topics[0]
        for value in values:
            publish(topic, pack(value))
        pipeline.execute()

    def send_to(self, topics: Sequence[int], values: Sequence[Any]) -> None:
        pipeline = self._client.pipeline(transaction=False)
        publish, pack, names = pipeline.publish, self._pack, self._topics
        for topic, value in zip(topics, values, strict=True):
            publish(names[topic], pack(value))
        pipeline.execute()

    def close(self) -> None:
        self._client.close()


class _RedisSubscriber:
    def __init__(self, client: Any, subscription: Any) -> None:
        self._client = client
        self._subscription = subscription

    def drain(self) -> tuple[int, Any]:
        n, last = 0, None
        for message in self._subscription.listen():
            value = unpack(message["data"])
            if not value:
                break
            n += 1
            last = value
        return n, last

    def each(self, note: Callable[[Any], object]) -> None:
        for message in self._subscription.listen():
            value = unpack(message["data"])
            if not value:
                break
            note(value)

    def close(self) -> None:
        self._subscription.close()
        self._client.close()


class _RedisPair:
    def __init__(self, client: Any, topic: str, subscription: Any) -> None:
        self._client = client
        self._topic = topic
        self._messages = subscription.listen()
        self._pack = packer()

    def send(self, value: Any) -> None:
        self._client.publish(self._topic, self._pack(value))

    def receive(self) -> Any:
        return unpack(next(self._messages)["data"])

    def close(self) -> None:
        self._client.close()


class Redis(BlockingContender):
    """redis-py with redis-server."""

    name = "redis-py"
    family = "redis"
    title = "redis-py with redis-server, pipelined"
    how = (
        "hiredis; a pipeline without transaction of 256 `publish` each; `for message in "
        "pubsub.listen()`; the server without persistence, and without limit on what waits for a "
        "subscriber."
    )
    packages = ("redis", "hiredis")
    programs = ("redis-server",)
    groups = PUBSUB | {"topics"}
    service = True

    def serve(self, announce: Callable[[str], None]) -> None:
        port = free_port()
        command = f"redis-server --bind 127.0.0.1 --port {port} --appendonly no --dir /".split()
        limits = ["--save", "", "--client-output-buffer-limit", "pubsub 0 0 0"]
        _run([*command, *limits], port, announce)

    def _subscription(self, client: Any, topic: str) -> Any:
        subscription = client.pubsub(ignore_subscribe_messages=True)
        (subscription.psubscribe if "*" in topic else subscription.subscribe)(topic)
        return subscription

    def open_publisher(self, meeting: Meeting) -> _RedisPublisher:
        return _RedisPublisher(_redis(meeting), [meeting.topic])

    def open_subscriber(self, meeting: Meeting) -> _RedisSubscriber:
        client = _redis(meeting)
        return _RedisSubscriber(client, self._subscription(client, meeting.topic))

    def open_topics(self, meeting: Meeting) -> _RedisPublisher:
        return _RedisPublisher(
            _redis(meeting), [f"{meeting.topic}/{i}" for i in range(meeting.topics)]
        )

    def open_topics_subscriber(self, meeting: Meeting) -> _RedisSubscriber:
        client = _redis(meeting)
        return _RedisSubscriber(client, self._subscription(client, f"{meeting.topic}/*"))

    def open_pair(self, meeting: Meeting, first: bool) -> _RedisPair:
        there, back = f"{meeting.topic}/there", f"{meeting.topic}/back"
        out, into = (there, back) if first else (back, there)
        client = _redis(meeting)
        return _RedisPair(client, out, self._subscription(client, into))


CONTENDERS = (Nats(), Redis())
