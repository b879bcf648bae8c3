"""Cancels a task at any chosen one of its suspensions, so that a test can walk them all."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any


class CancelledAt:
    """While entered: tasks of one coroutine function are cancelled at their n-th suspension.

    Args:
        qualname: Part of the coroutine's `__qualname__`; the first task of it is the one.
        n: Which suspension, from 1.

    Attributes:
        task: The task, once it was made.
        reached: Whether it was cancelled: False, it was done before, and all were walked.
    """

    MESSAGE = "walked"

    def __init__(self, qualname: str, n: int) -> None:
        self._qualname = qualname
        self._n = n
        self._suspensions = 0
        self.task: asyncio.Task[Any] | None = None
        self.reached = False

    def __enter__(self) -> CancelledAt:
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(self._make)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.set_task_factory(None)

    def _make(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        qualname: str = getattr(coroutine, "__qualname__", "")
        if self.task is not None or self._qualname not in qualname:
            return asyncio.Task(coroutine, loop=loop, **options)
        self.task = asyncio.Task(self._run(coroutine), loop=loop, **options)
        return self.task

    async def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await self._counted(coroutine)

    @types.coroutine
    def _counted(self, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        raised: BaseException | None = None
        while True:
            try:
                waits_for = coroutine.send(None) if raised is None else coroutine.throw(raised)
            except StopIteration as stopped:
                return stopped.value
            raised = None
            self._suspensions += 1
            if self._suspensions == self._n:
                assert self.task is not None
                self.reached = True
                self._loop.call_soon(self.task.cancel, self.MESSAGE)
            try:
                yield waits_for
            except BaseException as error:
                raised = error
