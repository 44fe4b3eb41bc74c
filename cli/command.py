"""What all commands have in common: how they end, how they fail, which coordinator they mean."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import get_completion_class

from pubsub._version import __version__
from pubsub.cli.systemd import prefix
from pubsub.cli.terminal import printable
from pubsub.config import FOREVER, Settings, coordinators_from
from pubsub.errors import CoordinatorUnavailable, PubSubError
from pubsub.links.descriptors import fill_standard
from pubsub.runtime.thread import new_loop

if TYPE_CHECKING:
    from pubsub import Peer
    from pubsub.trust.guard import Guard

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "OK",
    "TERMINATED",
    "TIMED_OUT",
    "UNREACHED",
    "Failure",
    "Program",
    "Subcommand",
    "after_ctrl_c",
    "check_coordinator",
    "coordinator_option",
    "credential_options",
    "end_signals",
    "given_credentials",
    "guard_of_command",
    "log_lines",
    "make_peer",
    "program",
    "run",
    "say",
    "show_help",
    "way_out",
]

OK, FAILED, TIMED_OUT, UNREACHED, INTERRUPTED, TERMINATED = 0, 1, 3, 4, 130, 143

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

Failure = click.ClickException
"""The command failed: its text is all that is to be said of it."""


def say(text: str, *, by: str = "pubsub", level: int = logging.INFO) -> None:
    """A line for people, on standard error."""
    with suppress(OSError):  # nobody can be told
        click.echo(f"{prefix(level)}{by}: {printable(_one_line(text))}", err=True)


def after_ctrl_c() -> None:
    """End the line on which the terminal shows ``^C``."""
    with suppress(OSError):
        if sys.stderr is not None and sys.stderr.isatty():
            click.echo(err=True)


def _one_line(text: str) -> str:
    return re.sub(r"\s*[\n\t]\s*", " ", text).strip()


class Subcommand(click.Command):
    """A command whose errors name it, also where an option lacks its argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As any command does."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Program(click.Group):
    """A group of commands whose errors are one line on standard error and an exit code."""

    command_class = Subcommand

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run it; unless embedded elsewhere, end the process with the exit code."""
        run = partial(super().main, *args, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        fill_standard()
        sys.exit(self._code(run))

    def _code(self, run: Callable[[], Any]) -> int:
        try:
            result = run()
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx is not None else str(self.name)
            message = _one_line(error.format_message()).rstrip(".")
            message = re.sub(r"valid (integer|float) range$", r"valid \1", message)
            if message[1:2].islower():
                message = message[0].lower() + message[1:]
            say(f"{message} (see {path} --help)", by=path, level=logging.ERROR)
            return error.exit_code
        except click.ClickException as error:
            say(error.format_message(), by=str(self.name), level=logging.ERROR)
            return error.exit_code
        except (click.Abort, KeyboardInterrupt):
            return INTERRUPTED
        except BrokenPipeError:
            _let_go_of_stdout()
            return OK
        return result if isinstance(result, int) else OK

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added, the one that all have last."""
        return sorted(self.commands, key=lambda name: name == "completion")

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command; what is no bug becomes one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            after_ctrl_c()
            return INTERRUPTED
        except BrokenPipeError:  # click would call it a failure
            _let_go_of_stdout()
            return OK
        except (click.ClickException, click.exceptions.Exit):
            raise
        except CoordinatorUnavailable as error:
            raise Failure(f"{error.problem}: {way_out()}") from error
        except (PubSubError, OSError, ValueError) as error:
            raise Failure(_explain(error)) from error


def _explain(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return str(error) or type(error).__name__


def _let_go_of_stdout() -> None:
    """Nobody reads any more: what is still buffered goes nowhere, without an error at the end."""
    with suppress(OSError, ValueError):  # not every stand-in for it has a descriptor
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, sys.stdout.fileno())
        finally:
            os.close(null)


@click.pass_context
def show_help(ctx: click.Context) -> None:
    """What a program does that is given no command."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def program(
    name: str, summary: str, description: str, *, epilog: str
) -> Callable[[Callable[..., Any]], Program]:
    """A `Program` with ``--version`` and the command ``completion``; its exit codes at the end."""

    def make(function: Callable[..., Any]) -> Program:
        group = click.group(
            name,
            cls=Program,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
            invoke_without_command=True,
            help=f"{summary}\n\n{description}",
            epilog=epilog,
        )(function)
        group = click.version_option(__version__, message=f"{name} %(version)s")(group)
        group.add_command(_completion(name))
        return group

    return make


def _completion(name: str) -> click.Command:
    @click.command("completion")
    @click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
    @click.pass_context
    def completion(ctx: click.Context, shell: str) -> None:
        found = get_completion_class(shell)
        assert found is not None
        variable = f"_{name.upper()}_COMPLETE"
        click.echo(found(ctx.find_root().command, {}, name, variable).source())

    completion.help = f"""Print the script that completes the words of this command in a shell.

    \b
    bash   eval "$({name} completion bash)"      in ~/.bashrc
    zsh    eval "$({name} completion zsh)"       in ~/.zshrc
    fish   {name} completion fish | source       in ~/.config/fish/config.fish
    """
    return completion


def check_coordinator(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """What an option or argument names is an address."""
    source = ctx.get_parameter_source(param.name or "")
    ctx.meta[__name__] = source  # for `way_out`
    try:
        if source is click.core.ParameterSource.ENVIRONMENT:
            coordinators_from(None, {"PUBSUB_COORDINATOR": value or ""})
        elif value is not None:
            coordinators_from(value, {})
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None
    return value


def way_out() -> str:
    """What to do where no coordinator is reached: it depends on who said where it would be."""
    source = click.get_current_context().meta.get(__name__)
    if source is click.core.ParameterSource.COMMANDLINE:
        where = "give --coordinator the address where"
    elif source is click.core.ParameterSource.ENVIRONMENT:
        where = "set PUBSUB_COORDINATOR to where"
    else:
        where = "say by --coordinator or PUBSUB_COORDINATOR where"
    return f"start one with `pubsubd coordinator`, or {where} it runs"


def coordinator_option(more: str = "") -> Callable[[F], F]:
    """``--coordinator``, checked, and what `more` the command does where none listens."""
    return click.option(
        "--coordinator",
        metavar="HOST:PORT[,…]",
        envvar="PUBSUB_COORDINATOR",
        show_envvar=True,
        callback=check_coordinator,
        help=f"Where the coordinator listens. Default: 127.0.0.1:7700{more}.",
    )


def credential_options(function: F) -> F:
    """``--key-file``, ``--cert`` and ``--insecure``: see `given_credentials`."""
    for option in (
        click.option(
            "--insecure",
            is_flag=True,
            default=None,
            expose_value=False,
            callback=_note_credentials,
            help="Without credentials, where everyone may read and publish everything.",
        ),
        click.option(
            "--cert",
            metavar="FILE",
            expose_value=False,
            callback=_note_credentials,
            help="The certificate of this program (pubsubd cert issue). Default: $PUBSUB_CERT.",
        ),
        click.option(
            "--key-file",
            metavar="FILE",
            expose_value=False,
            callback=_note_credentials,
            help="The key of the group (pubsubd key new). Default: $PUBSUB_KEY_FILE, else the "
            "secret of this user.",
        ),
    ):
        function = option(function)
    return function


def _note_credentials(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value is not None:
        noted = ctx.meta.setdefault(f"{__name__}.credentials", {})
        noted[param.name] = value
        if len(noted) > 1:
            names = " and ".join("--" + name.replace("_", "-") for name in sorted(noted))
            raise click.UsageError(f"{names} exclude each other: leave one of them out", ctx)
    return value


def given_credentials() -> dict[str, Any]:
    """What the options of this command say, as settings of a Peer."""
    context = click.get_current_context(silent=True)  # none, where a shell completes
    given: dict[str, Any] = context.meta.get(f"{__name__}.credentials", {}) if context else {}
    return given


def guard_of_command(**more: Any) -> Guard:
    """How the connections of this command are secured."""
    from pubsub.trust.credentials import credentials_from

    return credentials_from(Settings(**given_credentials(), **more), os.environ).guard()


def make_peer(
    name: str, coordinator: str | None, timeout: float | None, connect_timeout: float | None = None
) -> Peer:
    """A Peer that waits no longer than `--timeout` says, where that is less than it would: for a
    coordinator, and for a subscriber or publisher that does not come. On a busy machine a
    connection may take a second that is there, so it has at least one."""
    from pubsub import Peer

    usual = Settings()
    most = FOREVER if timeout is None else max(timeout, 1.0)
    peer = Peer(
        coordinator,
        name=name[:80],
        connect_timeout=connect_timeout or min(usual.connect_timeout, most),
        join_timeout=min(usual.join_timeout, most),
        **given_credentials(),
    )
    if timeout is not None:
        peer.runtime.readiness.mute_waits = 0  # nor for a coordinator that is busy
    return peer


class _Lines(logging.Handler):
    """What the library logs, a line each."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info is not None and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
        say(text, level=record.levelno)


def log_lines(level: int = logging.WARNING) -> None:
    """Show what the library has to say, from this level on, on standard error."""
    logger = logging.getLogger("pubsub")
    if not any(isinstance(handler, _Lines) for handler in logger.handlers):
        logger.addHandler(_Lines())
    logger.setLevel(level)
    logger.propagate = False
    # what these have to tell, the command itself says
    logging.getLogger("pubsub.coordinator").setLevel(max(level, logging.WARNING))
    for said in ("pubsub.foreign", "pubsub.absent"):
        logging.getLogger(said).setLevel(logging.ERROR)
    logging.getLogger("asyncio").addHandler(logging.NullHandler())


def run(
    main: Coroutine[Any, Any, T], make: Callable[[], asyncio.AbstractEventLoop] = new_loop
) -> T:
    """Run a coroutine in a loop of its own to its end, and end all that it left."""
    loop = make()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(main)
    finally:
        try:
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            asyncio.set_event_loop(None)
            loop.close()


@contextmanager
def end_signals(told: Callable[[int], None]) -> Iterator[None]:
    """Within: Ctrl-C and SIGTERM call `told` with the exit code that they mean; a second one ends
    the process as it would have without this."""
    loop = asyncio.get_running_loop()
    with ExitStack() as taken:

        def first(code: int) -> None:
            taken.close()
            if code == INTERRUPTED:
                after_ctrl_c()
            told(code)

        with suppress(NotImplementedError, RuntimeError):  # Windows: Ctrl-C raises as ever
            for number, code in ((signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)):
                loop.add_signal_handler(number, first, code)
                taken.callback(loop.remove_signal_handler, number)
        yield
