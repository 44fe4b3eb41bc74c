"""What all commands have in common: one line for an error, the exit codes, help, completion."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pubsub import CoordinatorUnavailable, Peer, __version__
from pubsub.cli import pubsub, pubsubd
from pubsub.cli.command import log_lines, program
from pubsub.config import Address
from tests.cli.processes import execute
from tests.integration.support import free_port

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run a command in this process: exit code, output, errors."""

    def run(command: click.Command, *args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            command.main(list(args), prog_name=command.name)
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["tail"], "pubsub tail: missing argument 'TOPIC|PATTERN…' (see pubsub tail --help)"),
        (
            ["tail", "a//b"],
            "pubsub tail: pattern 'a//b' has an empty segment (see pubsub tail --help)",
        ),
        (
            ["tail", "a", "b*"],
            "pubsub tail: pattern 'b*': a wildcard stands for a whole segment: use '*' or '**' "
            "(see pubsub tail --help)",
        ),
        (
            ["put", "a/*", "1"],
            "pubsub put: topic 'a/*' has a wildcard: a Pub needs one topic; patterns are for Sub "
            "(see pubsub put --help)",
        ),
        (
            ["put", "a", "1", "--json-lines"],
            "pubsub put: --json-lines goes with -: it is about standard input "
            "(see pubsub put --help)",
        ),
        (
            ["tail", "a", "--history", "some"],
            "pubsub tail: --history 'some' is neither a number of messages nor 'all' "
            "(see pubsub tail --help)",
        ),
        (
            ["topics", "--coordinator", "nowhere"],
            "pubsub topics: coordinator 'nowhere' is not host:port, such as 127.0.0.1:7700 "
            "(see pubsub topics --help)",
        ),
        (
            ["put", "a", "-x"],
            "pubsub put: no such option '-x'; a VALUE that begins with a dash stands behind two: "
            "pubsub put TOPIC -- VALUE (see pubsub put --help)",
        ),
        (
            ["topics", "--coordinator", "::1:7711"],
            "pubsub topics: coordinator '::1:7711' is not host:port: an IPv6 address stands in "
            "brackets, as in [::1]:7711 (see pubsub topics --help)",
        ),
        (["nope"], "pubsub: no such command 'nope' (see pubsub --help)"),
        (
            ["tail", "a", "--fields"],
            "pubsub tail: option '--fields' requires an argument (see pubsub tail --help)",
        ),
        (
            ["rate", "a", "-n", "x"],
            "pubsub rate: invalid value for '-n' / '--count': 'x' is not a valid integer "
            "(see pubsub rate --help)",
        ),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(invoke: Invoke, args: list[str], error: str) -> None:
    assert invoke(pubsub.pubsub, *args) == (2, "", f"{error}\n")


@pytest.mark.parametrize(
    "args",
    [
        *(["tail", "a", "-n", "0"], ["tail", "a", "--timeout", "0"], ["tail", "a", "--nope"]),
        *(["tail", "a", "--history", "-1"], ["tail", "a", "--format", "xml"]),
        *(["put", "a"], ["put", "a", "1", "--rate", "0"], ["put", "a", "1", "--wait", "0"]),
        *(["put", "a", "1", "--rate", "nan"], ["put", "a", "1", "--timeout", "nan"]),
        *(["tail", "a", "--timeout", "nan"], ["tail", "a", "--timeout", "-inf"]),
        *(["completion", "powershell"], ["topics", "a"]),
    ],
)
def test_all_wrong_use_is_one_line_and_exit_code_2(invoke: Invoke, args: list[str]) -> None:
    code, out, err = invoke(pubsub.pubsub, *args)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"pubsub {args[0]}: ")


def test_what_may_be_chosen_is_said_on_the_one_line(invoke: Invoke) -> None:
    _, _, err = invoke(pubsub.pubsub, "completion")
    assert "\t" not in err
    assert "'bash', 'zsh', 'fish'" in err or "bash, zsh, fish" in err  # as click writes it


def test_a_mistyped_option_is_still_put_right(invoke: Invoke) -> None:
    _, _, err = invoke(pubsub.pubsub, "put", "a", "1", "--tmeout", "3")
    assert "--timeout" in err
    assert "VALUE" not in err


@pytest.mark.parametrize(
    ("option", "variable", "where"),
    [
        ("127.0.0.1:1", None, "give --coordinator the address where"),
        ("127.0.0.1:1", "127.0.0.1:2", "give --coordinator the address where"),
        (None, "127.0.0.1:1", "set PUBSUB_COORDINATOR to where"),
        (None, None, "say by --coordinator or PUBSUB_COORDINATOR where"),
    ],
)
@pytest.mark.parametrize("args", [["topics"], ["peers"], ["put", "a", "1", "--timeout", "1"]])
def test_the_way_out_fits_where_the_address_came_from(
    invoke: Invoke,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    option: str | None,
    variable: str | None,
    where: str,
) -> None:
    nobody = Address("127.0.0.1", free_port())
    for module in ("pubsub.config", "pubsub.cli.asking"):
        monkeypatch.setattr(f"{module}.DEFAULT_COORDINATOR", nobody)
    monkeypatch.delenv("PUBSUB_COORDINATOR", raising=False)
    if variable is not None:
        monkeypatch.setenv("PUBSUB_COORDINATOR", variable)
    options = [] if option is None else ["--coordinator", option]
    code, _, err = invoke(pubsub.pubsub, *args, *options)
    assert code == 1
    last = err.splitlines()[-1]
    assert last.startswith("pubsub: no coordinator ")
    assert last.endswith(f": start one with `pubsubd coordinator`, or {where} it runs")


def test_a_wrong_environment_is_named(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_COORDINATOR", "nowhere")
    code, _, err = invoke(pubsub.pubsub, "topics")
    assert code == 2
    assert err.startswith("pubsub topics: PUBSUB_COORDINATOR 'nowhere' is not host:port")


@pytest.mark.parametrize("command", [pubsub.pubsub, pubsubd.pubsubd])
def test_both_commands_say_their_version(invoke: Invoke, command: click.Command) -> None:
    assert invoke(command, "--version") == (0, f"{command.name} {__version__}\n", "")


@pytest.mark.parametrize("command", [pubsub.pubsub, pubsubd.pubsubd])
def test_a_command_alone_explains_itself(invoke: Invoke, command: click.Command) -> None:
    code, out, err = invoke(command)
    assert (code, err) == (0, "")
    assert out == invoke(command, "-h")[1] == invoke(command, "--help")[1]


def commands() -> Iterator[tuple[click.Group, str]]:
    for group in (pubsub.pubsub, pubsubd.pubsubd):
        for name, command in group.commands.items():
            yield group, name
            if isinstance(command, click.Group):
                yield from ((group, f"{name} {inner}") for inner in command.commands)


@pytest.mark.parametrize(("group", "name"), list(commands()))
def test_every_command_has_help_and_says_its_exit_codes(
    invoke: Invoke, group: click.Group, name: str
) -> None:
    code, out, err = invoke(group, *name.split(), "--help")
    assert (code, err) == (0, "")
    if name != "completion":
        assert "Exit codes: 0 " in out


@pytest.mark.parametrize(("group", "name"), list(commands()))
def test_help_fits_in_80_columns(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, group: click.Group, name: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for args in ([], name.split()):
        _, out, _ = invoke(group, *args, "--help")
        assert [line for line in out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize("command", [pubsub.pubsub, pubsubd.pubsubd])
def test_completion_prints_the_script_of_a_shell(
    invoke: Invoke, command: click.Command, shell: str
) -> None:
    code, out, _ = invoke(command, "completion", shell)
    assert code == 0
    assert f"_{str(command.name).upper()}_COMPLETE" in out


def raising(error: BaseException) -> click.Command:
    """A command `tool` that raises this."""

    @program("tool", "A tool.", "For a test.", epilog="")
    def tool() -> None:
        raise error

    return tool


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            CoordinatorUnavailable("no coordinator\nat all", way_out="run one"),
            1,
            "tool: no coordinator at all: start one with `pubsubd coordinator`, or say by "
            "--coordinator or PUBSUB_COORDINATOR where it runs\n",
        ),
        (ValueError("port 0 is none"), 1, "tool: port 0 is none\n"),
        (OSError(28, "No space left on device"), 1, "tool: No space left on device\n"),
        (FileNotFoundError(2, "No such file", "x.log"), 1, "tool: x.log: No such file\n"),
        (click.ClickException("it failed"), 1, "tool: it failed\n"),
        (KeyboardInterrupt(), 130, ""),
        (click.Abort(), 130, ""),
        (BrokenPipeError(), 0, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    invoke: Invoke, error: BaseException, code: int, said: str
) -> None:
    assert invoke(raising(error)) == (code, "", said)


def test_bugs_keep_their_traceback(invoke: Invoke) -> None:
    result = CliRunner().invoke(raising(ZeroDivisionError("a bug")), [])
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_exit_code_is_what_the_command_returns(invoke: Invoke) -> None:
    @program("tool", "A tool.", "For a test.", epilog="")
    def tool() -> int:
        return 3

    assert invoke(tool)[0] == 3
    assert tool.main([], standalone_mode=False) == 3


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    logger = logging.getLogger("pubsub")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before[0], before[1], before[2]
    logging.getLogger("pubsub.coordinator").setLevel(logging.NOTSET)


@pytest.mark.usefixtures("_logging_as_before")
def test_what_the_library_logs_is_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    log_lines()
    log_lines()  # once is enough
    logger = logging.getLogger("pubsub")
    logger.info("not this")
    logger.warning("no coordinator at %s:\n%s", "127.0.0.1:1", "gone")
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        logger.exception("internal error")
    assert capsys.readouterr().err.splitlines() == [
        "pubsub: no coordinator at 127.0.0.1:1: gone",
        "pubsub: internal error: RuntimeError('a bug')",
    ]


@pytest.mark.parametrize("name", ["pubsub", "pubsubd"])
def test_modules_run_as_commands(name: str) -> None:
    result = execute(name, "--version")
    assert (result.code, result.err) == (0, "")
    assert result.lines == [f"{name} {__version__}"]


Complete = Callable[..., list[str]]


@pytest.fixture
def complete(coordinator: str) -> Complete:
    def completions(words: str, where: str = coordinator) -> list[str]:
        env: dict[str, Any] = {
            "_PUBSUB_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        result = CliRunner().invoke(
            pubsub.pubsub, [], env={**env, "PUBSUB_COORDINATOR": where}, prog_name="pubsub"
        )
        return [line.partition(",")[2] for line in result.stdout.splitlines() if line]

    return completions


def test_completion_knows_commands_options_and_topics(complete: Complete, coordinator: str) -> None:
    assert complete("pubsub t") == ["tail", "topics", "top"]
    assert complete("pubsub tail --hist") == ["--history"]
    with Peer(coordinator) as peer:
        pub = peer.pub("complete/me")
        assert complete("pubsub tail comp") == [pub.topic]
        assert complete("pubsub put complete") == ["complete/me"]
    assert complete("pubsub tail comp", "127.0.0.1:1") == []
    assert complete("pubsub tail comp", "nowhere") == []
