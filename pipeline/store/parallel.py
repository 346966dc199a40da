"""Threads that read rows together: started when first needed, and anew in a process that was forked."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from ..machine import usable_cores

Task = TypeVar("Task")

# Requests that an object store answers at the same time, each after some 10 to 50 ms.
WAITING_THREADS = 16


def do_all(work: Callable[[Task], None], tasks: Sequence[Task], threads: int | None = None, *, waits: bool = False) -> None:
    """Does all tasks, the calling thread being one of those that work.

    It waits for nobody who has not begun: tasks may call it themselves, and any number of threads may at once.

    Args:
        work: Does one task; most of its time should be spent outside the interpreter's lock.
        tasks: In the order in which they are begun.
        threads: How many to use at most; None: as many as there are cores.
        waits: Whether a task waits for a network most of its time: then more are begun than there are cores, whatever ``threads``
            says.

    Raises:
        Exception: Of the first task that failed, in the order of tasks; those after it may not have been done.
    """
    most = WAITING_THREADS if waits else usable_cores() if threads is None else threads
    crew = min(most, len(tasks))
    if crew <= 1:
        for task in tasks:
            work(task)
        return
    job = _Job(work, tasks)
    pool = _waiting_pool if waits else _pool
    helpers = [pool.get().submit(job.take_part) for _ in range(crew - 1)]
    try:
        job.take_part()
    finally:
        job.stopped = True
        for helper in helpers:
            if not helper.cancel():
                helper.exception()
        # A thread may hold the job a moment longer than it works; what it was about, such as open files, must not wait for that.
        job.forget()
    if job.failures:
        failure = job.failures[min(job.failures)]
        # No circle of error, frames and job: it would keep files open until somebody collects it.
        job.failures.clear()
        try:
            raise failure
        finally:
            del failure


class _Job(Generic[Task]):
    """Tasks of which whoever is free takes the next."""

    def __init__(self, work: Callable[[Task], None], tasks: Sequence[Task]) -> None:
        self._work = work
        self._tasks = tasks
        # Counting is one step of the interpreter: no two threads are given the same number.
        self._numbers: Iterator[int] = itertools.count()
        self.failures: dict[int, Exception] = {}
        self.stopped = False

    def take_part(self) -> None:
        while not self.stopped and (number := next(self._numbers)) < len(self._tasks):
            try:
                self._work(self._tasks[number])
            except Exception as error:
                self.failures[number] = error
                self.stopped = True

    def forget(self) -> None:
        """Lets go of work and tasks, once all have been done that will be."""
        self._tasks = ()
        self._work = _nothing


def _nothing(_: object) -> None:
    pass


class _Pool:
    """The threads of this process. A forked child has none of its parent's, and may find the lock taken for ever."""

    def __init__(self, threads: Callable[[], int]) -> None:
        self._threads = threads
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None

    def get(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._threads(), "rows")
            return self._executor


_pool = _Pool(usable_cores)
_waiting_pool = _Pool(lambda: WAITING_THREADS)
