"""Own types and own codecs from Pub to Sub: in one process, between Peers, between processes."""

from __future__ import annotations

import dataclasses
import json
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import pubsub
from pubsub import Codec, DecodeError, EncodeError, Message, Peer, WrongContext
from pubsub.codec import own_types
from tests.integration.support import (
    LONG,
    coordinator_in_loop,
    coordinator_in_thread,
    run_python,
)

dumps = partial(pickle.dumps, protocol=5)
CODE = Codec("code", dumps, pickle.loads, beside_msgpack=True, buffers=True, runs_code=True)
JSON = Codec("json", lambda value: json.dumps(value).encode(), json.loads)


@partial(pubsub.register, name="tests-reading")
@dataclasses.dataclass
class Reading:
    sensor: str
    items: Any = None


class Thing:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


@pytest.fixture
def address() -> Iterator[str]:
    with coordinator_in_thread() as coordinator:
        yield coordinator.address


async def test_own_types_and_codecs_arrive_in_a_loop() -> None:
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        for peer in (here, there):
            sub = await peer.sub("t/*", codec=[CODE, JSON])
            pubs = [here.pub("t/a"), here.pub("t/b", codec=CODE), here.pub("t/c", codec=JSON)]
            for pub in pubs:
                await pub.wait_for_subscribers(1, timeout=LONG)
            value = Reading("a", [np.arange(100_000), b"x" * 70_000])
            await pubs[0].put(value)
            await pubs[1].put([Thing(value)])
            await pubs[2].put({"a": 1})
            found = {}
            async for event in sub.messages():
                assert isinstance(event, Message)
                found[event.topic] = event.value
                if len(found) == 3:
                    break
            assert found["t/c"] == {"a": 1}
            for topic, reading in (("t/a", found["t/a"]), ("t/b", found["t/b"][0].inner)):
                assert type(reading) is Reading
                assert (reading.items[0] == value.items[0]).all()
                assert reading.items[0].flags.writeable is (topic == "t/b")  # pickle's own
                assert reading.items[1] == value.items[1]
            for pub in pubs:
                await pub.close()
            sub.close()


def test_own_types_arrive_from_another_process(address: str) -> None:
    with Peer(address) as peer:
        sub = peer.sub("t")
        out = run_python(
            """
            import dataclasses, os, sys
            import pubsub

            @pubsub.register
            @dataclasses.dataclass
            class Stranger:
                x: int

            @dataclasses.dataclass
            class Other:
                sensor: str
                items: object

            pubsub.register(Other, "tests-reading", vars, lambda wire: Other(**wire))
            with pubsub.Pub("t") as pub:
                pub.wait_for_subscribers(1, timeout=30)
                pub.put(Stranger(1))
                pub.put({"r": Other("a", (1, 2))})
            """,
            PUBSUB_COORDINATOR=address,
        )
        assert out == ""
        assert sub.get(timeout=LONG) == {"r": Reading("a", (1, 2))}
        assert sub.lost == 1  # of a type that is not known here: nothing is imported for it


def test_a_value_that_fails_leaves_those_around_it_unharmed(address: str) -> None:
    class Failing:
        pass

    pubsub.register(Failing, "tests-failing", lambda value: 1 / 0, lambda wire: wire)
    with Peer(address) as here, Peer(address) as there:
        sub = there.sub("t", codec=CODE)
        for codec in ("msgpack", CODE):
            pub = here.pub("t", codec=codec)
            pub.wait_for_subscribers(1, timeout=LONG)
            pub.put(1)
            with pytest.raises(EncodeError, match=r"value\['a'\] on topic 't' .* to_wire raised"):
                pub.put({"a": Failing()})
            with pytest.raises(TypeError, match=r"value\[2\] on topic 't'"):
                pub.put_many(iter([2, ["x", "y", threading.Lock()], 4]))
            pub.put(3)
            assert [sub.get(timeout=LONG) for _ in range(3)] == [1, 2, 3]
            pub.close()
        assert sub.lost == 0


class Exits:
    """Calls exit() where it is unpickled, as a module that is imported for a value may."""

    def __reduce__(self) -> Any:
        return exit, (3,)


@pytest.mark.parametrize("way", ["an own codec", "an own type", "pickle"])
def test_a_value_that_exits_where_it_is_decoded_costs_its_message_alone(
    address: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec: Any = {"an own codec": CODE, "pickle": "pickle", "an own type": "msgpack"}[way]
    value: Any = Exits()
    if way == "an own type":
        value = Reading("exits")
        known = own_types.BY_NAME[b"tests-reading"]
        monkeypatch.setitem(own_types.BY_NAME, b"tests-reading", known._replace(from_wire=exit))
    with Peer(address) as peer:
        sub = peer.sub("t", codec=CODE, allow_pickle="anyone")
        pub = peer.pub("t", codec=codec)
        for each in (1, value, 2):
            pub.put(each)
        assert [sub.get(timeout=LONG), sub.get(timeout=LONG)] == [1, 2]
        assert sub.lost == 1


def test_what_a_value_puts_while_it_is_encoded_is_refused(address: str) -> None:
    refused: list[WrongContext] = []

    class Putting:
        pass

    def put(value: Any) -> str:
        with pytest.raises(WrongContext) as caught:
            pub.put("within")
        refused.append(caught.value)
        return "wire"

    pubsub.register(Putting, "tests-putting", put, lambda wire: wire)
    with Peer(address) as peer:
        sub, pub = peer.sub("t"), peer.pub("t")
        pub.put([Putting()])
        assert sub.get(timeout=LONG) == ["wire"]
        assert len(refused) == 1
        with pytest.raises(EncodeError, match=r"value\[1\] on topic 't' is an object"):
            pub.put([Putting(), object()])  # which is looked through for what is at fault
        assert len(refused) > 2
        pub.put([Putting()])
        assert sub.get(timeout=LONG) == ["wire"]


def test_a_put_goes_on_after_a_value_that_was_dumped_as_a_whole(address: str) -> None:
    """Each way to put, and large values: the packer is another one from then on."""
    with Peer(address) as peer:
        sub, pub = peer.sub("t", codec=CODE), peer.pub("t", codec=CODE)
        large = ["\ud800", b"x" * 70_000]
        pub.put(large)
        pub.put_many([1, large, {"a": Thing(2)}, "\ud800"])
        pub.put([b"y" * 70_000])
        pub.put(large)
        pub.put(3)
        found = [sub.get(timeout=LONG) for _ in range(8)]
        assert [*found[:3], *found[4:]] == [
            *(large, 1, large, "\ud800", [b"y" * 70_000], large, 3),
        ]
        assert found[3]["a"].inner == 2
        for put in (pub.put, lambda value: pub.put_many([value])):
            put([b"y" * 70_000])  # now large bytes are looked for …
            put("\ud800")
            assert pub._encoder.pack is pub._encoder._plain  # … and here no more


def test_who_was_not_given_a_codec_is_told_so(address: str) -> None:
    with Peer(address) as here, Peer(address) as there:
        without, other = there.sub("t"), there.sub("t", codec=JSON)
        pub = here.pub("t", codec=CODE)
        assert pub.codec == "code"
        pub.put(1)
        for sub, known in ((without, ""), (other, ", json")):
            with pytest.raises(DecodeError) as caught:
                sub.get(timeout=LONG)
            assert (
                "this stream uses the codec 'code', which this Sub does not know (msgpack"
                in str(caught.value)
            )
            assert f"raw{known}): give it that one too, with Sub(..., codec=…)" in str(caught.value)


@pytest.mark.by_hand
@pytest.mark.insecure
def test_what_runs_code_comes_only_from_who_has_shown_who_it_is(address: str) -> None:
    with Peer(address) as here, Peer(address) as there:
        no, yes = there.sub("t", codec=CODE), there.sub("t", codec=CODE, allow_pickle="anyone")
        harmless = there.sub("j", codec=JSON)
        pub, text = here.pub("t", codec=CODE), here.pub("j", codec=JSON)
        for one in (pub, text):
            one.wait_for_subscribers(1, timeout=LONG)
        pub.put(Thing(1))
        text.put([1])
        assert yes.get(timeout=LONG).inner == 1
        assert harmless.get(timeout=LONG) == [1]
        with pytest.raises(DecodeError) as caught:
            no.get(timeout=LONG)
        assert (
            "this stream uses the codec 'code', and its publisher has not shown who it is"
            in str(caught.value)
        )
        assert 'Sub(..., allow_pickle="anyone")' in str(caught.value)


def test_a_codec_that_is_none_is_refused_at_once(address: str) -> None:
    with Peer(address) as peer:
        with pytest.raises(TypeError, match=r"codec='pickle' is no pubsub\.Codec"):
            peer.sub("t", codec="pickle")
        with pytest.raises(ValueError, match="two codecs of the name 'json'"):
            peer.sub("t", codec=[JSON, Codec("json", dumps, pickle.loads)])
        with pytest.raises(ValueError, match=r"is none of .*, and no pubsub\.Codec"):
            peer.pub("t", codec=json)
