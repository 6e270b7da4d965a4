"""The model of docs/scaling.md against rings that are walked, closed forms and queueing theory; nothing is measured."""

import importlib.util
import math
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "scaling_model.py"
    spec = importlib.util.spec_from_file_location("scaling_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def walk(world: int, rounds: int, held: list[list[set[int]]], first: int) -> list[int]:
    """Send one piece on to the next process in every round; a piece is a set of whose numbers are in it. How many were sent."""
    sent = [0] * world
    for turn in range(rounds):
        messages = []
        for rank in range(world):
            piece = (rank + first - turn) % world
            messages.append(((rank + 1) % world, piece, set(held[rank][piece])))
            sent[rank] += 1
        for rank, piece, numbers in messages:
            held[rank][piece] |= numbers
    return sent


@pytest.mark.parametrize("world", [2, 3, 8])
def test_bytes_and_rounds_are_those_of_rings_that_are_walked(scaling: ModuleType, world: int) -> None:
    held = [[{rank} for _ in range(world)] for rank in range(world)]
    sent = walk(world, world - 1, held, 0)
    assert all(held[rank][(rank + 1) % world] == set(range(world)) for rank in range(world))  # each has one piece summed
    then = walk(world, world - 1, held, 1)
    assert all(piece == set(range(world)) for pieces in held for piece in pieces)
    for rank in range(world):
        assert scaling.sum_bytes(1200 * world, world) == pytest.approx(1200 * (sent[rank] + then[rank]))

    held = [[{rank} if piece == rank else set() for piece in range(world)] for rank in range(world)]
    sent = walk(world, world - 1, held, 0)
    assert all(held[rank][piece] == {piece} for rank in range(world) for piece in range(world))
    assert scaling.gather_bytes(1200 * world, world) == pytest.approx(1200 * sent[0])

    # One gather, sums of embeddings, of the loss and of weights, and two for each of three batch norms.
    assert scaling.step_rounds(3, world) == (world - 1) + (3 + 2 * 3) * 2 * (world - 1)
    embeddings, weights = scaling.step_bytes(64, 8, 1000, world)
    assert embeddings == pytest.approx(3 * (world - 1) / world * 64 * 8 * 4)
    assert weights == pytest.approx(2 * (world - 1) / world * 1000 * 4)
    assert scaling.step_bytes(64, 8, 1000, world, tree=True)[0] == pytest.approx(2 * (world - 1) / world * 64 * 8 * 4)
    levels = next(levels for levels in range(9) if 2**levels >= world)
    assert scaling.step_rounds(3, world, tree=True) == (world - 1) + (3 + 2 * 3) * 2 * levels


def test_costs_grow_as_they_are_said_to(scaling: ModuleType) -> None:
    assert scaling.vector_bytes(10, 64, 5) == 10 * (256 + 5)
    assert scaling.graph_bytes(10, 64, 150) == 10 * (128 + 150)
    assert scaling.exact_seconds(1000, 64, 1e-9, queries=10, cores=4) == pytest.approx(1000 * 64 * 10 * 1e-9 / 4)
    line = scaling.line_through([(64, 3.0), (256, 9.0)])
    assert [line[0] + dim * line[1] for dim in (64, 256)] == pytest.approx([3.0, 9.0])
    one = scaling.graph_build_seconds(1000, 64, line)
    assert scaling.graph_build_seconds(1_000_000, 64, line) == pytest.approx(2000 * one)  # a thousand times twice as much
    assert scaling.graph_query_seconds(1_000_000, 64, line) == pytest.approx(2 * scaling.graph_query_seconds(1000, 64, line))
    assert [scaling.machines(size, 100) for size in (1, 100, 101, 1000)] == [1, 1, 2, 10]


def test_crossing_is_where_the_cost_passes_the_limit(scaling: ModuleType) -> None:
    assert scaling.crossing(lambda n: 2 * n, 1e6) == pytest.approx(5e5)
    assert scaling.crossing(lambda n: n * math.log(n), 1e6) == pytest.approx(87_847.5, rel=1e-5)
    assert scaling.crossing(lambda n: 1.0, 2.0) == math.inf


def test_idle_shards_answer_as_the_slowest_of_log_normals(scaling: ModuleType) -> None:
    took = scaling.simulate_shards(16, 2.0, 0.5, 0.0, queries=4000)
    for share in (0.5, 0.9):
        assert took[int(share * len(took))] == pytest.approx(scaling.slowest_quantile(share, 16, 2.0, 0.5), rel=0.05)
    # Dean and Barroso 2013: if one answer in a hundred is slow, 63 % of queries to a hundred servers are.
    slow = scaling.slowest_quantile(0.99, 1, 2.0, 0.5)
    assert scaling.slowest_quantile(1 - 0.634, 100, 2.0, 0.5) == pytest.approx(slow, rel=1e-3)


def test_a_busy_shard_makes_wait_as_long_as_pollaczek_and_khinchine_say(scaling: ModuleType) -> None:
    median, spread, load = 1.0, 0.4, 0.6
    mean, square = math.exp(spread**2 / 2), math.exp(2 * spread**2)
    expected = mean + load / mean * square / (2 * (1 - load))
    took = scaling.simulate_shards(1, median, spread, load, queries=40_000)
    assert statistics.fmean(took) == pytest.approx(expected, rel=0.05)


def test_a_step_takes_as_long_as_its_slowest_process(scaling: ModuleType) -> None:
    assert scaling.simulate_training(8, 3.0, 0.5, 0.0) == pytest.approx(3.5)
    # The greater of two log-normals of mean 1 has the mean 2 Phi(spread / sqrt 2).
    expected = 2 * statistics.NormalDist().cdf(0.3 / math.sqrt(2))
    assert scaling.simulate_training(2, 1.0, 0.25, 0.3, steps=20_000) == pytest.approx(0.25 + expected, rel=0.01)
    means = [scaling.simulate_training(processes, 1.0, 0.0, 0.3) for processes in (1, 4, 16, 64)]
    assert means == sorted(means)


def test_a_step_computes_its_part_and_sends_the_rest(scaling: ModuleType) -> None:
    encoder = scaling.Encoder(name="net", dim=8, weights=1000, norms=1, image_bytes=1.0, embed_rate=10.0, train_rate=4.0)
    assert scaling.compute_seconds(64, encoder, 4, 1e-3, speed=2.0) == pytest.approx((16 / 4.0 + 16 * 64 * 8 * 1e-3) / 2)
    sent = 3 * 0.75 * 64 * 8 * 4 + 2 * 0.75 * 4000
    rounds = 3 * (1 + 2 * 5)
    spent = scaling.network_seconds(64, encoder, 4, scaling.Network("", 10, 1e-3, False))
    assert spent == pytest.approx(8 * sent / 1e10 + rounds * 1e-3)
