"""A server as a process of its own, as people start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx


class Process:
    """A running ``nearfar serve``."""

    def __init__(self, run: Path, options: Sequence[str] = (), **environment: str) -> None:
        command = [sys.executable, "-m", "nearfar", "serve", str(run), "--port", "0", "--device", "cpu", *options]
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.popen.stderr is not None
        self.said = ""
        self.address = ""
        while not self.address:
            line = self.popen.stderr.readline()
            if not line:
                raise AssertionError(f"the server ended: {self.said}")
            self.said += line
            found = re.search(r"http://\S+", line)
            self.address = found[0] if found else ""

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=30, trust_env=False)

    def end(self, how: int = signal.SIGTERM) -> int:
        """The exit code, after the signal ``how``."""
        self.popen.send_signal(how)
        _, rest = self.popen.communicate(timeout=30)
        self.said += rest
        return self.popen.returncode


@contextmanager
def server(run: Path, *options: str, **environment: str) -> Iterator[Process]:
    process = Process(run, options, **environment)
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.popen.communicate()


def wait_for(condition: object, seconds: float = 20.0) -> None:
    """Wait until ``condition()`` is true."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
