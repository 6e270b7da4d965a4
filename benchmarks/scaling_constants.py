"""The constants that `scaling.py` reckons with, each measured in seconds on one core. Knows nothing of what is made of them.

Work is timed in seconds of processor time, all threads of the process together, which other work on the machine disturbs
little. What goes through the network or from the disk is timed by the clock, and wants an idle machine.
"""

from __future__ import annotations

import io
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import nearfar as nf
from nearfar import losses
from nearfar.distributed import Group
from nearfar.distributed.launch import launch
from nearfar.embedding import build_index, embed_stream
from nearfar.recipe import Recipe, load_recipe
from nearfar.search.approximate import Known, nearest_proposed
from nearfar.search.base import Entries, make_engine
from nearfar.search.engines import ENGINES
from nearfar.search.exact import nearest_prepared
from nearfar.training.loop import fit

K = 10
VIT = {"kind": "timm", "model": "vit_small_patch16_224", "weights": "random", "dim": 0}
"""A transformer of 22 million weights; random ones take as long as trained ones."""


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """All constants, as a tree that JSON holds; ``say`` is told what is measured next."""
    torch.set_num_threads(1)
    cores = os.sched_getaffinity(0)
    found: dict[str, Any] = {"machine": f"{_processor()}, PyTorch {torch.__version__}", "load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as home:
        say("network, disk")
        found |= launch("scaling_constants:exchanges", {}, processes=2)[0]
        found["disk_bytes_a_second"] = _disk(Path(home))
        os.sched_setaffinity(0, {min(cores)})  # so that libraries with threads of their own use one, too
        try:
            found["encoders"] = [_encoder(Path(home), name, say) for name in ("mnist-fast", "images", "vit-small")]
            say("index")
            found |= _index_bytes(Path(home))
            say("exact search")
            found |= _exact()
            for rows, dim in ((20_000, 64), (20_000, 256), (100_000, 64)):
                say(f"hnsw, {rows:,} x {dim}")
                found.setdefault("hnsw", []).append(_hnsw(Path(home), rows, dim))
            say("loss")
            found |= _loss()
        finally:
            os.sched_setaffinity(0, cores)
    found["load_after"] = os.getloadavg()[0]
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _work(run: Callable[[], Any]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    run()
    return time.process_time() - start


def _median_work(run: Callable[[], Any], times: int) -> float:
    run()
    return statistics.median(_work(run) for _ in range(times))


# ---- images to vectors ---------------------------------------------------------------------------------------------------


def _encoder(home: Path, name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Images a second of one core, embedded from encoded files and trained; and what of an encoder matters to a network."""
    say(f"{name}: training, embedding")
    few, many = {"mnist-fast": (1_000, 8_000), "images": (200, 1_000), "vit-small": (8, 24)}[name]
    steps, batch = {"mnist-fast": ((4, 20), 256), "images": ((1, 4), 128), "vit-small": ((1, 3), 8)}[name]
    recipe = load_recipe("images" if name == "vit-small" else name, {"train.precision": "float32", "train.epochs": 1})
    if name == "vit-small":
        recipe = Recipe.from_dict(recipe.to_dict() | {"encoder": VIT}).with_changes(
            {"data.size": [224, 224], "sampling.classes": 4, "sampling.per_class": 2}
        )
    times = []
    for count in (steps[0], *steps):  # the first has what is loaded on first use in it
        some = _set(name, count * batch)
        times.append(_work(lambda some=some: fit(recipe, some, seed=0)))  # type: ignore[misc]
    model = nf.Embedder(recipe, epochs=1).fit(_set(name, batch))
    run = home / name
    model.save(run)
    shards = [_shard(home / f"{name}-{count}.parquet", name, count) for count in (few, many)]
    spent = [_work(lambda at=at, shard=shard: embed_stream(run, shard, out=home / f"{name}-vectors-{at}"))  # type: ignore[misc]
             for at, shard in enumerate((shards[0], *shards))]  # fmt: skip
    return {
        "name": name,
        "dim": model.transform(_set(name, 2)).shape[1],
        "weights": sum(weight.numel() for weight in model.encoder_.parameters()),
        "norms": sum(hasattr(module, "running_mean") for module in model.encoder_.modules()),
        "image_bytes": shards[1].stat().st_size / many,
        "embed_rate": (many - few) / (spent[2] - spent[1]),
        "train_rate": batch * (steps[1] - steps[0]) / (times[2] - times[1]),
    }


def _pixels(name: str, count: int) -> np.ndarray:
    """uint8 [count, C, H, W]: digits, or smooth noise in colour, 256 x 256, which JPEG packs about as photographs."""
    if name == "mnist-fast":
        return np.asarray(nf.load_images("mnist", "train").images[:count])
    coarse = np.random.default_rng(0).integers(0, 256, (min(count, 32), 48, 48, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(one).resize((256, 256), Image.Resampling.BICUBIC)) for one in coarse]
    return np.stack(smooth)[np.arange(count) % len(smooth)].transpose(0, 3, 1, 2)


def _set(name: str, count: int) -> nf.ImageSet:
    """Labelled images of the encoder's own size."""
    pixels = _pixels(name, count)
    if name != "mnist-fast":
        side = 224 if name == "vit-small" else 64
        pixels = np.ascontiguousarray(pixels[:, :, :side, :side])
    classes = 10 if name == "mnist-fast" else 4 if name == "vit-small" else 32
    return nf.ImageSet(pixels, labels=np.arange(count) % classes, classes=tuple(f"{one:02d}" for one in range(classes)))


def _shard(path: Path, name: str, count: int) -> Path:
    """A Parquet file of encoded images with their paths."""
    rows = []
    for row, image in enumerate(_pixels(name, count)):
        content = io.BytesIO()
        if name == "mnist-fast":
            Image.fromarray(image[0]).save(content, "PNG")
        else:
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(content, "JPEG", quality=90)
        rows.append({"bytes": content.getvalue(), "path": f"class-{row % 10}/image-{row:010d}.jpg"})
    pq.write_table(pa.table({"image": rows}), path, row_group_size=1_000, use_dictionary=False)
    return path


def _index_bytes(home: Path) -> dict[str, float]:
    """What a row takes in a part and in a saved index besides its numbers, and what building an index holds of it at most."""
    vectors, folder = home / "mnist-fast-vectors-2", home / "index"
    told = build_index(vectors, out=folder, backend="exact")
    rows, numbers = told["images"], 4 * told["dim"]
    few, many = 20_000, 120_000
    return {
        "part_bytes": sum(part.stat().st_size for part in vectors.glob("part-*.parquet")) / rows - numbers,
        "index_bytes": sum(file.stat().st_size for file in folder.iterdir()) / rows - numbers,
        "held_bytes": (_held(home, many) - _held(home, few)) / (many - few),
    }


def _held(home: Path, rows: int) -> int:
    """Peak of what Python and NumPy hold while an index of mapped vectors with names of 27 letters is built and saved."""
    z = np.ones((rows, 4), dtype=np.float32) / np.float32(2.0)
    np.save(home / "mapped.npy", z)
    mapped = np.load(home / "mapped.npy", mmap_mode="r")
    del z
    tracemalloc.start()
    names, numbers = [f"class-{row % 10}/image-{row:010d}.jpg" for row in range(rows)], [row % 10 for row in range(rows)]
    index = nf.NeighborIndex("cosine", "exact").fit(mapped, np.array(numbers))
    index.save(home / f"held-{rows}", names={"images": names, "classes": [f"class-{one}" for one in range(10)]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


# ---- search --------------------------------------------------------------------------------------------------------------


def _clusters(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit rows about 1,000 centres, in 16 directions of 0.2, as `search.py` has them."""
    fixed, generator = np.random.default_rng(99), np.random.default_rng(seed)
    centres = fixed.standard_normal((1000, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    axes = fixed.standard_normal((16, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
    z = np.float32(0.2) * generator.standard_normal((rows, 16), dtype=np.float32) @ axes
    z += centres[generator.integers(1000, size=rows)]
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def _exact() -> dict[str, float]:
    """Seconds of one core for a number of a vector, alone and for each of a thousand queries."""
    rows, dim = 500_000, 64
    gallery, queries = _clusters(rows, dim, 1), _clusters(1_000, dim, 2)
    one = _median_work(lambda: nearest_prepared(queries[:1], gallery, K, "cosine"), 11)
    many = _median_work(lambda: nearest_prepared(queries, gallery, K, "cosine"), 3)
    return {"exact_one": one / (rows * dim), "exact_many": many / (len(queries) * rows * dim)}


def _hnsw(home: Path, rows: int, dim: int) -> dict[str, float]:
    """A graph by the defaults: seconds of one core to build it and to ask it, bytes, and the share of neighbours found."""
    gallery, queries = _clusters(rows, dim, 1), _clusters(300, dim, 2)
    engine = make_engine(ENGINES["hnsw"], "hnsw", "cosine", {})
    build = _work(lambda: engine.build(Entries(gallery, np.arange(rows), None)))
    engine.write(home / "graph")
    known = Known("hnsw", engine, np.arange(rows), rows)
    times = np.full(len(queries), np.inf)
    for _ in range(5):  # each query's best: what is left is how far it walks, not who disturbed it
        found = []
        for row in range(len(queries)):
            start = time.process_time()
            found.append(nearest_proposed(known, queries[row : row + 1], gallery, K, "cosine", None)[0])
            times[row] = min(times[row], time.process_time() - start)
    last = nearest_prepared(queries, gallery, K, "cosine")[0][:, -1:]
    return {
        "rows": rows,
        "dim": dim,
        "build_seconds": build,
        "bytes": (home / "graph").stat().st_size / rows,
        "one_seconds": float(np.median(times)),
        "one_99": float(np.quantile(times, 0.99)),
        "recall": float((np.concatenate(found) >= last).mean()),
    }


# ---- several processes, and the disk -------------------------------------------------------------------------------------


def _loss() -> dict[str, float]:
    """Seconds of one core for a pair and a dimension of SupCon, forward and backward: a batch alone, and rows against all."""
    batch, part, dim = 4_096, 1_024, 64
    z, labels = torch.from_numpy(_clusters(batch, dim, 1)), torch.arange(batch) % 10
    loss = losses.SupConLoss(temperature=0.1)

    def alone() -> None:
        loss(z.clone().requires_grad_(), labels).backward()

    def with_keys() -> None:
        keys = z.clone().requires_grad_()
        loss.combine(loss.sums(keys[:part], labels[:part], keys, labels, key_offset=0)).backward()

    return {
        "loss_alone": _median_work(alone, 5) / (batch * batch * dim),
        "loss_with_keys": _median_work(with_keys, 5) / (part * batch * dim),
    }


def exchanges(argument: Any, group: Group) -> dict[str, dict[str, float]]:
    """By gloo, as between machines, and as nearfar does it on one machine."""
    return {"network": _exchange(Group(group.rank, group.world)), "memory": _exchange(group)}


def _exchange(group: Group) -> dict[str, float]:
    """Between the processes of ``group``: seconds of a small sum, bytes a second, and bytes that the system saw pass."""
    batch, dim = 16_384, 128
    part = batch // group.world
    own, every, small = torch.ones(part, dim), torch.ones(batch, dim), torch.ones(64)
    works: dict[str, Callable[[], Any]] = {
        "small": lambda: group.total(small),
        "gather": lambda: group.gather(own, [part] * group.world),
        "scatter_sum": lambda: group.scatter_sum(every, [part] * group.world),
        "sum": lambda: group.total(every),
    }
    found: dict[str, float] = {"batch": batch, "dim": dim, "processes": group.world}
    for name, work in works.items():
        times, passed = [], []
        for _ in range(40):
            group.wait()
            before, start = _passed(), time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
            group.wait()
            passed.append(_passed() - before)
        found[f"{name}_seconds"], found[f"{name}_bytes"] = statistics.median(times), statistics.median(passed)
    return found


def _passed() -> int:
    """Bytes that this machine has sent to itself."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[8]) for line in lines if line.strip().startswith("lo:"))


def _disk(home: Path) -> float:
    """Bytes a second of a file that is read from its beginning, after the system was asked to forget it."""
    path, piece = home / "file", bytes(1 << 24)
    with path.open("wb", buffering=0) as file:
        for number in range(16):
            file.write(np.random.default_rng(number).bytes(len(piece)))
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(len(piece)):
            pass
    size = path.stat().st_size
    path.unlink()
    return size / (time.perf_counter() - start)
