"""Values as in Dask: what msgpack has no form for goes by cloudpickle."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed", reason="needs the extra pubsubd[dask]")

from pubsub.dask import Pub, Sub
from tests.dask.tasks import LONG

Pair = namedtuple("Pair", "a b")


def through(client: Any, name: str, value: Any) -> Any:
    """What comes back by way of a worker."""

    def forward(name: str, ready: str) -> None:
        sub, pub = Sub(name), Pub(ready)
        pub.put("ready")
        pub.put(sub.get(timeout=LONG))

    back = Sub(f"back {name}")
    client.submit(forward, name, back.name, pure=False)
    assert back.get(timeout=LONG) == "ready"
    Pub(name).put(value)
    return back.get(timeout=LONG)


@pytest.mark.parametrize(
    "value",
    [
        *(None, 2**80, float("inf"), "é", b"\xff", (1, [2]), {1, 2}, {(1, 2): 3}, timedelta(1)),
        *(Pair(1, 2), OrderedDict(a=1), range(3), slice(1, 2), Ellipsis, int),
    ],
    ids=repr,
)
def test_a_value_comes_back_equal_and_of_its_type(client: Any, name: str, value: Any) -> None:
    found = through(client, name, value)
    assert found == value
    assert type(found) is type(value)


def test_functions_and_classes_of_a_script_go_by_value(client: Any, name: str) -> None:
    offset = 3

    class Local:
        def __init__(self) -> None:
            self.seen = [offset]

    assert through(client, name, lambda n: n + offset)(4) == 7
    assert through(client, name, Local()).seen == [3]


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_arrays_are_the_same_and_may_be_changed(client: Any, name: str, size: int) -> None:
    value = np.arange(size, dtype=np.float32)
    found = through(client, name, {"array": value, "of": Pair("an", "object")})["array"]
    assert found.dtype == value.dtype
    assert (found == value).all()
    found[0] = 7


def test_a_frame_of_pandas_is_the_same(client: Any, name: str) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    value = pandas.DataFrame({"n": np.arange(100_000), "text": ["x"] * 100_000})
    found = through(client, name, value)
    pandas.testing.assert_frame_equal(found, value)
    found.loc[0, "n"] = 7


def test_what_comes_back_as_bytes(client: Any, name: str) -> None:
    assert through(client, name, bytearray(b"x")) == b"x"
