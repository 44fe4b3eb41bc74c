"""Own codecs: beside msgpack and for whole values, in band and out of band; and cloudpickle's."""

from __future__ import annotations

import json
import pickle
import threading
from collections import OrderedDict
from functools import partial
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub import Codec
from pubsub.codec.codecs import by_name, codec_of, decoder_of
from pubsub.codec.encoder import LARGE, Encoder
from pubsub.codec.extension_types import CODED
from pubsub.codec.own_types import register
from pubsub.errors import DecodeError, EncodeError, MessageTooLarge, PubSubError
from pubsub.wire.buffers import Buffer, WholeBuffer
from tests.codec.test_codec import VALUES, same
from tests.wire.buffers import arrived, contents

BIG = bytes(range(256)) * (LARGE // 256)
MAX_MESSAGE = 2**28

dumps = partial(pickle.dumps, protocol=5)
WHOLE = Codec("whole", dumps, pickle.loads)
BESIDE = Codec("beside", dumps, pickle.loads, beside_msgpack=True)
BUFFERS = Codec("buffers", dumps, pickle.loads, buffers=True)
BOTH = Codec("both", dumps, pickle.loads, beside_msgpack=True, buffers=True)
ALL = (WHOLE, BESIDE, BUFFERS, BOTH)


def encoder(codec: Codec, max_message: int = MAX_MESSAGE) -> Encoder:
    return codec_of(codec).encoder("jobs", max_message)


def pack(enc: Encoder, value: Any) -> tuple[bytes, list[Buffer]]:
    """As a Pub does."""
    try:
        data = enc.pack(value)
    except Exception as error:
        data = enc.pack_again(error, value)
    return b"\x91" + data, list(enc.take())


def round_trip(value: Any, codec: Codec) -> Any:
    body, buffers = pack(encoder(codec), value)
    [found] = decoder_of(codec.name, by_name(codec)).decode(body, buffers)
    return found


def error_of(value: Any, codec: Codec, max_message: int = MAX_MESSAGE) -> PubSubError:
    enc = encoder(codec, max_message)
    with pytest.raises(PubSubError) as caught:
        pack(enc, value)
    assert enc.buffers == []
    assert pack(enc, 1) == pack(encoder(codec), 1)  # it goes on
    return caught.value


class Thing:
    def __init__(self, inner: Any) -> None:
        self.inner = inner


class Memory:
    """Pickled with its memory out of band."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Memory, (pickle.PickleBuffer(self.data),)


# --- there and back --------------------------------------------------------------------


@given(VALUES)
def test_every_value_comes_back_by_every_codec(value: Any) -> None:
    for codec in ALL:
        assert same(round_trip(value, codec), value)


@given(VALUES)
def test_beside_msgpack_what_msgpack_carries_is_packed_by_it(value: Any) -> None:
    assert pack(encoder(BESIDE), value) == pack(codec_of("msgpack").encoder("jobs", 2**20), value)
    assert type(encoder(BESIDE).pack.__self__) is msgpack.Packer  # type: ignore[attr-defined]


def test_the_bytes_of_an_own_codec() -> None:
    """They are protocol, and must never change."""
    text = Codec("json", lambda value: json.dumps(value).encode(), json.loads)
    assert pack(encoder(text), [1]) == (b"\x91\xc4\x03[1]", [])
    mixed = Codec("mixed", lambda value: b"abc", bytes, beside_msgpack=True)
    coded = msgpack.packb(msgpack.ExtType(CODED, b"\0\0\0\0abc"))
    assert pack(encoder(mixed), [1, object()]) == (b"\x91\x92\x01" + coded, [])
    large = Codec("large", lambda value: BIG, bytes, beside_msgpack=True)
    body, [buffer] = pack(encoder(large), object())
    assert body == b"\x91" + msgpack.packb(msgpack.ExtType(CODED, b"\x80\0\0\0\0\0\0\0"))
    assert contents(buffer) is BIG
    two = Codec(
        "two", lambda value, buffer_callback: _leave_two(buffer_callback), bytes, buffers=True
    )
    body, buffers = pack(encoder(two), 1)
    payload = b"\0\0\0\2" + b"\0\0\0\0" + b"\0\0\0\1" + b"abc"
    assert body == b"\x91" + msgpack.packb(msgpack.ExtType(CODED, payload))
    assert list(map(contents, buffers)) == [BIG, BIG + b"2"]


def _leave_two(buffer_callback: Any) -> bytes:
    for data in (BIG, b"small", BIG + b"2"):
        assert bool(buffer_callback(pickle.PickleBuffer(data))) is (data == b"small")
    return b"abc"


def test_only_what_msgpack_has_no_form_for_goes_through_dumps() -> None:
    seen: list[Any] = []

    def note(value: Any) -> bytes:
        seen.append(value)
        return dumps(value)

    codec = Codec("noting", note, pickle.loads, beside_msgpack=True)
    ordered, part = OrderedDict(a=1), slice(1, 2)
    value = {"a": [1, (ordered, {part.start})], "b": {2: part}, "c": (3, 2**70)}
    found = round_trip(value, codec)
    assert found == value
    assert type(found["a"][1][0]) is OrderedDict
    assert seen == [ordered, part]


def test_what_msgpack_fails_for_as_a_whole_goes_through_dumps_in_one() -> None:
    cycle: list[Any] = [1]
    cycle.append({"self": cycle})
    found = round_trip(cycle, BESIDE)
    assert found[1]["self"] is found
    deep: Any = ()
    for _ in range(100):
        deep = (deep,)
    levels: list[Any] = []
    for _ in range(600):
        levels = [levels]
    for value in (["a\ud800"], {"\udfff": 1}, deep):
        assert same(round_trip(value, BESIDE), value)
    body, _ = pack(encoder(BESIDE), levels)
    assert len(decoder_of("beside", by_name(BESIDE)).decode(body)) == 1
    enc = encoder(BESIDE)
    for _ in range(3):  # and the encoder is as it was
        assert pack(enc, ["\ud800"]) == pack(encoder(BESIDE), ["\ud800"])
        assert pack(enc, [1]) == (b"\x91\x91\x01", [])
        assert type(enc.pack.__self__) is msgpack.Packer  # type: ignore[attr-defined]


def test_a_put_while_the_whole_value_is_dumped_is_refused() -> None:
    refused: list[BaseException] = []

    def put_within(value: Any) -> bytes:
        if type(value) is list:
            try:
                enc.pack(1)
            except Exception as error:
                refused.append(error)
        return dumps(value)

    enc = encoder(Codec("within", put_within, pickle.loads, beside_msgpack=True))
    pack(enc, ["\ud800"])
    assert "from within another put on the same Pub" in str(refused[0])


def test_own_types_come_before_the_codec() -> None:
    class Known(Thing):
        pass

    register(Known, "codec-known", lambda known: known.inner, Known)
    never = Codec("never", lambda value: 1 / 0, pickle.loads, beside_msgpack=True)  # type: ignore[arg-type, return-value]
    assert round_trip([Known(1)], never)[0].inner == 1
    register(Known, "codec-known", lambda known: known.gone, Known)  # type: ignore[attr-defined]
    assert "whose to_wire raised AttributeError" in str(error_of([Known(1)], BESIDE))


@pytest.mark.parametrize("codec", [BUFFERS, BOTH], ids=lambda codec: codec.name)
def test_large_buffers_travel_beside_the_message_and_small_ones_in_it(codec: Codec) -> None:
    memory = bytearray(BIG + b"2")
    value = [Memory(BIG), Memory(memory), Memory(b"small"), Memory(memory)]
    if codec is BOTH:
        value = [value[0], (value[1],), *value[2:]]  # type: ignore[list-item]
    body, buffers = pack(encoder(codec), value)
    assert list(map(len, buffers)) == [LARGE, LARGE + 1, LARGE + 1]
    assert len(body) < 1000
    memory[0] = 99  # what happens to it later changes nothing
    for given_buffers in (buffers, [arrived(contents(buffer)) for buffer in buffers]):
        [found] = decoder_of(codec.name, by_name(codec)).decode(body, given_buffers)
        second = found[1][0] if codec is BOTH else found[1]
        assert [bytes(found[0].data), bytes(second.data)] == [BIG, BIG + b"2"]
        assert bytes(found[2].data) == b"small"
        second.data[0] = 7  # what was writeable is so again, and each Sub's own
        assert found[3].data[0] == 0
        assert contents(buffers[1])[0] == 0


def test_a_buffer_that_arrived_is_not_copied() -> None:
    body, buffers = pack(encoder(BUFFERS), Memory(bytearray(BIG)))
    buffer = arrived(contents(buffers[0]))
    [found] = decoder_of("buffers", by_name(BUFFERS)).decode(body, [buffer])
    found.data[0] = 77
    assert buffer.view()[0] == 77


def test_memory_with_holes_is_left_to_the_codec() -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(4 * LARGE, dtype="u1")[::2]
    view = Memory(memoryview(bytearray(4 * LARGE))[::2])
    assert (round_trip([Thing(array)], BOTH)[0].inner == array).all()
    assert "PickleBuffer" in str(error_of(view, BOTH))


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
def test_what_the_codec_writes_travels_beside_the_message_where_it_is_large(codec: Codec) -> None:
    body, buffers = pack(encoder(codec), Thing(BIG))
    assert len(body) < 100
    assert len(buffers) == 1
    [found] = decoder_of(codec.name, by_name(codec)).decode(body, buffers)
    assert found.inner == BIG


def test_too_large() -> None:
    for codec, value in ((WHOLE, BIG), (BESIDE, Thing(BIG)), (BUFFERS, Memory(BIG))):
        assert isinstance(error_of(value, codec, LARGE - 1), MessageTooLarge)


# --- what goes wrong -------------------------------------------------------------------


def test_a_dumps_that_raises_names_type_place_topic_and_codec() -> None:
    lock = threading.Lock()
    error = error_of({"a": [1, (slice(1), lock)]}, BESIDE)
    assert str(error) == (
        "value['a'][1][1] on topic 'jobs' is a _thread.lock, which codec 'beside' cannot encode "
        "(TypeError: cannot pickle '_thread.lock' object): leave it out, or convert it"
    )
    assert isinstance(error, EncodeError)
    assert isinstance(error, TypeError)
    assert error.type_name == "_thread.lock"
    text = str(error_of([lock], WHOLE))
    assert text.startswith("value on topic 'jobs' is a list, which codec 'whole' cannot encode (")
    cycle: list[Any] = [lock]
    cycle.append(cycle)
    assert "codec 'beside' cannot encode" in str(error_of(cycle, BESIDE))
    np = pytest.importorskip("numpy")
    array = np.array([None, {}])
    assert round_trip([array], BESIDE)[0].tolist() == [None, {}]
    text = str(error_of([array, np.array([lock])], BESIDE))
    assert text.startswith("value[1] on topic 'jobs' is a numpy.ndarray, which codec 'beside'")


def test_a_dumps_that_gives_no_bytes_is_told() -> None:
    codec = Codec("text", lambda value: dumps(1) if value == 1 else "text", json.loads)  # type: ignore[arg-type, return-value]
    assert "dumps gave a str, not bytes" in str(error_of([1], codec))


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
def test_a_loads_that_raises_costs_its_message_alone(codec: Codec) -> None:
    def loads(data: bytes, buffers: Any = ()) -> Any:
        found = pickle.loads(data, buffers=buffers)
        return 1 / 0 if found == slice(0) else found

    enc = encoder(codec)
    body = b"\x93" + b"".join(map(enc.pack, (slice(1), slice(0), slice(2))))
    how = {"beside_msgpack": codec.beside_msgpack, "buffers": codec.buffers}
    decoder = decoder_of(codec.name, by_name(Codec(codec.name, dumps, loads, **how)))
    with pytest.raises(DecodeError):
        decoder.decode(body)
    found = decoder.decode_each(body)
    assert found[::2] == [slice(1), slice(2)]
    assert str(found[1]) == (
        f"a message that codec {codec.name!r} cannot decode (ZeroDivisionError: division by zero)"
    )


def _coded(payload: bytes) -> bytes:
    packed: bytes = msgpack.packb(msgpack.ExtType(CODED, payload))
    return packed


BROKEN = [
    *(b"", b"\0\0\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff" + b"\0" * 40),
    *(b"\x80\0\0\0", b"\x80\0\0\0\0\0\0\5", b"\x80\0\0\0\0", b"\0\0\0\2" + b"\0" * 8 + b"N."),
]


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
def test_broken_bytes_of_an_own_codec_are_a_decode_error(codec: Codec) -> None:
    decoder = decoder_of(codec.name, by_name(codec))
    for payload in BROKEN:
        for buffers in ((), (WholeBuffer(b"N."),)):
            body = b"\x91" + _coded(payload)
            with pytest.raises(DecodeError):
                decoder.decode(body, buffers)
            assert isinstance(decoder.decode_each(body, buffers)[0], DecodeError)


def test_a_value_that_the_codec_did_not_write_is_refused() -> None:
    body = msgpack.packb([dumps(1), 5, [dumps(1)], msgpack.ExtType(1, b"\x90")])
    decoder = decoder_of("whole", by_name(WHOLE))
    with pytest.raises(DecodeError):
        decoder.decode(body)
    found = decoder.decode_each(body)
    assert found[0] == 1
    assert str(found[1]) == "a message that is not of codec 'whole'"
    assert [type(value) for value in found[1:]] == [DecodeError] * 3


def test_what_an_own_codec_has_written_means_nothing_to_others() -> None:
    """Nor is it unpickled there."""
    body = b"\x91" + _coded(b"\0\0\0\0" + dumps(slice(1)))
    for name in ("msgpack", "raw", "pickle"):
        with pytest.raises(DecodeError, match="unknown type"):
            decoder_of(name, by_name(ALL), allow_pickle=True).decode(body)


@given(st.binary(max_size=60), st.lists(st.binary(max_size=9).map(WholeBuffer), max_size=2))
def test_random_bytes_of_an_own_codec_raise_nothing_but_decode_error(
    payload: bytes, buffers: list[Buffer]
) -> None:
    for codec in (
        Codec("a", bytes, bytes),
        Codec("b", bytes, lambda data, buffers: buffers, beside_msgpack=True, buffers=True),
    ):
        decoder = decoder_of(codec.name, by_name(codec))
        try:
            decoder.decode(b"\x91" + _coded(payload), buffers)
        except DecodeError:
            pass
        assert len(decoder.decode_each(b"\x91" + _coded(payload), buffers)) == 1


# --- the object ------------------------------------------------------------------------


def test_a_codec_is_immutable_and_equal_to_one_like_it() -> None:
    with pytest.raises(AttributeError):
        WHOLE.name = "other"  # type: ignore[misc]
    assert Codec.cloudpickle() == Codec.cloudpickle()
    assert hash(Codec.cloudpickle()) == hash(Codec.cloudpickle())


@pytest.mark.parametrize("name", ["msgpack", "pickle", "raw", "", "x" * 33, "a\n"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="codec"):
        Codec(name, dumps, pickle.loads)


def test_what_is_no_codec_is_refused() -> None:
    wrong: Any = None
    for arguments in ((1, dumps, pickle.loads), ("x", wrong, dumps), ("x", dumps, wrong)):
        with pytest.raises(TypeError):
            Codec(*arguments)
    with pytest.raises(TypeError, match=r"is no pubsub\.Codec"):
        by_name(["pickle"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="two codecs of the name 'whole'"):
        by_name([WHOLE, Codec("whole", pickle.dumps, pickle.loads)])
    assert by_name([WHOLE, WHOLE, BESIDE]) == {"whole": WHOLE, "beside": BESIDE}


# --- cloudpickle -----------------------------------------------------------------------


def test_cloudpickle_carries_anything_with_its_arrays_out_of_band() -> None:
    pytest.importorskip("cloudpickle")
    np = pytest.importorskip("numpy")
    codec = Codec.cloudpickle()
    array = np.arange(LARGE)
    body, buffers = pack(encoder(codec), {"f": lambda x: x + 1, "t": (Thing(array), array)})
    assert list(map(len, buffers)) == [array.nbytes, array.nbytes]
    decoder = decoder_of("cloudpickle", by_name(codec))
    [found] = decoder.decode(body, [arrived(contents(buffer)) for buffer in buffers])
    assert found["f"](1) == 2
    for back, writeable in ((found["t"][0].inner, True), (found["t"][1], False)):
        assert (back == array).all()
        assert back.flags.writeable is writeable, "what cloudpickle carries is its own affair"


def test_cloudpickle_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cloudpickle", None)
    text = str(error_of([Thing(1)], Codec.cloudpickle()))
    assert text.startswith("the codec 'cloudpickle' needs the package of that name (")
    assert text.endswith('): pip install "pubsubd[cloudpickle]"')
    assert round_trip([1], Codec.cloudpickle()) == [1]


def test_a_data_frame_comes_back() -> None:
    pytest.importorskip("cloudpickle")
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": range(LARGE), "b": 1.5})
    body, buffers = pack(encoder(Codec.cloudpickle()), [frame])
    assert len(body) < 5000
    [[found]] = decoder_of("cloudpickle", by_name(Codec.cloudpickle())).decode(body, buffers)
    assert found.equals(frame)
