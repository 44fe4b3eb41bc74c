"""Who may look at whom, and by which ways."""

from __future__ import annotations

import asyncio

import pytest

from pubsub import Peer
from pubsub import survey as survey_module
from pubsub.core.rights import Rights
from pubsub.errors import AuthError
from pubsub.runtime import watching
from pubsub.survey import Survey
from tests.integration.support import LONG, coordinator_in_loop, eventually
from tests.integration.test_rights import COORDINATOR, Given
from tests.integration.test_rights import given as given

SENSOR = Rights(["sensors/**"], [])
LISTER = Rights(list=True)


async def test_who_may_list_sees_all_and_nobody_else_anything(given: Given) -> None:
    given.give("sensor", SENSOR, COORDINATOR, "looks")
    given.give("looks", LISTER, COORDINATOR, "sensor")
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="sensor") as sensor,
        Peer(address, name="looks") as looks,
    ):
        pub = await sensor.pub("sensors/1")
        async with Survey(looks) as survey:
            await survey.settled(LONG)
            topics = [
                pub.topic for told in survey.peers.values() if told.stats for pub in told.stats.pubs
            ]
            assert topics == [pub.topic]
        with pytest.raises(AuthError, match=r"may not list all peers .`pubsubd cert issue"):
            async with Survey(sensor):
                pass


async def test_a_peer_asks_for_the_right_itself_whatever_a_coordinator_says(given: Given) -> None:
    given.give("looks", SENSOR, "sensor")
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="sensor") as sensor,
        Peer(address, name="looks") as looks,
        Survey(looks) as survey,
    ):
        await survey.settled(LONG)
        told = {told.stats.name for told in survey.peers.values() if told.stats}
        assert told == {"looks"}
        assert sensor.runtime.watching.on is False


async def test_a_peer_that_cannot_be_dialled_tells_as_well() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="hidden", listen=False) as hidden,
        Peer(address, name="looks") as looks,
        Survey(looks) as survey,
    ):
        changes = survey.changes()

        def found() -> bool:
            return any(told.peer_id == hidden.peer_id for told in survey.peers.values())

        while not found():
            await asyncio.wait_for(changes.__anext__(), LONG)
        (link,) = hidden.stats().links
        assert link.way == "reverse"


async def test_a_peer_that_vanishes_stays_with_its_trouble() -> None:
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="looks") as looks,
        Survey(looks) as survey,
    ):
        gone = Peer(address, name="gone")
        pub = await gone.pub("t")
        changes = survey.changes()

        def of_it() -> list[str]:
            found = [told for told in survey.peers.values() if told.stats]
            return [told.trouble for told in found if told.stats and told.stats.name == "gone"]

        while not of_it():
            await asyncio.wait_for(changes.__anext__(), LONG)
        assert of_it() == [""]
        gone.runtime.cut()  # without a goodbye
        for link in gone.runtime.links():
            link.abort()
        while of_it() == [""]:
            await asyncio.wait_for(changes.__anext__(), LONG)
        await gone.close()
        assert pub.closed


async def test_who_has_ended_is_forgotten_also_where_nobody_waits_for_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "EVERY", 0.05)
    monkeypatch.setattr(survey_module, "LOOK", 0.05)
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="looks") as looks,
        Survey(looks) as survey,
    ):
        async with Peer(address, name="goes") as goes:
            await eventually(lambda: goes.peer_id in {t.peer_id for t in survey.peers.values()})
        await eventually(lambda: {t.peer_id for t in survey.peers.values()} == {looks.peer_id})


async def test_a_survey_ends_with_its_peer() -> None:
    async with coordinator_in_loop() as address, Peer(address) as looks, Survey(looks) as survey:
        await survey.settled(LONG)
        await looks.close()

        async def watch() -> None:
            async for _ in survey.changes():
                pass

        await asyncio.wait_for(watch(), LONG)
        await survey.settled(LONG)


async def test_a_survey_that_may_see_nobody_any_more_says_so(
    given: Given,
) -> None:
    given.give("looks", LISTER, COORDINATOR)
    async with (
        coordinator_in_loop() as address,
        Peer(address, name="looks") as looks,
        Survey(looks) as survey,
    ):
        await survey.settled(LONG)
        survey._sub._abandon(AuthError("may not list all peers any more"))

        async def watch() -> None:
            async for _ in survey.changes():
                pass

        with pytest.raises(AuthError, match="any more"):
            await asyncio.wait_for(watch(), LONG)
