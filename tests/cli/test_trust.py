"""`pubsubd key` and `pubsubd cert`: what they write, what they say, and how they refuse."""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import click
import pytest

from pubsub.cli.pubsubd import pubsubd
from pubsub.core.rights import Rights
from pubsub.trust.files import write_file
from pubsub.trust.keys import read_keys
from tests.cli import processes
from tests.cli.processes import Result, Start

NO_CRYPTOGRAPHY = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cryptography":
            raise ModuleNotFoundError("No module named 'cryptography'", name="cryptography")
sys.meta_path.insert(0, Hide())
from pubsub.cli.pubsubd import main
sys.argv[0] = "pubsubd"
main()
"""


def execute(*args: str) -> Result:
    """Run a command, `pubsubd` in this process."""
    if args[0] != "pubsubd":
        return processes.execute(*args)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        pubsubd.main(list(args[1:]), prog_name="pubsubd")
    assert isinstance(ended.value.code, int)
    return Result(ended.value.code, out.getvalue().encode(), err.getvalue())


def refused(result: Result, code: int, says: str) -> None:
    """One line, and nothing on standard output."""
    assert (result.code, result.out) == (code, b""), result.err
    assert len(result.err.splitlines()) == 1
    assert says in result.err


# --- keys ---------------------------------------------------------------------------------------


def test_a_new_key_is_written_and_said_to_be_copied(tmp_path: Path) -> None:
    file = tmp_path / "our key"
    result = execute("pubsubd", "key", "new", str(file))
    assert (result.code, result.out) == (0, b"")
    (key,) = read_keys(file)
    assert file.read_text() == f"{key.text()}\n"
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first, second = result.err.splitlines()
    assert first == f"pubsubd: wrote the key {key.id} to {file}, which only you can read"
    assert f"set PUBSUB_KEY_FILE={shlex.quote(str(file))} for the coordinator and all" in second
    assert key.text().rpartition(":")[2] not in result.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "key"
    execute("pubsubd", "key", "new", str(file))
    before = file.read_bytes()
    result = execute("pubsubd", "key", "new", str(file))
    refused(result, 1, f"pubsubd: {file} is there, and stays as it is: ")
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_where_no_key_can_be_written(tmp_path: Path) -> None:
    new = ("pubsubd", "key", "new")
    refused(execute(*new, str(tmp_path)), 1, f"{tmp_path} is a directory: name a file in it")
    missing = tmp_path / "none" / "key"
    refused(execute(*new, str(missing)), 1, f"{missing}: there is no directory {missing.parent}")
    refused(execute(*new, "/dev/null/key"), 1, "cannot write /dev/null/key: Not a directory")
    refused(execute(*new, "-"), 2, "pubsubd key new: name a file, not standard output: ")
    refused(execute(*new), 2, "missing argument 'FILE'")
    assert list(tmp_path.iterdir()) == []


def test_a_group_alone_shows_its_commands() -> None:
    for group, commands in (("key", ["new"]), ("cert", ["init", "issue", "revoke", "show"])):
        result = execute("pubsubd", group)
        assert (result.code, result.err) == (0, "")
        for command in commands:
            assert re.search(rf"^  {command} ", result.text, re.M)
    refused(execute("pubsubd", "key", "show"), 2, "pubsubd key: no such command 'show'")


def test_no_command_takes_a_secret_as_an_argument() -> None:
    for group in ("key", "cert"):
        commands = pubsubd.commands[group]
        assert isinstance(commands, click.Group)
        names = {param.name for c in commands.commands.values() for param in c.params}
        assert names <= {
            *("file", "directory", "name", "publish", "subscribe", "coordinator", "relay"),
            *("list_", "days", "advertise"),
        }


# --- certificates -------------------------------------------------------------------------------


def test_without_the_extra_one_line_names_it(tmp_path: Path) -> None:
    ca = str(tmp_path / "ca")
    write_file(tmp_path / "some.pem", b"-----BEGIN CERTIFICATE-----\n")
    for args in (
        ("init", ca),
        ("issue", ca, "lamp", "--list"),
        ("revoke", ca, "lamp"),
        ("show", str(tmp_path / "some.pem")),
    ):
        result = execute("python", "-c", NO_CRYPTOGRAPHY, "cert", *args)
        refused(result, 1, "pubsubd: TLS and certificates need the package `cryptography`, ")
        assert result.err.endswith(": pip install 'pubsubd[tls]'\n")
    assert not (tmp_path / "ca").exists()
    assert execute("python", "-c", NO_CRYPTOGRAPHY, "cert", "--help").code == 0
    key = execute("python", "-c", NO_CRYPTOGRAPHY, "key", "new", str(tmp_path / "key"))
    assert key.code == 0


def test_a_coordinator_that_needs_tls_and_can_make_none_does_not_start(tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    execute("pubsubd", "key", "new", key)
    for where in (("--host", "0.0.0.0"), ("--encrypt",)):
        command = ("coordinator", "--port", "0", "--key-file", key, *where)
        result = execute("python", "-c", NO_CRYPTOGRAPHY, *command)
        refused(result, 1, "`cryptography`, which makes their certificates, is not installed: pip")


def test_two_credentials_are_refused_by_the_names_of_their_options(tmp_path: Path) -> None:
    result = execute("pubsubd", "coordinator", "--key-file", "a", "--cert", "b", "--insecure")
    assert re.search(r" --[-a-z]+ and --[-a-z]+ exclude each other: leave one", result.err)
    assert (result.code, result.out) == (2, b"")


class TestCertificates:
    """From a CA to a certificate, its use, and its end."""

    @pytest.fixture(autouse=True)
    def _needs_the_extra(self) -> None:
        pytest.importorskip("cryptography", reason="the extra pubsubd[tls] is not installed")

    @pytest.fixture
    def ca(self, tmp_path: Path) -> str:
        ca = str(tmp_path / "ca")
        result = execute("pubsubd", "cert", "init", ca)
        assert (result.code, result.out) == (0, b""), result.err
        return ca

    def test_what_is_said_leads_from_one_command_to_the_next(self, tmp_path: Path) -> None:
        ca = tmp_path / "our ca"
        made, following = execute("pubsubd", "cert", "init", str(ca)).err.splitlines()
        assert made == f"pubsubd: made a CA in {ca}; {ca}/ca.key never leaves it"
        commands = re.findall("`(.*?)`", following)
        assert len(commands) == 2
        for command in commands:
            result = execute(*shlex.split(command))
            assert (result.code, result.out) == (0, b""), result.err
            name = shlex.split(command)[4]
            wrote, use = result.err.splitlines()
            assert wrote.startswith(
                f"pubsubd: wrote {ca}/{name}.pem, which only you can read: '{name}' may "
            )
            assert use.endswith(f" with PUBSUB_CERT={name}.pem")

    def test_that_no_topics_are_told_may_be_a_matter_of_rights(self, ca: str, start: Start) -> None:
        execute("pubsubd", "cert", "issue", ca, "head", "--coordinator")
        execute("pubsubd", "cert", "issue", ca, "lamp", "--publish", "lamps/**")
        _, where = processes.daemon(start, 0, "--cert", f"{ca}/head.pem")
        result = execute("pubsub", "topics", "--coordinator", where, "--cert", f"{ca}/lamp.pem")
        says = f"pubsub: the coordinator at {where} knows no topics that this certificate has a "
        assert (result.code, result.err) == (0, f"{says}right to\n")

    def test_a_wildcard_of_another_system_is_said(self, ca: str) -> None:
        issue = ("pubsubd", "cert", "issue", ca, "lamp", "--publish", "lamps/#")
        first = execute(*issue, "--subscribe", "config/*").err.splitlines()[0]
        assert first == "pubsubd: 'lamps/#': '#' is no wildcard here, write 'lamps/**'"

    def test_all_options_stand_in_the_certificate(self, ca: str) -> None:
        from pubsub.trust.certificates import file_contexts

        result = execute(
            *("pubsubd", "cert", "issue", ca, "lamp", "--publish", "küche/**", "--publish", "a"),
            *("--subscribe", "config/*", "--coordinator", "--relay", "--list", "--days", "2"),
            *("--advertise", "10.0.0.1", "--advertise", "lamp.local"),
        )
        assert (result.code, result.out) == (0, b""), result.err
        card = file_contexts(Path(ca) / "lamp.pem").own
        assert card.name == "lamp"
        assert card.hosts == ("lamp.local", "10.0.0.1")
        assert card.rights == Rights(["küche/**", "a"], ["config/*"], True, True, True)
        shown = execute("pubsubd", "cert", "show", f"{ca}/lamp.pem")
        assert (shown.code, shown.err) == (0, "")
        lines = [line.split(None, 1) for line in shown.lines]
        assert ["name", "lamp"] in lines
        assert ["rights", str(card.rights)] in lines
        assert ["host", "10.0.0.1"] in lines
        assert ["host", "lamp.local"] in lines
        assert "PRIVATE" not in shown.text
        secret = (Path(ca) / "lamp.pem").read_text().split("PRIVATE KEY-----\n")[1].splitlines()[0]
        assert secret not in shown.text

    def test_a_wrong_use_is_one_line_and_writes_nothing(self, ca: str, tmp_path: Path) -> None:
        issue = ("pubsubd", "cert", "issue", ca)
        before = sorted(Path(ca).iterdir())
        refused(execute(*issue, "lamp"), 2, "'lamp' could do nothing: say what it may, by --publ")
        refused(execute(*issue, "../x", "--list"), 2, "the name '../x' must begin with a letter")
        refused(execute(*issue, "ca", "--list"), 2, "the name 'ca' is that of a file of the CA")
        refused(
            execute(*issue, "lamp", "--publish", "a//b"),
            *(2, "pubsubd cert issue: --publish: pattern 'a//b' has an empty segment"),
        )
        refused(execute(*issue, "lamp", "--subscribe", "a*"), 2, "--subscribe: pattern 'a*'")
        refused(execute(*issue, "lamp", "--list", "--days", "0"), 2, "--days")
        refused(
            execute(*issue, "lamp", "--list", "--advertise", "head:7700"),
            *(2, "host 'head:7700' is neither an address nor a name"),
        )
        assert sorted(Path(ca).iterdir()) == before
        empty = ("pubsubd", "cert", "issue", str(tmp_path), "lamp", "--list")
        refused(execute(*empty), 1, f"there is no CA in {tmp_path}: `pubsubd cert init {tmp_path}`")
        refused(execute("pubsubd", "cert", "init", ca), 1, f"{ca} has a CA in it, which stays")
        (tmp_path / "file").touch()
        refused(execute("pubsubd", "cert", "init", str(tmp_path / "file")), 2, "is a file")

    def test_a_renewed_certificate_is_said_to_be_one_of_two(self, ca: str) -> None:
        issue = ("pubsubd", "cert", "issue", ca, "lamp", "--list")
        assert len(execute(*issue).err.splitlines()) == 2
        lines = execute(*issue).err.splitlines()
        assert len(lines) == 3
        assert "the one that 'lamp' had before is valid until 20" in lines[1]
        assert f"`pubsubd cert revoke {ca} lamp` would revoke both" in lines[1]

    def test_revoking_is_said_with_what_to_do(self, ca: str) -> None:
        revoke = ("pubsubd", "cert", "revoke", ca)
        refused(execute(*revoke, "lamp"), 1, "no certificate was issued in")
        for number in (1, 2):
            for _ in range(number):
                execute("pubsubd", "cert", "issue", ca, f"lamp{number}", "--list")
            done, following = execute(*revoke, f"lamp{number}").err.splitlines()
            count = "the certificate" if number == 1 else "2 certificates"
            assert done == (
                f"pubsubd: revoked {count} of 'lamp{number}': wrote {ca}/revoked.crl, number "
                f"{number}"
            )
            assert "copy it to the directory where each coordinator has its cert" in following
        refused(execute(*revoke, "lamp1"), 0, "all certificates of 'lamp1' are revoked already")
        shown = execute("pubsubd", "cert", "show", f"{ca}/revoked.crl").lines
        assert shown[0].startswith("revoked  list number 2 of 'pubsubd CA ")
        assert len(shown) == 1 + 3

    @pytest.mark.skipif(os.name != "posix", reason="modes of files mean nothing here")
    def test_show_says_what_makes_a_file_unusable(self, ca: str) -> None:
        execute("pubsubd", "cert", "issue", ca, "lamp", "--list")
        Path(ca, "lamp.pem").chmod(0o644)
        last = execute("pubsubd", "cert", "show", f"{ca}/lamp.pem").lines[-1]
        assert last == (
            "not usable  other users may read it, and it has a private key: chmod 600 "
            f"{ca}/lamp.pem"
        )
        shown = execute("pubsubd", "cert", "show", f"{ca}/ca.crt")
        assert "not usable" not in shown.text
        refused(execute("pubsubd", "cert", "show", f"{ca}/issued"), 1, "has no certificate in it")
        refused(execute("pubsubd", "cert", "show", ca), 1, "is a directory: name a file in it")
        refused(execute("pubsubd", "cert", "show", f"{ca}/none"), 1, f"{ca}/none is not there")
