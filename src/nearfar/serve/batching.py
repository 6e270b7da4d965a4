"""Requests that come together are computed together: one thread works, and takes all that has come while it worked.

There is no waiting for a batch to fill: a request that comes alone is computed alone, at once. Knows jobs, not what they are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Job = TypeVar("Job")


class Batcher(Generic[Job]):
    """Hands jobs to ``work`` in batches, in one thread, and their results back to whoever waits for them.

    Args:
        work: takes jobs and returns for each a result, or an exception, which is raised where that job is waited for.
        size: of a job, in images.
        most: images of a batch, unless one job alone has more.
        seen: is told how many images each batch had.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Job]], Sequence[Any]],
        *,
        size: Callable[[Job], int],
        most: int,
        seen: Callable[[int], None] = lambda images: None,
    ) -> None:
        self._work, self._size, self._most, self._seen = work, size, most, seen
        self._waiting: asyncio.Queue[tuple[Job, asyncio.Future[Any]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nearfar-batches")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Work no more; who still waits is told so."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        while not self._waiting.empty():
            self._waiting.get_nowait()[1].cancel()
        self._thread.shutdown(wait=True)

    async def submit(self, job: Job) -> Any:
        """The result of ``job``, once its batch is done. Given up before, it is not begun."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((job, future))
        return await future

    async def call(self, function: Callable[[], Any]) -> Any:
        """What ``function`` returns, called in the thread that works, so never beside a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _run(self) -> None:
        held: tuple[Job, asyncio.Future[Any]] | None = None
        while True:
            batch = [held if held is not None else await self._waiting.get()]
            held, images = None, self._size(batch[0][0])
            while not self._waiting.empty():
                after = self._waiting.get_nowait()
                images += self._size(after[0])
                if images > self._most:
                    held = after
                    break
                batch.append(after)
            await self._do([one for one in batch if not one[1].done()])

    async def _do(self, batch: list[tuple[Job, asyncio.Future[Any]]]) -> None:
        if not batch:
            return
        self._seen(sum(self._size(job) for job, _ in batch))
        results: Sequence[Any]
        try:
            results = await self.call(lambda: self._work([job for job, _ in batch]))
        except Exception as error:
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
