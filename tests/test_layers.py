"""The layers of the design hold: a module imports only from its own layer and those below.

A new module gets its line in ``LAYERS``; one without a line fails a test.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"pubsub": "pubsub", "pubsub.coordinator": "coordinator", "pubsub.cli": "cli"}

# From top to bottom. A name stands for the module and, if it is a package, for all that is in
# it; the longest name that fits wins. `pubsub` alone is the package's own `__init__`.
LAYERS: dict[str, tuple[str, ...]] = {
    "cli": ("pubsub.cli",),
    "optional": (
        *("pubsub.dashboard", "pubsub.dask", "pubsub.metrics", "pubsub.otel", "pubsub.record"),
    ),
    "faces": ("pubsub", "pubsub.faces", "pubsub.survey"),
    "runtime": ("pubsub.runtime",),
    "coordinator": ("pubsub.coordinator", "pubsub.relay"),
    "links": ("pubsub.links",),
    "trust": ("pubsub.trust",),
    "stats": ("pubsub.stats",),
    "core": ("pubsub.core",),
    "codec": ("pubsub.codec",),
    "wire": ("pubsub.wire",),
    "base": ("pubsub.config", "pubsub.errors", "pubsub.support", "pubsub._version"),
}

LOOPS_AND_SOCKETS = frozenset(
    "asyncio concurrent multiprocessing select selectors signal socket socketserver ssl "
    "subprocess threading uvloop".split()
)
CLOCKS_AND_CHANCE = frozenset("datetime os queue random sched secrets time uuid".split())

# Modules that decide and do nothing else: what they may not import.
PURE: dict[str, frozenset[str]] = {
    "pubsub.core": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.coordinator.registry": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.coordinator.relays": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.relay.circuits": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.coordinator.records": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.stats": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.wire": LOOPS_AND_SOCKETS | CLOCKS_AND_CHANCE,
    "pubsub.cli.findings": LOOPS_AND_SOCKETS,  # times in words
    "pubsub.codec": LOOPS_AND_SOCKETS,  # datetimes and UUIDs are values that it carries
}


# What an optional part may import beside the public API, and who above may import it.
SEAMS: dict[str, frozenset[str]] = {
    "pubsub.dashboard": frozenset(
        {"pubsub.metrics", *(f"pubsub.stats.{n}" for n in "cause ends rows views why".split())}
    ),
    "pubsub.otel": frozenset({"pubsub.faces.tracing"}),
    "pubsub.record": frozenset({"pubsub.faces.undecoded", "pubsub.core.topics"}),
}
OFFERED: dict[str, str] = {"pubsub.dashboard": "pubsub.cli", "pubsub.record": "pubsub.cli"}


class Import(NamedTuple):
    """What one import statement names: ``from pubsub.core import log`` is ``pubsub.core.log``."""

    module: str
    line: int


def sources() -> dict[str, str]:
    """Every module of the package, by its installed name, with its source."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join((package, *parts))] = path.read_text(encoding="utf-8")
    return found


def layer_of(module: str) -> str | None:
    """The layer that the table gives a module, or None."""
    name = module
    while name:
        for layer, names in LAYERS.items():
            if name in names and (name != "pubsub" or module == "pubsub"):
                return layer
        name = name.rpartition(".")[0]
    return None


def imports_of(module: str, source: str, known: Iterable[str]) -> Iterator[Import]:
    """Every import in a module, at whatever depth: in functions, under ``TYPE_CHECKING`` too."""
    known = frozenset(known)
    is_package = any(other.startswith(f"{module}.") for other in known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join((*parents, base)) if base else ".".join(parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield Import(inner if inner in known else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            target = node.args[0]
            if (
                called in ("import_module", "__import__")
                and isinstance(target, ast.Constant)
                and isinstance(target.value, str)
            ):
                yield Import(target.value, node.lineno)


def upward_imports(modules: Mapping[str, str]) -> list[str]:
    """What breaks the layers, a line each."""
    order = list(LAYERS)
    broken = []
    for module, source in modules.items():
        layer = layer_of(module)
        if layer is None:
            continue
        for target, line in imports_of(module, source, modules):
            if target.split(".")[0] != "pubsub":
                continue
            other = layer_of(target)
            if other is None:
                broken.append(f"{module}:{line} imports {target}, which has no layer")
            elif order.index(other) < order.index(layer):
                broken.append(f"{module}:{line} ({layer}) imports {target} ({other}), above it")
    return broken


class _AtOnce(ast.NodeTransformer):
    """Leaves out what only type checkers import, and what is imported by a call (a Peer makes Pubs
    and Subs, which stand above it)."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return ast.Pass()

    def visit_If(self, node: ast.If) -> ast.AST:
        is_typing = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return ast.Pass() if is_typing else node


def circles(modules: Mapping[str, str]) -> list[str]:
    """The modules that import themselves through others, while they are imported."""
    imports = {}
    for module, source in modules.items():
        tree = _AtOnce().visit(ast.parse(source))
        found = imports_of(module, ast.unparse(tree), modules)
        imports[module] = {target for target, _ in found if target in modules} - {module}
    reached = {module: set(targets) for module, targets in imports.items()}
    while True:
        more = {
            module: targets.union(*(reached[target] for target in targets))
            for module, targets in reached.items()
        }
        if more == reached:
            return [module for module, targets in reached.items() if module in targets]
        reached = more


def impure_imports(modules: Mapping[str, str]) -> list[str]:
    """Clocks, sockets, threads and randomness in modules that must have none, a line each."""
    return [
        f"{module}:{line} imports {target}: pass it in, or do it in a layer above"
        for module, source in modules.items()
        for pure, banned in PURE.items()
        if module == pure or module.startswith(f"{pure}.")
        for target, line in imports_of(module, source, modules)
        if target.split(".")[0] in banned
    ]


def test_every_module_has_a_layer() -> None:
    unknown = [module for module in sources() if layer_of(module) is None]
    assert not unknown, f"give these a line in LAYERS: {', '.join(unknown)}"


def test_each_module_imports_only_its_own_layer_and_those_below() -> None:
    assert upward_imports(sources()) == []


def test_no_module_imports_itself_through_others() -> None:
    assert circles(sources()) == []


def test_core_registry_and_codec_do_no_io_and_read_no_clock() -> None:
    assert impure_imports(sources()) == []


def test_nobody_outside_of_the_links_knows_a_transport() -> None:
    for module, source in sources().items():
        allowed = module.startswith(("pubsub.links.", "pubsub.dashboard."))  # whose are of HTTP
        assert allowed or ".transport" not in source, module


def test_what_is_optional_stands_on_the_public_api_alone_and_nothing_stands_on_it() -> None:
    public = {"pubsub", "pubsub.config", "pubsub.errors", "pubsub.stats", "pubsub.survey"}
    modules = sources()
    for module, source in modules.items():
        for target, line in imports_of(module, source, modules):
            if target.split(".")[0] != "pubsub":
                continue
            mine, its = (".".join(name.split(".")[:2]) for name in (module, target))
            if layer_of(module) == "optional":
                allowed = public | SEAMS.get(mine, frozenset())
                assert target in allowed or its == mine, f"{module}:{line}"
            elif layer_of(target) == "optional":
                assert OFFERED.get(its) == mine, f"{module}:{line}"


def test_importing_the_package_imports_nothing_optional() -> None:
    code = "import pubsub, pubsub.cli.pubsub, pubsub.cli.pubsubd, sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pubsub.faces.pub" in run.stdout.split()
    optional = {"pubsub.dask", "dask", "distributed", "cloudpickle", "textual"}
    optional |= {"pubsub.metrics", "prometheus_client"}
    optional |= {"pubsub.otel", "opentelemetry"}
    optional |= {"pubsub.record", "mcap"}
    optional |= {"pubsub.dashboard", "aiohttp"}
    assert not optional & set(run.stdout.split())


def test_all_three_folders_are_walked() -> None:
    found = sources()
    for package in FOLDERS:
        assert package in found, f"{FOLDERS[package]}/ has no __init__.py"
    assert "pubsub._version" in found


# The check itself, on modules made up for it.

KNOWN = dict.fromkeys(
    (
        *("pubsub", "pubsub.faces", "pubsub.faces.pub", "pubsub.faces.peer", "pubsub.errors"),
        *("pubsub.links", "pubsub.links.link", "pubsub.core", "pubsub.core.log"),
        *("pubsub.wire", "pubsub.wire.frames", "pubsub.cli", "pubsub.coordinator"),
        *("pubsub.coordinator.registry", "pubsub.coordinator.server"),
    ),
    "",
)


@pytest.mark.parametrize(
    ("module", "source", "target"),
    [
        ("pubsub.core.log", "import pubsub.links.link", "pubsub.links.link"),
        ("pubsub.core.log", "from pubsub import links", "pubsub.links"),
        ("pubsub.core.log", "from pubsub.links import link", "pubsub.links.link"),
        ("pubsub.core.log", "from pubsub.links.link import Link", "pubsub.links.link"),
        ("pubsub.core.log", "from ..links import link", "pubsub.links.link"),
        ("pubsub.core.log", "from ..links.link import Link", "pubsub.links.link"),
        ("pubsub.core", "from ..links.link import Link", "pubsub.links.link"),
        ("pubsub.wire.frames", "from pubsub.core.log import Log", "pubsub.core.log"),
        ("pubsub.errors", "from .core import log", "pubsub.core.log"),
        ("pubsub.links.link", "def f():\n    from pubsub import Pub", "pubsub"),
        (
            *("pubsub.links.link", "if TYPE_CHECKING:\n    from pubsub.faces.peer import Peer"),
            "pubsub.faces.peer",
        ),
        (
            "pubsub.links.link",
            "importlib.import_module('pubsub.coordinator')",
            "pubsub.coordinator",
        ),
        ("pubsub.coordinator.server", "from pubsub.faces.peer import Peer", "pubsub.faces.peer"),
        ("pubsub", "from pubsub.cli import main", "pubsub.cli"),
    ],
)
def test_the_check_catches_an_import_upwards(module: str, source: str, target: str) -> None:
    broken = upward_imports({**KNOWN, module: source})
    assert len(broken) == 1
    assert f"imports {target} " in broken[0]
    assert broken[0].startswith(f"{module}:{len(source.splitlines())} ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("pubsub", "from pubsub.faces.pub import Pub\nfrom .errors import Closed"),
        ("pubsub.faces.peer", "from pubsub.coordinator.server import Server\nimport asyncio"),
        ("pubsub.core", "from .log import Log\nfrom . import log"),
        ("pubsub.core.log", "from ..wire.frames import Frame\nfrom ..errors import Closed"),
        ("pubsub.core.log", "import heapq"),
        (
            "pubsub.coordinator.server",
            "from . import registry\nfrom pubsub.links.link import Link",
        ),
        ("pubsub.cli", "from pubsub import Pub"),
    ],
)
def test_the_check_lets_pass_what_is_right(module: str, source: str) -> None:
    modules = {**KNOWN, module: source}
    assert upward_imports(modules) == []
    assert impure_imports(modules) == []


def test_the_check_catches_a_circle() -> None:
    modules = {
        **KNOWN,
        "pubsub.core.log": "from pubsub.core import cursor",
        "pubsub.core.cursor": "import pubsub.core.log",
    }
    assert circles(modules) == ["pubsub.core.log", "pubsub.core.cursor"]
    assert (
        circles({**modules, "pubsub.core.log": "if TYPE_CHECKING:\n    import pubsub.core"}) == []
    )


def test_the_check_catches_a_module_without_a_layer() -> None:
    assert layer_of("pubsub.extra") is None
    assert layer_of("pubsub.corelike.log") is None
    broken = upward_imports({**KNOWN, "pubsub.extra": "", "pubsub.core.log": "import pubsub.extra"})
    assert broken == ["pubsub.core.log:1 imports pubsub.extra, which has no layer"]


@pytest.mark.parametrize(
    ("module", "source", "caught"),
    [
        ("pubsub.core.log", "import asyncio", True),
        ("pubsub.core.log", "from time import monotonic", True),
        ("pubsub.core.log", "def f():\n    import os.path", True),
        ("pubsub.core", "import socket as s", True),
        ("pubsub.coordinator.registry", "import datetime", True),
        ("pubsub.coordinator.server", "import asyncio, time", False),
        ("pubsub.codec.encoder", "import threading", True),
        ("pubsub.codec.encoder", "import datetime, uuid", False),
        ("pubsub.links.link", "import asyncio, socket", False),
    ],
)
def test_the_check_catches_io_in_a_pure_module(module: str, source: str, caught: bool) -> None:
    assert bool(impure_imports({**KNOWN, module: source})) is caught
