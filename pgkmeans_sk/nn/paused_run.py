"""Calls that stop in the middle, so that many of them can wait at the same place for each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

Value = TypeVar("Value")


class _Closed(BaseException):
    """Unwinds a call that is not wanted any more; no ``except Exception`` on the way stops it."""


class PausedRun(Generic[Value]):
    """A call in a thread of its own, which only runs while somebody waits in ``resume``.

    So nothing runs side by side: it is a coroutine through code that knows nothing of coroutines,
    such as the forward pass of any model. A thread has modes of its own (of gradients, of
    precision), which a call may set and leave open while it is paused.

    Parameters
    ----------
    call : callable
        ``call(run)``, which calls ``run.pause(value)`` at any depth.
    """

    def __init__(self, call: Callable[[PausedRun[Value]], object]) -> None:
        self._call = call
        self._may_run, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._value: Value | None = None
        self._error: BaseException | None = None
        self._is_done = self._is_closing = False

    def resume(self) -> Value | None:
        """Go on until the next pause, and return its value; None at the end of the call.

        Raises
        ------
        BaseException
            Whatever the call raised.
        """
        if self._is_done:
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._value = None
        self._may_run.release()
        self._stands.acquire()
        if self._is_done:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._value

    def pause(self, value: Value) -> None:
        """Within the call: wait until somebody resumes it."""
        self._value = value
        self._stands.release()
        self._may_run.acquire()
        if self._is_closing:
            raise _Closed

    def close(self) -> None:
        """End the call where it stands; what it has opened is closed as after an error."""
        if self._thread is None or self._is_done:
            self._is_done = True
            return
        self._is_closing = True
        self._may_run.release()
        self._thread.join()

    def __enter__(self) -> PausedRun[Value]:
        """For ``with``: the end of the block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _run(self) -> None:
        self._may_run.acquire()
        try:
            self._call(self)
        except _Closed:
            pass
        except BaseException as error:  # goes on in the thread that waits
            self._error = error
        finally:
            self._is_done = True
            self._stands.release()
