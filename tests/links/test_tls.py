"""TLS under a link: what it carries, how it ends, and what both ends hear of why it failed."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import cache
from random import Random
from typing import Any, NamedTuple

import msgpack
import pytest

from pubsub.config import Settings
from pubsub.errors import AuthError, ProtocolError
from pubsub.links.link import Link, Lost
from pubsub.links.refusals import explain_foreign, explain_tls
from pubsub.links.tls import HELLO_MOST, TlsLayer
from pubsub.wire.frames import SCRATCH_SIZE, Data, data_header
from pubsub.wire.handshake import Acceptor, Dialler, Identity, Refused, _Trust
from pubsub.wire.messages import Goodbye, encode
from tests.integration.support import eventually
from tests.links.certificates import CA
from tests.links.ends import Nobody, Transport
from tests.simulation.loop import Process, SimulatedLoop
from tests.simulation.network import Network

OURS, THEIRS, STRANGE = CA(), CA(), CA("another CA")


@cache
def context(server: bool, ca: CA = OURS, by: CA | None = OURS, *years: int) -> ssl.SSLContext:
    """Of an end that trusts one CA and shows a certificate of another; None: none."""
    return ca.context(server=server, shows=by.issue(*years) if by is not None else None)


# --- two ends without a network: what comes, and when, is the test's to say -----------------


class Raw(Transport):
    """A plain transport whose bytes a test carries."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = self.aborted = False
        self.limits: tuple[int | None, int | None] = (None, None)
        self.protocol: Any = None

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = high, low

    def write(self, data: Any) -> None:
        assert not self.ended
        assert not self.closing
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.closing = self.aborted = True


class Ears:
    """What a layer needs of a link."""

    def __init__(self, room: int = 100_000) -> None:
        self.transport: Any = None
        self.heard = bytearray()
        self.reads = 0
        self.calls: list[str] = []
        self.losses: list[Exception | None] = []
        self.stays = False
        self.on_read: Callable[[], object] = lambda: None
        self._buffer = bytearray(room)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=1_000)

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._buffer)

    def buffer_updated(self, size: int) -> None:
        self.heard += self._buffer[:size]
        self.reads += 1
        self.on_read()

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return self.stays

    def unveil(self) -> None:
        pass

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.losses.append(error)


class End(NamedTuple):
    layer: TlsLayer
    raw: Raw
    ears: Ears


def an_end(server: bool, tls: ssl.SSLContext | None = None, room: int = 100_000) -> End:
    ears, raw = Ears(room), Raw()
    loop = asyncio.get_running_loop()
    layer = TlsLayer(
        loop,
        tls or context(server),
        ears,  # type: ignore[arg-type]
        server_side=server,
        scratch=bytearray(SCRATCH_SIZE),
    )
    layer.connection_made(raw)
    return End(layer, raw, ears)


def give(end: End, data: bytes, step: int = SCRATCH_SIZE) -> None:
    """Bytes come, so many at a time."""
    for begin in range(0, len(data), step):
        piece = data[begin : begin + step]
        end.layer.get_buffer(-1)[: len(piece)] = piece
        end.layer.buffer_updated(len(piece))


def carry(one: End, other: End, step: int = SCRATCH_SIZE) -> int:
    """All that one end has written comes to the other."""
    data, one.raw.written = one.raw.written, b""
    give(other, data, step)
    return len(data)


def shake(client: End, server: End, step: int = SCRATCH_SIZE) -> None:
    while carry(client, server, step) + carry(server, client, step):
        pass


def two(room: int = 100_000) -> tuple[End, End]:
    """Both, TLS up."""
    client, server = an_end(False, room=room), an_end(True, room=room)
    shake(client, server)
    assert client.layer.up
    assert server.layer.up
    return client, server


def fall(end: End, error: Exception | None = None) -> None:
    """The plain connection is gone."""
    end.raw.closing = True
    end.layer.connection_lost(error)


@pytest.mark.parametrize("step", [1, 7, SCRATCH_SIZE])
async def test_what_is_written_arrives_in_whatever_pieces_it_comes(step: int) -> None:
    client, server = an_end(False), an_end(True)
    client.layer.write(b"early, ")
    client.layer.writelines([b"and ", bytearray(b"more"), memoryview(b"; ")])
    server.layer.write(b"me too")
    shake(client, server, step)
    large = bytes(range(256)) * 300
    client.layer.writelines([b"head", large, b"tail"])
    server.layer.write(large)
    shake(client, server, step)
    assert server.ears.heard == b"early, and more; head" + large + b"tail"
    assert client.ears.heard == b"me too" + large


async def test_each_end_knows_the_certificate_of_the_other() -> None:
    client, server = an_end(False), an_end(True)
    assert client.layer.peer_der == server.layer.peer_der == b""
    shake(client, server)
    assert client.layer.peer_der
    assert server.layer.peer_der
    assert client.layer.peer_der != server.layer.peer_der


async def test_what_is_written_early_leaves_with_the_last_of_the_handshake() -> None:
    client, server = an_end(False), an_end(True)
    client.layer.write(b"hello")
    carry(client, server)
    carry(server, client)
    assert client.layer.up
    assert not server.layer.up
    carry(client, server)
    assert server.layer.up
    assert server.ears.heard == b"hello"


async def test_nothing_is_sent_behind_the_handshake_unasked() -> None:
    """Neither tickets nor a second handshake."""
    client, server = an_end(False), an_end(True)
    carry(client, server)
    carry(server, client)
    carry(client, server)
    assert server.layer.up
    assert server.raw.written == b""
    again = client.layer._ssl
    assert again is not None
    assert not again.session_reused
    assert again.session is None or not again.session.has_ticket


async def test_small_chunks_share_a_record_and_records_a_read() -> None:
    client, server = two()
    client.layer.writelines([b"x" * 100] * 50)
    assert len(client.raw.written) == 5_000 + 22
    carry(client, server)
    assert server.ears.reads == 1
    client.layer.write(b"y" * 50_000)
    carry(client, server)
    assert server.ears.reads == 2


async def test_a_link_that_stops_reading_in_a_record_gets_the_rest_when_it_reads_on() -> None:
    client, server = two(room=1_000)
    sent = bytes(range(250)) * 200
    client.layer.write(sent)
    server.ears.on_read = server.layer.pause_reading
    carry(client, server)
    reads = 1
    assert server.ears.reads == 1
    assert server.ears.heard == sent[:1_000]
    assert not server.raw.reading
    while len(server.ears.heard) < len(sent):
        server.layer.resume_reading()
        server.layer.resume_reading()
        assert server.ears.reads == reads, "in the same turn"
        assert not server.raw.reading
        await asyncio.sleep(0)
        reads += 1
        assert server.ears.reads == reads
        assert server.ears.heard == sent[: reads * 1_000]
    server.ears.on_read = lambda: None
    server.layer.resume_reading()
    await asyncio.sleep(0)
    assert server.raw.reading
    client.layer.write(b"more")
    carry(client, server)
    assert server.ears.heard == sent + b"more"


async def test_who_stops_again_before_the_next_turn_gets_nothing() -> None:
    client, server = two(room=10)
    server.ears.on_read = server.layer.pause_reading
    client.layer.write(b"0123456789abc")
    carry(client, server)
    server.layer.resume_reading()
    server.layer.pause_reading()
    await asyncio.sleep(0)
    assert server.ears.heard == b"0123456789"
    fall(server)
    server.layer.resume_reading()
    await asyncio.sleep(0)
    assert server.ears.heard == b"0123456789"


async def test_a_handshake_goes_on_while_the_link_does_not_read() -> None:
    client, server = an_end(False), an_end(True)
    server.layer.pause_reading()
    assert server.raw.reading
    client.layer.write(b"hello")
    shake(client, server)
    assert server.layer.up
    assert not server.raw.reading
    assert server.ears.heard == b""
    server.layer.resume_reading()
    await asyncio.sleep(0)
    assert server.ears.heard == b"hello"
    assert server.raw.reading


async def test_what_waits_in_the_layer_counts_as_not_sent() -> None:
    client, server = an_end(False), an_end(True)
    assert client.raw.limits == (1_000, None)
    client.layer.write(b"x" * 1_000)
    assert client.ears.calls == []
    client.layer.write(b"x")
    client.layer.write(b"x")
    assert client.ears.calls == ["pause"]
    shake(client, server)
    assert client.ears.calls == ["pause", "resume"]
    client.layer.pause_writing()
    client.layer.resume_writing()
    assert client.ears.calls == ["pause", "resume"] * 2


async def test_a_half_close_ends_one_direction() -> None:
    client, server = two()
    server.ears.stays = True
    client.layer.write(b"goodbye")
    client.layer.write_eof()
    client.layer.write_eof()
    client.layer.write(b"too late")
    assert client.raw.ended
    assert not client.raw.closing
    carry(client, server)
    assert server.layer.eof_received()
    assert server.ears.heard == b"goodbye"
    assert server.ears.calls == ["eof"]
    server.layer.write(b"the rest")
    server.layer.close()
    assert server.raw.closing
    carry(server, client)
    assert client.ears.heard == b"the rest"
    assert client.ears.calls == ["eof"]
    assert client.raw.closing


async def test_a_half_close_loses_nothing_of_what_is_not_read_yet() -> None:
    client, server = two(room=10)
    server.ears.on_read = server.layer.pause_reading
    client.layer.write(b"0123456789abc")
    carry(client, server)
    server.layer.write(b"bye")
    server.layer.write_eof()
    server.ears.on_read = lambda: None
    server.layer.resume_reading()
    await asyncio.sleep(0)
    assert server.ears.heard == b"0123456789abc"
    assert server.raw.ended
    carry(server, client)
    assert client.ears.heard == b"bye"
    assert client.ears.calls == ["eof"]
    carry(client, server)
    assert server.ears.calls == ["eof"]


async def test_an_end_behind_what_is_not_read_yet_comes_after_it() -> None:
    client, server = two(room=10)
    server.ears.on_read = server.layer.pause_reading
    client.layer.write(b"0123456789abc")
    client.layer.close()
    carry(client, server)
    assert server.layer.eof_received(), "it is not to close yet"
    assert server.ears.calls == []
    server.ears.on_read = lambda: None
    server.layer.resume_reading()
    await asyncio.sleep(0)
    assert server.ears.heard == b"0123456789abc"
    assert server.ears.calls == ["eof"]
    assert server.raw.closing


async def test_an_end_of_file_without_a_word_is_an_end_too() -> None:
    _, server = two()
    assert not server.layer.eof_received()
    assert server.ears.calls == ["eof"]
    assert server.raw.closing
    fall(server)
    assert server.ears.losses == [None]


async def test_a_loss_is_told_once_and_leaves_nothing_behind() -> None:
    client, _ = two()
    error = OSError("reset")
    fall(client, error)
    fall(client)
    assert client.ears.losses == [error]
    client.layer.write(b"x")
    client.layer.writelines([b"x"])
    client.layer.write_eof()
    client.layer.close()
    assert client.layer._ssl is None
    assert client.layer._link is None


async def test_what_is_closed_before_it_is_up_is_closed_at_once() -> None:
    _, server = an_end(False), an_end(True)
    server.layer.write(b"goodbye")
    server.layer.close()
    assert server.raw.closing
    assert server.layer.is_closing()
    fall(server)
    assert server.ears.losses == [None]


async def test_an_abort_says_nothing() -> None:
    client, _ = two()
    client.layer.abort()
    assert client.raw.aborted
    assert client.raw.written == b""
    assert client.layer.is_closing()


async def test_an_accepted_connection_is_taken_over_behind_its_first_bytes() -> None:
    client = an_end(False)
    client.layer.write(b"hello")
    ears, raw = Ears(), Raw()
    ears.connection_made(raw)
    layer = TlsLayer(
        asyncio.get_running_loop(),
        context(True),
        ears,  # type: ignore[arg-type]
        server_side=True,
        scratch=bytearray(SCRATCH_SIZE),
    )
    first, client.raw.written = client.raw.written, b""
    layer.take_over(raw, first[:100])
    assert raw.protocol is ears.transport is layer
    server = End(layer, raw, ears)
    give(server, first[100:])
    shake(client, server)
    assert ears.heard == b"hello"


async def test_what_is_no_tls_any_more_breaks_the_connection() -> None:
    client, server = two()
    client.layer.write(b"good")
    client.raw.written += b"\x17\x03\x03\x00\x20" + bytes(32)
    carry(client, server)
    assert server.ears.heard == b"good"
    assert server.layer.is_closing()
    assert server.raw.ended, "the alert is sent, and what comes is read until they close"
    assert not server.raw.closing
    give(server, b"more")
    fall(server)
    (error,) = server.ears.losses
    assert isinstance(error, ConnectionError)
    assert str(error) == "it broke TLS (decryption failed or bad record mac)"
    carry(server, client)
    assert client.raw.closing
    fall(client)
    assert type(client.ears.losses[0]) is Lost


async def test_what_is_said_behind_the_first_data_is_no_refusal() -> None:
    for data, kind in ((b"", AuthError), (b"x", Lost)):
        client, server = two()
        server.layer.write(data)
        carry(server, client)
        client.layer._refuse(an_error(ssl.SSLError, "TLSV1_ALERT_UNKNOWN_CA"))
        fall(client, OSError("reset"))
        assert [type(error) for error in client.ears.losses] == [kind]


async def test_what_tls_itself_answers_is_sent() -> None:
    client, server = two()
    server.layer._out.write(b"an answer")
    client.layer.write(b"x")
    carry(client, server)
    assert server.raw.written == b"an answer"


async def test_an_error_of_our_own_is_not_the_loops() -> None:
    client, server = two()

    def fail() -> None:
        raise RuntimeError("a bug")

    server.ears.on_read = fail
    client.layer.write(b"x")
    carry(client, server)
    fall(server)
    assert "a bug" in str(server.ears.losses[0])


# --- why a handshake fails --------------------------------------------------------------------

NOW = r" \(clock here: 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC\)"


def failures(
    name: str, shown: tuple[Any, ...], refuses: str, refused: str
) -> dict[str, tuple[bool, tuple[Any, ...], str, str]]:
    return {
        f"{name}, of who dials": (True, shown, refuses, refused),
        f"{name}, of who is dialled": (False, shown, refuses, refused),
    }


REFUSED = {
    **failures(
        "a certificate of another CA",
        (STRANGE,),
        "it is not of our CA: another one issued its certificate, or it has a key instead",
        "it is not of our CA: it does not know the one that issued our certificate, or it has a "
        "key instead",
    ),
    **failures(
        "a certificate of another CA of the same name",
        (THEIRS,),
        "it is not of our CA: another one issued its certificate, or it has a key instead",
        "it is not of our CA: it does not know the one that issued our certificate, or it has a "
        "key instead",
    ),
    **failures(
        "a certificate that has expired",
        (OURS, 2001, 2002),
        "its certificate expired at 2002-01-01 00:00:00 UTC" + NOW,
        "it says that our certificate has expired" + NOW,
    ),
    **failures(
        "a certificate of the future",
        (OURS, 2090, 2091),
        "its certificate is not valid before 2090-01-01 00:00:00 UTC" + NOW,
        "it says that our certificate is not valid yet, or broken" + NOW,
    ),
    "no certificate, of who dials": (
        True,
        (None,),
        "it shows no certificate",
        "it wants a certificate, and this process shows none",
    ),
}


@pytest.mark.parametrize("step", [1, SCRATCH_SIZE])
@pytest.mark.parametrize("name", REFUSED)
async def test_both_ends_hear_why_a_certificate_is_refused(name: str, step: int) -> None:
    of_client, shown, refuses, refused = REFUSED[name]
    bad = context(not of_client, OURS, *shown)
    client = an_end(False, bad if of_client else None)
    server = an_end(True, None if of_client else bad)
    client.layer.write(b"hello")
    shake(client, server, step)
    one, other = (server, client) if of_client else (client, server)
    assert one.layer.is_closing()
    assert not one.raw.closing, "the alert could be lost"
    assert one.raw.ended
    assert other.raw.closing
    fall(other)
    assert not one.layer.eof_received()
    fall(one)
    assert client.ears.heard == server.ears.heard == b""
    for end, text in ((one, refuses), (other, refused)):
        (error,) = end.ears.losses
        assert isinstance(error, AuthError)
        assert re.fullmatch(text, str(error))


FOREIGN = {
    "http": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks http where TLS belongs"),
    "an http client": (b"GET / HTTP/1.1\r\n\r\n", "it speaks http where TLS belongs"),
    "a goodbye": (
        encode(Goodbye("auth", "this process has no key")),
        "it speaks plain where TLS belongs, and says: this process has no key",
    ),
    "a frame": (b"\0\0\0\x03\x91\xc0\xc0", "it speaks plain where TLS belongs"),
    "another protocol": (
        b"SSH-2.0-OpenSSH_9.2\r\n",
        "it speaks another protocol where TLS belongs (it begins with b'SSH-2.0-OpenSSH_')",
    ),
}


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
async def test_who_speaks_no_tls_is_told_from_who_speaks_it_badly(name: str, server: bool) -> None:
    said, text = FOREIGN[name]
    for step in (1, SCRATCH_SIZE):
        end = an_end(server)
        for begin in range(0, len(said), step):
            if not end.raw.closing:
                give(end, said[begin : begin + step])
        assert end.raw.closing
        fall(end)
        (error,) = end.ears.losses
        assert isinstance(error, AuthError)
        known = text.partition(" (")[0]  # a byte at a time, there may be less of it to quote
        assert str(error).startswith(known if step == 1 else text)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "it closed the connection during the TLS handshake"),
        (b"\x16\x03\x01", "it closed the connection during the TLS handshake"),
        (b"\0\0\0", "it speaks plain where TLS belongs"),
        (b"\0\0\0\x20\x91", "it speaks plain where TLS belongs"),
        (b"HT", "it speaks plain where TLS belongs"),
    ],
)
async def test_an_end_in_the_handshake_is_told_as_that(said: bytes, text: str) -> None:
    for server in (False, True):
        end = an_end(server)
        give(end, said)
        assert not end.layer.eof_received()
        assert end.raw.closing
        fall(end)
        (error,) = end.ears.losses
        assert isinstance(error, AuthError if "plain" in text else Lost)
        assert str(error) == text


async def test_garbage_that_begins_as_tls_fails_the_handshake() -> None:
    for said, text in (
        (b"\x16" + b"x" * 100, "it sends what is no TLS"),
        (b"\x16\x03\x01\0\x30\x01\0\0\x2c" + bytes(44), "the TLS handshake failed ("),
    ):
        server = an_end(True)
        give(server, said)
        assert server.layer.is_closing()
        fall(server)
        assert str(server.ears.losses[0]).startswith(text)


@pytest.mark.parametrize("step", [1, SCRATCH_SIZE])
async def test_no_memory_is_taken_for_what_a_stranger_announces(step: int) -> None:
    message = b"\x01" + (HELLO_MOST + 1).to_bytes(3, "big") + bytes(100)
    for first in (4, 3):
        server = an_end(True)
        record = b"\x16\x03\x01" + first.to_bytes(2, "big") + message
        for begin in range(0, len(record), step):
            give(server, record[begin : begin + step])
        assert server.raw.closing
        fall(server)
        (error,) = server.ears.losses
        assert isinstance(error, AuthError)
        size = "its first TLS message has 8,193 bytes, over 8,192"
        assert str(error) == (size if first == 4 else "it sends what is no TLS")


async def test_a_reset_in_the_handshake_is_told_as_a_reset() -> None:
    client, error = an_end(False), ConnectionResetError(104, "reset")
    fall(client, error)
    assert client.ears.losses == [error]


async def test_who_has_no_tls_1_3_hears_it() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = an_end(False, old), an_end(True)
    shake(client, server)
    fall(client)
    fall(server)
    for end in (client, server):
        assert str(end.ears.losses[0]) == "it has no version of TLS that this process has"


def an_error(kind: type[ssl.SSLError], reason: str | None, code: int = 0) -> ssl.SSLError:
    error = kind(1, "what OpenSSL says")
    error.reason = reason  # type: ignore[assignment]
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_code, error.verify_message = code, "a verdict"
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (an_error(ssl.SSLCertVerificationError, "CERTIFICATE_VERIFY_FAILED", 20), "it has another"),
        (an_error(ssl.SSLError, "TLSV1_ALERT_UNKNOWN_CA"), "it has another key (the first of our"),
        (an_error(ssl.SSLError, "WRONG_VERSION_NUMBER"), "it sends what is no TLS: it may have no"),
        (an_error(ssl.SSLError, "SSLV3_ALERT_CERTIFICATE_REVOKED"), "it says that our certificate"),
        (an_error(ssl.SSLError, "TLSV1_ALERT_INTERNAL_ERROR"), "it ended the TLS handshake (tlsv1"),
        (
            an_error(ssl.SSLCertVerificationError, "CERTIFICATE_VERIFY_FAILED", 23),
            "its certificate was revoked",
        ),
        (
            an_error(ssl.SSLCertVerificationError, "CERTIFICATE_VERIFY_FAILED", 10),
            "its certificate expired at an earlier time (clock here: 1970-01-01 00:00:00 UTC)",
        ),
        (
            an_error(ssl.SSLCertVerificationError, "CERTIFICATE_VERIFY_FAILED", 999),
            "its certificate is not taken (a verdict)",
        ),
        (an_error(ssl.SSLError, "NO_SHARED_CIPHER"), "it has no kind of TLS"),
        (an_error(ssl.SSLError, "SOMETHING_ELSE"), "the TLS handshake failed (something else)"),
        (an_error(ssl.SSLError, None), "the TLS handshake failed (what OpenSSL says)"),
        (an_error(ssl.SSLZeroReturnError, None), "it closed the connection during"),
        (an_error(ssl.SSLEOFError, "UNEXPECTED_EOF_WHILE_READING"), "it closed the connection"),
    ],
)
def test_each_error_of_tls_has_one_line(error: ssl.SSLError, text: str) -> None:
    assert explain_tls(error, now=0.0, grouped=True).startswith(text)


def test_no_more_is_waited_for_than_tells_who_it_is() -> None:
    assert explain_foreign(b"\0\0") is None
    assert explain_foreign(b"\0\0\x0f\xff" + bytes(100)) is None
    assert explain_foreign(b"\0\0\x10\x01") is not None
    assert explain_foreign(b"PO") is None
    assert explain_foreign(b"POP3") is not None


# --- two links over sockets ---------------------------------------------------------------------


class Talker(Nobody):
    """Says what it is given, and hears."""

    def __init__(self) -> None:
        super().__init__()
        self.link: Link | None = None
        self.bodies: list[bytes] = []
        self.came = asyncio.Event()
        self.over = asyncio.Event()
        self._chunks: deque[bytes] = deque()

    def opened(self, link: Link, other: Any) -> Any:
        self.link = link
        return super().opened(link, other)

    def closed(self, link: Link, error: Exception | None) -> None:
        super().closed(link, error)
        self.over.set()

    def say(self, *bodies: bytes) -> None:
        for number, body in enumerate(bodies):
            self._chunks += data_header(1, number, 0.0, len(body)), body
        assert self.link is not None
        self.link.flush()

    def pump(self, budget: int) -> Any:
        chunks, size = [], 0
        while self._chunks and size < budget:
            chunks.append(self._chunks.popleft())
            size += len(chunks[-1])
        return chunks

    def receive(self, event: object) -> None:
        assert isinstance(event, Data)
        self.bodies.append(bytes(event.body))
        self.came.set()

    async def hears(self, count: int) -> None:
        while len(self.bodies) < count:
            self.came.clear()
            await asyncio.wait_for(self.came.wait(), 30)


class Door(asyncio.BufferedProtocol):
    """Reads the first bytes of an accepted connection, and has a layer take it over."""

    def __init__(self, link: Link, tls: ssl.SSLContext, scratch: bytearray) -> None:
        self._link, self._tls, self._scratch = link, tls, scratch
        self._buffer = bytearray(100)
        self._raw: Any = None

    def connection_made(self, transport: Any) -> None:
        self._raw = transport
        self._link.connection_made(transport)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        loop = self._link.loop
        layer = TlsLayer(loop, self._tls, self._link, server_side=True, scratch=self._scratch)
        layer.take_over(self._raw, memoryview(self._buffer)[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.connection_lost(exc)


class Pair:
    """A server and who dials it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, host: str = "127.0.0.1") -> None:
        self.loop = loop
        self.host = host
        self.here, self.there = Talker(), Talker()
        self.settings = Settings(max_message=16 * 1024 * 1024)
        self.scratch = bytearray(SCRATCH_SIZE)
        self.cipher = bytearray(SCRATCH_SIZE)
        self.accepted: list[Link] = []
        self.server: asyncio.Server | None = None
        self.port = 0

    def accept(self, tls: ssl.SSLContext) -> asyncio.BaseProtocol:
        acceptor = Acceptor(Identity("peer", "them"), ("peer",))
        link = Link(self.loop, acceptor, self.there, self.settings, self.scratch)
        self.accepted.append(link)
        return Door(link, tls, self.cipher)

    async def listen(self, tls: ssl.SSLContext) -> None:
        self.server = await self.loop.create_server(lambda: self.accept(tls), self.host, 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def dial(self, tls: ssl.SSLContext) -> Link:
        link = Link(
            self.loop,
            Dialler(Identity("peer", "me"), "peer"),
            self.here,
            self.settings,
            self.scratch,
        )
        layer = TlsLayer(self.loop, tls, link, server_side=False, scratch=self.cipher)
        await self.loop.create_connection(lambda: layer, self.host, self.port)
        return link

    async def open(self) -> Link:
        await self.listen(context(True))
        link = await self.dial(context(False))
        for end in (self.here, self.there):
            await asyncio.wait_for(end.welcome.wait(), 30)
        return link

    async def over(self) -> None:
        for end in (self.here, self.there):
            await asyncio.wait_for(end.over.wait(), 30)

    async def ends(self, link: Link) -> tuple[Exception | None, Exception | None]:
        await asyncio.wait_for(link.gone(), 30)
        await asyncio.wait_for(self.accepted[0].gone(), 30)
        (one,), (other,) = self.here.ends, self.there.ends
        return one, other


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    pair = Pair(asyncio.get_running_loop())
    yield pair
    if pair.server is not None:
        pair.server.close()


def value(size: int, fill: int = 0) -> bytes:
    packed: bytes = msgpack.packb([bytes([fill]) * size])
    return packed


@pytest.mark.loop
async def test_links_carry_small_and_large_frames_both_ways(pair: Pair) -> None:
    link = await pair.open()
    small = [value(10, n % 256) for n in range(3_000)]
    large = [value(5 * 1024 * 1024, 1), value(100_000, 2), value(3 * 1024 * 1024, 3)]
    pair.here.say(*small, *large, *small)
    pair.there.say(*large, *small, *large)
    await pair.there.hears(6_003)
    await pair.here.hears(3_006)
    assert pair.there.bodies == [*small, *large, *small]
    assert pair.here.bodies == [*large, *small, *large]
    link.goodbye()
    assert await pair.ends(link) == (None, None)


@pytest.mark.loop
@pytest.mark.parametrize("late", [False, True])
async def test_who_dials_has_seen_the_certificate_before_it_says_hello(
    pair: Pair, late: bool
) -> None:
    """Whether it begins before TLS is up, or after."""
    layer: TlsLayer
    seen: list[bytes] = []

    class Looking(_Trust):
        def meet(self, role: str, peer_id: str) -> None:
            seen.append(layer.peer_der)
            raise ProtocolError("it is another one", code="identity")

    await pair.listen(context(True))
    me = Identity("peer", "me", info={"name": "told to nobody"})
    dialler = Dialler(me, "peer", "them", Looking())
    link = Link(pair.loop, None if late else dialler, pair.here, pair.settings, pair.scratch)
    layer = TlsLayer(pair.loop, context(False), link, server_side=False, scratch=pair.cipher)
    await pair.loop.create_connection(lambda: layer, pair.host, pair.port)
    if late:
        await eventually(lambda: layer.up)
        link.begin(dialler)
    ours, theirs = await pair.ends(link)
    assert (len(seen), all(seen)) == (1, True)
    assert str(ours) == str(theirs) == "it is another one"
    assert isinstance(theirs, Refused)


@pytest.mark.loop
async def test_a_link_that_does_not_listen_holds_the_other_up_and_loses_nothing(pair: Pair) -> None:
    link = await pair.open()
    pair.accepted[0].listen(False)
    bodies = [value(1024 * 1024, n) for n in range(64)]
    pair.here.say(*bodies)
    while not link.paused:
        await asyncio.sleep(0)
        link.flush()
    size = link.transport._raw.get_write_buffer_size()
    assert size < 4 * 1024 * 1024
    assert len(pair.there.bodies) < 2
    pair.accepted[0].listen(True)
    await pair.there.hears(64)
    assert pair.there.bodies == bodies
    link.goodbye()
    assert await pair.ends(link) == (None, None)


@pytest.mark.loop
async def test_a_goodbye_behind_much_else_arrives(pair: Pair) -> None:
    link = await pair.open()
    bodies = [value(1024 * 1024, n) for n in range(8)]
    pair.here.say(*bodies)
    pair.accepted[0].goodbye("busy", "too many")
    one, other = await pair.ends(link)
    assert str(one) == "the other end closed: too many"
    assert other is None


@pytest.mark.loop
async def test_an_abort_is_a_loss_at_the_other_end(pair: Pair) -> None:
    link = await pair.open()
    link.abort()
    one, other = await pair.ends(link)
    assert isinstance(one, Lost)
    assert isinstance(other, (Lost, ConnectionResetError))


@pytest.mark.loop
@pytest.mark.parametrize("name", REFUSED)
async def test_links_hear_why_a_certificate_is_refused(pair: Pair, name: str) -> None:
    of_client, shown, refuses, refused = REFUSED[name]
    bad = context(not of_client, OURS, *shown)
    await pair.listen(context(True) if of_client else bad)
    link = await pair.dial(bad if of_client else context(False))
    one, other = await pair.ends(link)
    texts = (refused, refuses) if of_client else (refuses, refused)
    for error, text in zip((one, other), texts, strict=True):
        assert isinstance(error, AuthError)
        assert re.fullmatch(text, str(error))


@pytest.mark.loop
async def test_who_never_closes_does_not_keep_a_refused_connection(pair: Pair) -> None:
    await pair.listen(context(True))
    with socket.create_connection(("127.0.0.1", pair.port)) as stranger:
        stranger.sendall(b"\x16\x03\x01\0\x30\x01\0\0\x2c" + bytes(44))
        await asyncio.wait_for(pair.there.over.wait(), 30)
        await asyncio.wait_for(pair.accepted[0].gone(), 30)
        stranger.settimeout(30)
        assert stranger.recv(100)[:2] == b"\x15\x03", "the alert"
    assert str(pair.there.ends[0]).startswith("the TLS handshake failed (")


@pytest.mark.loop
async def test_garbage_on_the_wire_breaks_a_link_of_sockets(pair: Pair) -> None:
    link = await pair.open()
    link.transport._raw.write(b"\x17\x03\x03\x00\x20" + bytes(32))
    one, other = await pair.ends(link)
    assert isinstance(one, Lost)
    assert str(other) == "it broke TLS (decryption failed or bad record mac)"
    assert isinstance(other, ConnectionError)


@pytest.mark.loop
async def test_a_dial_may_make_a_layer(pair: Pair) -> None:
    """Whatever `create_connection` is given: the link is told of the layer, and of nothing else."""
    await pair.listen(context(True))
    link = await pair.dial(context(False))
    assert isinstance(link.transport, TlsLayer)
    assert link.peername == ("127.0.0.1", pair.port)
    assert link.sock is not None
    await asyncio.wait_for(pair.here.welcome.wait(), 30)
    assert isinstance(pair.accepted[0].transport, TlsLayer)
    link.goodbye()
    assert await pair.ends(link) == (None, None)


def simulated(seed: int) -> tuple[SimulatedLoop, Process, Process]:
    loop = SimulatedLoop(Random(seed))  # type: ignore[abstract]  # what is used is there
    Network(loop, 0.01, 0.5)
    return loop, loop.process("here", "10.0.0.1"), loop.process("there", "10.0.0.2")


@pytest.mark.parametrize("seed", range(20))
def test_a_simulation_carries_it_too(seed: int) -> None:
    """In all the pieces, and behind all the waits, of which its network can think."""
    loop, here, there = simulated(seed)
    pair = Pair(loop, there.host)
    small = [value(10, n) for n in range(50)]
    large = [value(300_000, 1)]

    async def talk() -> None:
        await there.spawn(pair.listen(context(True)))
        link = await here.spawn(pair.dial(context(False)))
        for end in (pair.here, pair.there):
            await end.welcome.wait()
        here.call_soon(pair.here.say, *small, *large, *small)
        there.call_soon(pair.there.say, *large, *small)
        await pair.there.hears(101)
        await pair.here.hears(51)
        here.call_soon(link.goodbye)
        await pair.over()

    loop.run_until_complete(talk())
    assert pair.there.bodies == [*small, *large, *small]
    assert pair.here.bodies == [*large, *small]
    assert pair.here.ends == pair.there.ends == [None]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", REFUSED)
def test_both_ends_hear_it_in_a_simulation(name: str, seed: int) -> None:
    of_client, shown, refuses, refused = REFUSED[name]
    loop, here, there = simulated(seed)
    pair = Pair(loop, there.host)
    bad = context(not of_client, OURS, *shown)

    async def talk() -> None:
        await there.spawn(pair.listen(context(True) if of_client else bad))
        await here.spawn(pair.dial(bad if of_client else context(False)))
        await pair.over()

    loop.run_until_complete(talk())
    (one,), (other,) = pair.here.ends, pair.there.ends
    assert re.fullmatch(refused if of_client else refuses, str(one))
    assert re.fullmatch(refuses if of_client else refused, str(other))
