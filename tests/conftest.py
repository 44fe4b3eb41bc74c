"""The settings of every test: which event loop, a clean environment, hypothesis.

``PUBSUB_TEST_LOOP=uvloop`` (the default where it is installed) or ``asyncio`` chooses the loop of
async tests. With ``asyncio``, uvloop cannot be imported at all, neither in this process nor in the
Python processes that tests start, so that the runtime's own loops are plain ones too.

Nothing of whoever runs the tests is read or written: the secret by which the processes of a user
know each other lies in a directory of the run. Tests that are marked ``insecure`` run without any.

``PUBSUB_TEST_TRUST=tls`` gives all of them a key, also those that are marked ``insecure``, and has
them use TLS on loopback: what is promised holds there too. Tests that are marked ``by_hand`` are
skipped then.

No test may say a secret: what each prints and logs, and the processes that it starts, is looked
through after it (see `tests.secrecy`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pubsub.support.ratelimit import RateLimit
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key
from tests import secrecy

TRUST = os.environ.get("PUBSUB_TEST_TRUST", "")
LOOP = os.environ.get("PUBSUB_TEST_LOOP") or ("asyncio" if sys.platform == "win32" else "uvloop")
INTEGRATION = Path(__file__).parent / "integration"
IN_ONE_WORKER = ("tests/test_benchmarks.py",)
"""Modules whose tests share what takes long to make: each worker would make it anew."""

_HIDE_UVLOOP = 'raise ModuleNotFoundError("PUBSUB_TEST_LOOP=asyncio hides uvloop", name="uvloop")\n'
_hiding_place: Path | None = None
_home: Path | None = None

# Time is no part of a property, and a run in CI must be the same run twice.
settings.register_profile(
    "pubsubd", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("pubsubd")


def pytest_configure(config: pytest.Config) -> None:
    global _hiding_place, _home
    # Whoever starts us in the background, as `nohup make test &` and many a CI do, may have us
    # ignore Ctrl-C, and every process that a test starts and interrupts would inherit that.
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    if LOOP not in ("uvloop", "asyncio"):
        raise pytest.UsageError(f"PUBSUB_TEST_LOOP={LOOP!r} is neither 'uvloop' nor 'asyncio'")
    if TRUST not in ("", "tls"):
        raise pytest.UsageError(f"PUBSUB_TEST_TRUST={TRUST!r} is neither empty nor 'tls'")
    # A developer's own coordinator is no part of a test.
    for name in list(os.environ):
        if name.startswith("PUBSUB_") and not name.startswith("PUBSUB_TEST_"):
            del os.environ[name]
    secrecy.watch()
    _home = Path(tempfile.mkdtemp(prefix="pubsubd-home-"))
    os.environ["XDG_CONFIG_HOME"] = str(_home)  # of all processes that tests start, too
    if TRUST:
        write_file(_home / "key", f"{Key.new().text()}\n".encode())
        os.environ["PUBSUB_KEY_FILE"] = str(_home / "key")
        os.environ["PUBSUB_ENCRYPT"] = "1"
    if LOOP == "asyncio":
        _hiding_place = Path(tempfile.mkdtemp(prefix="pubsubd-no-uvloop-"))
        (_hiding_place / "uvloop.py").write_text(_HIDE_UVLOOP)
        paths = [str(_hiding_place), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        sys.path.insert(0, str(_hiding_place))


def pytest_unconfigure(config: pytest.Config) -> None:
    for place in filter(None, (_hiding_place, _home)):
        shutil.rmtree(place, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    return f"event loop: {LOOP}" + (f", trust: {TRUST}" if TRUST else "")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "teardown":
        found = secrecy.found_in([*report.sections, ("processes", secrecy.said_by_processes())])
        if found:
            report.outcome = "failed"
            report.longrepr = f"a secret was said in: {', '.join(found)}"
    return report


@pytest.fixture(autouse=True)
def _what_was_logged_before_limits_no_test(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pubsub", "pubsub.absent", "pubsub.link", "pubsub.pub", "pubsub.sub"):
        monkeypatch.setattr(logging.getLogger(name), "filters", [RateLimit()])
    log = logging.getLogger("pubsub")  # commands that a test runs in its own process change it
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "level", logging.NOTSET)
    for name in ("pubsub.absent", "pubsub.coordinator", "pubsub.foreign"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)
    log.manager._clear_cache()  # type: ignore[attr-defined]  # what `setLevel` does, too


@pytest.fixture(autouse=True)
def _insecure_where_it_says_so(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if TRUST:
        if request.node.get_closest_marker("by_hand") is not None:
            pytest.skip("speaks, or reads, what TLS hides")
    elif request.node.get_closest_marker("insecure") is not None:
        monkeypatch.setenv("PUBSUB_INSECURE", "1")
        monkeypatch.setattr(logging.getLogger("pubsub.open"), "disabled", True)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No finalizer of what another test has left runs in this one. Where a test goes by every step
    of ours, it would be taken for one of them, and be interrupted itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if LOOP == "asyncio":
        return {"asyncio": asyncio.new_event_loop}
    import uvloop

    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.loop)
    # What takes long begins first, so that no worker is left alone with it at the end.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How `pytest -n 4` deals out the tests: the modules of `IN_ONE_WORKER` first, then all others
    one by one, to whoever is free. (With pytest 9.2, xdist 3.8 overlooks its own `xdist_group`.)"""
    from xdist.scheduler import LoadScopeScheduling

    def together(nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return module if module in IN_ONE_WORKER else nodeid

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = together
    return scheduling


@pytest.fixture
def by_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of this process have no Unix sockets."""
    from pubsub.links import unix

    monkeypatch.setattr(unix, "available", lambda: False)


@pytest.fixture
def no_detour(by_tcp: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is called dials nobody, as if it could not, and nobody comes by a Unix socket."""
    from pubsub.runtime.calling import Callbacks  # when it is settled which loop there is

    monkeypatch.setattr(Callbacks, "called", lambda *what: None)


@pytest.fixture
def only_advertised(no_detour: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are told what `advertise` says, and not where a Peer listens: as if no other way led
    there."""
    from pubsub.links.doors import Doors
    from tests.integration.support import told_only

    monkeypatch.setattr(Doors, "told", told_only)
