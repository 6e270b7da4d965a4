"""Embedding 60,000 images: in memory, streamed, and on Ray, on one machine; images a second, start-up apart. Run it when idle.

    python benchmarks/embedding.py RUN [--images 60000] [--turns 3]

Each way runs as a process of its own, once on 2,000 images and once on all: rates are of the difference, so that starting does
not count. RUN takes images such as those of MNIST.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import nearfar as nf

FEW = 2_000


def write_shards(folder: Path, count: int) -> Path:
    """MNIST's training images as Parquet files of 5,000, encoded as PNG."""
    images = nf.load_images("mnist", "train").images
    folder.mkdir()
    for start in range(0, count, 5_000):
        rows = []
        for row in range(start, min(start + 5_000, count)):
            content = io.BytesIO()
            Image.fromarray(images[row % len(images)][0]).save(content, "PNG")
            rows.append(content.getvalue())
        pq.write_table(pa.table({"image": rows}), folder / f"{start:08d}.parquet", row_group_size=1_000)
    return folder


def seconds(run: str, data: Path, out: Path, *options: str) -> float:
    """Time of one command, from its start to its end."""
    command = [sys.executable, "-m", "nearfar", "embed", run, str(data), "--out", str(out), *options]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        few, many = (write_shards(Path(home) / f"{count}", count) for count in (FEW, given.images))
        rates: dict[str, list[float]] = {}
        for turn in range(given.turns):
            for way, suffix, options in (
                ("in memory", ".parquet", ()),
                ("streamed", "", ()),
                ("on Ray", "", ("--ray", "local")),
            ):
                name = f"{turn}-{way.replace(' ', '-')}"
                start = seconds(given.run, few, Path(home) / f"few-{name}{suffix}", *options)
                whole = seconds(given.run, many, Path(home) / f"many-{name}{suffix}", *options)
                rates.setdefault(way, []).append((given.images - FEW) / (whole - start))
                print(
                    f"{way}: {FEW:,} in {start:.1f} s, {given.images:,} in {whole:.1f} s, {rates[way][-1]:,.0f} images/s",
                    flush=True,
                )
    middle = {way: statistics.median(found) for way, found in rates.items()}
    for way, rate in middle.items():
        print(f"{way:10} {rate:8,.0f} images/s, {rate / middle['streamed']:.2f} of streamed")


if __name__ == "__main__":
    main()
