"""What stands behind the interface of one server: a run, its pictures, the thread that computes, counters and limits."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

from nearfar.data.decode import quiet_pillow
from nearfar.serve.album import Album
from nearfar.serve.batching import Batcher
from nearfar.serve.metrics import Metrics
from nearfar.serve.settings import Settings
from nearfar.serve.state import Job, Served

_LOOK = 1.0  # seconds between looks at the run folder


@dataclasses.dataclass(frozen=True)
class Service:
    """One server's parts."""

    served: Served
    album: Album
    batcher: Batcher[Job]
    metrics: Metrics
    settings: Settings

    @classmethod
    def open(cls, run: Path, settings: Settings, *, device: str = "auto", onnx: Path | None = None) -> Service:
        """Bring a run into service.

        Raises:
            InputError: the run or the exported model cannot be used.
        """
        served, metrics = Served(run, device=device, onnx=onnx, threads=settings.threads), Metrics()
        metrics.watch(
            lambda: len(served.now.index) - len(served.now.added),
            lambda: len(served.now.added),
            lambda: served.trouble is None,
        )
        return cls(
            served=served,
            album=Album(run, served.config, served.model.recipe_, served.now.trained),
            batcher=Batcher(served.work, size=lambda job: len(job.pixels), most=settings.batch, seen=metrics.batches.observe),
            metrics=metrics,
            settings=settings,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer while this is entered: computes, reads pictures beside, and follows the run folder."""
        beside = [asyncio.create_task(asyncio.to_thread(self.album.load)), asyncio.create_task(self._follow())]
        with quiet_pillow():
            self.batcher.start()
            try:
                yield
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                await self.batcher.stop()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            await asyncio.to_thread(self.served.follow)
