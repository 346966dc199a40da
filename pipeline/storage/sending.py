"""Files on their way to an address, in the background: some at a time, no more waiting than scratch has room for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# On their way at a time, and those that wait besides: what may lie in scratch whole.
UPLOADS_AT_ONCE, UPLOADS_WAITING = 2, 2


class Sending:
    """The files that are on their way.

    Attributes:
        names: Of those that have not arrived.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._slots = threading.Semaphore(UPLOADS_AT_ONCE + UPLOADS_WAITING)
        self._failure: BaseException | None = None

    def begin(self, name: str, send: Callable[[], None], arrived: Callable[[], None]) -> None:
        """Has a file sent; waits while too many are on their way.

        Args:
            name: Of the file.
            send: Sends it.
            arrived: Called once it is there.

        Raises:
            BaseException: What has failed in the background.
        """
        self._slots.acquire()
        try:
            self.check()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(UPLOADS_AT_ONCE, "upload")
            self.names.add(name)
            self._pool.submit(self._do, name, send, arrived)
        except BaseException:
            self._slots.release()
            raise

    def _do(self, name: str, send: Callable[[], None], arrived: Callable[[], None]) -> None:
        try:
            # Those that wait behind one that has failed are not tried: what refuses one refuses all, after a minute each.
            if self._failure is None:
                send()
        except BaseException as error:
            self.fail(error)
        finally:
            self.names.discard(name)
            self._slots.release()
        try:
            if self._failure is None:
                arrived()
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Has whoever sends or waits next stop by this error."""
        self._failure = self._failure or error

    def check(self) -> None:
        """Says what has failed in the background.

        Raises:
            BaseException: Something has.
        """
        if self._failure is not None:
            raise self._failure

    def wait(self) -> None:
        """Waits until all has arrived.

        Raises:
            BaseException: Something has not.
        """
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
        self.check()
