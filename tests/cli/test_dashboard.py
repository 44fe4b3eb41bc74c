"""`pubsubd dashboard`, and the one beside a coordinator, as processes."""

from __future__ import annotations

import datetime
import os
import re
import signal
import socket
import ssl
import time
import urllib.error
import urllib.request
from http.cookiejar import CookieJar
from pathlib import Path

import pytest

pytest.importorskip("aiohttp", reason="the dashboard is served by aiohttp")

from tests.cli.processes import LONG, Running, Start, daemon, execute

TOKEN = "a-token-that-a-person-has-made-up"
LINK = re.compile(r"pubsubd: dashboard on ((https?://\S+:(\d+)/)\?token=(\S+))")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate of localhost and its key."""
    pytest.importorskip("cryptography", reason="certificates are made by `cryptography`")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "cert.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    return path


def link_of(process: Running) -> re.Match[str]:
    """The link that it prints, among other lines."""
    for _ in range(5):
        found = LINK.search(process.err())
        if found:
            return found
    raise AssertionError("it has printed no link")


def opened(link: str, context: ssl.SSLContext | None = None) -> str:
    """What a browser is given that follows the link."""
    opener = urllib.request.build_opener(
        urllib.request.HTTPCookieProcessor(CookieJar()),
        urllib.request.HTTPSHandler(context=context),
    )
    with opener.open(link, timeout=LONG) as got:
        text: str = got.read().decode()
    return text


def test_it_prints_a_link_that_opens_it_and_ends_with_0(start: Start, coordinator: str) -> None:
    process = start("pubsubd", "dashboard", "--http", "127.0.0.1:0", coordinator=coordinator)
    link, host, _, token = link_of(process).groups()
    assert host.startswith("http://127.0.0.1:")
    assert len(token) >= 43
    assert "<main" in opened(link)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        opened(host)
    assert opened(f"{host}health") == "ok\n"
    process.signal(signal.SIGTERM)
    assert process.end() == (0, [], [])


def test_a_token_of_a_file_is_not_printed(start: Start, coordinator: str, token: Path) -> None:
    process = start(
        *("pubsubd", "dashboard", "--http", "127.0.0.1:0", "--token-file", str(token)),
        coordinator=coordinator,
    )
    line = process.err()
    assert TOKEN not in line
    found = re.search(r"on (http://\S+/), with the token in (.*)", line)
    assert found is not None
    assert found[2] == str(token)
    assert "<main" in opened(f"{found[1]}?token={TOKEN}")


def test_metrics_have_a_token_of_their_own(start: Start, coordinator: str, token: Path) -> None:
    process = start(
        *("pubsubd", "dashboard", "--http", "127.0.0.1:0", "--metrics-token-file", str(token)),
        coordinator=coordinator,
    )
    url = f"{link_of(process)[2]}metrics"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=LONG) as got:
        assert b"pubsub_info" in got.read()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=LONG)


def test_by_tls_it_may_be_reached_from_elsewhere(
    start: Start, coordinator: str, certificate: Path
) -> None:
    process = start(
        *("pubsubd", "dashboard", "--http", "0.0.0.0:0", "--tls-cert", str(certificate)),
        coordinator=coordinator,
    )
    _, host, port, token = link_of(process).groups()
    assert host.startswith(f"https://{socket.gethostname()}:")
    context = ssl.create_default_context(cafile=str(certificate))
    link = f"https://localhost:{port}/?token={token}"
    assert "<main" in opened(link, context)
    process.signal(signal.SIGHUP)  # the files are read anew
    certificate.write_text("nothing")
    process.signal(signal.SIGHUP)
    while "is used on" not in process.err():
        pass
    assert "<main" in opened(link, context)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--http", "0.0.0.0:7780"], "--http 0.0.0.0:7780 can be reached from other machines"),
        (["--http", "7780"], "--http '7780' is not host:port"),
        (["--http", "::1:7780"], "stands in brackets, as in [::1]:7780"),
        (["--tls-key", "x"], "--tls-key is of no use without --tls-cert"),
        (["--open-metrics", "--metrics-token-file", "x"], "exclude each other"),
    ],
)
def test_what_is_used_wrongly_is_said_in_a_line(args: list[str], says: str) -> None:
    run = execute("pubsubd", "dashboard", *args)
    assert run.code == 2
    assert says in run.err
    assert run.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (None, 0, "is not there"),
        ("short", 0o600, "has no token, of at least 16 letters and digits"),
        ("two words of a token", 0o600, "has no token"),
        (TOKEN, 0o644, "other users may read it"),
    ],
)
def test_a_file_without_a_good_token_is_refused(
    content: str | None, mode: int, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    run = execute("pubsubd", "dashboard", "--token-file", str(path))
    assert run.code == 1
    assert says in run.err
    assert str(path) in run.err
    assert content is None or content not in run.err


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_file_without_a_certificate_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    run = execute("pubsubd", "dashboard", "--tls-cert", str(path))
    assert run.code == 1
    assert str(path) in run.err
    assert run.err.count("\n") == 1


def test_a_port_in_use_is_said(coordinator: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        run = execute("pubsubd", "dashboard", "--http", where, coordinator=coordinator)
    assert run.code == 1
    assert f"{where} is in use: another dashboard may be running" in run.err


def test_without_aiohttp_it_says_what_to_install(start: Start) -> None:
    code = (
        "import sys; sys.modules['aiohttp'] = None; from pubsub.cli.pubsubd import main; "
        "main(['dashboard'])"
    )
    run = execute("python", "-c", code)
    assert run.code == 1
    assert run.err == (
        "pubsubd: the dashboard needs aiohttp: python -m pip install 'pubsubd[dashboard]'\n"
    )


# --- beside a coordinator ----------------------------------------------------------------------


def its_dashboard(process: Running) -> tuple[int, str]:
    """The process of a coordinator's dashboard, and its link."""
    found = re.search(r"its dashboard is process (\d+)", process.err())
    assert found is not None
    return int(found[1]), link_of(process)[1]


def gone(pid: int) -> None:
    until = time.monotonic() + LONG
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_dashboard_of_a_coordinator_ends_with_it(start: Start, number: signal.Signals) -> None:
    process, _ = daemon(start, 0, "--http", "127.0.0.1:0")
    pid, link = its_dashboard(process)
    assert "<main" in opened(link)
    process.signal(number)
    process.wait()
    gone(pid)


def test_the_dashboard_of_a_coordinator_is_started_anew_when_it_ends(start: Start) -> None:
    process, _ = daemon(start, 0, "--http", "127.0.0.1:0")
    pid, _ = its_dashboard(process)
    os.kill(pid, signal.SIGKILL)
    assert process.err() == "pubsubd: its dashboard ended with -9, and is started anew"
    other, link = its_dashboard(process)
    assert other != pid
    assert "<main" in opened(link)


def test_what_its_dashboard_would_fail_with_a_coordinator_fails_with() -> None:
    run = execute("pubsubd", "coordinator", "--port", "0", "--http", "0.0.0.0:0")
    assert run.code == 2
    assert "--http 0.0.0.0:0 can be reached from other machines" in run.err
    run = execute(
        *("pubsubd", "coordinator", "--port", "0", "--http", "127.0.0.1:0"),
        PUBSUB_DASHBOARD_TOKEN_FILE="/nothing/here",
    )
    assert run.code == 1
    assert "token file /nothing/here is not there" in run.err
