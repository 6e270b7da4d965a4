"""Search and retrieval figures against faiss, scikit-learn and pytorch-metric-learning: time, peak memory, agreement.

    python benchmarks/search.py              everything; the machine should be idle; more than an hour on two cores
    python benchmarks/search.py --small      the same tables in small, to see that all of it runs
    python benchmarks/search.py --only evaluation,exact,approximate,large,growth

Times are medians of runs that take turns in one process. Memory is the peak of the resident set of a fresh process above
what it held with its inputs ready. Ratios are theirs over ours. "digits" are embeddings of MNIST by the recipe mnist-fast,
trained here; "pixels" are its pixels in 64 principal components; "clusters" are unit rows about 1,000 centres; "noise" are
directions at random, in which nothing is near anything.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import sklearn
import torch
from losses import Table, mib, processor, resident, take_turns
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import nearfar as nf
from nearfar.evaluation.retrieval import rank_queries, summarize
from nearfar.search.chunks import write_vectors
from nearfar.search.vectors import unit_rows

SECTIONS = ("evaluation", "exact", "scikit-learn", "approximate", "large", "growth")
K = 10


# ---- data ----------------------------------------------------------------------------------------------------------------


def unit(z: np.ndarray) -> np.ndarray:
    return unit_rows(np.ascontiguousarray(z, dtype=np.float32), "z")


def noise(rows: int, dim: int, seed: int) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((rows, dim), dtype=np.float32))


def clusters(rows: int, dim: int, seed: int) -> np.ndarray:
    """Unit rows about 1,000 centres, the same for every seed; each as far from its centre as 16 directions of 0.2 make it."""
    fixed, generator = np.random.default_rng(99), np.random.default_rng(seed)
    centres = unit(fixed.standard_normal((1000, dim), dtype=np.float32))
    axes = fixed.standard_normal((16, dim), dtype=np.float32) / np.sqrt(dim).astype(np.float32)
    z = 0.2 * generator.standard_normal((rows, 16), dtype=np.float32) @ axes
    z += centres[generator.integers(1000, size=rows)]
    return unit(z)


def digits(folder: Path, small: bool) -> dict[str, np.ndarray]:
    """Embeddings and pixels of MNIST's training and test images, with labels; trained once."""
    path = folder / "digits.npz"
    if not path.exists():
        train, test = (nf.load_images("mnist", split=split) for split in ("train", "test"))
        if small:
            train, test = train.subset(np.arange(6000)), test.subset(np.arange(1000))
        model = nf.Embedder(recipe="mnist-fast", seed=0, epochs=1 if small else None).fit(train)
        flat = [images.images[:].reshape(len(images), -1).astype(np.float32) / 255.0 for images in (train, test)]
        pca = PCA(64, random_state=0).fit(flat[0])
        arrays = {"train": model.transform(train), "test": model.transform(test)}
        arrays |= {"train_pixels": pca.transform(flat[0]), "test_pixels": pca.transform(flat[1])}
        labels = {"train_labels": np.asarray(train.labels), "test_labels": np.asarray(test.labels)}
        np.savez(path, **{name: values.astype(np.float32) for name, values in arrays.items()}, **labels)
    with np.load(path) as file:
        return dict(file)


# ---- in a process of its own -------------------------------------------------------------------------------------------------


def in_child(job: dict[str, Any], *, peak: bool) -> dict[str, Any]:
    """Run a job in a fresh process, and return what it prints; either for its time or for its ``peak`` of memory."""
    command = [sys.executable, __file__, "--child", json.dumps(job | {"threads": torch.get_num_threads()})]
    # Freed blocks go back to the system at once, so that the peak is what is in use and not what the heap keeps; that is slow.
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "131072"} if peak else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        why = "the system ended it: out of memory" if done.returncode == -9 else done.stderr.strip().splitlines()[-1:]
        return {"failed": f"{why}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(job: dict[str, Any]) -> None:
    free = next(int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvail"))
    resource.setrlimit(resource.RLIMIT_AS, (free << 10, free << 10))  # what asks for more fails, and takes nothing else with it
    torch.set_num_threads(job["threads"])
    faiss.omp_set_num_threads(job["threads"])
    print(json.dumps(JOBS[job["job"]](job)))


def peak_above(run: Callable[[], Any]) -> tuple[int, Any]:
    """The peak of the resident set during ``run`` above what it was before, and the result."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    result = run()
    return resident("VmHWM") - before, result


# ---- retrieval figures ---------------------------------------------------------------------------------------------------


def our_figures(z: np.ndarray, labels: np.ndarray, queries: int) -> dict[str, float]:
    """Queries are the first rows of the gallery, each left out of its own ranking."""
    found = rank_queries(z[:queries], labels[:queries], z, labels, exclude=np.arange(queries))
    return {name: value for name, value in summarize(found.figures(), labels[:queries])[0].items() if value is not None}


def their_figures(z: np.ndarray, labels: np.ndarray, queries: int) -> dict[str, float]:
    """pytorch-metric-learning's accuracies; recall at 5 and 10 are not among its own, and are added as its manual says."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    def hit(k: int) -> Callable[..., float]:
        def calculate(self: Any, knn_labels: Any, query_labels: Any, **_: Any) -> float:
            return float((knn_labels[:, :k] == query_labels[:, None]).any(dim=1).double().mean())

        return calculate

    more = {f"calculate_recall_at_{k}": hit(k) for k in (5, 10)}
    more["requires_knn"] = lambda self: [*AccuracyCalculator.requires_knn(self), "recall_at_5", "recall_at_10"]
    names = ("precision_at_1", "recall_at_5", "recall_at_10", "r_precision", "mean_average_precision_at_r")
    calculator = type("WithRecall", (AccuracyCalculator,), more)(include=names, k="max_bin_count", device=torch.device("cpu"))
    vectors, known = torch.from_numpy(z), torch.from_numpy(labels)
    found = calculator.get_accuracy(vectors[:queries], known[:queries], vectors, known, ref_includes_query=True)
    renamed = ("recall@1", "recall@5", "recall@10", "r_precision", "map@r")
    return {ours: float(found[theirs]) for ours, theirs in zip(renamed, names, strict=True)}


FIGURES = {"ours": our_figures, "theirs": their_figures}


def evaluation_job(job: dict[str, Any]) -> dict[str, Any]:
    with np.load(job["data"]) as file:
        z, labels = file[job["vectors"]], file["train_labels"].astype(np.int64)
    z = unit(z)
    run = FIGURES[job["side"]]
    run(np.ascontiguousarray(z[:2000]), labels[:2000], 500)  # so that code is loaded
    seconds = []

    def timed() -> dict[str, float]:
        start = time.perf_counter()
        figures = run(z, labels, job["queries"])
        seconds.append(time.perf_counter() - start)
        return figures

    peak, figures = peak_above(timed)
    return {"peak": peak, "figures": figures, "seconds": seconds[0]}


def evaluation(folder: Path, small: bool, turns: int) -> None:
    """A process of its own for each run, as the peer takes most of the memory; first one for the peak, then they take turns."""
    count = len(digits(folder, small)["train"])
    head = ["vectors", "queries", "ours", "peer", "times faster", "ours, peak", "peer, peak", "times less"]
    shown = Table("recall@1,5,10, R-precision, MAP@R (64 dimensions)", [*head, "figures differ by"])
    for vectors in ("train", "train_pixels"):
        job = {"job": "evaluation", "data": str(folder / "digits.npz"), "vectors": vectors, "queries": count}
        found = in_child(job | {"side": "theirs"}, peak=True)
        while "failed" in found and job["queries"] > 1000:  # it does not fit into this machine
            job["queries"] //= 2
            found = in_child(job | {"side": "theirs"}, peak=True)
        peak = {"theirs": found["peak"], "ours": in_child(job | {"side": "ours"}, peak=True)["peak"]}
        runs: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
        for _ in range(turns):
            for side, done in runs.items():
                done.append(in_child(job | {"side": side}, peak=False))
        queries = job["queries"]
        seconds = {side: float(np.median([run["seconds"] for run in done])) for side, done in runs.items()}
        ours, theirs = (runs[side][0]["figures"] for side in ("ours", "theirs"))
        apart = max(abs(ours[name] - theirs[name]) for name in theirs)
        name = "digits" if vectors == "train" else "pixels"
        cells = [name, f"{queries:,} in {count:,}", f"{seconds['ours']:.2f} s", f"{seconds['theirs']:.1f} s"]
        cells += [f"{seconds['theirs'] / seconds['ours']:.1f}", mib(peak["ours"]), mib(peak["theirs"])]
        shown.add([*cells, f"{peak['theirs'] / peak['ours']:.0f}", f"{apart:.0e}"])


# ---- exact search --------------------------------------------------------------------------------------------------------


def exact_against_faiss(folder: Path, small: bool, turns: int) -> None:
    z = digits(folder, small)
    large, dim, asked = (50_000, 128, 1000) if small else (1_000_000, 128, 10_000)
    middle = len(z["train"])
    cases: list[tuple[str, str, Callable[[], tuple[np.ndarray, np.ndarray]]]] = []
    for metric in ("cosine", "euclidean"):
        cases += [
            ("digits", metric, lambda: (unit(z["train"]), unit(z["test"]))),
            ("pixels", metric, lambda: (z["train_pixels"], z["test_pixels"])),
            ("clusters", metric, lambda: (clusters(middle, 64, 0), clusters(asked, 64, 1))),
            ("noise", metric, lambda: (noise(middle, 64, 0), noise(asked, 64, 1))),
            ("clusters", metric, lambda: (clusters(large, dim, 0), clusters(asked, dim, 1))),
            ("noise", metric, lambda: (noise(large, dim, 0), noise(asked, dim, 1))),
        ]
    title = f"Exact search of {K} neighbours against faiss {faiss.__version__} IndexFlat"
    head = ["vectors", "metric", "queries", "ours", "faiss", "times faster", "recall", "same as faiss"]
    shown = Table(title, head)
    for name, metric, made in cases:
        gallery, queries = made()
        if metric == "cosine":
            gallery, queries = unit(gallery), unit(queries)
        theirs = (faiss.IndexFlatIP if metric == "cosine" else faiss.IndexFlatL2)(gallery.shape[1])
        theirs.add(gallery)
        index = nf.NeighborIndex(metric=metric, backend="exact").fit(gallery)
        runs = [lambda index=index, queries=queries: index.search(queries, K)]
        runs.append(lambda theirs=theirs, queries=queries: theirs.search(queries, K))
        ours, other = take_turns(runs, [turns, turns])
        scores, found = index.search(queries, K)
        same = float((found == theirs.search(queries, K)[1]).mean())
        sample = np.arange(0, len(queries), max(1, len(queries) // 200))
        cells = [name, metric, f"{len(queries):,} in {len(gallery):,} x {gallery.shape[1]}"]
        cells += [
            f"{ours:.3f} s",
            f"{other:.3f} s",
            f"{other / ours:.2f}",
            f"{recall(scores[sample], queries[sample], gallery, metric):.4f}",
        ]
        shown.add([*cells, f"{same:.5f}"])


def recall(scores: np.ndarray, queries: np.ndarray, gallery: np.ndarray, metric: str) -> float:
    """Share of what was found that is as near as the k-th nearest by float64."""
    wide, last = queries.astype(np.float64), []
    for start in range(0, len(gallery), 1 << 16):
        part = gallery[start : start + (1 << 16)].astype(np.float64)
        products = wide @ part.T
        if metric == "euclidean":
            products = -np.sqrt(np.maximum((wide**2).sum(1)[:, None] + (part**2).sum(1) - 2.0 * products, 0.0))
        k = min(scores.shape[1], len(part))
        last.append(-np.partition(-products, k - 1, axis=1)[:, :k])
    best = np.sort(np.concatenate(last, axis=1), axis=1)[:, -scores.shape[1]]
    nearness = -scores if metric == "euclidean" else scores
    return float((nearness >= (best - 1e-6)[:, None]).mean())


def exact_against_sklearn(small: bool, turns: int) -> None:
    title = f"Exact search against scikit-learn {sklearn.__version__}, brute force (64 dimensions)"
    shown = Table(title, ["metric", "queries", "ours", "scikit-learn", "times faster"])
    cases = [
        (100, 1),
        (100, 100),
        (1000, 1),
        (1000, 100),
        (1000, 1000),
        (10_000, 1),
        (10_000, 1000),
        (60_000, 1),
        (60_000, 100),
    ]
    cases += [] if small else [(60_000, 10_000), (1_000_000, 1), (1_000_000, 100)]
    for count, asked in cases:
        for metric in ("cosine", "euclidean"):
            gallery, queries = clusters(count, 64, 0), clusters(asked, 64, 1)
            index = nf.NeighborIndex(metric=metric, backend="exact").fit(gallery)
            theirs = NearestNeighbors(n_neighbors=K, algorithm="brute", metric=metric, n_jobs=-1).fit(gallery)
            again = turns * (20 if count * asked < 10**6 else 1)
            runs = [lambda index=index, queries=queries: index.kneighbors(queries, K)]
            runs.append(lambda theirs=theirs, queries=queries: theirs.kneighbors(queries, K))
            ours, other = take_turns(runs, [again, again])
            cells = [metric, f"{asked:,} in {count:,}", f"{ours * 1e3:,.2f} ms", f"{other * 1e3:,.2f} ms"]
            shown.add([*cells, f"{other / ours:.1f}"])


# ---- approximate search --------------------------------------------------------------------------------------------------


def approximate(small: bool) -> None:
    count = 20_000 if small else 1_000_000
    gallery, queries = clusters(count, 64, 0), clusters(500, 64, 1)
    head = ["backend", "library", "built in", "recall@10", "one query", "queries/s", "times exact"]
    shown = Table(f"Single queries in {count:,} x 64 (clusters)", head)
    exact_ms = 0.0
    for backend in ("exact", "hnsw", "annoy"):
        start = time.perf_counter()
        index = nf.NeighborIndex(metric="cosine", backend=backend).fit(gallery)
        seconds = time.perf_counter() - start
        index.search(queries[:5], K)
        times = []
        for query in queries:
            start = time.perf_counter()
            index.search(query[None], K)
            times.append(time.perf_counter() - start)
        one = float(np.median(times)) * 1e3
        exact_ms = exact_ms or one
        share = recall(index.search(queries, K)[0], queries, gallery, "cosine")
        cells = [backend, str(index.built.get("library", "")), f"{seconds:,.1f} s", f"{share:.4f}"]
        shown.add([*cells, f"{one:.3f} ms", f"{1e3 / one:,.0f}", f"{exact_ms / one:.1f}"])


def write_gallery(path: Path, rows: int, dim: int) -> None:
    """Write unit rows by chunks, never more than one in memory."""
    step = 1 << 18
    write_vectors(path, (clusters(min(step, rows - start), dim, start + 2) for start in range(0, rows, step)))


def gallery_job(job: dict[str, Any]) -> dict[str, Any]:
    """Write a gallery by chunks, build an index from the map, save it, open it, and search it."""
    folder, backend = Path(job["folder"]), job["backend"]
    path, saved = folder / f"gallery-{job['rows']}.npy", folder / f"index-{job['rows']}-{backend}"
    found: dict[str, Any] = {}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        found[name] = time.perf_counter() - start
        return result

    def all_of_it() -> None:
        if not path.exists():
            timed("write", lambda: write_gallery(path, job["rows"], 64))
        mapped = np.load(path, mmap_mode="r")
        index = timed("build", lambda: nf.NeighborIndex(metric="cosine", backend=backend).fit(mapped))
        timed("save", lambda: index.save(saved))
        del index
        index = timed("open", lambda: nf.NeighborIndex.load(saved))
        queries = clusters(1000, 64, 1)
        index.search(queries[:2], K)
        single = []
        for query in queries[:21]:
            start = time.perf_counter()
            index.search(query[None], K)
            single.append(time.perf_counter() - start)
        found["one"] = float(np.median(single))
        scores, _ = timed("many", lambda: index.search(queries, K))
        sample = queries[:20]
        found["recall"] = recall(scores[:20], sample, mapped, "cosine")
        found["recall@10"] = index.built.get("recall@10", 1.0)

    nf.NeighborIndex(metric="cosine", backend=backend).fit(clusters(2000, 64, 0)).search(clusters(5, 64, 1), K)
    found["peak"], _ = peak_above(all_of_it)
    found["resident"] = resident("VmHWM")
    found["bytes"] = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
    for file in saved.rglob("*"):
        file.unlink()
    return found


def large(folder: Path, small: bool) -> None:
    rows = 100_000 if small else 10_000_000
    found = in_child({"job": "gallery", "folder": str(folder), "rows": rows, "backend": "exact"}, peak=False)
    steps = ("write", "build", "save", "open", "one", "many")
    cells = [f"{rows:,}", *(f"{found[step]:.3f} s" if step in found else "-" for step in steps)]
    head = ["vectors x 64", "written", "built", "saved", "opened", "one query", "1,000 queries", "recall", "peak, resident"]
    shown = Table("A gallery larger than one would hold: from a memory map", head)
    shown.add([*cells, f"{found['recall']:.4f}", mib(found["resident"])])


def growth(folder: Path, small: bool, largest: int, picture: Path) -> None:
    sizes = [1000, 10_000] if small else [10_000, 100_000, 1_000_000, 10_000_000]
    tables: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    head = ["backend", "vectors", "built", "one query", "1,000 queries", "recall", "on disk", "peak"]
    shown = Table("Growth (64 dimensions, clusters; the peak has the mapped gallery in it)", head)
    for backend in ("exact", "hnsw", "annoy"):
        for rows in sizes:
            if backend != "exact" and rows > largest:
                continue
            found = in_child({"job": "gallery", "folder": str(folder), "rows": rows, "backend": backend}, peak=False)
            tables.setdefault(backend, []).append((rows, found))
            if "failed" in found:
                shown.add([backend, f"{rows:,}", found["failed"], "", "", "", "", ""])
                continue
            line = [backend, f"{rows:,}", f"{found['build']:.2f} s", f"{found['one'] * 1e3:.2f} ms", f"{found['many']:.3f} s"]
            shown.add([*line, f"{found['recall']:.3f}", mib(found["bytes"]), mib(found["peak"])])
    draw_growth(tables, picture)


def draw_growth(tables: dict[str, list[tuple[int, dict[str, Any]]]], picture: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [("build", "building, s", 1.0), ("one", "one query, ms", 1e3), ("many", "1,000 queries, s", 1.0)]
    panels.append(("peak", "peak memory, MiB", 2.0**-20))
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.4), layout="constrained")
    for axis, (key, title, scale) in zip(axes, panels, strict=True):
        for (backend, points), marker in zip(tables.items(), "os^", strict=False):
            done = [(rows, found[key] * scale) for rows, found in points if key in found]
            axis.loglog(*zip(*done, strict=True), marker=marker, label=backend)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("vectors in the gallery")
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    print(f"\ndrawn: {picture}")


JOBS = {"evaluation": evaluation_job, "gallery": gallery_job}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, help="sections")
    parser.add_argument("--turns", type=int, default=3, help="runs of each side")
    parser.add_argument("--largest", type=int, default=1_000_000, help="up to how many vectors approximate indexes are grown")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parent.parent / "docs/images/search-growth.png")
    parser.add_argument("--folder", type=Path, help="where embeddings and galleries are kept; else a temporary one")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("nearfar").setLevel(logging.WARNING)
    if options.child:
        return child(json.loads(options.child))
    import pytorch_metric_learning

    only = set(options.only)
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(
        f"nearfar {nf.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, faiss {faiss.__version__}, ",
        end="",
    )
    print(f"scikit-learn {sklearn.__version__}, pytorch-metric-learning {pytorch_metric_learning.__version__}, ", end="")
    print(f"NumPy {np.__version__}, Python {platform.python_version()}, {processor()}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if "evaluation" in only:
            evaluation(folder, options.small, options.turns)
        if "exact" in only:
            exact_against_faiss(folder, options.small, options.turns)
        if "scikit-learn" in only:
            exact_against_sklearn(options.small, options.turns)
        if "approximate" in only:
            approximate(options.small)
        if "large" in only:
            large(folder, options.small)
        if "growth" in only:
            growth(folder, options.small, options.largest, options.picture)
    return None


if __name__ == "__main__":
    main()
