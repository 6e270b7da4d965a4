"""A model of what images, vectors, search and training cost by size: pure functions of a few numbers, in bytes and seconds.

Knows no measured number, and of nearfar only in which order things are done. Collective operations are rings: a sum of n bytes
between W processes sends 2 (W - 1) / W n bytes from each, a gather or a sum of which each keeps its part half of that (Thakur,
Rabenseifner and Gropp 2005). What is assumed stands in capitals.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

MACHINE = 64 << 30
"""Bytes of memory of a machine."""


@dataclass(frozen=True)
class Network:
    """Bandwidth, seconds of a message between two processes, and whether small sums go by trees, as NCCL's, or by rings."""

    name: str
    gigabits: float
    hop: float
    tree: bool


SLOW, FAST = Network("gloo", 1, 100e-6, False), Network("NCCL", 100, 20e-6, True)
"""Assumed: processors in machines on Ethernet, and training devices; and how many times as fast as a core one of them is:"""
DEVICE = 300.0


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What of an encoder matters here: numbers of a vector, weights, batch norms, images a second of one core."""

    name: str
    dim: int
    weights: int
    norms: int
    image_bytes: float
    embed_rate: float
    train_rate: float


# ---- vectors -------------------------------------------------------------------------------------------------------------


def vector_bytes(count: float, dim: int, beside: float = 0.0) -> float:
    """float32 vectors, with ``beside`` bytes of names and numbers for each."""
    return count * (4 * dim + beside)


def graph_bytes(count: float, dim: int, links: float) -> float:
    """An HNSW graph with its own vectors in half precision, and ``links`` bytes of links for each."""
    return count * (2 * dim + links)


def machines(size: float, each: float = MACHINE) -> int:
    """How many it takes to hold ``size`` bytes."""
    return max(1, math.ceil(size / each))


def crossing(cost: Callable[[float], float], limit: float) -> float:
    """The count at which a cost that grows passes the limit, by bisection between 1 and 10^15; infinite beyond."""
    low, high = 0.0, 15.0
    if cost(10**high) < limit:
        return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(10**middle) < limit else (low, middle)
    return float(10**high)


# ---- search --------------------------------------------------------------------------------------------------------------


def exact_seconds(count: float, dim: int, a_number: float, *, queries: int = 1, cores: int = 1) -> float:
    """Every number of every vector is looked at, for each query; cores share that evenly."""
    return count * dim * queries * a_number / cores


def line_through(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope through two points."""
    (x, y), (u, v) = points
    slope = (v - y) / (u - x)
    return y - slope * x, slope


def graph_build_seconds(count: float, dim: int, line: tuple[float, float], *, cores: int = 1) -> float:
    """N log N insertions (Malkov and Yashunin 2018), each for a part ``line[0]`` and for each dimension ``line[1]`` seconds."""
    return count * math.log(count) * (line[0] + line[1] * dim) / cores


def graph_query_seconds(count: float, dim: int, line: tuple[float, float]) -> float:
    """A walk of a length that grows as log N."""
    return math.log(count) * (line[0] + line[1] * dim)


def slowest_quantile(share: float, shards: int, median: float, spread: float) -> float:
    """Time by which ``share`` of queries have the answers of all shards, whose times are log-normal and independent."""
    return median * math.exp(spread * statistics.NormalDist().inv_cdf(share ** (1 / shards)))


def simulate_shards(
    shards: int, median: float, spread: float, load: float, *, queries: int = 4_000, seed: int = 0
) -> list[float]:
    """Seconds that queries wait for the slowest of all shards, sorted.

    Each shard answers one query after another, in times that are log-normal about the ``median``; queries come at random
    times, so often that a shard is busy for the share ``load``. A shard's backlog follows Lindley's recursion (1952).
    """
    draw = random.Random(seed)
    mean = median * math.exp(spread**2 / 2)
    backlog = [0.0] * shards
    waited = []
    for _ in range(queries):
        gap = draw.expovariate(load / mean) if load else math.inf
        backlog = [max(0.0, left - gap) + median * math.exp(spread * draw.gauss(0.0, 1.0)) for left in backlog]
        waited.append(max(backlog))
    return sorted(waited)


# ---- training in several processes ---------------------------------------------------------------------------------------


def sum_bytes(size: float, processes: int) -> float:
    """Sent by each process for the sum of ``size`` bytes over all, in 2 (W - 1) rounds."""
    return 2 * (processes - 1) / processes * size


def gather_bytes(size: float, processes: int) -> float:
    """Sent by each process until all have the ``size`` bytes of which each has a part, in W - 1 rounds."""
    return (processes - 1) / processes * size


def step_bytes(batch: int, dim: int, weights: int, processes: int, *, tree: bool = False) -> tuple[float, float]:
    """Sent by each process in a step: for embeddings (gathered, and their gradients added up), and for gradients of weights.

    Of the gradients of embeddings a process wants its own part alone. gloo sends it all.
    """
    embeddings, gradients = 4.0 * batch * dim, sum_bytes(4.0 * weights, processes)
    added = gather_bytes(embeddings, processes) if tree else sum_bytes(embeddings, processes)
    return gather_bytes(embeddings, processes) + added, gradients


def step_rounds(norms: int, processes: int, *, tree: bool = False) -> int:
    """Rounds of messages in a step: gather, sums of embeddings, of the loss, of weights, and two for each batch norm.

    A sum takes 2 (W - 1) in a ring, and 2 log2 W in a tree (Sanders, Speck and Träff 2009).
    """
    a_sum = 2 * math.ceil(math.log2(processes)) if tree else 2 * (processes - 1)
    return (processes - 1) + a_sum * (3 + 2 * norms)


def network_seconds(batch: int, encoder: Encoder, processes: int, network: Network) -> float:
    """Of a step, for one process; nothing is hidden behind computing, as nearfar sends after the backward pass."""
    sent = sum(step_bytes(batch, encoder.dim, encoder.weights, processes, tree=network.tree))
    return 8 * sent / (network.gigabits * 1e9) + network.hop * step_rounds(encoder.norms, processes, tree=network.tree)


def compute_seconds(batch: int, encoder: Encoder, processes: int, pair: float, *, speed: float = 1.0) -> float:
    """Of a step, for one process: its part of the images through the encoder, and against all others in the loss."""
    part = batch / processes
    return (part / encoder.train_rate + part * batch * encoder.dim * pair) / speed


def simulate_training(
    processes: int, compute: float, network: float, spread: float, *, steps: int = 300, seed: int = 0
) -> float:
    """Mean seconds of a step: all wait for the slowest, whose time is log-normal with the mean ``compute``."""
    draw = random.Random(seed)
    slowest = (max(draw.gauss(0.0, 1.0) for _ in range(processes)) for _ in range(steps))
    return network + compute * statistics.fmean(math.exp(spread * high - spread**2 / 2) for high in slowest)
