"""A CA in a directory: what it issues, what it revokes, and how it is found damaged."""

from __future__ import annotations

import os
import ssl
import stat
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from pubsub.core.rights import EVERYTHING, NONE, Rights
from pubsub.errors import AuthError
from pubsub.support.host import Host, on_host
from pubsub.trust.certificates import file_contexts, revoked_by
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key

pytest.importorskip("cryptography", reason="the extra pubsubd[tls] is not installed")

from cryptography import x509

from pubsub.trust.authority import Authority, pem_of_key, says_host
from pubsub.trust.issuing import check_name, init, issue, revoke
from pubsub.trust.pairs import new_key
from pubsub.trust.reading import certificates_in, describe, read_revoked
from tests.trust.handshakes import NOW, certificate_file, shake_hands

RIGHTS = Rights(["sensors/küche/**"], ["config/*"], list=True)


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    init(tmp_path / "ca")
    return tmp_path / "ca"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_issued_is_used_and_believed(ca: Path) -> None:
    head = issue(ca, "head", EVERYTHING, days=1)
    lamp = issue(ca, "lamp", RIGHTS, days=90, hosts=["10.0.0.1", "lamp.local", "fd00::1"])
    assert lamp.path == ca / "lamp.pem"
    assert lamp.before is None
    contexts = file_contexts(lamp.path)
    assert contexts.own == lamp.card
    assert (lamp.card.name, lamp.card.rights) == ("lamp", RIGHTS)
    assert lamp.card.hosts == ("lamp.local", "10.0.0.1", "fd00::1")
    ends = shake_hands(file_contexts(head.path).server, contexts.client)
    assert (ends.server_error, ends.client_error) == (None, None)


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing here")
def test_who_may_read_what(ca: Path) -> None:
    issue(ca, "lamp", RIGHTS, days=1)
    revoke(ca, "lamp")
    assert {path.name: mode(path) for path in ca.iterdir()} == {
        "ca.key": 0o600,
        "ca.crt": 0o644,
        "issued": 0o600,
        "lamp.pem": 0o600,
        "revoked.crl": 0o644,
    }
    assert mode(ca) == 0o700


def test_the_key_of_the_ca_is_in_no_other_file(ca: Path) -> None:
    issue(ca, "lamp", RIGHTS, days=1)
    revoke(ca, "lamp")
    secret = (ca / "ca.key").read_bytes().splitlines()[1]
    assert len(secret) == 64
    assert [path.name for path in ca.iterdir() if secret in path.read_bytes()] == ["ca.key"]


def test_an_issued_certificate_is_what_rfc_5280_and_others_want(ca: Path) -> None:
    issued = issue(ca, "lamp", RIGHTS, days=90, hosts=["lamp"])
    leaf, _ = certificates_in(issued.path.read_bytes(), "it")
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(days=90, minutes=5)
    begun = datetime.now(timezone.utc)
    assert abs(leaf.not_valid_before_utc + timedelta(minutes=5) - begun) < timedelta(minutes=10)
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {use.dotted_string for use in uses} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [
        "pubsubd:publish:sensors/k%C3%BCche/**",
        "pubsubd:subscribe:config/*",
        "pubsubd:list",
    ]
    assert leaf.public_key().public_numbers().curve.name == "secp256r1"  # type: ignore[union-attr]
    contexts = file_contexts(issued.path)
    for context in contexts[:2]:
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    ends = shake_hands(contexts.server, contexts.client)
    assert (ends.server_error, ends.client_error) == (None, None)


def test_openssl_takes_it(ca: Path) -> None:
    issued = issue(ca, "lamp", RIGHTS, days=90)
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(ca / "ca.crt")]
    try:
        done = subprocess.run([*command, str(issued.path)], capture_output=True, timeout=40)
        assert done.returncode == 0, done.stderr
        revoke(ca, "lamp")
        command += ["-crl_check", "-CRLfile", str(ca / "revoked.crl")]
        done = subprocess.run([*command, str(issued.path)], capture_output=True, timeout=40)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert done.returncode != 0
    assert b"certificate revoked" in done.stderr


def test_a_renewed_certificate_takes_the_place_of_the_first(ca: Path) -> None:
    first = issue(ca, "lamp", RIGHTS, days=3)
    again = issue(ca, "lamp", NONE, days=90)
    assert again.before == datetime.fromtimestamp(first.card.not_after, timezone.utc)
    assert again.card.name == first.card.name
    assert again.card.serial != first.card.serial
    assert file_contexts(ca / "lamp.pem").own == again.card
    with on_host(Host(wall_clock=lambda: again.card.not_after + 1)):
        assert issue(ca, "lamp", RIGHTS, days=1).before is None  # both have expired


def test_a_ca_is_made_once(ca: Path) -> None:
    before = {path.name: path.read_bytes() for path in ca.iterdir()}
    with pytest.raises(FileExistsError, match="has a CA in it, which stays as it is"):
        init(ca)
    assert {path.name: path.read_bytes() for path in ca.iterdir()} == before


def test_two_cas_are_two(tmp_path: Path) -> None:
    for name in ("one", "other"):
        init(tmp_path / name)
        issue(tmp_path / name, "lamp", RIGHTS, days=1)
    one, other = (file_contexts(tmp_path / name / "lamp.pem") for name in ("one", "other"))
    ends = shake_hands(one.server, other.client)
    assert isinstance(ends.client_error, ssl.SSLCertVerificationError)


# --- revoking -----------------------------------------------------------------------------------


def test_all_certificates_of_a_name_are_revoked_and_later_ones_are_not(ca: Path) -> None:
    first, *more = [issue(ca, "lamp", RIGHTS, days=1) for _ in range(3)]
    serials = {issued.card.serial for issued in (first, *more)}
    issue(ca, "head", RIGHTS, days=1)
    assert revoke(ca, "lamp") == (ca / "revoked.crl", 1, 3)
    assert revoke(ca, "lamp") == (ca / "revoked.crl", 1, 0)
    later = issue(ca, "lamp", RIGHTS, days=1)
    assert later.before is None
    authorities = certificates_in((ca / "ca.crt").read_bytes(), "it")
    found = read_revoked((ca / "revoked.crl").read_bytes(), authorities, "it")
    assert (found.number, found.serials) == (1, frozenset(serials))
    head = file_contexts(ca / "head.pem")
    assert revoked_by(head, (ca / "revoked.crl").read_bytes(), "it") == found
    assert not found.has(head.own)
    assert not found.has(later.card)
    assert found.has(first.card)
    assert not found.has(replace(first.card, issuer="CN=another that counts from 1, too"))
    assert revoke(ca, "head") == (ca / "revoked.crl", 2, 1)
    found = read_revoked((ca / "revoked.crl").read_bytes(), authorities, "it")
    assert (found.number, found.serials) == (2, frozenset({*serials, head.own.serial}))


def test_two_that_revoke_at_once_both_count(ca: Path) -> None:
    names = [f"lamp{number}" for number in range(4)]
    serials = {issue(ca, name, NONE, days=1).card.serial for name in names}
    source = (
        "import sys; from pathlib import Path; from pubsub.trust.issuing import revoke\n"
        "print(flush=True); input(); revoke(Path(sys.argv[1]), sys.argv[2])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", source, str(ca), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in names
    ]
    for process in running:  # all are ready
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
    for process in running:
        process.communicate(timeout=40)
        assert process.returncode == 0
    authorities = certificates_in((ca / "ca.crt").read_bytes(), "it")
    found = read_revoked((ca / "revoked.crl").read_bytes(), authorities, "it")
    assert (found.number, found.serials) == (4, frozenset(serials))


def test_who_has_no_certificate_is_named_with_those_who_have(ca: Path) -> None:
    with pytest.raises(AuthError, match="for 'bulb'; those that were: none"):
        revoke(ca, "bulb")
    issue(ca, "lamp", RIGHTS, days=1)
    with pytest.raises(AuthError, match="for 'bulb'; those that were: lamp"):
        revoke(ca, "bulb")
    assert not (ca / "revoked.crl").exists()


def test_a_list_of_somebody_else_is_refused(ca: Path, tmp_path: Path) -> None:
    issue(ca, "lamp", RIGHTS, days=1)
    revoke(ca, "lamp")
    data = (ca / "revoked.crl").read_bytes()
    authorities = certificates_in((ca / "ca.crt").read_bytes(), "it")
    with pytest.raises(AuthError, match="is not signed by a CA that is trusted here"):
        read_revoked(data, [Authority.new("other").certificate], "the list")
    # The same name, and another key.
    false = Authority._made(authorities[0].subject, new_key(), 1)
    with pytest.raises(AuthError, match="is not signed by a CA that is trusted here"):
        read_revoked(false.revoke([1], 9, NOW), authorities, "the list")
    for wrong in (b"", data[:100], data.replace(b"MII", b"AII"), (ca / "ca.crt").read_bytes()):
        with pytest.raises(AuthError, match="the list is no list of revoked certificates"):
            read_revoked(wrong, authorities, "the list")
    write_file(ca / "revoked.crl", false.revoke([1], 9, NOW), replace=True)
    with pytest.raises(AuthError, match=r"revoked\.crl is not signed by a CA"):
        revoke(ca, "lamp")


# --- what is wrong ------------------------------------------------------------------------------


def test_each_damage_is_named(ca: Path, tmp_path: Path) -> None:
    with pytest.raises(AuthError, match=f"no CA in {tmp_path}: `pubsubd cert init {tmp_path}`"):
        issue(tmp_path, "lamp", RIGHTS, days=1)
    with pytest.raises(AuthError, match="there is no CA in nowhere: `pubsubd cert init nowhere`"):
        revoke(Path("nowhere"), "lamp")
    issue(ca, "lamp", RIGHTS, days=1)
    (ca / "issued").write_text("nonsense\n")
    with pytest.raises(AuthError, match=f"the record of what was issued, {ca}/issued, is damaged"):
        revoke(ca, "lamp")
    write_file(ca / "ca.key", pem_of_key(new_key()), replace=True)
    with pytest.raises(AuthError, match=f"the key in {ca} do not belong together"):
        issue(ca, "lamp", RIGHTS, days=1)
    write_file(ca / "ca.key", b"nonsense", replace=True)
    with pytest.raises(AuthError, match=f"the key in {ca} has no private key in it"):
        issue(ca, "lamp", RIGHTS, days=1)
    (ca / "ca.crt").unlink()
    with pytest.raises(AuthError, match=r"the CA's certificate .*ca\.crt is not there"):
        issue(ca, "lamp", RIGHTS, days=1)


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing here")
def test_the_key_of_a_ca_that_others_may_read_is_refused(ca: Path) -> None:
    (ca / "ca.key").chmod(0o640)
    with pytest.raises(AuthError, match=f"chmod 600 {ca}/ca.key"):
        issue(ca, "lamp", RIGHTS, days=1)
    assert not (ca / "lamp.pem").exists()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "-a", "a/b", "/a", "a b", "a\n", "a\0", "ca", "CA", "issued", "ü" * 33],
)
def test_a_name_that_is_no_name_of_a_file_is_refused(ca: Path, name: str) -> None:
    before = sorted(ca.iterdir())
    with pytest.raises(ValueError, match="the name "):
        issue(ca, name, RIGHTS, days=1)
    assert sorted(ca.iterdir()) == before


@pytest.mark.parametrize("name", ["a", "lamp-1.küche", "me@host", "x" * 64, "ü" * 32, "7"])
def test_other_names_are_taken(ca: Path, name: str) -> None:
    assert check_name(name) == name
    assert issue(ca, name, RIGHTS, days=1).card.name == name
    assert revoke(ca, name).new == 1


@pytest.mark.parametrize("host", ["", "a:1", "[::1]", "a b", "-a", "a/b", "x" * 254, "1.2.3.4/8"])
def test_a_host_that_is_none_is_refused(ca: Path, host: str) -> None:
    with pytest.raises(ValueError, match="is neither an address nor a name"):
        says_host(host)
    with pytest.raises(ValueError, match="is neither an address nor a name"):
        issue(ca, "lamp", RIGHTS, days=1, hosts=[host])
    assert not (ca / "lamp.pem").exists()
    assert not (ca / "issued").exists()


# --- in words -----------------------------------------------------------------------------------


def words(data: bytes, now: float | None = None) -> dict[str, str]:
    return dict(describe(data, "it", time.time() if now is None else now))


def test_a_certificate_in_words(ca: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = issue(ca, "lamp", RIGHTS, days=90, hosts=["10.0.0.1"])
    data = issued.path.read_bytes()
    authority = words((ca / "ca.crt").read_bytes())
    assert authority["CA"].startswith("pubsubd CA ")
    assert authority["valid"] == "without an end"
    assert "not usable" not in authority
    found = words(data)
    assert found["name"] == "lamp"
    assert found["rights"] == str(RIGHTS)
    assert found["host"] == "10.0.0.1"
    assert found["issued by"] == found["trusts"] == authority["CA"]
    assert found["serial"] == f"{issued.card.serial:x}"
    assert found["identity"] == issued.card.identity
    assert found["valid"].endswith(" UTC (90 days left)")
    assert not [line for line in found.values() if "PRIVATE" in line]
    last = issued.card.not_after
    assert words(data, last - 3 * 3600)["valid"].endswith("(3 h left)")
    assert words(data, last + 1)["valid"].endswith("(expired)")
    assert words(data, last + 1)["not usable"].startswith("it expired at ")
    assert words(data, NOW.timestamp() - 3600)["valid"].endswith("(not yet)")
    alone = data[: data.index(b"-----BEGIN PRIVATE")]
    assert "has no private key in it" in words(alone)["not usable"]


def test_a_right_that_does_not_decode_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rights, "to_uris", lambda self: ("pubsubd:publish:%FF",))
    path = certificate_file(tmp_path / "lamp.pem", Authority.new("CA"), NONE)
    found = words(path.read_bytes())
    assert found["rights"] == "may publish and subscribe nothing"
    assert found["no right"].startswith("'pubsubd:publish:%FF' gives no right")


def test_a_list_in_words(ca: Path) -> None:
    serial = issue(ca, "lamp", RIGHTS, days=1).card.serial
    revoke(ca, "lamp")
    found = words((ca / "revoked.crl").read_bytes())
    assert found["revoked"].startswith("list number 1 of 'pubsubd CA ")
    assert found["serial"] == f"{serial:x}"


def test_what_is_neither_is_said(ca: Path) -> None:
    with pytest.raises(AuthError, match="it is a key file"):
        words(Key.new().text().encode())
    with pytest.raises(AuthError, match="it has no certificate in it"):
        words((ca / "ca.key").read_bytes())
