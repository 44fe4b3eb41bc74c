"""Access: which requests are let in.

Strangers are other users of the machine, and pages that a browser shows from elsewhere. They are
kept out by these, each of which is asked of every request:

- The name in ``Host`` is one of our own, or the address that was connected to. So a page of a
  stranger, whose name he has had resolved to this machine, is not taken for ours.
- What a browser says of where a request comes from: nothing of another origin is answered, but a
  person who follows a link.
- The token, which is in a cookie once it was shown. A browser sends a cookie to all ports of a
  host, where others may listen; so ours goes with one path alone, which nobody can guess.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

from aiohttp import web

__all__ = ["Access"]

COOKIE = "pubsubd"


class Access:
    """Who may see a dashboard.

    Parameters:
        token: whoever knows it.
        names: by which browsers may know this machine, beside the address that they connect to.
        metrics_token: another one, for the metrics alone; None: the token is wanted there.
        open_metrics: everybody may have the metrics.

    Attributes:
        place: the path of all that the cookie opens.
    """

    def __init__(
        self,
        token: str,
        names: Collection[str] = (),
        *,
        metrics_token: str | None = None,
        open_metrics: bool = False,
    ) -> None:
        self._token = token.encode()
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._metrics = None if metrics_token is None else metrics_token.encode()
        self._open_metrics = open_metrics
        self._cookie = self._derive(b"cookie")
        self.place = f"/{self._derive(b'place')[:32].decode()}/"

    def _derive(self, what: bytes) -> bytes:
        return hmac.digest(self._token, b"pubsubd dashboard " + what, "sha256").hex().encode()

    def is_token(self, token: str) -> bool:
        """Whether that is it."""
        return hmac.compare_digest(token.encode(), self._token)

    def let_in(self, response: web.StreamResponse, *, secure: bool) -> None:
        """Whoever gets this response has shown the token."""
        response.set_cookie(
            *(COOKIE, self._cookie.decode()),
            path=self.place,
            httponly=True,
            samesite="Strict",
            secure=secure,
        )

    def has_cookie(self, request: web.Request) -> bool:
        """Whether it was shown before."""
        return hmac.compare_digest(request.cookies.get(COOKIE, "").encode(), self._cookie)

    def may_have_metrics(self, request: web.Request) -> bool:
        """Whether the request shows what is wanted for the metrics."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        shown = token.strip().encode() if kind.lower() == "bearer" else b""
        either = [self._token, *filter(None, [self._metrics])]
        return self._open_metrics or any(hmac.compare_digest(shown, each) for each in either)

    def refuse(self, request: web.Request) -> None:
        """Let pass what comes from ourselves, or from a person.

        Raises:
            web.HTTPException: it does not.
        """
        hosts = request.headers.getall("Host", [])
        name = _name(hosts[0]) if len(hosts) == 1 else ""
        if name not in self._names and name != _connected_to(request):
            raise web.HTTPMisdirectedRequest(
                text=f"{name[:255]!r} is no name of this dashboard: open it by the link that was "
                "printed, or start it with --name\n"
            )
        origin = request.headers.get("Origin")
        site = request.headers.get("Sec-Fetch-Site", "none")
        elsewhere = origin not in (None, f"{request.scheme}://{hosts[0]}")
        if site not in ("none", "same-origin") and not _is_visit(request):
            elsewhere = True
        if elsewhere:
            raise web.HTTPForbidden(text="this was asked for by a page of another origin\n")


def _name(host: str) -> str:
    """Of a ``Host`` header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _connected_to(request: web.Request) -> str:
    """The address of ours that was dialled."""
    own = request.get_extra_info("sockname") or ("",)
    return str(own[0]).removeprefix("::ffff:").partition("%")[0]


def _is_visit(request: web.Request) -> bool:
    """Whether a person follows a link to the page."""
    headers = request.headers
    return (
        request.method == "GET"
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest") == "document"
    )
