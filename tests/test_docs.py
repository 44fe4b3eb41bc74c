"""The documentation is true: its examples run, its bytes decode, its links and names exist."""

from __future__ import annotations

import doctest
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import click
import msgpack
import pytest

from pubsub.cli import command as cli_command
from pubsub.cli.pubsub import pubsub
from pubsub.cli.pubsubd import pubsubd
from pubsub.codec.decoder import BesideDecoder, MsgpackDecoder
from pubsub.codec.encoder import MsgpackEncoder
from pubsub.codec.extension_types import NAMES
from pubsub.codec.headers import Headed, headers_of, pack_headers
from pubsub.codec.own_codecs import Codec
from pubsub.codec.own_types import register
from pubsub.config import Settings
from pubsub.errors import ProtocolError
from pubsub.metrics import METRICS
from pubsub.wire import messages
from pubsub.wire.frames import (
    BUFFER_PIECE,
    Data,
    Event,
    array_header,
    buffer_header,
    data_header,
    lent_frame,
)
from pubsub.wire.messages import Kind, encode, parse
from tests.integration.support import coordinator_in_thread
from tests.test_layers import LAYERS, layer_of, sources
from tests.wire.buffers import whole
from tests.wire.sinks import Gathering, Piece

ROOT = Path(__file__).resolve().parent.parent
PROTOCOL = "docs/protocol.md"
NETWORKS = "docs/networks.md"
RECORDING = "docs/recording.md"
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/arrays.md",
    "docs/benchmarks.md",
    "docs/cli.md",
    "docs/deploy.md",
    "docs/engines.md",
    "docs/from-dask.md",
    "docs/guarantees.md",
    "docs/logging.md",
    NETWORKS,
    PROTOCOL,
    RECORDING,
    "docs/scaling.md",
    "docs/security.md",
    "docs/seeing.md",
    "docs/tracing.md",
    "docs/values.md",
)
# Each of them may have doctests; those of `EXAMPLES` must.
DOCUMENTED = (
    *(
        "pubsub",
        "pubsub.faces.pub",
        "pubsub.faces.sub",
        "pubsub.faces.peer",
        "pubsub.config",
        "pubsub.errors",
    ),
    *(
        "pubsub.codec.codecs",
        "pubsub.codec.encoder",
        "pubsub.codec.decoder",
        "pubsub.codec.own_codecs",
        "pubsub.codec.own_types",
        "pubsub.core.topics",
        "pubsub.wire.messages",
        "pubsub.wire.frames",
    ),
    *("pubsub.faces.foreign", "pubsub.faces.message", "pubsub.otel", "pubsub.record.recording"),
    *("pubsub.stats.why", "pubsub.stats.near", "pubsub.stats.words", "pubsub.cli.delay"),
    *("pubsub.metrics", "pubsub.survey"),
)
EXAMPLES = (
    *("pubsub.faces.pub", "pubsub.faces.sub", "pubsub.faces.peer"),
    *("pubsub.codec.own_codecs", "pubsub.codec.own_types"),
    *("pubsub.metrics", "pubsub.survey", "pubsub.record.recording"),
)


@cache
def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def sections(text: str) -> dict[str, str]:
    """The text below each heading, up to the next one."""
    parts = re.split(r"^#{1,6} +(.+?) *$", _without_code(text, keep=True), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _without_code(text: str, *, keep: bool = False) -> str:
    """Without its code blocks, or with their # disarmed, so that only headings look like ones."""

    def disarm(match: re.Match[str]) -> str:
        return match[0].replace("\n#", "\n #") if keep else ""

    return re.sub(r"^```.*?^```$", disarm, text, flags=re.M | re.S)


def rows(text: str) -> Iterator[list[str]]:
    """The rows of the tables in it, headings and rules left out."""
    lines = text.splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|") and above.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


# --- the protocol -----------------------------------------------------------------------------


class Example(NamedTuple):
    """A frame of docs/protocol.md: its bytes, and what it says they are."""

    frame: bytes
    array: list[Any]


def examples() -> dict[str, list[Example]]:
    """Those of each kind, by its name."""
    found: dict[str, list[Example]] = {}
    for heading, text in sections(page(PROTOCOL)).items():
        match = re.fullmatch(r"([A-Z]+) \((\d+)\)", heading)
        if match is None:
            continue
        assert Kind[match[1]] == int(match[2]), f"{heading} has another number"
        found[match[1]] = [
            Example(bytes.fromhex(frame), json.loads(array, object_hook=_bytes))
            for frame, array in re.findall(r"```frame\n(.*?)```\n```json\n(.*?)```", text, re.S)
        ]
    return found


def _bytes(found: dict[str, Any]) -> Any:
    """What stands in JSON for bytes."""
    return bytes.fromhex(found["bin"]) if [*found] == ["bin"] else found


def decode(frame: bytes) -> Event | Piece:
    """The one event of one frame, fed byte by byte as well as at once."""
    found = []
    for size in (len(frame), 1):
        gathering = Gathering(bytearray(4096))
        events = [
            event
            for start in range(0, len(frame), size)
            for event in gathering.feed(frame[start : start + size])
        ]
        assert len(events) == 1
        assert not gathering.reader.partial
        found.append(events[0])
    assert found[0] == found[1]
    return found[0]


def test_every_kind_is_documented_with_an_example() -> None:
    found = examples()
    assert set(found) == {kind.name for kind in Kind}
    assert all(found.values())
    index = {row[0].split("]")[0][1:]: row[1] for row in rows(sections(page(PROTOCOL))["Frames"])}
    assert index == {kind.name: str(int(kind)) for kind in Kind}


CONTROL = sorted(kind.name for kind in Kind if kind not in (Kind.DATA, Kind.BUFFER))
WIDE = {"LENT": lent_frame}


@pytest.mark.parametrize("kind", CONTROL)
def test_the_bytes_of_an_example_are_its_message(kind: str) -> None:
    for frame, array in examples()[kind]:
        message = parse(array)
        assert message.KIND is Kind[kind]
        assert decode(frame) == message
        if kind in WIDE:
            assert WIDE[kind](*array[1:]) == frame
        else:
            assert encode(message) == frame


def test_the_bytes_of_the_data_example_are_its_batch() -> None:
    plain, headed = examples()["DATA"]
    for frame, (kind, channel, first, sent_at, values, *more) in (plain, headed):
        assert kind == Kind.DATA
        event = decode(frame)
        assert isinstance(event, Data)
        assert event[:4] == (channel, first, sent_at, len(values))
        assert MsgpackDecoder().decode(event.body, ()) == values
        body = array_header(len(values)) + b"".join(map(msgpack.packb, values))
        of_each = {int(number): headers for number, headers in dict(*more).items()}
        parts = [
            Headed(b"", pack_headers(of_each[i], "t")) if i in of_each else b""
            for i in range(len(values))
        ]
        headers = headers_of(parts, len(parts))
        assert event.headers == headers
        assert (
            data_header(channel, first, sent_at, len(body), len(headers)) + body + headers == frame
        )
        assert frame[29:] == body + headers
    assert len(plain.array) == 5
    assert len(headed.array) == 6


def test_the_bytes_of_the_buffer_example_are_its_piece() -> None:
    for frame, (kind, channel, total, offset, text) in examples()["BUFFER"]:
        assert kind == Kind.BUFFER
        payload = text.encode()
        gathering = Gathering(bytearray(4096))
        assert gathering.feed(frame) == [Piece(channel)]
        assert gathering.pieces == [(channel, total, offset, len(payload))]
        assert gathering.memory == [payload]
        assert buffer_header(channel, total, offset, len(payload)) + payload == frame


def fields(cls: Any) -> list[str]:
    return [f.name for f in cls.__dataclass_fields__.values() if f.metadata]


def limits(kind: str) -> Iterator[tuple[Any, int, list[Any], list[Any]]]:
    """For each field of a kind: a valid array, the field's index, values that its documented type
    allows at its limits, and values just beyond them."""
    array = examples()[kind][0].array
    for index, (_, type_, _) in enumerate(rows(sections(page(PROTOCOL))[_heading(kind)]), 1):
        nil = [None] if type_ in ("any", "u64 or nil") else []
        not_nil = [] if nil else [None]
        if match := re.match(r"u(\d+)", type_):
            most = 2 ** int(match[1]) - 1
            good, bad = [0, most, *nil], [-1, most + 1, True, 1.0, "1", *not_nil]
        elif match := re.fullmatch(r"str (\d+)", type_):
            size = int(match[1])
            good, bad = ["", "x" * size], ["x" * (size + 1), b"x", 1, None]
        elif match := re.fullmatch(r"bin (\d+)( MiB)?", type_):
            size = int(match[1]) << (20 if match[2] else 0)
            good, bad = [b"", bytes(size)], [bytes(size + 1), "x", 1, None]
        elif match := re.fullmatch(r"array of at most (\d+) u64", type_):
            size = int(match[1])
            good, bad = [[], [2**64 - 1] * size], [[1] * (size + 1), [-1], [True], None, {}, "a"]
        elif match := re.match(r"array of at most (\d+) ", type_):
            size, row = int(match[1]), array[index][0]
            good, bad = [[], [row] * size], [[row] * (size + 1), None, {}, [1], "a"]
        elif type_ == "bool":
            good, bad = [True, False], [0, 1, None, "true"]
        elif type_ == "seconds":
            good, bad = [0, 0.0, 1e9 - 1], [-1, 1e9, "1", None, True]
        elif type_ == "map":
            good, bad = [{}, {"a": 1}], [[], {1: 1}, None]
        elif type_ == "any":
            good, bad = [None, 1, "a", b"a", [1], {"a": 1}], []
        elif type_.startswith("array of"):
            good, bad = [[], array[index]], [None, {}, [1], "a"]
        else:
            good = re.findall(r"`(\w+)`", type_)
            assert good, f"{kind}: a type that this test does not know: {type_}"
            bad = ["other", "", None, 1]
        if (kind, index) == ("HELLO", 1):
            good, bad = [messages.PROTOCOL_VERSION], [0, 1, *bad]
        yield array, index, good, bad


def _heading(kind: str) -> str:
    return f"{kind} ({int(Kind[kind])})"


@pytest.mark.parametrize("kind", CONTROL)
def test_the_field_table_says_what_the_parser_takes(kind: str) -> None:
    cls = messages._CHECKS[int(Kind[kind])][0]
    table = [row[0].strip("`") for row in rows(sections(page(PROTOCOL))[_heading(kind)])]
    assert table == fields(cls)
    for array, index, good, bad in limits(kind):
        for value in good:
            parse([*array[:index], value, *array[index + 1 :]])
        for value in bad:
            with pytest.raises(ProtocolError):
                parse([*array[:index], value, *array[index + 1 :]])


@pytest.mark.parametrize(
    ("kind", "field", "row"),
    [
        ("MATCH", "added", messages.MatchedPub),
        ("EXPECT", "added", messages.ExpectedSub),
        ("HELLO", "ways", messages.WayRow),
    ],
)
def test_the_rows_of_rows_are_named_in_their_order(kind: str, field: str, row: Any) -> None:
    table = {r[0].strip("`"): r[1] for r in rows(sections(page(PROTOCOL))[_heading(kind)])}
    assert tuple(re.findall(r"`(\w+)`", table[field])) == row._fields


def test_every_goodbye_code_of_the_code_is_listed() -> None:
    table = rows(sections(page(PROTOCOL))["GOODBYE codes"])
    assert {row[0].strip("`"): row[1] for row in table} == messages.GOODBYE_CODES
    used = {"closing", "protocol"}  # the defaults of `Link.goodbye` and of `ProtocolError`
    for folder in ("pubsub", "coordinator"):
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            used.update(re.findall(r'code="(\w+)"', source))
            used.update(re.findall(r'(?:goodbye|because)\("(\w+)"', source))
    assert set(messages.GOODBYE_CODES) == used


def test_the_limits_are_those_of_the_code() -> None:
    table = {row[0]: row for row in rows(sections(page(PROTOCOL))["Limits"])}
    settings = Settings()
    assert table["frame before WELCOME"][1] == f"{messages.MAX_PAYLOAD_BEFORE_WELCOME:,} bytes"
    assert BUFFER_PIECE == 1024 * 1024
    for name, shown in {
        "handshake_timeout": f"{settings.handshake_timeout:g} s",
        "max_unauthenticated": f"{settings.max_unauthenticated:,}",
        "max_channels": f"{settings.max_channels:,}",
        "max_message": f"{settings.max_message // 2**20} MiB",
    }.items():
        assert any(row[2] == f"`{name}`" and row[1] == shown for row in table.values()), name


VALUES: dict[int, Any] = {
    1: (1, 2),
    2: {7},
    3: frozenset({7}),
    4: 2**64,
    5: 1 + 2j,
    6: Decimal("-1.50"),
    7: UUID(int=1),
    8: datetime(2025, 1, 2, 3, 4, 5, 6, timezone.utc),
    9: date(2025, 1, 2),
    10: time(3, 4, 5, 6),
    11: timedelta(1, 2, 3),
}


class Point(NamedTuple):
    x: int
    y: int


def test_the_extension_types_are_those_of_the_codec() -> None:
    np = pytest.importorskip("numpy")
    register(Point, "point", list, lambda wire: Point(*wire))
    values = {**VALUES, 13: np.array([1, 2], "<u2"), 15: np.float32(1.5), 16: Point(1, 2)}
    as_json = Codec("json", lambda value: str(value).encode(), json.loads, beside_msgpack=True)
    buffers = {12: b"\x01\x00\x02\x00", 14: b"\x01\x00\x02\x00"}
    table = list(rows(sections(page(PROTOCOL))["Extension types"]))[: len(NAMES)]
    assert {int(row[0]): row[1] for row in table} == NAMES
    scope = {
        "Decimal": Decimal,
        "UUID": UUID,
        "datetime": datetime,
        "date": date,
        "time": time,
        "timedelta": timedelta,
        "timezone": timezone,
        "np": np,
        "Point": Point,
    }
    for code_text, _, _, shown, hexed in table:
        code, packed = int(code_text), bytes.fromhex(hexed.strip("`"))
        assert msgpack.unpackb(packed, ext_hook=lambda code, _: code) == code
        out_of_band = whole(buffers[code]) if code in buffers else ()
        (value,) = BesideDecoder(as_json).decode(array_header(1) + packed, out_of_band)
        if code in values:
            assert MsgpackEncoder("t", 2**20).pack(values[code]) == packed
            assert repr(eval(shown.split("`")[1], scope)) == repr(values[code])
            assert repr(value) == repr(values[code])
        elif code == 12:
            assert value == buffers[12]
        elif code == 17:
            assert value == [1, 2]
        else:
            assert repr(value) == repr(values[13])


# --- the examples -----------------------------------------------------------------------------


@pytest.fixture
def coordinator() -> Iterator[str]:
    with coordinator_in_thread() as running:
        yield running.address


@pytest.mark.loop
@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstrings_run(name: str, coordinator: str) -> None:
    tests = doctest.DocTestFinder().find(importlib.import_module(name))
    examples = sum(len(test.examples) for test in tests)
    assert examples or name not in EXAMPLES
    if not examples:
        return
    # in a process of its own: what belongs to the default Peer would outlive the coordinator
    source = f"""
import doctest, importlib
result = doctest.testmod(importlib.import_module({name!r}))
print(result.attempted)
raise SystemExit(bool(result.failed))
"""
    assert int(run([sys.executable, "-c", source], coordinator)) == examples


def python_examples(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page(name), re.M | re.S)


@pytest.mark.loop
@pytest.mark.parametrize("which", ["blocking", "async"])
def test_the_examples_of_the_readme_print_what_they_say(which: str, coordinator: str) -> None:
    blocking, asynchronous = python_examples("README.md")
    prints_what_it_says(blocking if which == "blocking" else asynchronous, coordinator)


@pytest.mark.loop
def test_the_relay_of_the_scaling_page_prints_what_it_says(coordinator: str) -> None:
    (source,) = python_examples("docs/scaling.md")
    prints_what_it_says(source, coordinator)


@pytest.mark.loop
def test_the_program_of_the_recording_page_prints_what_it_says(coordinator: str) -> None:
    pytest.importorskip("mcap")
    (source,) = python_examples(RECORDING)
    prints_what_it_says(source, coordinator)


def test_the_programs_of_the_engines_page_are_the_examples_that_are_run() -> None:
    files = [
        *(ROOT / "examples" / "xdist").glob("*.py"),
        *(ROOT / "examples").glob("*_progress.py"),
    ]
    assert sorted(python_examples("docs/engines.md")) == sorted(
        path.read_text(encoding="utf-8") for path in files
    )


def prints_what_it_says(source: str, coordinator: str) -> None:
    said = re.findall(r"# prints (.*)$", source, re.M)
    assert said
    assert run([sys.executable, "-W", "error", "-c", source], coordinator).splitlines() == said


def run(args: list[str], coordinator: str) -> str:
    done = subprocess.run(
        args,
        env={**os.environ, "PUBSUB_COORDINATOR": coordinator},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    return done.stdout


# --- names, options, settings -----------------------------------------------------------------


def test_every_test_that_the_guarantees_name_exists() -> None:
    named = 0
    for heading, text in sections(page("docs/guarantees.md")).items():
        proofs = re.findall(r"^- \[(tests/\S+)\]\(\.\./\1\):(.*?)(?=^-|\Z)", text, re.M | re.S)
        assert proofs or not re.match(r"G\d ", heading), f"{heading} has no test"
        for file, names in proofs:
            source = (ROOT / file).read_text(encoding="utf-8")
            for test in re.findall(r"`([Tt]est\w+)`", names):
                named += 1
                pattern = rf"^(async def|def|class) {test}\b|^{test} = "
                assert re.search(pattern, source, re.M), f"{heading}: {file} has no {test}"
        everywhere = set(re.findall(r"`([Tt]est_?\w+)`", text))
        listed = {t for _, names in proofs for t in re.findall(r"`([Tt]est\w+)`", names)}
        assert everywhere == listed, f"{heading}: a test is named without its file"
    assert named > 20


def test_every_network_of_the_page_is_tried_and_every_one_that_is_tried_is_in_it() -> None:
    source = (ROOT / "tests/faults/test_networks.py").read_text(encoding="utf-8")
    tried = set(re.findall(r"^def (test_\w+)", source, re.M))
    assert set(re.findall(r"`(test_\w+)`", page(NETWORKS))) == tried


def test_every_promise_is_in_the_guarantees_and_in_the_readme() -> None:
    promises = [h for h in sections(page("docs/guarantees.md")) if re.match(r"G\d ", h)]
    assert [h.split()[0] for h in promises] == [f"G{n}" for n in range(1, 10)]
    table = [row[0] for row in rows(sections(page("README.md"))["What it promises"])]
    assert [re.sub(r"\[(.*)\].*", r"\1", cell) for cell in table] == promises


def test_the_settings_of_the_readme_are_those_of_a_peer() -> None:
    table = {
        row[0].strip("`"): row[1]
        for row in rows(sections(page("README.md"))["Configuration"])
        if not row[0].startswith("`PUBSUB_")
    }
    defaults = {name: getattr(Settings(), name) for name in Settings.__dataclass_fields__}
    assert list(table) == list(defaults)
    for name, default in defaults.items():
        text = f"{default:g}" if isinstance(default, float) else str(default) or "empty"
        assert table[name].replace(",", "").strip("`") == text, name


def test_the_house_of_the_architecture_is_the_one_that_is_enforced() -> None:
    """Every module has its row, on the floor where the test of the layers has it."""
    floors: dict[str, list[str]] = {}
    for floor, modules, _ in rows(sections(page("docs/architecture.md"))["The house"]):
        where = floors.setdefault(floor or list(floors)[-1], [])
        where += re.findall(r"`(\w+)`", modules)
    assert list(floors) == list(LAYERS)
    there: dict[str, list[str]] = {layer: [] for layer in LAYERS}
    for module in sources():
        if f"{module}." not in " ".join(sources()) and module != "pubsub._version":
            there[layer_of(module) or ""].append(module.rpartition(".")[2])
    assert {floor: sorted(names) for floor, names in floors.items()} == {
        floor: sorted(names) for floor, names in there.items()
    }


def test_the_metrics_of_the_page_are_those_of_the_code() -> None:
    table = [tuple(row) for row in rows(sections(page("docs/seeing.md"))["The metrics"])]
    assert table == [
        (f"`{metric.name}`", ", ".join(f"`{label}`" for label in metric.labels), metric.text)
        for metric in METRICS
    ]


def commands(group: click.Group) -> Iterator[tuple[str, click.Command]]:
    """Those of a group and of the groups in it, each with its words."""
    for name, command in group.commands.items():
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {inner}", found) for inner, found in commands(command))


@pytest.mark.parametrize("group", [pubsub, pubsubd])
def test_every_option_of_every_command_is_in_its_page(group: click.Group) -> None:
    text = page("docs/cli.md")
    for name, command in commands(group):
        assert name in text
        for param in command.params:
            if isinstance(param, click.Option):
                for option in param.opts:
                    assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{name} {option}"


def test_the_options_of_the_pages_exist() -> None:
    known = {
        option
        for group in (pubsub, pubsubd)
        for _, command in commands(group)
        for param in command.params
        for option in (*param.opts, *param.secondary_opts)
    }
    for name in ("docs/cli.md", NETWORKS):
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page(name)))
        assert named - known <= {"--help"}, name


def test_the_exit_codes_are_those_of_the_commands() -> None:
    table = [int(row[0]) for row in rows(sections(page("docs/cli.md"))["Exit codes"])]
    codes = (
        *(cli_command.OK, cli_command.FAILED, click.UsageError.exit_code),
        *(
            cli_command.TIMED_OUT,
            cli_command.UNREACHED,
            cli_command.INTERRUPTED,
            cli_command.TERMINATED,
        ),
    )
    assert table == list(codes)


# --- links ------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """As the usual renderers make them of headings."""
    text = _without_code(path.read_text(encoding="utf-8"))
    found = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *$", text, re.M):
        plain = re.sub(r"[`*]", "", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    here = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", _without_code(page(name))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (here.parent / path).resolve() if path else here
        assert there.is_relative_to(ROOT), target
        assert there.exists(), f"{name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(there), f"{name} links to {target}: no such heading"


def test_every_page_is_read_by_these_tests() -> None:
    pages = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert pages | {"README.md", "CHANGELOG.md"} == set(PAGES)
