"""TLS contexts from keys and from files: who meets, who is refused, and what each is told."""

from __future__ import annotations

import os
import pickle
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pubsub.core.rights import EVERYTHING, NONE, Rights
from pubsub.errors import AuthError
from pubsub.support.host import Host, on_host
from pubsub.trust import certificates
from pubsub.trust.certificates import (
    Contexts,
    Pair,
    card_of,
    file_contexts,
    group_contexts,
    identity_of,
)
from pubsub.trust.files import write_file
from pubsub.trust.keys import Key

pytest.importorskip("cryptography", reason="the extra pubsubd[tls] is not installed")

from pubsub.trust.authority import Authority, group_leaf, pem_of_key
from pubsub.trust.pairs import ec, new_key
from pubsub.trust.reading import der_of, identity_of_key, pem_of
from tests.trust.handshakes import NOW, both_ways, certificate_file, shake_hands

RIGHTS = Rights(["sensors/kitchen/**"], ["config/*"], coordinator=True)
EXPIRED, NOT_YET = 10, 9  # X509_V_ERR_CERT_HAS_EXPIRED, X509_V_ERR_CERT_NOT_YET_VALID


def der_of_peer(end: ssl.SSLObject) -> bytes:
    der = end.getpeercert(True)
    assert der is not None
    return der


def meet(one: Contexts, other: Contexts) -> None:
    for ends in both_ways(one, other):
        assert ends.server_error is None
        assert ends.client_error is None
        assert ends.server.version() == ends.client.version() == "TLSv1.3"


def refused(one: Contexts, other: Contexts) -> list[ssl.SSLCertVerificationError]:
    """Why, once for each end that refuses the other; none of the connections works."""
    found = []
    for ends in both_ways(one, other):
        errors = [ends.server_error, ends.client_error]
        found += [error for error in errors if isinstance(error, ssl.SSLCertVerificationError)]
        assert all(errors), "one end believes that it is connected"
    assert found
    return found


# --- a group ------------------------------------------------------------------------------------


def test_two_processes_with_one_key_meet_over_tls_1_3() -> None:
    key = Key.new()
    meet(group_contexts([key], Pair.new()), group_contexts([Key.parse(key.text())], Pair.new()))


def test_a_process_of_its_own_makes_the_same_authority(tmp_path: Path) -> None:
    """Nothing but the key goes from one to the other."""
    key = Key.new()
    source = """
import sys, ssl
from pubsub.trust.certificates import Pair, group_contexts
from pubsub.trust.keys import Key
from pubsub.trust.authority import group_leaf, Authority
from pubsub.trust.reading import der_of
pair = Pair.new()
leaf = group_leaf(Authority.of_group(Key.parse(sys.stdin.read())), pair._private.public_key())
sys.stdout.buffer.write(der_of(leaf))
"""
    done = subprocess.run(
        [sys.executable, "-c", source], input=key.text().encode(), capture_output=True, timeout=40
    )
    assert done.returncode == 0, done.stderr
    from cryptography import x509

    leaf = x509.load_der_x509_certificate(done.stdout)
    leaf.verify_directly_issued_by(Authority.of_group(key).certificate)


def test_another_key_is_refused_by_both_ends() -> None:
    one = group_contexts([Key.new()], Pair.new())
    other = group_contexts([Key.new()], Pair.new())
    assert len(refused(one, other)) >= 2


def test_nobody_comes_without_a_certificate_or_with_an_old_tls() -> None:
    one = group_contexts([Key.new()], Pair.new())
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    ends = shake_hands(one.server, client)
    assert ends.server_error is not None
    assert ends.server_error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    assert ends.client_error is not None
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    ends = shake_hands(one.server, client)
    assert ends.server_error is not None
    assert ends.server_error.reason == "UNSUPPORTED_PROTOCOL"


def test_keys_are_changed_without_stopping_anything() -> None:
    """First the new one is trusted everywhere, then used, then the old one is taken out."""
    old, new = Key.new(), Key.new()
    steps = [[old], [old, new], [new, old], [new]]
    pairs = [Pair.new(), Pair.new()]
    for before, after in pairwise(steps):
        meet(group_contexts(before, pairs[0]), group_contexts(after, pairs[1]))
    assert refused(group_contexts([old], pairs[0]), group_contexts([new, old], pairs[1]))


def test_a_changed_key_certifies_the_same_identity() -> None:
    pair = Pair.new()
    one, other = group_contexts([Key.new()], pair), group_contexts([Key.new()], pair)
    assert one.own.identity == other.own.identity == pair.identity
    assert one.own.key_id != other.own.key_id
    assert len(pair.identity) == 32
    assert Pair.new().identity != pair.identity


def test_the_certificate_of_a_group_says_who_it_is() -> None:
    key, pairs = Key.new(), [Pair.new(), Pair.new()]
    server, client = (group_contexts([key, Key.new()], pair) for pair in pairs)
    ends = shake_hands(server.server, client.client)
    for end, context, pair in (
        (ends.server, client, pairs[1]),
        (ends.client, server, pairs[0]),
    ):
        card = card_of(der_of_peer(end))
        assert card == context.own
        assert (card.name, card.identity, card.key_id) == ("", pair.identity, key.id)
        assert card.rights == EVERYTHING
        assert identity_of(der_of_peer(end)) == pair.identity


def test_the_certificates_of_a_group_need_no_clock() -> None:
    key = Key.new()
    authority = Authority.of_group(key)
    for certificate in (authority.certificate, group_leaf(authority, new_key().public_key())):
        assert certificate.not_valid_before_utc.timestamp() == 0
        assert certificate.not_valid_after_utc.year == 9999


def test_no_session_is_taken_up_again() -> None:
    key = Key.new()
    one, other = group_contexts([key], Pair.new()), group_contexts([key], Pair.new())
    assert one.server.num_tickets == 0
    ends = shake_hands(one.server, other.client)
    assert ends.client.session is None or not ends.client.session.has_ticket
    assert not ends.client.session_reused


# --- files --------------------------------------------------------------------------------------


def test_issued_certificates_meet_and_say_who_they_are(tmp_path: Path) -> None:
    authority = Authority.new("CA")
    head = file_contexts(certificate_file(tmp_path / "head.pem", authority, RIGHTS))
    lamp = file_contexts(certificate_file(tmp_path / "lamp.pem", authority, NONE, name="größe"))
    meet(head, lamp)
    ends = shake_hands(head.server, lamp.client)
    card = card_of(der_of_peer(ends.client))
    assert card == head.own
    assert (card.name, card.rights, card.key_id) == ("head", RIGHTS, "")
    assert card.not_after == int((NOW + timedelta(hours=1)).timestamp())
    assert card_of(der_of_peer(ends.server)).name == "größe"
    assert card_of(der_of_peer(ends.server)).rights == NONE


def test_another_ca_is_refused(tmp_path: Path) -> None:
    one, other = Authority.new("CA"), Authority.new("CA")
    head = file_contexts(certificate_file(tmp_path / "head.pem", one, RIGHTS))
    lamp = file_contexts(certificate_file(tmp_path / "lamp.pem", other, RIGHTS))
    refused(head, lamp)
    refused(head, group_contexts([Key.new()], Pair.new()))


def test_a_ca_that_calls_itself_a_group_is_not_that_group(tmp_path: Path) -> None:
    key = Key.new()
    from cryptography import x509

    there = Authority.of_group(key)
    false = Authority._made(there.certificate.subject, new_key(), x509.random_serial_number())
    one = file_contexts(certificate_file(tmp_path / "false.pem", false, EVERYTHING))
    assert one.own.key_id == key.id  # it says so
    refused(one, group_contexts([key], Pair.new()))


@pytest.mark.parametrize(
    ("first", "last", "code", "says"),
    [
        (-3, -1, EXPIRED, r"expired at \S+ \S+ UTC \(the clock of this machine says \S+ \S+ UTC\)"),
        (1, 3, NOT_YET, "is not valid before "),
    ],
)
def test_a_certificate_out_of_its_time_is_refused_by_others_and_by_its_holder(
    tmp_path: Path, first: int, last: int, code: int, says: str
) -> None:
    authority = Authority.new("CA")
    good = file_contexts(certificate_file(tmp_path / "good.pem", authority, RIGHTS))
    path = certificate_file(
        *(tmp_path / "bad.pem", authority, RIGHTS),
        first=NOW + timedelta(hours=first),
        last=NOW + timedelta(hours=last),
    )
    with pytest.raises(AuthError, match=f"certificate file {path} {says}"):
        file_contexts(path)
    middle = (NOW + timedelta(hours=(first + last) / 2)).timestamp()
    with on_host(Host(wall_clock=lambda: middle)):  # as on a machine whose clock is wrong
        bad = file_contexts(path)
    assert {error.verify_code for error in refused(good, bad)} == {code}


def broken(path: Path, data: bytes) -> str:
    """What is said of a file with this in it."""
    write_file(path, data, replace=True)
    with pytest.raises(AuthError) as caught:
        file_contexts(path)
    text = str(caught.value)
    assert text.startswith(f"certificate file {path}")
    assert "PRIVATE" not in text
    return text.removeprefix(f"certificate file {path}")


def test_each_wrong_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    authority, other = Authority.new("ours"), Authority.new("other")
    key = new_key()
    leaf = authority.issue("lamp", key.public_key(), RIGHTS)
    ours = pem_of(leaf), pem_of_key(key), pem_of(authority.certificate)
    path = tmp_path / "lamp.pem"
    assert "has no certificate in it: `pubsubd cert issue DIR NAME`" in broken(path, b"")
    assert "belongs into PUBSUB_KEY_FILE" in broken(path, Key.new().text().encode())
    assert "has no private key in it: " in broken(path, ours[0] + ours[2])
    assert "has a certificate that cannot be read" in broken(path, ours[0].replace(b"MII", b"AII"))
    assert "lacks the certificate of 'ours'" in broken(path, ours[0] + ours[1])
    assert "lacks the certificate of 'ours'" in broken(
        path, ours[0] + ours[1] + pem_of(other.certificate)
    )
    assert "its private key is that of another certificate" in broken(
        path, ours[0] + pem_of_key(new_key()) + ours[2]
    )
    assert "is that of a CA, which stays where it is" in broken(
        path, pem_of(authority.certificate) + authority.private_pem()
    )
    cut = ours[1].replace(b"\n", b"\nAAAA", 1)
    assert "its private key cannot be read" in broken(path, ours[0] + cut + ours[2])
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
    )

    locked = key.private_bytes(
        Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"password")
    )
    assert "its private key is encrypted" in broken(path, ours[0] + locked + ours[2])
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass"))
    assert "its private key is encrypted" in broken(path, ours[0] + locked + ours[2])
    write_file(path, ours[2] + ours[1] + ours[0], replace=True)  # in any order
    assert file_contexts(path).own.name == "lamp"


def test_a_certificate_for_one_side_only_is_refused(tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    authority, key = Authority.new("other PKI"), new_key()
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
        )
        .sign(authority._key, hashes.SHA256())
    )
    text = broken(
        tmp_path / "one.pem", pem_of(made) + pem_of_key(key) + pem_of(authority.certificate)
    )
    assert "is not for clientAuth, and a peer is on both sides" in text


@pytest.mark.parametrize("kind", ["RSA", "P-384", "Ed25519"])
def test_other_pkis_may_have_other_keys(tmp_path: Path, kind: str) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    make: dict[str, Callable[[], Any]] = {
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
    }
    authority, key = Authority.new("other PKI"), make[kind]()
    leaf = authority.issue("lamp", key.public_key(), RIGHTS)
    path = tmp_path / "lamp.pem"
    write_file(path, pem_of(leaf) + pem_of_key(key) + pem_of(authority.certificate))
    lamp = file_contexts(path)
    assert lamp.own.rights == RIGHTS
    meet(lamp, file_contexts(certificate_file(tmp_path / "head.pem", authority, NONE)))


def test_one_ca_below_another_is_enough(tmp_path: Path) -> None:
    """As many a PKI has it: who names only the lower one trusts only what that one issued."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    root, key = Authority.new("root"), new_key()
    below = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "below")]))
        .issuer_name(root.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(root._key, hashes.SHA256())
    )
    lower = Authority(below, key)
    one = file_contexts(certificate_file(tmp_path / "one.pem", lower, RIGHTS))
    other = file_contexts(certificate_file(tmp_path / "other.pem", lower, NONE))
    meet(one, other)
    refused(one, file_contexts(certificate_file(tmp_path / "root.pem", root, EVERYTHING)))


@pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing here")
def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = certificate_file(tmp_path / "lamp.pem", Authority.new("CA"), NONE)
    path.chmod(0o640)
    with pytest.raises(AuthError, match=f"certificate file {path}: other .*: chmod 600 {path}"):
        file_contexts(path)


def test_what_is_no_certificate_is_an_auth_error() -> None:
    for der in (b"", b"\x30\x03abc"):
        with pytest.raises(AuthError, match="its certificate cannot be read"):
            card_of(der)


def test_rights_that_do_not_decode_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    uris = ("pubsubd:publish:%FF", "pubsubd:publish:a%2", "pubsubd:subscribe:ok", "https://a")
    monkeypatch.setattr(Rights, "to_uris", lambda self: uris)
    leaf = Authority.new("CA").issue("lamp", new_key().public_key(), NONE)
    assert card_of(der_of(leaf)).rights == Rights(subscribe=["ok"])


# --- secrets ------------------------------------------------------------------------------------


def test_no_secret_is_shown_or_pickled() -> None:
    key, pair = Key.new(), Pair.new()
    contexts = group_contexts([key], pair)
    authority = Authority.of_group(key)
    secrets = [pem_of_key(pair._private), authority.private_pem(), key.text().encode()]
    words = {s for secret in secrets for s in secret.decode().replace(":", "\n").split("\n")[1:-2]}
    words |= {key.text()[14:], f"{pair._private.private_numbers().private_value}"}
    shown = f"{key!r} {key} {pair!r} {pair} {contexts!r} {contexts} {authority!r}"
    assert not [word for word in words if word and word in shown]
    for secret in (key, pair, contexts, authority):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError):
                pickle.dumps(secret, protocol)
    assert pickle.loads(pickle.dumps(contexts.own)) == contexts.own
    with pytest.raises(FrozenInstanceError):
        contexts.own.name = "x"  # type: ignore[misc]


@pytest.mark.parametrize("memfd", [True, False])
def test_the_private_key_of_a_group_is_in_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memfd: bool
) -> None:
    if memfd and not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memfd")
    if not memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    seen: list[tuple[str, int]] = []

    make = certificates._context

    def context(side: int, chain: str, trusted: bytes) -> ssl.SSLContext:
        seen.append((chain, os.stat(chain).st_mode & 0o777))
        return make(side, chain, trusted)

    monkeypatch.setattr(certificates, "_context", context)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    key = Key.new()
    meet(group_contexts([key], Pair.new()), group_contexts([key], Pair.new()))
    assert list(tmp_path.iterdir()) == []
    assert len(seen) == 4
    for path, mode in seen:
        assert path.startswith("/proc/self/fd/" if memfd else str(tmp_path))
        assert memfd or mode == 0o600
        assert not os.path.exists(path)


def test_no_descriptor_is_left() -> None:
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors cannot be counted here")
    key, pair = Key.new(), Pair.new()
    group_contexts([key], pair)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        group_contexts([key], pair)
    assert len(os.listdir("/proc/self/fd")) == before


# --- without the extra --------------------------------------------------------------------------

HIDE = """
import sys
import tempfile
from collections.abc import Callable
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cryptography":
            raise ModuleNotFoundError("No module named 'cryptography'", name="cryptography")
sys.meta_path.insert(0, Hide())
"""


def test_without_the_extra_the_error_names_it() -> None:
    source = f"""{HIDE}
from pubsub.errors import AuthError
from pubsub.trust.certificates import Pair, card_of
from pubsub.trust.keys import Key
Key.new().derive("purpose")
for call in (Pair.new, lambda: card_of(b"")):
    try:
        call()
    except AuthError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=40
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stderr
    for line in lines:
        assert line.endswith(": pip install 'pubsubd[tls]'")
        assert "the package `cryptography`, which cannot be imported here" in line


def test_nothing_imports_cryptography_before_it_is_needed() -> None:
    source = (
        "import sys, pubsub, pubsub.trust.keys, pubsub.trust.certificates\n"
        "print('cryptography' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=40
    )
    assert done.stdout == "False\n", done.stderr


def test_a_message_over_loopback_waits_for_no_more_of_cryptography_than_a_key_pair(
    tmp_path: Path,
) -> None:
    write_file(tmp_path / "key", f"{Key.new().text()}\n".encode())
    source = f"""
import asyncio, sys
from pubsub import Peer
from pubsub.config import Settings
from pubsub.coordinator.server import Coordinator
from pubsub.trust.credentials import credentials_from

async def main():
    settings = Settings(key_file={str(tmp_path / "key")!r})
    guard = credentials_from(settings, {{}}).guard()
    coordinator = Coordinator(asyncio.get_running_loop(), settings=settings, guard=guard)
    at = str(await coordinator.start("127.0.0.1", 0))
    key = settings.key_file
    async with Peer(at, key_file=key) as one, Peer(at, key_file=key) as two:
        pub, sub = await one.pub("t"), await two.sub("t")
        pub.put("over the proof")
        assert await sub.get(timeout=20) == "over the proof"
        assert len(one.runtime.peer_id) == 32, "it has a key pair"
    await coordinator.close()
    print("cryptography.x509" in sys.modules, "pubsub.trust.extra" in sys.modules)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=40
    )
    assert done.stdout == "False False\n", done.stderr


@pytest.mark.parametrize("number", [1, 2, 3, 2**200, 2**255 + 1])
def test_an_identity_is_the_hash_of_the_public_key_as_certificates_have_it(number: int) -> None:
    """Whatever the leading zeros of its point."""
    for n in range(number, number + 200):
        private = ec.derive_private_key(n, ec.SECP256R1())
        assert Pair(private).identity == identity_of_key(private.public_key())
