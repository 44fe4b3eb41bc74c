"""Credentials: what the environment and the files say, where they say it badly."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest

from pubsub.config import Settings
from pubsub.errors import AuthError
from pubsub.links.renewal import Renewal
from pubsub.trust.credentials import REVOKED, credentials_from
from pubsub.trust.files import MAX_FILE
from pubsub.trust.guard import Guard
from tests.integration.support import eventually


@pytest.mark.parametrize("said", ["off", "Off", " no ", "False", "0", ""])
def test_what_says_no_opens_nothing(said: str) -> None:
    assert credentials_from(Settings(), {"PUBSUB_INSECURE": said}).kind == "secret"


@pytest.mark.parametrize("said", ["1", "yes", "TRUE", "on"])
def test_what_says_yes_opens(said: str) -> None:
    assert credentials_from(Settings(), {"PUBSUB_INSECURE": said}).kind == "insecure"


@pytest.mark.parametrize("said", ["none", "n", "disabled", "2"])
def test_what_says_neither_is_refused(said: str) -> None:
    with pytest.raises(ValueError, match=f"^PUBSUB_INSECURE='{said}'"):
        credentials_from(Settings(), {"PUBSUB_INSECURE": said})
    assert credentials_from(Settings(insecure=False), {"PUBSUB_INSECURE": said}).kind == "secret"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    pytest.importorskip("cryptography", reason="certificates are made by it")
    from pubsub.core.rights import EVERYTHING
    from pubsub.trust import issuing

    issuing.init(tmp_path / "ca")
    return issuing.issue(tmp_path / "ca", "lamp", EVERYTHING, days=1).path


def mistaken(path: Path, how: str) -> None:
    if how == "pipe":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    else:
        path.write_bytes(bytes(MAX_FILE + 1))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    ("how", "why"),
    [("pipe", "is a pipe or device"), ("directory", "is a directory"), ("huge", "more than")],
)
def test_a_list_of_revoked_certificates_that_is_none_says_so(
    certificate: Path, how: str, why: str
) -> None:
    """A pipe would hold up the program for ever."""
    mistaken(certificate.with_name(REVOKED), how)
    credentials = credentials_from(Settings(cert=str(certificate)), {})
    with pytest.raises(AuthError, match=rf"^list of revoked certificates .* {why}"):
        credentials.guard()


def test_a_certificate_path_without_a_name_says_what_it_is() -> None:
    with pytest.raises(AuthError, match=r"^certificate file / is a directory"):
        credentials_from(Settings(cert="/"), {}).guard()


def test_a_private_key_of_a_kind_that_nobody_knows_says_so(certificate: Path) -> None:
    made = subprocess.run(
        ["openssl", "ecparam", "-name", "secp112r1", "-genkey", "-noout"], capture_output=True
    )
    if made.returncode:
        pytest.skip("this OpenSSL makes no such key")
    head, _, _ = certificate.read_bytes().partition(b"-----BEGIN PRIVATE KEY-----")
    tail = certificate.read_bytes().rpartition(b"-----END PRIVATE KEY-----")[2]
    certificate.write_bytes(head + made.stdout + tail)
    with pytest.raises(AuthError, match="its private key cannot be read"):
        credentials_from(Settings(cert=str(certificate)), {}).guard()


class Odd(Guard):
    """Its files raise what nobody has thought of, once."""

    renews = True

    def __init__(self) -> None:
        self.reads = 0
        self.renewed: list[object] = []

    def read(self) -> int:
        self.reads += 1
        if self.reads == 1:
            raise TypeError("what nobody has thought of")
        return self.reads

    def renew(self, found: object) -> None:
        self.renewed.append(found)


async def test_whatever_reading_raises_the_next_look_reads_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Odd()
    reviews: list[None] = []
    renewal = Renewal(asyncio.get_running_loop(), lambda: [guard], list)
    renewal.on_review = lambda: reviews.append(None)
    renewal.look()
    await eventually(lambda: bool(reviews))  # certificates expire, whatever the files have
    assert "what nobody has thought of" in caplog.text
    renewal.look()
    await eventually(lambda: guard.renewed == [2])
