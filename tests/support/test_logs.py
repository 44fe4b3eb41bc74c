"""Logs: one tree of loggers, records with fields for programs, and handlers that harm nobody."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from pubsub import Peer
from pubsub.support.logs import FIELDS, logger
from tests.integration.support import LONG, break_links, coordinator_in_loop, eventually
from tests.test_layers import sources

log = logger("pubsub.test")

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "logging.md"


def fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in FIELDS}


def only(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = caplog.records
    caplog.clear()
    return record


class Thing:
    def __init__(self) -> None:
        self.fields = {"address": 5, "peer": "p", "else": "no"}


def test_every_record_has_all_fields_as_texts(caplog: pytest.LogCaptureFixture) -> None:
    log.warning("plain")
    assert fields(only(caplog)) == {"topic": "", "address": "", "peer": ""}
    log.warning("of a %s", "topic", topic="t")
    record = only(caplog)
    assert fields(record) == {"topic": "t", "address": "", "peer": ""}
    assert record.getMessage() == "of a topic"
    log.error("of a thing", of=Thing(), topic="t")
    assert fields(only(caplog)) == {"topic": "t", "address": "5", "peer": "p"}
    log.error("of a thing", of=Thing(), address="a")
    assert fields(only(caplog)) == {"topic": "", "address": "a", "peer": "p"}
    log.error("of what says nothing", of=object())
    assert fields(only(caplog)) == {"topic": "", "address": "", "peer": ""}


def test_an_exception_has_them_too_and_where_it_was_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("it failed", topic="t")
    record = only(caplog)
    assert record.exc_info is not None
    assert record.funcName == "test_an_exception_has_them_too_and_where_it_was_logged"
    assert fields(record)["topic"] == "t"


def test_what_is_not_logged_asks_nobody_for_fields(caplog: pytest.LogCaptureFixture) -> None:
    class Busy:
        @property
        def fields(self) -> dict[str, str]:
            raise AssertionError("nobody wants to know")

    caplog.set_level(logging.WARNING)
    log.debug("quiet", of=Busy())
    assert not caplog.records


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("full")


def test_a_handler_that_raises_stops_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    broken = Broken()
    log.logger.addHandler(broken)
    try:
        log.warning("on we go", topic="t")
    finally:
        log.logger.removeHandler(broken)
    assert "RuntimeError: full" in capsys.readouterr().err


async def test_records_of_a_link_say_which_address_and_peer(
    by_tcp: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pubsub")
    async with coordinator_in_loop() as address, Peer(address) as here, Peer(address) as there:
        sub, pub = await there.sub("t"), here.pub("t")
        pub.put(1)
        assert await sub.get(LONG) == 1
        break_links(there)

        def broke() -> list[logging.LogRecord]:
            return [r for r in caplog.records if "link with the publisher" in r.getMessage()]

        await eventually(broke)
        assert fields(broke()[0]) == {
            "topic": "",
            "address": str(here.runtime.address),
            "peer": here.runtime.peer_id,
        }


async def test_what_cannot_be_decoded_says_the_topic_and_who_sent_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with coordinator_in_loop() as address, Peer(address) as peer:
        sub, pub = await peer.sub("t/*"), peer.pub("t/a")
        pub._publication.append(1, b"\x91\xc1", (), 0.0)
        pub.put("end")
        assert await asyncio.wait_for(sub.get(), LONG) == "end"
        (publisher,) = sub.publishers
        (record,) = [r for r in caplog.records if "cannot be decoded" in r.getMessage()]
        assert fields(record) == {
            "topic": "t/a",
            "address": publisher,
            "peer": peer.runtime.peer_id,
        }


def test_every_logger_is_in_the_tree_and_on_its_page() -> None:
    found: set[str] = set()
    for source in sources().values():
        found.update(re.findall(r'\b(?:logger|getLogger)\("([^"]*)"\)', source))
    ours = {name for name in found if name != "asyncio"}
    assert all(name == "pubsub" or name.startswith("pubsub.") for name in ours)
    listed = re.findall(r"^\| `(pubsub[.\w]*)` \|", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == sorted(ours)


def test_every_field_is_on_its_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = re.findall(r"^\| `record\.(\w+)` \|", page, re.M)
    assert tuple(listed) == FIELDS
