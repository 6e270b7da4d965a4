"""Verbs that put a run on the network: serve."""

from __future__ import annotations

import sys
from pathlib import Path

from nearfar.cli.options import Device, Run
from nearfar.cli.root import app


@app.command
def serve(
    run: Run,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    onnx: Path | None = None,
    precision: float = 0.99,
    api_key_file: Path | None = None,
    max_body: int = 16 << 20,
    max_pixels: int = 25_000_000,
    max_images: int = 64,
    max_k: int = 1000,
    concurrency: int = 128,
    timeout: float = 30.0,
    batch: int = 64,
    threads: int = 1,
    device: Device = "auto",
) -> None:
    """Serve a run: an HTTP interface for vectors, neighbours and classes, and a page to draw on. Ctrl-C ends it.

    Parameters
    ----------
    host
        The address to listen on; 0.0.0.0 lets the network in, and adding images then needs a key.
    port
        The port; 0 takes any that is free.
    onnx
        Compute with an exported model of this run, without PyTorch; by default with RUN/model.onnx where there is one.
    precision
        Wanted share of right ones among the answers that are given, where a request does not say; 0 answers everything.
    api_key_file
        A file with the key that adding and removing images needs; by default $NEARFAR_API_KEY.
    max_body
        Bytes of a request.
    max_pixels
        Pixels of an image.
    max_images
        Images in a request.
    max_k
        Neighbours of an image.
    concurrency
        Requests worked on at one time; others are sent away with status 503.
    timeout
        Seconds for a body to come, and for an answer.
    batch
        Images that go through the network together at most.
    threads
        Threads that the network and the search compute with.
    """
    from nearfar.serve import run as server
    from nearfar.serve.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        precision=precision,
        api_key=server.key_from(api_key_file),
        max_body=max_body,
        max_pixels=max_pixels,
        max_images=max_images,
        max_k=max_k,
        concurrency=concurrency,
        timeout=timeout,
        batch=batch,
        threads=threads,
    )

    def ready(address: str) -> None:
        print(f"{run} at {address}", file=sys.stderr)
        if not settings.may_write:
            print("the network can reach it: nothing can be added to the run without an API key", file=sys.stderr)
        sys.stderr.flush()

    server.serve(run, settings, device=device, onnx=onnx, ready=ready)
