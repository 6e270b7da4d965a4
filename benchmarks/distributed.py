"""Two processes with a thread each against one process with two threads, at the same batch; and what the loss takes of memory.

    python benchmarks/distributed.py [--epochs 1] [--turns 3] [--recipe mnist-fast] [--data mnist]

Prints images a second of both, their ratio (goal: at least 0.85), and the bytes that a loss keeps for its backward pass in a
process with half of the rows, against its share: of a tiled loss its rows and all keys, of a dense one half of what the whole
batch takes. For an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import nearfar
from nearfar.losses import SupConLoss, TripletLoss
from nearfar.memory import saved_bytes


def train(data: str, recipe: str, epochs: float, processes: int, threads: int) -> float:
    """Images a second of one training."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "nearfar", "train", data, "--recipe", recipe, "--epochs", str(epochs)]
        command += ["--out", str(out), "--device", "cpu", "--set", "train.precision=float32", "--json"]
        command += ["--processes", str(processes)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        return float(json.loads(done.stdout)["images_per_second"])


def loss_memory(batch: int, dim: int) -> list[tuple[str, int, int]]:
    """For a tiled and a dense loss: bytes kept by half of the rows against all, and the share that is theirs."""
    z, y = torch.nn.functional.normalize(torch.randn(batch, dim), dim=1), torch.arange(batch) % 10
    rows, keys = z[: batch // 2].clone().requires_grad_(), z.clone().requires_grad_()
    found = []
    for loss in (SupConLoss(), TripletLoss(mining="hard")):
        half = saved_bytes(lambda loss=loss: loss.sums(rows, y[: batch // 2], keys, y, key_offset=0))[0]
        if isinstance(loss, SupConLoss):
            share = (len(rows) + len(keys)) * dim * 4
        else:
            share = saved_bytes(lambda loss=loss: loss(z.requires_grad_(), y))[0] // 2
        found.append((type(loss).__name__, half, share))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--recipe", default="mnist-fast")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2048, help="rows of the loss whose memory is measured")
    options = parser.parse_args()
    print(f"nearfar {nearfar.__version__}, PyTorch {torch.__version__}, {os.cpu_count()} cores, gloo")
    one, two = [], []
    for _ in range(options.turns):
        one.append(train(options.data, options.recipe, options.epochs, 1, 2))
        two.append(train(options.data, options.recipe, options.epochs, 2, 1))
    ratio = statistics.median(two) / statistics.median(one)
    print(f"{options.recipe} on {options.data}, {options.epochs:g} epochs, median of {options.turns}")
    print(f"  1 process, 2 threads    {statistics.median(one):10,.0f} images/s")
    print(f"  2 processes, 1 thread   {statistics.median(two):10,.0f} images/s")
    print(f"  ratio                   {ratio:10.2f}")
    print(f"kept by the loss for its backward pass, half of {options.batch:,} x 64 rows against all (goal: at most 1.1 shares)")
    for name, half, share in loss_memory(options.batch, 64):
        print(f"  {name:<14} {half:>14,} bytes, {half / share:.2f} of its share")


if __name__ == "__main__":
    main()
