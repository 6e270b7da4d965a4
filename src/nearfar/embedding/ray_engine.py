"""The same stream on a Ray cluster: each shard goes to a worker that holds the model, reads, embeds and writes its parts.

Ray moves the numbers of shards and the notes of parts, nothing else: images and vectors go between the workers and the file
system, which all nodes must see under the same paths. A shard whose node dies is done again by another, and its parts take the
place of those that it wrote: every row is there once. The model is loaded once by each worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nearfar.embedding.output import MANIFEST, Part
from nearfar.embedding.stream import Job, describe, embed_shard
from nearfar.errors import InputError, reason_of

_PATIENCE = 10.0
"""Seconds for which an address is tried."""
_PROBE_SECONDS = 30.0
"""Seconds that a cluster may take to let a first driver in."""
_RETRIES = 3
"""How often a shard is begun again whose worker died; a node that is lost costs one, a shard that kills its reader all."""
_STORE = 80 << 20
"""Bytes of the object store of a cluster that is started here, about the least that Ray takes: only notes go through it."""


def embed_on_ray(
    job: Job, run: str | Path, device: str, about: dict[str, Any], left: Sequence[tuple[int, int, int]], address: str
) -> Iterator[Part]:
    """Embed what is left to do, on a cluster.

    Args:
        job: what is to be done.
        run: the run folder or ONNX file, which all nodes must see.
        device: "cpu", "cuda" (a GPU for each worker), or "auto" (the same where the cluster has GPUs).
        about: of the model, as `nearfar.embedding.stream.describe` has it here; that of a worker must be the same.
        left: (shard, blocks done, rows done) of each shard that is to be done.
        address: "auto", "local", or "host:port".

    Yields:
        Each `Part`, once a worker has told of it: when its shard is done.

    Raises:
        InputError: Ray is not installed, no cluster answers, or a worker met an error that `embed_shard` names.
    """
    _check_installed()
    if job.data is not None:
        raise InputError("images in memory cannot go to a cluster; save them to files that all nodes see, and give their path")
    if not left:
        return
    with _connected(address) as ray:
        import ray.data as ray_data  # after the connection, whose settings it reads

        _quiet(ray_data)
        resources = ray.cluster_resources()
        gpu = device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1)
        places = int(resources.get("GPU" if gpu else "CPU", 0))
        if places < 1:
            raise InputError(f"the Ray cluster at {address} has no {'GPU' if gpu else 'CPU'} to compute on")
        folder = job.folder.resolve()
        worker = {
            "job": dataclasses.replace(job, folder=folder, threads=1),
            "run": str(Path(run).resolve()),
            "device": "cuda" if gpu else "cpu",
            "about": about,
        }
        rows = [{"number": number, "blocks": blocks, "skip": skip} for number, blocks, skip in left]
        notes = ray_data.from_items(rows, override_num_blocks=min(len(rows), 10_000)).map_batches(
            _Worker,
            fn_constructor_kwargs={"given": worker},
            batch_size=1,
            compute=ray_data.ActorPoolStrategy(min_size=1, max_size=min(places, len(rows))),
            num_cpus=1,
            num_gpus=1 if gpu else 0,
            max_restarts=-1,  # of a worker, which many nodes may take with them; it is the shard that is given up
            max_task_retries=_RETRIES,
        )
        for row in _answers(notes, ray):
            told = json.loads(row["note"])
            if "error" in told:
                raise InputError(told["error"])
            yield Part(**told)


def _answers(notes: Any, ray: Any) -> Iterator[dict[str, Any]]:
    """What workers tell.

    Raises:
        InputError: the worker of a shard died again and again, or the cluster has gone.
    """
    try:
        yield from notes.iter_rows()
    except ray.exceptions.RayError as error:
        raise InputError(
            f"workers on the Ray cluster died {_RETRIES + 1} times over one shard ({reason_of(error)[:160]}); "
            "what is done is kept, and the same command without --ray goes on in this process, where it is seen which image "
            "it is"
        ) from None


class _Worker:
    """Lives on a node, with the model."""

    def __init__(self, given: dict[str, Any]) -> None:
        from nearfar.runs.opening import open_model

        self.job: Job = given["job"]
        self.trouble: str | None = None
        try:
            if not (self.job.folder / MANIFEST).exists():
                raise InputError(
                    f"a node does not see {self.job.folder}; all nodes must share the file system that parts go to"
                )
            self.model = open_model(Path(given["run"]), device=given["device"])
            mine = describe(Path(given["run"]), self.model)
            if mine != given["about"]:
                raise InputError(f"a node has another model at {given['run']}; all nodes must see the same run")
        except InputError as error:  # told as a note: what an actor raises in its beginning Ray tries again for ever
            self.trouble = str(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        notes: list[str] = []
        for number, blocks, skip in zip(batch["number"], batch["blocks"], batch["skip"], strict=True):
            try:
                if self.trouble is not None:
                    raise InputError(self.trouble)
                parts = embed_shard(self.job, self.model, int(number), blocks=int(blocks), skip=int(skip))
                notes += [json.dumps(dataclasses.asdict(part)) for part in parts]
            except InputError as error:
                notes.append(json.dumps({"error": str(error)}))
        return {"note": notes}


def _check_installed() -> None:
    if find_spec("ray") is None:
        raise InputError('embedding on a cluster needs ray, which is not installed: pip install "nearfar[ray]"')


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray's module, connected to a cluster; one that was started for this ends with it.

    Raises:
        InputError: no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would tell its makers of every start
    if address not in ("auto", "local"):
        _check_answers(address)
    import ray

    if ray.is_initialized():  # the caller's own, which stays
        yield ray
        return
    how: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        how |= {"include_dashboard": False, "object_store_memory": _STORE}
    start = time.monotonic()
    try:
        ray.init(address=address, **how)
    except Exception as error:  # what Ray raises where it cannot start has no common class but this one
        reason = " ".join(str(error).split())[:160]
        tried = f"tried for {time.monotonic() - start:.0f} s: {reason}"
        raise InputError(f"no Ray cluster answers at {address!r} ({tried}); start one with: ray start --head") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Refuse an address where no Ray is; Ray itself would try for a minute, and end this process.

    Raises:
        InputError: it is no address, nothing listens there, or no Ray does.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or "/" in host:
        raise InputError(
            f"the Ray address is {address!r}; expected auto, local or host:port (6379 unless it was started otherwise)"
        )
    start, reason = time.monotonic(), ""
    while True:
        try:
            left = max(0.1, _PATIENCE - (time.monotonic() - start))
            socket.create_connection((host, int(port)), timeout=left).close()
            break
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() - start > _PATIENCE - 0.5:
            raise InputError(
                f"no Ray cluster answers at {address!r} (tried for {time.monotonic() - start:.0f} s: {reason}); start one with "
                "ray start --head, or leave out --ray to embed in this process"
            )
        time.sleep(0.5)
    probe = f"import ray; ray.init(address={address!r}, log_to_driver=False)"
    try:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        done = subprocess.run([sys.executable, "-c", probe], timeout=_PROBE_SECONDS, check=False, **quiet).returncode == 0
    except subprocess.TimeoutExpired:
        done = False
    if not done:
        raise InputError(
            f"something answers at {address!r}, but within {time.monotonic() - start:.0f} s it let nobody in as a Ray cluster "
            "of this version does; give the address that ray start --head printed"
        )


def _quiet(ray_data: Any) -> None:
    import logging

    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
