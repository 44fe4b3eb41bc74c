"""Who is let in: strangers of the machine, pages of elsewhere, and whoever has the token."""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys

import pytest

pytest.importorskip("aiohttp", reason="the dashboard is served by aiohttp")

import pubsub
from pubsub import Peer
from pubsub.dashboard import server
from tests.dashboard.staging import LONG, TOKEN, Staged, staged

SECRETS = ("/events?page=topics", "/peek?topic=a", "/app.js", "/index.html", "/")
"""Paths behind the place that the cookie opens."""


async def test_without_the_token_nothing_is_shown_but_that_it_runs() -> None:
    async with staged() as dash:
        assert await dash.get("/health") == (200, "ok\n")
        for path in ("/", "/?token=", "/?token=wrong", "/nothing", "/events", "/app.js", "/%2e%2e"):
            status, text = await dash.get(path)
            assert status == 401, path
            assert "Open the link" in text
            assert dash.access.place not in text
        assert (await dash.get("/metrics"))[0] == 401


@pytest.mark.parametrize("path", SECRETS)
async def test_who_knows_the_place_and_has_no_cookie_or_another_sees_nothing(path: str) -> None:
    async with staged() as dash:
        where = dash.access.place.rstrip("/") + path
        assert (await dash.get(where))[0] == 401
        for wrong in ("pubsubd=", f"pubsubd={TOKEN}", "pubsubd=é", "other=1"):
            assert (await dash.get(where, Cookie=wrong))[0] == 401, wrong


async def test_the_link_gives_a_cookie_for_one_path_that_scripts_and_other_sites_do_not_get() -> (
    None
):
    async with staged() as dash:
        async with dash.client.get(f"{dash.url}/?token={TOKEN}", allow_redirects=False) as got:
            assert got.status == 303
            assert got.headers["Location"] == dash.access.place
            (cookie,) = got.headers.getall("Set-Cookie")
        assert TOKEN not in cookie
        for part in ("HttpOnly", "SameSite=Strict", f"Path={dash.access.place}"):
            assert part in cookie
        assert len(dash.access.place) >= 34  # so nobody guesses it, and gets the cookie
        for path in SECRETS[2:]:
            assert (await dash.get(dash.access.place.rstrip("/") + path))[0] == 200
        # From the root of the host, where others may listen at another port, it is not sent.
        assert (await dash.get("/"))[0] == 401


async def test_the_token_may_be_given_in_the_form() -> None:
    async with staged() as dash:
        for token, status in ((TOKEN, 303), ("wrong", 401), ("", 401), ("é" * 20, 401)):
            async with dash.client.post(
                f"{dash.url}/", data={"token": token}, allow_redirects=False
            ) as got:
                assert got.status == status
        async with dash.client.post(f"{dash.url}/", data={"token": "x" * 10**6}) as got:
            assert got.status == 413


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.2", "", "["]
)
async def test_a_page_whose_name_was_resolved_to_here_gets_nothing(host: str) -> None:
    async with staged() as dash:
        await dash.enter()
        host = host.format(port=dash.port)
        for path in ("/", f"/?token={TOKEN}", "/metrics", f"{dash.access.place}events"):
            status, text = await dash.get(path, Host=host)
            assert status in (400, 421), (path, status)
            assert "Set-Cookie" not in text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.:{port}", "127.0.0.1", "localhost:8000"])
async def test_its_own_names_are_right_at_any_port(host: str) -> None:
    async with staged() as dash:
        await dash.enter()
        host = host.format(port=dash.port)
        assert (await dash.get(dash.access.place, Host=host))[0] == 200


async def test_two_host_headers_are_none(caplog: pytest.LogCaptureFixture) -> None:
    async with staged() as dash:
        text = await raw(dash, "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n")
        assert re.match(r"HTTP/1\.\d 4\d\d", text)
        assert not [each for each in caplog.records if each.exc_info]  # strangers fill no log


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},  # another user's server on this machine
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
    ],
)
async def test_pages_of_another_origin_get_nothing(headers: dict[str, str]) -> None:
    async with staged() as dash:
        await dash.enter()
        for path in (f"{dash.access.place}events", f"{dash.access.place}app.js", "/"):
            assert (await dash.get(path, **headers))[0] == 403
        async with dash.client.post(
            f"{dash.url}/", data={"token": TOKEN}, headers=headers, allow_redirects=False
        ) as got:
            assert got.status == 403


async def test_a_link_that_a_person_follows_from_elsewhere_opens_it() -> None:
    async with staged() as dash:
        visit = {
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        }
        assert (await dash.get(f"/?token={TOKEN}", **visit))[0] == 303


async def test_every_answer_forbids_what_browsers_would_do_with_it() -> None:
    async with staged() as dash:
        await dash.enter()
        for path in ("/health", "/", dash.access.place, f"{dash.access.place}app.js", "/metrics"):
            async with dash.client.get(dash.url + path) as got:
                headers = got.headers
            policy = headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self';")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["Cache-Control"] == "no-store"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "Access-Control-Allow-Origin" not in headers
            assert "aiohttp" not in headers["Server"]
        async with dash.client.options(
            dash.place + "events", headers={"Access-Control-Request-Method": "GET"}
        ) as got:
            assert got.status in (401, 405)
            assert "Access-Control-Allow-Origin" not in got.headers


async def test_pages_need_nothing_from_elsewhere_and_have_no_script_in_them() -> None:
    for name, content in server._files().items():
        text = content.decode()
        for found in re.findall(r"https?://[^\s\"'`<>)]+", text):
            assert found == "http://www.w3.org/2000/svg", (name, found)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", text)
        if name.endswith(".html"):
            assert not re.search(r"\son\w+=|style=|<script(?![^>]*src=)", text)


@pytest.mark.parametrize(
    ("access", "bearer", "status"),
    [
        ({}, None, 401),
        ({}, "wrong", 401),
        ({}, "", 401),
        ({}, TOKEN, 200),
        ({"metrics_token": "of the scraper"}, "of the scraper", 200),
        ({"metrics_token": "of the scraper"}, "another", 401),
        ({"open_metrics": True}, None, 200),
    ],
)
async def test_metrics_want_a_token_of_their_own_or_that_of_the_dashboard(
    access: dict[str, object], bearer: str | None, status: int
) -> None:
    async with staged(**access) as dash:
        headers = {} if bearer is None else {"Authorization": f"Bearer {bearer}"}
        assert (await dash.get("/metrics", **headers))[0] == status


async def test_the_token_of_the_metrics_opens_nothing_else() -> None:
    async with staged(metrics_token="of the scraper, and it is long") as dash:
        assert (await dash.get("/?token=of the scraper, and it is long"))[0] == 401


async def test_metrics_are_those_of_all_who_tell() -> None:
    async with (
        staged(open_metrics=True) as dash,
        Peer(dash.coordinator, name="app.py") as peer,
        peer.pub("a") as pub,
    ):
        pub.put(1)
        status, text = await dash.get("/metrics")
        assert status == 200
        (line,) = re.findall(r"^pubsub_put_messages_total{.*$", text, re.MULTILINE)
        assert 'program="app.py"' in line
        assert line.endswith('topic="a"} 1.0')


async def test_where_the_extra_is_missing_the_metrics_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pubsub.metrics", None)
    monkeypatch.delattr(pubsub, "metrics", raising=False)
    async with staged(open_metrics=True) as dash:
        assert (await dash.get("/metrics"))[0] == 501


async def test_who_connects_and_asks_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HURRY", 0.05)
    async with staged() as dash:
        assert await raw(dash, "GET / HTTP/1.1\r\nHost: loc") == ""
        assert not dash.dashboard._hurried


async def test_no_more_connections_are_taken_than_it_bears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    async with staged() as dash:
        held = [await asyncio.open_connection("127.0.0.1", dash.port) for _ in range(3)]
        assert await raw(dash, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n") == ""
        for _, writer in held:
            writer.close()
        until = asyncio.get_running_loop().time() + LONG
        while not await raw(dash, "GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n"):
            assert asyncio.get_running_loop().time() < until


async def raw(dash: Staged, text: str) -> str:
    """What is answered to these bytes, until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", dash.port)
    try:
        writer.write(text.encode())
        with contextlib.suppress(ConnectionError):
            return (await asyncio.wait_for(reader.read(), LONG)).decode()
        return ""
    finally:
        writer.close()
