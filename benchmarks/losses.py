"""The losses against the dense form and against pytorch-metric-learning: time, peak memory, digits.

    python benchmarks/losses.py            everything; the machine should be idle; about ten minutes on two cores
    python benchmarks/losses.py --small    the same tables in small, to see that all of it runs
    python benchmarks/losses.py --only dense,peer

Times are medians of runs that take turns in one process, of forward and backward together. Memory is the peak of the
resident set of a fresh process above what it held with its inputs ready. Ratios are theirs over ours.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nearfar
from nearfar.gradcache import cached_step
from nearfar.losses import LOSSES

LossOf = Callable[[Tensor, Tensor], Tensor]
TAU = 0.1


# ---- the other forms -----------------------------------------------------------------------------------------------------


def dense_supcon(z: Tensor, y: Tensor, tau: float = TAU) -> Tensor:
    """SupCon as it is written down, on the B x B matrix."""
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positives = (y[:, None] == y[None, :]) & ~own
    scores = z @ z.T / tau
    everyone = torch.logsumexp(scores.masked_fill(own, -torch.inf), 1)
    count = positives.sum(1)
    has = count > 0
    return (everyone - (scores * positives).sum(1) / count.clamp_min(1))[has].mean()


def dense_dcl(z: Tensor, y: Tensor, tau: float = TAU) -> Tensor:
    """Decoupled contrastive loss on the B x B matrix."""
    same = y[:, None] == y[None, :]
    positives = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = z @ z.T / tau
    against = torch.logsumexp(scores.masked_fill(same, -torch.inf), 1)
    return ((against[:, None] - scores) * positives).sum() / positives.sum()


def dense_ntxent(z: Tensor, y: Tensor, tau: float = TAU) -> Tensor:
    """NT-Xent for any number of positives on the B x B matrix."""
    same = y[:, None] == y[None, :]
    positives = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
    scores = z @ z.T / tau
    against = torch.logsumexp(scores.masked_fill(same, -torch.inf), 1)
    return (F.softplus(against[:, None] - scores) * positives).sum() / positives.sum()


DENSE: dict[str, Callable[..., Tensor]] = {"supcon": dense_supcon, "dcl": dense_dcl, "nt-xent": dense_ntxent}


def peer(name: str) -> LossOf:
    """pytorch-metric-learning's loss of that name."""
    from pytorch_metric_learning import losses

    made: LossOf = {"nt-xent": losses.NTXentLoss, "supcon": losses.SupConLoss}[name](temperature=TAU)
    return made


def loss_of(form: str, name: str) -> LossOf:
    """A loss by form ("ours", "dense", "peer") and name."""
    if form == "dense":
        return DENSE[name]
    return LOSSES[name](temperature=TAU) if form == "ours" else peer(name)


def data(rows: int, dim: int, classes: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Unit rows gathered about class centres, as in the middle of a training, in random order."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, classes, (rows,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    z = F.normalize(torch.randn(rows, dim, generator=generator).add_(centres[y], alpha=0.5), dim=1)
    return z.to(device, dtype), y.to(device)


def step(loss: LossOf, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward."""
    z = z.detach().requires_grad_()
    value = loss(z, y)
    value.backward()
    assert z.grad is not None
    return value.detach(), z.grad


# ---- measuring -----------------------------------------------------------------------------------------------------------


def take_turns(runs: Sequence[Callable[[], Any]], times: list[int]) -> list[float]:
    """Median seconds of each, after one run that does not count; the runs take turns."""
    spent: list[list[float]] = [[] for _ in runs]
    for turn in range(max(times) + 1):
        for number, run in enumerate(runs):
            if turn <= times[number]:
                start = time.perf_counter()
                run()
                if turn:
                    spent[number].append(time.perf_counter() - start)
    return [statistics.median(one) for one in spent]


def resident(field: str) -> int:
    """Bytes of this process's resident set: now ("VmRSS") or at its peak ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_of(job: dict[str, Any]) -> int:
    """Bytes that a fresh process takes for a job above its inputs."""
    command = [sys.executable, __file__, "--child", json.dumps(job | {"threads": torch.get_num_threads()})]
    # Freed blocks go back to the system at once, so that the peak is what is in use and not what the heap keeps.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{job} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return int(done.stdout)


def child(job: dict[str, Any]) -> None:
    """Do a job once small, so that code is loaded, then once in full, and print the peak above the inputs."""
    torch.set_num_threads(job["threads"])

    def run(rows: int) -> Callable[[], Any]:
        if job["form"] in ("plain", "cached"):
            x = torch.randn(rows, 1, 28, 28)
            return partial(train_step, small_net(), x, torch.arange(rows) % 10, job["form"], job["chunk"])
        return partial(step, loss_of(job["form"], job["name"]), *data(rows, job["dim"], min(job["classes"], rows // 4)))

    run(min(job["rows"], job.get("chunk", 1024)))()
    full = run(job["rows"])
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = resident("VmRSS")
    full()
    print(resident("VmHWM") - before)


def mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


class Table:
    """A table in Markdown, of which each row is printed when it is there."""

    def __init__(self, title: str, head: list[str]) -> None:
        self.widths = [max(len(cell), 8) for cell in head]
        print(f"\n## {title}\n")
        self.add(head)
        print("|" + "|".join("-" * (width + 2) for width in self.widths) + "|", flush=True)

    def add(self, row: list[str]) -> None:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, self.widths, strict=True)) + " |", flush=True)


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print a table whose rows are all there."""
    shown = Table(title, head)
    for row in rows:
        shown.add(row)


# ---- the tables ----------------------------------------------------------------------------------------------------------


def against(form: str, title: str, cases: list[tuple[str, int, int, int]], turns: int) -> None:
    """Ours against another form, by (loss, rows, classes, runs of the other)."""
    rows = []
    for name, count, classes, other_turns in cases:
        z, y = data(count, 128, classes)
        ours, other = loss_of("ours", name), loss_of(form, name)
        quick, slow = take_turns([partial(step, ours, z, y), partial(step, other, z, y)], [turns, other_turns])
        (value, gradient), (their_value, their_gradient) = step(ours, z, y), step(other, z, y)
        job = {"name": name, "rows": count, "dim": 128, "classes": classes}
        small, large = peak_of(job | {"form": "ours"}), peak_of(job | {"form": form})
        # Rows are unit rows for all; the peer also takes the gradient of making them so, which has no part along the row.
        one, other_one = (part - (part * z).sum(1, keepdim=True) * z for part in (gradient, their_gradient))
        cells = [name, f"{count:,}", str(classes), ms(quick), ms(slow), f"{slow / quick:,.1f}", mib(small), mib(large)]
        cells += [f"{large / max(small, 1):,.0f}", f"{abs(float(value / their_value) - 1):.0e}"]
        rows.append([*cells, f"{float((one - other_one).norm() / other_one.norm()):.0e}"])
    head = ["loss", "batch", "classes", "ours", form, "times faster", "ours, peak", f"{form}, peak", "times less"]
    table(title, [*head, "value differs", "gradient differs"], rows)


def large(counts: list[int]) -> None:
    rows = []
    for count in counts:
        for name in DENSE:
            z, y = data(count, 128, 1000)
            (seconds,) = take_turns([partial(step, loss_of("ours", name), z, y)], [1])
            peak = peak_of({"form": "ours", "name": name, "rows": count, "dim": 128, "classes": 1000})
            rows.append([name, f"{count:,}", f"{seconds:,.1f} s", mib(peak)])
    table("Large batches (128 dimensions, 1,000 classes, float32)", ["loss", "batch", "time", "peak"], rows)


def digits(counts: list[int]) -> None:
    """Largest relative error of the float32 gradient; float64 is our own, which the tests hold to slow loops."""
    rows = []
    for name in DENSE:
        for count in counts:
            z, y = data(count, 128, 10)
            errors = []
            for tau in (0.01, 0.02, 0.05, 0.1, 0.3, 1.0):
                loss = LOSSES[name](temperature=tau)
                (_, narrow), (_, wide) = step(loss, z, y), step(loss, z.double(), y)
                errors.append(float((narrow - wide).norm() / wide.norm()))
            rows.append([name, f"{count:,}", *(f"{error:.1e}" for error in errors)])
    head = ["loss", "batch", *(f"tau {tau}" for tau in (0.01, 0.02, 0.05, 0.1, 0.3, 1.0))]
    table("Relative error of float32 gradients against float64", head, rows)


def small_net() -> nn.Module:
    """A small convolutional encoder without batch norm, whose statistics would be by chunk."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(1024, 128))


def train_step(encoder: nn.Module, x: Tensor, y: Tensor, form: str, chunk: int) -> list[Tensor]:
    """One step, plain or by gradient caching; the gradients."""
    encoder.zero_grad()
    loss = LOSSES["supcon"](temperature=TAU)

    def compare(z: Tensor) -> Tensor:
        return loss(F.normalize(z, dim=1), y)

    if form == "plain":
        compare(encoder(x)).backward()
    else:
        cached_step(encoder, x.split(chunk), compare)
    return [one.grad.clone() for one in encoder.parameters() if one.grad is not None]


def caching(counts: list[int], chunk: int) -> None:
    rows = []
    for count in counts:
        encoder, x, y = small_net(), torch.randn(count, 1, 28, 28), torch.arange(count) % 10
        runs = [partial(train_step, encoder, x, y, form, chunk) for form in ("plain", "cached")]
        plain, cached = take_turns(runs, [5, 5])
        wanted, found = (torch.cat([one.flatten() for one in run()]) for run in runs)
        off = float((found - wanted).norm() / wanted.norm())
        peaks = [peak_of({"form": form, "rows": count, "chunk": chunk}) for form in ("plain", "cached")]
        rows.append([f"{count:,}", ms(plain), ms(cached), f"{cached / plain:.2f}", *map(mib, peaks), f"{off:.0e}"])
    head = ["batch", "plain", "cached", "times slower", "plain, peak", "cached, peak", "gradient differs"]
    table(f"Gradient caching in chunks of {chunk}", head, rows)


def gpu(small: bool) -> None:
    """The dense table on an accelerator, and a batch of a million in bfloat16 beside its matrix products alone."""
    rows = []
    for name in DENSE:
        for classes in (10, 1000):
            z, y = data(1024 if small else 8192, 128, classes, "cuda")
            cells = []
            for form in ("ours", "dense"):
                run = partial(step, loss_of(form, name), z, y)
                run()
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                start = time.perf_counter()
                for _ in range(10):
                    run()
                torch.cuda.synchronize()
                cells += [(time.perf_counter() - start) / 10, torch.cuda.max_memory_allocated() - before]
            faster, less = f"{cells[2] / cells[0]:.1f}", f"{cells[3] / cells[1]:.0f}"
            rows.append([name, str(classes), ms(cells[0]), ms(cells[2]), faster, mib(cells[1]), mib(cells[3]), less])
    head = ["loss", "classes", "ours", "dense", "times faster", "ours, peak", "dense, peak", "times less"]
    table(f"On {torch.cuda.get_device_name()}", head, rows)

    count = 16384 if small else 2**20
    z, y = data(count, 128, 1000, "cuda", torch.bfloat16)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step(loss_of("ours", "supcon"), z, y)
    torch.cuda.synchronize()
    spent, peak = time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
    wide, size = z.float(), 4096
    start = time.perf_counter()
    for _ in range((count // size) ** 2 // 2):
        # Half the tiles: similarities twice, and a product with the rows and one with the columns.
        scores = wide[:size] @ wide[:size].T
        scores = wide[:size] @ wide[:size].T
        scores @ wide[:size]
        scores.T @ wide[:size]
    torch.cuda.synchronize()
    products = time.perf_counter() - start
    row = [f"{count:,}", f"{spent:.2f} s", f"{products:.2f} s", f"{spent / products:.1f}", mib(peak)]
    table("SupCon, bfloat16 rows", ["batch", "time", "products alone", "ratio", "peak"], [row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--only", help="tables, comma-separated: dense, large, peer, digits, caching, gpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(json.loads(options.child))
    import pytorch_metric_learning

    small = options.small
    only = set(options.only.split(",")) if options.only else {"dense", "large", "peer", "digits", "caching", "gpu"}
    print(f"nearfar {nearfar.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, ", end="")
    print(f"pytorch-metric-learning {pytorch_metric_learning.__version__}, Python {platform.python_version()}, {processor()}")
    if "dense" in only:
        count = 2048 if small else 8192
        cases = [(name, count, classes, 3) for name in DENSE for classes in (10, 1000)]
        against("dense", "Against the dense B x B form in plain PyTorch (128 dimensions, float32)", cases, 7)
        sizes = (32, 128, 256, 512, 1024, 2048) if not small else (32, 512)
        against("dense", "The same for small and middling batches", [(name, n, 10, 7) for name in DENSE for n in sizes], 15)
    if "large" in only:
        large([16384] if small else [32768, 131072])
    if "peer" in only:
        version = pytorch_metric_learning.__version__
        cases = [("nt-xent", 64 if small else 256, 10, 3), ("supcon", 512 if small else 4096, 10, 3)]
        against("peer", f"Against pytorch-metric-learning {version} (128 dimensions, float32)", cases, 15)
    if "digits" in only:
        digits([256, 1024] if small else [256, 1024, 4096, 16384])
    if "caching" in only:
        caching([256, 512] if small else [1024, 4096], 64 if small else 128)
    if "gpu" in only and torch.cuda.is_available():
        gpu(small)
    return None


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
