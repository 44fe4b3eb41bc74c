"""Peer: one process's place among all the others, and where Pubs and Subs run.

A `Peer` made inside a running event loop belongs to it; one made elsewhere runs a loop of its own
on a background thread, and what is made with it blocks. Most programs never make one: the first
`Pub` or `Sub` makes the default Peer of the process, or of the running loop.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

from pubsub.config import Settings, advertise_from, coordinators_from, seconds
from pubsub.errors import Closed, PubSubError, WrongContext
from pubsub.faces.elsewhere import DONE, begin, elsewhere, refuse_inside
from pubsub.faces.process import (
    default_by,
    end_with_loop,
    end_with_process,
    forget,
    refuse_at_exit,
)
from pubsub.links import descriptors
from pubsub.runtime.runtime import Runtime
from pubsub.runtime.thread import LoopThread, refuse_green
from pubsub.stats.rows import Stats
from pubsub.support.logs import logger
from pubsub.support.ratelimit import RateLimit
from pubsub.support.reentry import calls_of, running_loop
from pubsub.trust.credentials import credentials_from

__all__ = ["Peer", "connect"]

log = logger("pubsub.open")
log.logger.addFilter(RateLimit(most=1))  # a program may make many Peers

T = TypeVar("T")
P = ParamSpec("P")


class Peer:
    """A runtime of its own: an event loop's, or a background thread's.

    It runs until it is closed: by `close()`, at the end of its ``with``, or by the end of its event
    loop or process, also when nobody holds it any more.

    Parameters:
        coordinator: ``"host:port"``, several separated by commas or in a list; default: the
            environment's ``PUBSUB_COORDINATOR``, else ``127.0.0.1:7700``, where the first process
            of the machine starts a coordinator in itself.
        key: a key itself (`pubsub.new_key`), where a program brings it; kept in a file it is given
            as the setting ``key_file``.
        settings: the fields of `pubsub.config.Settings` by name: ``host``, ``port``,
            ``advertise`` (default: the environment's ``PUBSUB_ADVERTISE``), ``listen`` (False:
            nobody can dial this process, and it dials its subscribers itself), ``name``,
            ``ping_interval``, ``ping_timeout``, ``connect_timeout``, ``join_timeout``,
            ``resume_timeout``, ``linger``, ``shared_memory``, ``max_message`` …

    Raises:
        TypeError, ValueError: a setting, or an address, that cannot be used.
        WrongContext: no place for it: in the middle of the work of a Peer (in a signal handler, a
            destructor or a log handler), where threads are replaced (gevent, eventlet), or where
            Python is ending and starts no thread any more.

    Example:
        >>> from pubsub import Peer
        >>> with Peer(name="example") as peer:
        ...     sub = peer.sub("topic")
        ...     peer.pub("topic").put(1)
        ...     sub.get(timeout=5)
        1
    """

    def __init__(
        self,
        coordinator: str | tuple[str, int] | list[str] | None = None,
        *,
        key: str | None = None,
        **settings: Any,
    ) -> None:
        refuse_inside("Peer")
        coordinators, configured = coordinators_from(coordinator, os.environ)
        if "advertise" not in settings and settings.get("listen", True) is not False:
            settings["advertise"] = advertise_from(os.environ)  # else it says nothing here
        self.settings = settings_of("Peer", settings)
        credentials = credentials_from(self.settings, os.environ, key)
        self.coordinators = coordinators
        self._dead: Exception | None = None
        self._ending = threading.RLock()
        loop = running_loop()
        self.blocking = loop is None
        self._thread: LoopThread | None = None
        self._guard: AsyncGenerator[None, None] | None = None
        if loop is None:
            refuse_at_exit()
        descriptors.fill_standard()
        guard = credentials.guard()
        if guard.open:
            log.warning(
                "%s: everybody who can connect to this process may read and publish everything",
                credentials.source,
            )
        try:
            if loop is None:
                self._thread = LoopThread()
                loop = self._thread.start()
            self.runtime = Runtime(
                *(loop, coordinators, configured, self.settings),
                given=coordinator is not None,
                guard=guard,
            )
            if self._thread is not None:
                self._thread.call(self.runtime.start)
            else:
                self.runtime.start()
                self._guard = end_with_loop(self.runtime)
            end_with_process(self)
        except BaseException:  # a signal handler's, maybe, from any of these
            self._undo()
            raise

    def _undo(self) -> None:
        """The constructor was interrupted, wherever it was: nobody will have this Peer."""
        forget(self)
        runtime: Runtime | None = self.__dict__.get("runtime")
        if self._thread is not None:
            if runtime is not None:
                self._thread.call(runtime.cut)
            self._thread.stop()
        elif runtime is not None:
            runtime.cut()

    # --- what users call ----------------------------------------------------------------

    def pub(self, topic: str, **options: Any) -> Any:
        """A `Pub` of this Peer; see there for the options."""
        from pubsub.faces.pub import Pub  # which stands above this module

        return Pub(topic, peer=self, **options)

    def sub(self, topic: str, **options: Any) -> Any:
        """A `Sub` of this Peer; see there for the options."""
        from pubsub.faces.sub import Sub

        return Sub(topic, peer=self, **options)

    @property
    def address(self) -> str:
        """``host:port`` that other peers dial; empty before a coordinator was reached."""
        return self.runtime.address

    @property
    def peer_id(self) -> str:
        """Its identity."""
        return self.runtime.peer_id

    def stats(self) -> Stats:
        """How its Pubs, Subs, links, event loop and coordinators stand, as far as this process
        knows. May be called from any thread, and in an event loop, where it is not awaited.

        While nobody has asked for two minutes, nothing is measured: the first answer has the means
        since each was made (`Stats.watched` is 0), the next ones the rates of the last seconds.
        `pubsub.survey.Survey` asks others.

        Raises:
            WrongContext: it was made before a fork, and belongs to the parent.

        Example:
            >>> from pubsub import Peer
            >>> with Peer() as peer:
            ...     pub = peer.pub("numbers")
            ...     pub.put(1)
            ...     peer.stats().pubs[0].put
            1
        """
        if isinstance(self._dead, WrongContext):
            raise self._dead.with_traceback(None)  # as `Face._check`
        return self.runtime.watching.ask()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._dead is not None

    def close(self, linger: float | None = None) -> Awaitable[None]:
        """Close all its Pubs and Subs and stop; subscribers have `linger` seconds (default: the
        setting) to receive what they are due.

        In an event loop it begins at once, and what it returns is to be awaited for the end. May
        be called again, also meanwhile: every call waits for the one end, and cancelling one that
        waits ends nothing early.
        """
        linger = seconds("linger", linger)
        if self._thread is None:
            if self.runtime.loop.is_closed() or isinstance(self._dead, WrongContext):
                self._dead = self._dead or Closed("this Peer is closed")
                return DONE
            runtime = self.runtime
            away = elsewhere(runtime.loop, runtime.thread)
            if not away:
                runtime.check_place("this Peer")
            self._dead = self._dead or Closed("this Peer is closed")
            return begin(runtime.loop, runtime.close, linger) if away else runtime.close(linger)
        self._refuse_in_loop("Peer.close()")
        if self._dead is None:
            self._refuse_inside()
        with self._ending:  # whoever comes second waits for the end
            if self._dead is None:
                self._dead = Closed("this Peer is closed")
                try:
                    self._thread.run(self._close(linger))
                except BaseException:  # no more lingering
                    self._thread.call(self.runtime.cut)
                    raise
                finally:
                    self._thread.stop()
        return DONE

    async def _close(self, linger: float | None) -> None:
        await self.runtime.close(linger)

    def __enter__(self) -> Peer:
        if self._thread is None:
            raise WrongContext("in an event loop a Peer is entered by `async with`, not `with`")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Peer:
        if self._thread is not None:
            raise WrongContext("this Peer was made outside an event loop: enter it by `with`")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __dir__(self) -> list[str]:  # without what the faces and the commands have of it
        return [name for name in super().__dir__() if name != "runtime"]

    def __reduce__(self) -> NoReturn:
        raise cannot_travel("Peer")

    def __repr__(self) -> str:
        where = self.address or "not connected yet"
        state = "closed" if self.closed else where
        coordinators = ",".join(map(str, self.coordinators))
        return f"<Peer {self.peer_id} at {state}, coordinator {coordinators}>"

    # --- what Pub and Sub call ----------------------------------------------------------

    def _alive(self) -> LoopThread:
        if self._dead is not None:
            raise self._dead.with_traceback(None)  # as `Face._check`
        assert self._thread is not None
        refuse_green()
        self._refuse_inside()
        return self._thread

    @property
    def _here(self) -> bool:
        """Whether this is the Peer's own thread."""
        return self._thread is not None and self._thread.here

    def _inside(self) -> str:
        """Why who calls must not wait for the loop's thread, as a handler or a destructor that
        interrupts its work, or a put; empty: it may."""
        if self._here:
            return "this would wait for the thread that it runs in"
        if any(pub.peer is self and pub._putting() for pub in calls_of("pubsub.faces.blockingpub")):
            return (
                "a call that waits, from within a put of the same Peer (from a signal handler or a "
                "destructor): the put would wait for it, and it for the put"
            )
        return ""

    def _refuse_inside(self) -> None:
        if inside := self._inside():
            raise WrongContext(inside)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the loop's thread and wait for it."""
        return self._alive().call(function, *args, **kwargs)

    def _call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Have a function run in the loop's thread; not waited for. Harmless after the end."""
        thread = self._thread
        if thread is not None:
            try:
                thread.loop.call_soon_threadsafe(function, *args)
            except RuntimeError:
                if not thread.loop.is_closed():
                    raise

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop's thread and wait for it."""
        try:
            thread = self._alive()
        except PubSubError:
            coroutine.close()
            raise
        return thread.run(coroutine)

    def _refuse_in_loop(self, what: str) -> None:
        """Raise `WrongContext` where waiting would block a running event loop."""
        refuse_green()
        if running_loop() is not None:
            raise WrongContext(
                f"{what} blocks, and an event loop is running here: make the Pub, Sub or Peer "
                "inside the loop and await it, or call it in asyncio.to_thread"
            )

    def _abandon_after_fork(self) -> None:
        error = WrongContext(
            "this Peer, and every Pub and Sub of it, was made before a fork and belongs to the "
            "parent process: make new ones in the child"
        )
        self._dead = error
        self._ending = threading.RLock()  # whoever held it is not here
        self.runtime.abandon_after_fork(error)


def connect(
    coordinator: str | tuple[str, int] | list[str] | None = None,
    key: str | None = None,
    **settings: Any,
) -> None:
    """Say of this process once where its coordinator is, and its key: every `Pub` and `Sub` that is
    not given a Peer goes there from now on, in event loops too.

    For the workers of a pool or a cluster, to which the program that started them hands both, as
    the arguments of an ``initializer``, say. Unlike in the environment, the key is not seen by the
    programs that a worker starts itself; the children that it forks have it. Nothing is dialled
    before the first Pub or Sub. Called again with the same, it does nothing; with something else,
    what is there already stays where it is.

    Parameters:
        coordinator, key, settings: those of `Peer`.

    Raises:
        TypeError, ValueError: a setting, or an address, that cannot be used.
        AuthError: the key is none.
        WrongContext: in a signal handler that interrupts the making of a Peer.

    Example:
        >>> from pubsub import Coordinator, Pub, Sub, connect, new_key
        >>> key = new_key()
        >>> with Coordinator(key=key) as coordinator:
        ...     connect(coordinator.address, key)
        ...     with Sub("topic") as sub, Pub("topic") as pub:
        ...         pub.put(1)
        ...         sub.get(timeout=5)
        1
    """
    coordinators_from(coordinator, os.environ)
    credentials_from(settings_of("connect", settings), os.environ, key).guard()
    default_by({"coordinator": coordinator, "key": key, **settings})


def settings_of(what: str, given: dict[str, Any]) -> Settings:
    """The settings that somebody gave by name.

    Raises:
        TypeError, ValueError: one is unknown, or cannot be used.
    """
    try:
        return Settings(**given)
    except TypeError as error:
        unknown = sorted(set(given) - set(Settings.__dataclass_fields__))
        if unknown:
            known = ", ".join(Settings.__dataclass_fields__)
            raise TypeError(f"{what} has no setting {unknown[0]!r}; it has key, {known}") from None
        raise error from None


def cannot_travel(what: str) -> TypeError:
    """Why neither pickle nor copy can have it."""
    return TypeError(
        f"a {what} belongs to its process and cannot be pickled or copied: hand on the topic or "
        f"the address, and make a {what} there"
    )
