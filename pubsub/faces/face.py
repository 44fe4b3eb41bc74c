"""Face: what a Pub and a Sub, for event loops and for code that blocks, have in common.

`Pub(...)` and `Sub(...)` give the form that fits the place: one that is awaited (`InLoop`), or one
that blocks (`Blocking`).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from pubsub.errors import WrongContext
from pubsub.faces.peer import Peer, cannot_travel
from pubsub.runtime.members import Effort
from pubsub.runtime.runtime import Runtime
from pubsub.support.reentry import running_loop

if TYPE_CHECKING:
    from typing_extensions import Self

    from pubsub.runtime.readiness import Ready

__all__ = ["Blocking", "Face", "InLoop"]


class Weak:
    """A Pub (see `Source`) or Sub (see `Sink`) as the runtime holds it, which keeps none alive."""

    __slots__ = ("_face",)

    def __init__(self, face: Any) -> None:
        self._face: weakref.ref[Any] = weakref.ref(face)

    def seal(self) -> None:
        if pub := self._face():
            pub._seal()

    def count(self) -> int:
        pub = self._face()
        if pub is None or not hasattr(pub, "_publication"):  # nobody holds it, or it is being made
            return 0
        return int(pub._count_all())

    def queued(self) -> asyncio.Future[None] | None:
        pub = self._face()
        return None if pub is None else pub._queued()

    def waiting(self) -> tuple[int, object | None]:
        pub = self._face()
        return (0, None) if pub is None else (len(pub._queue), pub._first_put())

    def effort(self) -> Effort:
        sub = self._face()
        return Effort() if sub is None else sub._effort()

    def abandon(self, error: Exception) -> None:
        if face := self._face():
            face._abandon(error)


class Face:
    """See the module."""

    peer: Peer
    topic: str
    _kind: ClassVar[str]  # "Pub" or "Sub"
    _forms: ClassVar[dict[tuple[str, bool], type[Face]]] = {}  # by kind, and whether it blocks
    _form: ClassVar[bool | None]  # whether it blocks; None: a form of it has to be chosen
    _runtime: Runtime
    _ready: Ready
    _finalizer: weakref.finalize[..., Any]
    _dead: Exception | None

    def __init_subclass__(cls, *, blocking: bool | None) -> None:
        """A form says whether it blocks; None: it is a part of forms. (What is made of a form is
        another one, which nobody gets who does not ask for it.)"""
        cls._form = blocking
        if blocking is not None:
            cls._forms.setdefault((cls._kind, blocking), cls)

    def __new__(cls, *args: Any, peer: Peer | None = None, **kwargs: Any) -> Self:
        """The form that fits: blocking or async."""
        form: type[Any] = cls
        if cls._form is None:
            if peer is not None and not isinstance(peer, Peer):
                raise TypeError(f"peer={peer!r} is not a Peer; one is made by Peer('host:port')")
            blocking = running_loop() is None if peer is None else peer.blocking
            form = cls._forms[cls._kind, blocking]
        made: Self = object.__new__(form)
        return made

    def _when_dropped(self, end: Callable[[int], None], number: int) -> None:
        """Where nobody holds it any more, have the runtime end it in the background."""
        self._finalizer = weakref.finalize(self, _drop, weakref.WeakMethod(end), number)
        self._finalizer.atexit = False

    def _check(self) -> None:
        """Raise why it cannot be used any more."""
        if self._dead is not None:
            raise self._dead.with_traceback(None)  # else each time makes it longer

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._dead is not None

    def __reduce__(self) -> NoReturn:
        raise cannot_travel(self._kind)

    if TYPE_CHECKING:  # of either form: what is awaited in an event loop returns at once elsewhere

        def _open(self) -> None: ...
        def _enter(self, weak: Weak) -> None: ...  # in the loop's thread
        def close(self) -> Any: ...
        def __enter__(self) -> Self: ...
        def __exit__(self, *exc: object) -> None: ...
        def __await__(self) -> Generator[Any, Any, Self]: ...
        def __aenter__(self) -> Coroutine[Any, Any, Self]: ...
        def __aexit__(self, *exc: object) -> Coroutine[Any, Any, None]: ...


class InLoop(Face, blocking=None):
    """What belongs to an event loop."""

    def _open(self) -> None:
        kind, runtime, weak = self._kind, self.peer.runtime, Weak(self)
        if self.peer.blocking:
            raise WrongContext(
                f"this Peer runs on a thread of its own: {kind}(peer=…) made with it is blocking"
            )
        self._runtime = runtime
        try:
            self._enter(weak)
        except BaseException:  # a signal handler's, maybe, from any of these
            runtime.undo(weak)
            raise

    def _check_place(self) -> None:
        self._runtime.check_place(f"{self._kind}({self.topic!r})")

    def __await__(self) -> Generator[Any, Any, Self]:
        """Wait until it is ready."""
        self._check_place()
        yield from self._ready.wait().__await__()
        return self

    async def __aenter__(self) -> Self:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __enter__(self) -> NoReturn:
        raise WrongContext(
            f"in an event loop a {self._kind} is entered by `async with`, not `with`"
        )

    def __exit__(self, *exc: object) -> None: ...


class Blocking(Face, blocking=None):
    """What blocks, in any thread."""

    def _open(self) -> None:
        peer, weak = self.peer, Weak(self)
        if not peer.blocking:
            raise WrongContext(
                f"this Peer belongs to an event loop: make the {self._kind} inside it"
            )
        self._runtime = peer.runtime
        try:
            peer._call(self._enter, weak)  # so that all is set before the loop's thread needs it
            peer._wait(self._ready.wait())
        except BaseException:  # a signal handler's, maybe, while `_enter` is still to run
            peer._call_soon(self._runtime.undo, weak)
            raise

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __await__(self) -> NoReturn:
        raise WrongContext(
            f"this {self._kind} was made outside an event loop and blocks: make it inside the loop "
            "to await"
        )

    async def __aenter__(self) -> NoReturn:
        self.__await__()

    async def __aexit__(self, *exc: object) -> None: ...


def _drop(end_ref: weakref.WeakMethod[Callable[[int], None]], number: int) -> None:
    if end := end_ref():
        end(number)
