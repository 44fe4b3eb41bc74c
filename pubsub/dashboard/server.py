"""The server of the dashboard: pages, and streams of events for those who look at them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from importlib import resources
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from pubsub import Peer
from pubsub.dashboard.access import Access
from pubsub.dashboard.moments import PAGES
from pubsub.dashboard.peeking import peek
from pubsub.dashboard.pictures import Page
from pubsub.dashboard.watching import Watching
from pubsub.errors import PubSubError

__all__ = ["Dashboard"]

log = logging.getLogger("pubsub.dashboard")

MOST_VIEWERS = 64
"""Streams of events at a time."""
MOST_PEEKS = 8
"""Peeks at a time: each carries all messages of a topic to here."""
MOST_CONNECTIONS = 256
HURRY = 10.0
"""Seconds that a connection has for its first request."""
IDLE = 30.0
"""Seconds for which a connection is kept without a request."""
PATIENCE = 30.0
"""Seconds that a viewer has to take what was written for him."""
BODY = 4096
"""Bytes of what is sent to here: a token."""

TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:18vh auto;padding:0 1.5rem;"
    "color-scheme:light dark}input,button{font:inherit;padding:.4em .7em}input{width:16rem;"
    "max-width:60vw}"
)
SIGNED_OUT = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pubsubd</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head>
<body><h1>pubsubd</h1>
<p>Open the link that the command printed when it started, or give the token here:</p>
<form method="post" action="/"><label>Token <input name="token" type="password" autofocus
autocomplete="off"></label> <button>Open</button></form></body></html>
"""
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self'; style-src 'self' "
    f"'sha256-{base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "pubsubd",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Dashboard:
    """Shows in a browser what flows between all processes that the coordinators know.

    Use it in an event loop: `start`, and in the end `close`.

    Parameters:
        peer: that asks them, and subscribes what is peeked at: its key or certificate says what can
            be seen.
        access: who may see it.

    Example:
        >>> import asyncio
        >>> from pubsub import Peer
        >>> from pubsub.dashboard import Access, Dashboard
        >>> async def main():
        ...     async with Peer(linger=0) as peer:
        ...         dashboard = Dashboard(peer, Access("a long secret", ["localhost"]))
        ...         await dashboard.start("127.0.0.1", 0)
        ...         await dashboard.close()
        >>> asyncio.run(main())
    """

    def __init__(self, peer: Peer, access: Access) -> None:
        self._peer = peer
        self._access = access
        self._watching = Watching(peer)
        self._viewers = self._peeks = 0
        self._hurried: dict[asyncio.BaseProtocol | None, asyncio.TimerHandle] = {}
        self._files = _files()
        self._server: asyncio.Server | None = None
        app = web.Application(middlewares=[self._doorman()], client_max_size=BODY)
        app.on_response_prepare.append(_add_headers)
        place = access.place
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/", self._enter)
        app.router.add_post("/", self._enter)
        app.router.add_get(f"{place}events", self._events)
        app.router.add_get(f"{place}peek", self._peek)
        app.router.add_get(f"{place}{{file:[^/]*}}", self._file)
        self._runner = web.AppRunner(
            app,
            logger=log,
            access_log=None,  # it would have the token in it
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=IDLE,
            shutdown_timeout=1.0,
        )

    async def start(
        self, host: str, port: int, context: ssl.SSLContext | None = None
    ) -> list[tuple[str, int]]:
        """Listen; returns where.

        Parameters:
            host: address to listen on.
            port: 0: any free one.
            context: for TLS; None: none.

        Raises:
            OSError: it cannot listen there.
        """
        await self._runner.setup()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, host, port, ssl=context)
        return [socket.getsockname()[:2] for socket in self._server.sockets]

    async def close(self) -> None:
        """Listen no more, and end all that is shown."""
        if self._server is not None:
            self._server.close()
        await self._watching.close()
        await self._runner.cleanup()
        for timer in self._hurried.values():
            timer.cancel()

    def _accept(self) -> asyncio.BaseProtocol:
        """Somebody has connected: it has a request, soon, or goes."""
        server = self._runner.server
        assert server is not None
        protocol = server()
        if len(server.connections) >= MOST_CONNECTIONS:
            return _Full()

        def hurry() -> None:
            del self._hurried[protocol]
            protocol.force_close()
            if protocol.transport is not None:
                protocol.transport.abort()

        self._hurried[protocol] = asyncio.get_running_loop().call_later(HURRY, hurry)
        return protocol

    def _doorman(self) -> Any:
        """Asks each request, whatever it is for, what `Access` has to ask."""
        public = {"/": self._enter, "/health": self._health, "/metrics": self._metrics}

        @web.middleware
        async def doorman(request: web.Request, handler: Handler) -> web.StreamResponse:
            timer = self._hurried.pop(request.protocol, None)
            if timer is not None:
                timer.cancel()
            try:
                if request.path != "/health":
                    self._access.refuse(request)
                if request.path in public:
                    return await handler(request)
                if not request.path.startswith(self._access.place):
                    return _signed_out()
                if not self._access.has_cookie(request):
                    return _signed_out()
                return await handler(request)
            except web.HTTPException as refusal:
                refusal.force_close()
                raise

        return doorman

    # --- what is open, or opens -------------------------------------------------------------

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _enter(self, request: web.Request) -> web.Response:
        """Whoever shows the token gets the cookie, and a page without the token in its address."""
        if request.method == "POST":
            token = str((await request.post()).get("token", ""))
        else:
            token = request.query.get("token", "")
        if not self._access.is_token(token):
            return _signed_out()
        response = web.Response(status=303, headers={"Location": self._access.place})
        self._access.let_in(response, secure=request.secure)
        return response

    async def _metrics(self, request: web.Request) -> web.Response:
        if not self._access.may_have_metrics(request):
            raise web.HTTPUnauthorized(
                text="the metrics want the token: Authorization: Bearer TOKEN\n",
                headers={"WWW-Authenticate": "Bearer"},
            )
        try:
            from pubsub import metrics
        except ImportError as error:
            raise web.HTTPNotImplemented(text=f"{error}\n") from None
        text = metrics.exposition(await self._watching.stats())
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})

    # --- what the cookie opens --------------------------------------------------------------

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"] or "index.html"
        if name not in self._files:
            raise web.HTTPNotFound(text="there is no such page\n")
        kind = TYPES[name.rpartition(".")[2]]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        page = Page(request.query.get("page", "topics"), request.query.get("name", ""))
        if page.kind not in PAGES:
            raise web.HTTPNotFound(text=f"there is no page {page.kind[:50]!r}\n")
        if self._viewers >= MOST_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_VIEWERS} look at it already\n")
        self._viewers += 1
        try:
            async with self._watching.looking(), _stream(request) as stream:
                seen = 0
                while True:
                    picture = await self._watching.next(seen)
                    await stream.write(picture.write(page, seen))
                    seen = picture.number
            return stream.response
        finally:
            self._viewers -= 1

    async def _peek(self, request: web.Request) -> web.StreamResponse:
        topic = request.query.get("topic", "")
        if self._peeks >= MOST_PEEKS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_PEEKS} peeks are open already\n")
        self._peeks += 1
        try:
            async with _stream(request) as stream:
                try:
                    async with aclosing(peek(self._peer, topic)) as shown:
                        async for each in shown:
                            await stream.write(_event(each))
                except (PubSubError, ValueError) as error:
                    await stream.write(_event({"end": str(error)}))
            return stream.response
        finally:
            self._peeks -= 1


class _Full(asyncio.Protocol):
    """Too many are connected."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether an error is of ours: what strangers send that is no HTTP fills no log."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


log.addFilter(_is_ours)


class _Stream:
    """Events for one viewer. What he is slow to take is waited for, so there is never more than one
    on its way to him; at last he is cut off."""

    def __init__(self) -> None:
        self.response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})
        self.response.content_type = "text/event-stream"
        self.response.charset = "utf-8"

    async def write(self, event: bytes) -> None:
        await asyncio.wait_for(self.response.write(event), PATIENCE)


@asynccontextmanager
async def _stream(request: web.Request) -> AsyncIterator[_Stream]:
    """Within, events can be written; without a word where the viewer has gone, or was cut off."""
    stream = _Stream()
    await stream.response.prepare(request)
    try:
        await stream.write(b"retry: 1000\n\n")
        yield stream
        await stream.response.write_eof()
    except (ConnectionError, asyncio.TimeoutError):
        if request.transport is not None:
            request.transport.abort()


def _event(what: dict[str, Any]) -> bytes:
    text = json.dumps(what, separators=(",", ":"), ensure_ascii=False)
    return b"data: %s\n\n" % text.encode(errors="replace")


def _signed_out() -> web.Response:
    response = web.Response(status=401, text=SIGNED_OUT, content_type="text/html", charset="utf-8")
    response.force_close()
    return response


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)


def _files() -> dict[str, bytes]:
    """What a browser is given, by name."""
    folder = resources.files("pubsub.dashboard") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
