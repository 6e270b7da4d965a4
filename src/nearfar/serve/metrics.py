"""What a server counts, for Prometheus. One registry for each application, so that two in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        r = self.registry
        self.requests = Counter("nearfar_requests", "Requests answered.", ["route", "status"], registry=r)
        self.seconds = Histogram("nearfar_request_seconds", "Until the answer.", ["route"], buckets=_SECONDS, registry=r)
        self.in_flight = Gauge("nearfar_requests_in_flight", "Requests that are worked on.", registry=r)
        self.refused = Counter("nearfar_requests_refused", "Sent away because too many were worked on.", registry=r)
        self.batches = Histogram("nearfar_batch_images", "Images that were computed together.", buckets=_IMAGES, registry=r)
        self.unknown = Counter("nearfar_unknown", "Images of which no class was said.", registry=r)
        self.images = Gauge("nearfar_index_images", "Images in the index.", ["kind"], registry=r)
        self.following = Gauge("nearfar_following", "1 while the run folder can be followed, else 0.", registry=r)

    def watch(self, trained: Callable[[], int], added: Callable[[], int], following: Callable[[], bool]) -> None:
        """Let gauges ask for their values when they are read."""
        self.images.labels("trained").set_function(trained)
        self.images.labels("added").set_function(added)
        self.following.set_function(lambda: float(following()))

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self.registry)
