"""Requests a second, latency, memory and the time to start of ``nearfar serve``, beside a plain FastAPI handler.

    python benchmarks/serve.py [--run runs/mnist] [--seconds 20] [--clients 16] [--minutes 10]

Everything goes over loopback, client and server on the same cores. Each client sends the next image as soon as it has the
answer to the last. The plain handler is what tutorials show: a form upload, the network for one image, scikit-learn's
neighbours among all vectors, a vote. Runs of both alternate; figures are medians of three.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nearfar.data import load_images

PLAIN = """
import io, sys
import numpy as np, torch, uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image
from sklearn.neighbors import NearestNeighbors
import nearfar as nf
run, port = sys.argv[1], int(sys.argv[2])
embedder = nf.Embedder.load(run)
model, data = embedder.encoder_.eval(), embedder.recipe_.data
index = nf.NeighborIndex.load(run + "/index")
labels = np.asarray(index.labels)
neighbors = NearestNeighbors(n_neighbors=10, metric="cosine").fit(np.asarray(index.vectors))
app = FastAPI()

@app.get("/readyz")
def ready():
    return {}

@app.post("/v1/predict")
def predict(image: UploadFile):
    pixels = np.asarray(Image.open(io.BytesIO(image.file.read())).convert("L").resize((28, 28)), dtype=np.float32) / 255
    x = (torch.from_numpy(pixels)[None, None] - torch.tensor(data.mean)) / torch.tensor(data.std)
    with torch.no_grad():
        z = model(x).numpy()
    distances, rows = neighbors.kneighbors(z)
    votes = np.bincount(labels[rows[0]], minlength=10)
    return {"label": int(votes.argmax()), "probability": votes.max() / 10, "neighbors": rows[0].tolist()}

uvicorn.run(app, port=port, log_level="warning")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="runs/mnist")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=0.0, help="of load while memory is watched")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    run, onnx = Path(options.run), Path(options.run) / "model.onnx"
    images = np.asarray(load_images("mnist", "test").images)[:2000, 0]
    forms = [_request(_form(_png(image)), "multipart/form-data; boundary=bench") for image in images]
    plain_files = [_request(_png(image), "image/png") for image in images]
    command = [sys.executable, "-m", "nearfar", "serve", str(run), "--port"]
    servers: dict[str, tuple[list[str], list[bytes]]] = {
        "plain FastAPI, form": ([sys.executable, "-c", PLAIN, str(run)], forms),
        "nearfar, torch, form": (command, forms),
        "nearfar, torch, PNG": (command, plain_files),
    }
    if onnx.exists():
        onnx.rename(onnx.with_suffix(".kept"))  # so that torch is measured first
    try:
        results = _compare(servers, options)
    finally:
        if onnx.with_suffix(".kept").exists():
            onnx.with_suffix(".kept").rename(onnx)
    if onnx.exists():
        with_onnx = {"nearfar, ONNX, form": (command, forms), "nearfar, ONNX, PNG": (command, plain_files)}
        results |= _compare(with_onnx, options)
    plain = results["plain FastAPI, form"]["rate"]
    print(f"{'':24}{'requests/s':>12}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'ready s':>9}{'MiB':>7}")
    for name, row in results.items():
        print(
            f"{name:24}{row['rate']:12.0f}{row['rate'] / plain:8.1f}{row['p50']:9.1f}{row['p99']:9.1f}"
            f"{row['ready']:9.2f}{row['mib']:7.0f}"
        )
    if options.minutes:
        _soak([*command], plain_files, options)


def _compare(servers: dict[str, tuple[list[str], list[bytes]]], options: argparse.Namespace) -> dict[str, dict[str, float]]:
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    for _ in range(options.repeats):
        for name, (command, requests) in servers.items():
            with _server(command) as (port, pid, ready):
                asyncio.run(_load(port, requests, options.clients, 2.0))
                times, seconds = asyncio.run(_load(port, requests, options.clients, options.seconds))
                rows[name].append(
                    {
                        "rate": len(times) / seconds,
                        "p50": 1000 * float(np.quantile(times, 0.5)),
                        "p99": 1000 * float(np.quantile(times, 0.99)),
                        "ready": ready,
                        "mib": _resident(pid),
                    }
                )
    return {name: {key: statistics.median(row[key] for row in found) for key in found[0]} for name, found in rows.items()}


def _soak(command: list[str], requests: list[bytes], options: argparse.Namespace) -> None:
    with _server(command) as (port, pid, _):
        marks, ends = [], time.monotonic() + 60 * options.minutes
        while time.monotonic() < ends:
            times, seconds = asyncio.run(_load(port, requests, options.clients, min(30.0, 60 * options.minutes / 4)))
            marks.append(_resident(pid))
            at, p99 = 60 * options.minutes - (ends - time.monotonic()), 1000 * float(np.quantile(times, 0.99))
            rate = len(times) / seconds
            print(f"{at:6.0f} s  {marks[-1]:7.1f} MiB  {rate:6.0f} requests/s  p99 {p99:.1f} ms", flush=True)
        print(f"memory after the first part {marks[0]:.1f} MiB, at the end {marks[-1]:.1f} MiB")


@contextmanager
def _server(command: list[str]) -> Iterator[tuple[int, int, float]]:
    """Port, process number and seconds until it was ready of a server that runs meanwhile."""
    port, started = _free_port(), time.perf_counter()
    process = subprocess.Popen([*command, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                    break
            except OSError:
                if process.poll() is not None or time.perf_counter() - started > 60:
                    sys.exit(f"{' '.join(command)[:80]} did not start: {process.stderr.read() if process.stderr else ''}")
                time.sleep(0.01)
        yield port, process.pid, time.perf_counter() - started
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


async def _load(port: int, requests: list[bytes], clients: int, seconds: float) -> tuple[list[float], float]:
    """Seconds of each answer, and seconds in all, of ``clients`` that ask one after the other."""
    turns, times = itertools.cycle(requests), []
    started = time.perf_counter()

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() - started < seconds:
            begun = time.perf_counter()
            writer.write(next(turns))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            times.append(time.perf_counter() - begun)
            if not head.startswith(b"HTTP/1.1 200"):
                sys.exit(f"refused: {head!r} {body!r}")
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times, time.perf_counter() - started


def _request(body: bytes, kind: str) -> bytes:
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _form(content: bytes) -> bytes:
    head = b'--bench\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    return head + content + b"\r\n--bench--\r\n"


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _resident(pid: int) -> float:
    """MiB that a process and its children hold."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    print(json.dumps({"cores": os.cpu_count()}))
    main()
