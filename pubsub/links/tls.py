"""TLS under a link: towards the plain transport a protocol, towards the `Link` its transport.

The loops' own TLS tells neither end why a handshake failed, and hides accepted connections until it
is over. Here the first bytes are looked at before OpenSSL gets them, an alert is always flushed
before the close, and the link hears one clear line. It is the same code on every loop, because all
that it asks of one is a plain transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import threading
import time
from collections.abc import Iterable
from typing import Any

from pubsub.errors import AuthError
from pubsub.links.link import GOODBYE_GRACE, WRITE_HIGH_WATER, Link, Lost
from pubsub.links.refusals import (
    CLOSED_EARLY,
    HEARD,
    NO_TLS,
    explain_foreign,
    explain_tls,
    passing,
    words_of,
)
from pubsub.support.logs import logger
from pubsub.wire.frames import SCRATCH_SIZE

__all__ = ["TLS_ALERT", "TLS_HANDSHAKE", "TlsLayer", "cipher_scratch"]

log = logger("pubsub.link")

TLS_ALERT, TLS_HANDSHAKE = 0x15, 0x16
"""The first bytes with which an answer, and every connection, over TLS begins."""
FEED = 32 * 1024
"""Bytes that OpenSSL is given at a time, in either direction: its buffers keep the size that they
once had, for as long as the connection lives."""
JOIN_BELOW = 4 * 1024
"""Chunks smaller than this are joined into one record. (A record costs more than such a copy.)"""
RECORD = 16 * 1024
"""Bytes that one record carries at most."""
WHOLE = RECORD + 5 + 256
"""Bytes that it has at most, encrypted, in front of it and behind it."""
HELLO_MOST = 8 * 1024
"""Bytes that the first message of a TLS handshake may announce. (They are one or two thousand;
OpenSSL takes the memory for up to 128 KiB as soon as a stranger announces them.)"""
_HELLO = struct.Struct(">BHHI")
"""Type, version and length of a record; type and length of the message in it."""

NOTHING_MORE = memoryview(b"")


class TlsLayer(asyncio.BufferedProtocol):
    """One connection's TLS.

    Parameters:
        loop: whose transport it is.
        context: our certificate, and whom we trust.
        link: who writes and reads.
        server_side: whether the other end has dialled.
        scratch: the loop's buffer to read ciphertext into; another than the one of the links.
        grouped: see `explain_tls`.

    Attributes:
        up: the TLS handshake is done. (Where this end has dialled, the other may still refuse our
            certificate.)
        peer_der: the other end's certificate, once it is up.
    """

    __slots__ = (
        "_closing",
        "_drained",
        "_early",
        "_early_size",
        "_ended",
        "_eof",
        "_error",
        "_foreign",
        "_grouped",
        "_half",
        "_heard",
        "_high",
        "_in",
        "_link",
        "_loop",
        "_out",
        "_pressed",
        "_raw",
        "_raw_full",
        "_raw_reading",
        "_reading",
        "_scratch",
        "_sealed",
        "_server_side",
        "_shut",
        "_ssl",
        "_timer",
        "_waking",
        "peer_der",
        "up",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        context: ssl.SSLContext,
        link: Link,
        *,
        server_side: bool,
        scratch: bytearray | memoryview,
        grouped: bool = False,
    ) -> None:
        self.up = False
        self.peer_der = b""
        self._loop = loop
        self._link: Any = link
        self._grouped = grouped
        self._server_side = server_side
        self._scratch = memoryview(scratch)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl: ssl.SSLObject | None = context.wrap_bio(self._in, self._out, server_side)
        self._raw: Any = None
        self._early: list[bytes] = []  # what was written before it is up
        self._early_size = 0
        self._sealed: list[bytes] = []  # what is encrypted, and not sent yet
        self._high = WRITE_HIGH_WATER
        self._raw_full = False
        self._pressed = False  # the link knows that no more is taken
        self._reading = True  # the link wants more
        self._raw_reading = True
        self._waking = False
        self._drained = True  # of what came, all that is whole was delivered
        self._heard = False  # some plaintext
        self._foreign: bytearray | None = bytearray()  # the first bytes, until they are TLS
        self._eof = False  # of the plain transport
        self._ended = False  # the link was told of the end
        self._half = False  # nothing more is written
        self._shut = False  # nor can it be
        self._closing = False
        self._error: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None

    # --- the plain transport's side -----------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = transport
        self._link.veiled = True
        self._link.connection_made(self)
        if not self.is_closing():
            self._advance()

    def take_over(self, raw: asyncio.Transport, first_bytes: bytes | memoryview) -> None:
        """Get between a plain transport and the link that was made on it; those bytes were read
        from it already."""
        self._raw = raw
        raw.set_protocol(self)
        self._link.transport = self
        self._received(memoryview(first_bytes))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        self._received(self._scratch[:nbytes])

    def eof_received(self) -> bool:
        self._eof = True
        if self._closing:
            return False
        if self.up:
            self._advance()
            return not self._closing
        head = bytes(self._foreign or b"")
        tls = not head or head[0] == TLS_HANDSHAKE
        if tls:
            self._fail(Lost(CLOSED_EARLY))
        else:
            self._fail(passing(head) or AuthError(explain_foreign(head, ended=True)))
        return False

    def pause_writing(self) -> None:
        self._raw_full = True
        self._press()

    def resume_writing(self) -> None:
        self._raw_full = False
        self._press()

    def connection_lost(self, exc: Exception | None) -> None:
        link = self._link
        if link is None:
            return
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._link = self._ssl = self._timer = self._foreign = None
        self._early.clear()
        self._in, self._out = _NOTHING, _NOTHING
        self._scratch = _NOWHERE
        link.connection_lost(self._error or exc)

    # --- reading ------------------------------------------------------------------------

    def _received(self, data: memoryview) -> None:
        if self._closing or self._ended:  # it is read so that closing sends no reset
            return
        if self._foreign is None:
            self._advance(data)
        else:
            self._begin(self._foreign, data)

    def _begin(self, head: bytearray, data: memoryview) -> None:
        """Look at the first bytes: OpenSSL gets none that are no TLS, since it would only say that
        it does not understand them."""
        head += data
        text: str | None = None
        if head[:1] == b"\x16":
            if len(head) < _HELLO.size:
                return
            _, version, size, message = _HELLO.unpack_from(head)
            announced = message & 0xFFFFFF
            # a record of less than four bytes is allowed, and sent by nobody who means well
            if version >> 8 != 3 or size < 4 or message >> 24 not in (1, 2):
                text = NO_TLS
            elif announced > HELLO_MOST:
                text = f"its first TLS message has {announced:,} bytes, over {HELLO_MOST:,}"
        elif head[:1] != b"\x15":
            text = explain_foreign(bytes(head))
            if text is None:
                return
        if text is not None:
            self._fail(passing(bytes(head)) or AuthError(text))
        else:
            self._foreign = None
            self._advance(memoryview(head))

    def _advance(self, data: memoryview = NOTHING_MORE) -> None:
        """Go on with what has come."""
        try:
            if self.up:
                self._deliver(data)
                return
            while True:  # TLS may be up in the midst of it
                self._in.write(data[:FEED])
                data = data[FEED:]
                if self._shake():
                    self._deliver(data)
                    return
                if not data or self._closing:
                    return
        except Exception as error:  # nothing of it is the loop's matter
            log.exception("internal error in the TLS of the link with %s", self._link)
            self._fail(Lost(f"internal error: {error!r}"))

    def _shake(self) -> bool:
        """Take the handshake as far as it goes; returns whether it is done."""
        tls = self._ssl
        if tls is None:
            return False
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except ssl.SSLError as error:
            self._refuse(error)
            return False
        self.up = True
        self.peer_der = tls.getpeercert(True) or b""
        early, self._early, self._early_size = self._early, [], 0
        if early:
            self._seal(b"".join(early))
        if not self._server_side:
            self._link.unveil()
        self._flush()  # the last message of the handshake, and what was written early behind it
        self._pace()
        self._press()
        return True

    def _deliver(self, data: memoryview) -> None:
        """Decrypt into the link's own buffer, for as long as it takes what comes."""
        tls, link, waiting = self._ssl, self._link, self._in
        self._drained = False
        while self._reading and tls is not None and not self._closing and not self._ended:
            buffer = link.get_buffer(-1)
            room, got, ended = len(buffer), 0, False
            broken: ssl.SSLError | None = None
            while got < room:
                # To read in vain costs as much as a small record: so of what came, there is always
                # a whole record to read.
                ahead = waiting.pending
                if ahead < WHOLE and data:
                    waiting.write(data[:FEED])
                    data = data[FEED:]
                elif not ahead and not tls.pending():
                    self._drained = True
                    break
                try:
                    size: int = tls.read(room - got, buffer[got:] if got else buffer)  # type: ignore[assignment]
                except ssl.SSLWantReadError:
                    self._drained = not data
                    if self._drained:
                        break
                except ssl.SSLZeroReturnError:
                    ended = True
                    break
                except ssl.SSLError as error:
                    broken = error
                    break
                else:
                    if not size:
                        ended = True
                        break
                    got += size
            if got:
                self._heard = True
                link.buffer_updated(got)
            if broken is not None and not self._closing:
                self._refuse(broken)
            if ended or (self._drained and self._eof):
                self._drained = True
                self._end()
            if self._drained:
                break
            tls = self._ssl
        if data and not self._ended and not self._closing:
            waiting.write(data)
        if self._out.pending:
            self._flush()  # answers of TLS itself
        if self._half and self._drained and not self._shut:
            self._say_end()
        self._pace()

    def _end(self) -> None:
        """The other end has said all: close, unless the link wants to go on."""
        if not self._ended and not self._closing:
            self._ended = True
            if not self._link.eof_received():
                self.close()

    def pause_reading(self) -> None:
        """Nothing more is delivered until `resume_reading`."""
        self._reading = False
        self._pace()

    def resume_reading(self) -> None:
        """Go on, in a later turn of the loop, with what is here already."""
        self._reading = True
        if self._drained:
            self._pace()
        elif not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        if self._reading and not self._closing:
            self._advance()

    def _pace(self) -> None:
        """Read of the plain transport what the link takes: else what it does not would grow here.
        A handshake goes on in any case."""
        wanted = self._reading or not self.up
        if wanted != self._raw_reading and not self._eof and not self._raw.is_closing():
            self._raw_reading = wanted
            if wanted:
                self._raw.resume_reading()
            else:
                self._raw.pause_reading()

    # --- writing ------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send it, encrypted; before TLS is up, as soon as it is."""
        if self._half or self._closing or not data:
            return
        if self.up:
            self._seal(data)
            self._flush()
        else:
            self._early.append(bytes(data))
            self._early_size += len(data)
            self._press()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send all of it: small chunks share records, large ones are encrypted from where they
        are."""
        if not self.up:
            self.write(b"".join(list_of_data))
            return
        if self._half or self._closing:
            return
        small: list[bytes | bytearray | memoryview] = []
        size = 0
        for data in list_of_data:
            large = len(data) >= JOIN_BELOW
            if small and (large or size + len(data) > RECORD):
                self._seal(b"".join(small))
                small, size = [], 0
            if large:
                self._seal(data)
            else:
                small.append(data)
                size += len(data)
        if size:
            self._seal(b"".join(small))
        self._flush()

    def _seal(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt it, to be sent by `_flush`."""
        tls = self._ssl
        if tls is None or self._closing:
            return
        view = memoryview(data)
        sent, size = 0, len(view)
        try:
            while sent < size:
                sent += tls.write(view[sent : sent + FEED])
                if sent < size or self._out.pending >= FEED:
                    self._sealed.append(self._out.read())
        except ssl.SSLError as error:
            self._refuse(error)

    def _flush(self) -> None:
        """Send what was encrypted, and what OpenSSL has to say."""
        data, sealed = self._out.read(), self._sealed
        if sealed:
            self._sealed = []
            if data:
                sealed.append(data)
        if not (data or sealed) or self._shut or self._raw.is_closing():
            return
        if sealed:
            self._raw.writelines(sealed)
        else:
            self._raw.write(data)

    def _press(self) -> None:
        """Tell the link whether more is taken: what waits here counts, too."""
        full = self._raw_full or self._early_size > self._high
        if full != self._pressed and self._link is not None:
            self._pressed = full
            if full:
                self._link.pause_writing()
            else:
                self._link.resume_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """See `asyncio.WriteTransport`."""
        self._raw.set_write_buffer_limits(high=high, low=low)
        if high is not None:
            self._high = high

    # --- ending -------------------------------------------------------------------------

    def _refuse(self, error: ssl.SSLError) -> None:
        """OpenSSL will not go on."""
        _, heard, alert = (error.reason or "").partition("ALERT_")
        # In TLS 1.3 who dials is done before the other end has looked at its certificate.
        late = alert in HEARD and not self._server_side and not self._heard
        if self.up and not late:
            self._fail(Lost(f"it broke TLS ({words_of(error)})"), linger=not heard)
            return
        text = explain_tls(error, now=time.time(), valid=self._validity(), grouped=self._grouped)
        self._fail(AuthError(text), linger=not heard)

    def _validity(self) -> tuple[float, float] | None:
        """From when to when the certificate is valid that was refused. (Before 3.13, Python has it
        only where it is not documented.)"""
        try:
            (first, *_) = self._ssl._sslobj.get_verified_chain()  # type: ignore[union-attr]
            info = first.get_info()
            return tuple(map(ssl.cert_time_to_seconds, (info["notBefore"], info["notAfter"])))  # type: ignore[return-value]
        except Exception:
            return None

    def _fail(self, error: Exception, *, linger: bool = False) -> None:
        """Close, and say why when it is closed. Where the other end may still be speaking, it is
        listened to until it has the alert: a reset would overtake that."""
        if self._closing:
            return
        self._closing = True
        self._error = error
        self._early.clear()
        self._early_size = 0
        raw = self._raw
        self._flush()
        if raw.is_closing():
            return
        if not linger or self._eof or self._shut or not raw.can_write_eof():
            raw.close()
            return
        self._timer = self._loop.call_later(GOODBYE_GRACE, raw.abort)
        if not self._raw_reading:
            self._raw_reading = True
            raw.resume_reading()
        with contextlib.suppress(OSError):
            raw.write_eof()

    def _say_end(self) -> None:
        """Say that nothing more comes. OpenSSL must have nothing unread then."""
        with contextlib.suppress(ssl.SSLError):
            if self._ssl is not None:
                self._ssl.unwrap()
        self._flush()
        self._shut = True
        if not self._closing and not self._raw.is_closing():
            with contextlib.suppress(OSError):  # the other end has reset it meanwhile
                self._raw.write_eof()

    def can_write_eof(self) -> bool:
        """See `asyncio.WriteTransport`."""
        return bool(self._raw.can_write_eof())

    def write_eof(self) -> None:
        """Nothing more is written; what comes is read on."""
        if not self._half and not self._closing:
            self._half = True
            if self.up and self._drained:
                self._say_end()

    def close(self) -> None:
        """Close when all that was written is sent; at once, where TLS is not up: a stranger keeps
        no connection for longer by saying nothing."""
        if self._closing:
            return
        self._closing = True
        self._early.clear()
        if self.up and not self._shut:
            self._say_end()
        self._raw.close()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        self._raw.abort()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._closing or bool(self._raw.is_closing())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The plain transport's."""
        return self._raw.get_extra_info(name, default)


_NOTHING = ssl.MemoryBIO()
_NOWHERE = memoryview(bytearray(1))


_own = threading.local()


def cipher_scratch() -> bytearray:
    """What all layers of one thread read into: what is encrypted, before it is anything else."""
    try:
        found: bytearray = _own.scratch
    except AttributeError:
        found = _own.scratch = bytearray(SCRATCH_SIZE)
    return found
