"""Refusals: why a TLS handshake failed, in one clear line for both ends."""

from __future__ import annotations

import ssl
import struct
import time

from pubsub.wire.frames import FrameReader
from pubsub.wire.handshake import Refused
from pubsub.wire.messages import MAX_PAYLOAD_BEFORE_WELCOME, Goodbye

__all__ = ["CLOSED_EARLY", "HEARD", "NO_TLS", "explain_foreign", "explain_tls", "words_of"]

_METHODS = (b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"OPTIONS ", b"CONNECT ", b"PRI ")
_HTTP = (*_METHODS, b"HTTP/")

HEARD = {
    "UNKNOWN_CA": "{ours}",
    "DECRYPT_ERROR": "{ours}",  # where both CAs have one name
    "CERTIFICATE_EXPIRED": "it says that our certificate has expired (clock here: {now})",
    "BAD_CERTIFICATE": "it says that our certificate is not valid yet, or broken"
    " (clock here: {now})",
    "CERTIFICATE_REVOKED": "it says that our certificate was revoked",
    "CERTIFICATE_REQUIRED": "it wants a certificate, and this process shows none",
    "CERTIFICATE_UNKNOWN": "it does not take our certificate",
    "UNSUPPORTED_CERTIFICATE": "it says that our certificate is for another purpose",
    "ACCESS_DENIED": "it does not let this process in",
    "PROTOCOL_VERSION": "it has no version of TLS that this process has",
    "HANDSHAKE_FAILURE": "it has no kind of TLS that this process has",
}
"""What the other end's alerts say, by their names."""

_SEEN = {
    2: "{its}",  # the issuer is not there
    7: "{its}",  # its signature is wrong: another CA of the same name
    18: "{its}",  # signed by itself
    19: "{its}",
    20: "{its}",
    21: "{its}",
    9: "its certificate is not valid before {begin} (clock here: {now})",
    10: "its certificate expired at {end} (clock here: {now})",
    3: "its certificate may be revoked: the list that would say so is missing here",
    12: "its certificate may be revoked: the list here that would say so is too old"
    " (clock here: {now})",
    23: "its certificate was revoked",
    26: "its certificate is for another purpose",
}
"""What is wrong with the other end's certificate, by OpenSSL's numbers (X509_V_ERR_…)."""

CLOSED_EARLY = "it closed the connection during the TLS handshake"
NO_TLS = "it sends what is no TLS"

_OTHER = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "UNSUPPORTED_PROTOCOL": "it has no version of TLS that this process has",
    "NO_SHARED_CIPHER": "it has no kind of TLS that this process has",
    "HTTP_REQUEST": "it speaks http where TLS belongs",
    "WRONG_VERSION_NUMBER": f"{NO_TLS}: it may have no key or certificate, or no `cryptography`; "
    "its log says which",
    "UNEXPECTED_EOF_WHILE_READING": CLOSED_EARLY,
}
"""What else this end may find, by OpenSSL's names."""

_KEYS = {
    "its": "it has another key (the first of its key file is none of ours), or a certificate "
    "instead: copy the same key file to both",
    "ours": "it has another key (the first of our key file is none of its), or a certificate "
    "instead: copy the same key file to both",
}
_CAS = {
    "its": "it is not of our CA: another one issued its certificate, or it has a key instead",
    "ours": "it is not of our CA: it does not know the one that issued our certificate, or it has "
    "a key instead",
}


def explain_tls(
    error: ssl.SSLError,
    *,
    now: float,
    valid: tuple[float, float] | None = None,
    grouped: bool = False,
) -> str:
    """One short line of why a TLS handshake failed, said of the other end.

    Parameters:
        now: this machine's clock, in Unix seconds.
        valid: from when to when the other end's certificate is, in the same; None: not known.
        grouped: whether both ends should have a key; else, certificates that one CA issued.
    """
    name = error.reason or ""
    _, alert, heard = name.partition("ALERT_")
    if alert:
        text = HEARD.get(heard, "it ended the TLS handshake ({words})")
    elif isinstance(error, ssl.SSLCertVerificationError):
        text = _SEEN.get(error.verify_code, "its certificate is not taken ({verdict})")
    elif isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        text = CLOSED_EARLY
    else:
        text = _OTHER.get(name, "the TLS handshake failed ({words})")
    begin, end = map(_clock, valid) if valid is not None else ("a later time", "an earlier time")
    return text.format(
        now=_clock(now),
        begin=begin,
        end=end,
        words=words_of(error),
        verdict=getattr(error, "verify_message", ""),
        **(_KEYS if grouped else _CAS),
    )


def explain_foreign(head: bytes, *, ended: bool = False) -> str | None:
    """What somebody speaks whose first bytes are no TLS; None: more of them must come.

    Parameters:
        head: the bytes.
        ended: whether no more come.
    """
    if any(head.startswith(word) for word in _HTTP):
        return "it speaks http where TLS belongs"
    if not ended and any(word.startswith(head) for word in _HTTP):
        return None
    plain = "it speaks plain where TLS belongs"
    if len(head) < 4:
        return plain if ended else None
    (length,) = struct.unpack_from(">I", head)
    if length > MAX_PAYLOAD_BEFORE_WELCOME:
        return f"it speaks another protocol where TLS belongs (it begins with {head[:16]!r})"
    if len(head) < 4 + length and not ended:
        return None
    for event in FrameReader(bytearray(2 * MAX_PAYLOAD_BEFORE_WELCOME)).feed(head[: 4 + length]):
        if isinstance(event, Goodbye) and event.reason:
            return f"{plain}, and says: {event.reason}"
    return plain


def passing(head: bytes) -> Refused | None:
    """What a plain GOODBYE says that has nothing to do with TLS: who said it had no time, and may
    have it later. None: these bytes are none."""
    for event in FrameReader(bytearray(2 * MAX_PAYLOAD_BEFORE_WELCOME)).feed(head):
        if isinstance(event, Goodbye) and event.code in ("busy", "timeout", "closing", "internal"):
            return Refused(event)
    return None


def words_of(error: ssl.SSLError) -> str:
    """What OpenSSL calls it."""
    return error.reason.replace("_", " ").lower() if error.reason else str(error)


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
