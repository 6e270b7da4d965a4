"""What a server may be told: where it listens, what it takes, and who may write. Plain values, checked once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from nearfar.calibrate import PRECISION
from nearfar.errors import InputError
from nearfar.web.sockets import is_loopback


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a server behaves.

    Attributes:
        host: the address to listen on.
        port: 0 takes any that is free.
        precision: wanted share of right ones among the answers that are given, where a request does not say.
        api_key: what writing needs; None: nothing, as long as only this machine can reach the server.
        max_body: bytes of a request.
        max_pixels: of one image, as its header claims.
        max_images: in one request.
        max_k: neighbours of one image.
        concurrency: requests that are worked on at one time; what comes beyond is sent away.
        timeout: seconds until a request is given up, and until its body must have come.
        batch: images that go through the network together at most.
        threads: that the network and the search compute with.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    precision: float = PRECISION
    api_key: str | None = None
    max_body: int = 16 << 20
    max_pixels: int = 25_000_000
    max_images: int = 64
    max_k: int = 1000
    concurrency: int = 128
    timeout: float = 30.0
    batch: int = 64
    threads: int = 1

    def __post_init__(self) -> None:
        lowest = {"port": 0, "max_body": 1024, "max_pixels": 1, "max_images": 1, "max_k": 1}
        lowest |= {"concurrency": 1, "batch": 1, "threads": 1}
        highest = {"port": 65_535, "threads": 1024}
        for one in fields(self):
            value, option = getattr(self, one.name), "--" + one.name.replace("_", "-")
            if one.name in lowest and not lowest[one.name] <= value <= highest.get(one.name, 1 << 40):
                raise InputError(f"{option} is {value}, expected {lowest[one.name]:,} to {highest.get(one.name, 1 << 40):,}")
        if not 0.1 <= self.timeout <= 86_400:
            raise InputError(f"--timeout is {self.timeout}, expected seconds from 0.1 to 86,400")
        if not 0.0 <= self.precision < 1.0:
            raise InputError(
                f"--precision is {self.precision}, expected a share from 0 (answer everything) up to, not including, 1"
            )
        if self.api_key is not None and not (8 <= len(self.api_key) <= 1024 and self.api_key.isprintable()):
            raise InputError("the API key must have 8 to 1,024 visible characters; make one, say, with: openssl rand -hex 16")

    @property
    def only_here(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)

    @property
    def may_write(self) -> bool:
        """Whether anybody may: without a key, strangers on the network would."""
        return self.api_key is not None or self.only_here
