"""From one laptop to a billion images: what each stage costs, on paper and by simulation, from constants measured here.

    python benchmarks/scaling.py [--out constants.json]          measures (three minutes of one core), then prints the tables
    python benchmarks/scaling.py --constants constants.json      the tables again, from what was measured

Nothing is run at the sizes that the tables speak of: `scaling_constants` measures, `scaling_model` reckons, this file prints.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling_model import (
    DEVICE,
    FAST,
    MACHINE,
    SLOW,
    Encoder,
    compute_seconds,
    crossing,
    exact_seconds,
    gather_bytes,
    graph_build_seconds,
    graph_bytes,
    graph_query_seconds,
    line_through,
    machines,
    network_seconds,
    simulate_shards,
    simulate_training,
    step_bytes,
    step_rounds,
    sum_bytes,
    vector_bytes,
)

SIZES = tuple(10**power for power in range(4, 10))
DIMS = (64, 384)
CORES = (2, 64)
GIGABITS = (1, 10, 100)
SPREADS = (0.05, 0.3)
"""Standard deviations of the logarithm of a process's time, assumed."""


# ---- how numbers are shown -----------------------------------------------------------------------------------------------


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def scaled(value: float, units: Sequence[tuple[float, str]]) -> str:
    """With two or three digits, in the greatest unit that leaves a 1 before the point."""
    size, name = next((unit for unit in units if value >= unit[0]), units[-1])
    value /= size
    return f"{value:,.0f} {name}" if value >= 99.5 or not value else f"{value:.{1 if value >= 9.95 else 2}f} {name}"


def size(value: float) -> str:
    return scaled(value, [(2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])


def duration(value: float) -> str:
    return scaled(value, [(86400, "days"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")])


def count(value: float) -> str:
    if value < 1e6 or math.isinf(value):
        return f"{value:,.0f}"
    return scaled(value, [(1e9, "billion"), (1e6, "million")]).replace(".00 ", " ").replace(".0 ", " ")


def rate_of(value: float) -> str:
    return f"{value:,.{1 if value < 99.5 else 0}f}"


# ---- tables -------------------------------------------------------------------------------------------------------------


def lines(found: dict[str, Any]) -> dict[str, Any]:
    """What the model wants to know of HNSW: seconds for N log N and log N by dimension, bytes of links, spread of times.

    How cost grows with the dimension comes from the two small graphs, how high it is from the large one.
    """
    narrow, wide, large = found["hnsw"]
    grown = {}
    for what, key in (("build", "build_seconds"), ("query", "one_seconds")):
        start, slope = line_through([(one["dim"], one[key]) for one in (narrow, wide)])
        vectors = large["rows"] if what == "build" else 1
        level = large[key] / (start + slope * large["dim"]) / (vectors * math.log(large["rows"]))
        grown[what] = (start * level, slope * level)
    return grown | {
        "links": large["bytes"] - 2 * large["dim"],
        "spread": math.log(large["one_99"] / large["one_seconds"]) / statistics.NormalDist().inv_cdf(0.99),
    }


def show_constants(found: dict[str, Any], encoders: Sequence[Encoder]) -> None:
    print(f"{found['machine']}; load {found['load_before']:.1f} before, {found['load_after']:.1f} after")
    rows = [
        [one.name, f"{one.dim}", count(one.weights), f"{one.norms}", size(one.image_bytes)]
        + [rate_of(rate) for rate in (one.embed_rate, one.train_rate)]
        for one in encoders
    ]
    head = ["encoder", "D", "weights", "batch norms", "an image, encoded", "embedded, images/s", "trained, images/s"]
    table("Encoders, one core", head, rows)
    graph, net = lines(found), found["network"]
    large = found["hnsw"][2]
    whole = 4.0 * net["batch"] * net["dim"]
    rates, near = (
        "; ".join(duration(one[f"{name}_seconds"]) for name in ("gather", "scatter_sum", "sum"))
        for one in (net, found["memory"])
    )
    small = found["hnsw"][0]
    predicted = graph_build_seconds(small["rows"], small["dim"], graph["build"])
    million = graph_build_seconds(1e6, 64, graph["build"], cores=2)
    rows = [
        ["a row of a part, besides its numbers", f"{found['part_bytes']:.0f} B"],
        ["a row of a saved index, besides its numbers", f"{found['index_bytes']:.0f} B"],
        ["held for a row by `nearfar index build`", f"{found['held_bytes']:.0f} B"],
        ["exact, one query in a million of 64, one core", duration(exact_seconds(1e6, 64, found["exact_one"]))],
        ["the same, a thousand queries", duration(exact_seconds(1e6, 64, found["exact_many"], queries=1_000))],
        ["links of a vector in HNSW", f"{graph['links']:.0f} B"],
        ["HNSW of 100,000 x 64 built, one core", duration(large["build_seconds"])],
        ["the same of 20,000: measured; as the model has it", f"{duration(small['build_seconds'])}; {duration(predicted)}"],
        ["the same of a million, two cores: docs/search.md; the model", f"142 s; {duration(million)}"],
        ["one query of 100,000: median, 99 %, recall@10", f"{duration(large['one_seconds'])}, {duration(large['one_99'])}, "
         f"{large['recall']:.3f}"],
        ["its spread (log-normal)", f"{graph['spread']:.2f}"],
        ["SupCon, a pair and a dimension: batch alone; rows against keys", f"{found['loss_alone'] * 1e9:.3f}; "
         f"{found['loss_with_keys'] * 1e9:.3f} ns"],
        [f"gloo, 2 processes here, {size(whole)}: gather; reduce; sum", rates],
        ["bytes that passed, of those predicted", "; ".join(
            f"{net[f'{name}_bytes'] / (net['processes'] * bytes_of(whole, net['processes'])):.2f}"
            for name, bytes_of in (("gather", gather_bytes), ("scatter_sum", sum_bytes), ("sum", sum_bytes)))],
        ["gloo, a sum of 64 numbers", duration(net["small_seconds"])],
        ["the four by shared memory", f"{near}; {duration(found['memory']['small_seconds'])}"],
        ["disk, read once", f"{size(found['disk_bytes_a_second'])}/s"],
    ]  # fmt: skip
    table("Constants", ["", "measured"], rows)


def show_vectors(found: dict[str, Any], encoders: Sequence[Encoder]) -> None:
    graph = lines(found)
    rows = []
    for dim in DIMS:
        for n in SIZES:
            vectors, links = vector_bytes(n, dim), graph_bytes(n, dim, graph["links"])
            parts, index = vector_bytes(n, dim, found["part_bytes"]), vector_bytes(n, dim, found["index_bytes"])
            row = [f"{dim}", count(n), size(vectors), size(parts), size(index), size(links), size(n * found["held_bytes"])]
            rows.append([*row, f"{machines(vectors)}", f"{machines(vectors + links)}"])
    head = ["D", "N", "float32", "Parquet parts", "exact index", "HNSW's graph", "held by index build"]
    table("Bytes, and machines of 64 GiB", [*head, "machines, exact", "machines, HNSW"], rows)
    rows = [
        [one.name, f"{cores}", *(duration(n / one.embed_rate / cores) for n in SIZES), size(SIZES[-1] * one.image_bytes)]
        for one in encoders
        for cores in (*CORES, 1024)
    ]
    table("Embedding", ["encoder", "cores", *(f"N = {count(n)}" for n in SIZES), f"{count(SIZES[-1])} images, encoded"], rows)


def show_search(found: dict[str, Any]) -> None:
    graph = lines(found)
    rows = []
    for dim in DIMS:
        for n in SIZES:
            one = [duration(exact_seconds(n, dim, found["exact_one"], cores=cores)) for cores in CORES]
            many = [duration(exact_seconds(n, dim, found["exact_many"], queries=1_000, cores=cores)) for cores in CORES]
            row = [f"{dim}", count(n), *one, *many, duration(vector_bytes(n, dim) / found["disk_bytes_a_second"])]
            build = [duration(graph_build_seconds(n, dim, graph["build"], cores=cores)) for cores in CORES]
            rows.append([*row, *build, duration(graph_query_seconds(n, dim, graph["query"]))])
    head = [f"{what}, {cores} cores" for what in ("exact, one query", "1,000 queries") for cores in CORES]
    head += ["vectors from disk", *(f"HNSW built, {cores} cores" for cores in CORES), "HNSW, one query"]
    table("Search", ["D", "N", *head], rows)


def show_crossings(found: dict[str, Any]) -> None:
    graph, held = lines(found), found["held_bytes"]
    rows = []
    for what, limit, cost in (
        ("exact, one query, passes 100 ms on 2 cores", 0.1, lambda n, d: exact_seconds(n, d, found["exact_one"], cores=2)),
        ("the same on 64 cores", 0.1, lambda n, d: exact_seconds(n, d, found["exact_one"], cores=64)),
        ("vectors pass 64 GiB", MACHINE, vector_bytes),
        ("vectors and graph pass 64 GiB", MACHINE, lambda n, d: vector_bytes(n, d) + graph_bytes(n, d, graph["links"])),
        ("graph alone passes 64 GiB", MACHINE, lambda n, d: graph_bytes(n, d, graph["links"])),
        ("HNSW takes over an hour on 2 cores", 3600, lambda n, d: graph_build_seconds(n, d, graph["build"], cores=2)),
        ("over a day on 2 cores", 86400, lambda n, d: graph_build_seconds(n, d, graph["build"], cores=2)),
        ("over a day on 64 cores", 86400, lambda n, d: graph_build_seconds(n, d, graph["build"], cores=64)),
        ("names held by index build pass 64 GiB", MACHINE, lambda n, d: n * held),
    ):
        rows.append([what, *(count(crossing(lambda n, d=dim: cost(n, d), limit)) for dim in DIMS)])  # type: ignore[misc]  # noqa: B023
    table("At which N", ["", *(f"D = {dim}" for dim in DIMS)], rows)


def show_training(found: dict[str, Any], encoders: Sequence[Encoder]) -> None:
    rows = []
    for one in encoders:
        for batch in (256, 8_192, 131_072):
            embeddings, gradients = step_bytes(batch, one.dim, one.weights, 64)
            spent = [duration(8 * (embeddings + gradients) / (1e9 * gigabits)) for gigabits in GIGABITS]
            row = [one.name, f"{batch:,}", size(embeddings), size(gradients), *spent]
            for network in (SLOW, FAST):
                rounds = step_rounds(one.norms, 64, tree=network.tree)
                row += [f"{rounds:,}: {duration(rounds * network.hop)}"]
            rows.append(row)
    head = ["encoder", "batch", "embeddings", "gradients", *(f"{gigabits} Gbit/s" for gigabits in GIGABITS)]
    table("A step of 64 processes, sent by each (gloo)", [*head, "rounds, ring", "rounds, trees"], rows)

    rows = []
    for one, batch, network, speed in (
        *zip(encoders, (256, 4_096, 4_096), [SLOW] * 3, [1.0] * 3, strict=True),
        *((one, 4_096, FAST, DEVICE) for one in encoders[1:]),
    ):
        for processes in (1, 2, 4, 16, 64, 256):
            pair = found["loss_alone" if processes == 1 else "loss_with_keys"]
            compute = compute_seconds(batch, one, processes, pair, speed=speed)
            sending = network_seconds(batch, one, processes, network) if processes > 1 else 0.0
            rates = [batch / simulate_training(processes, compute, sending, spread) for spread in SPREADS]
            row = [one.name, f"{batch:,}", f"{network.name}, {network.gigabits:.0f}", f"{processes}"]
            rows.append([*row, duration(compute), duration(sending) if sending else "", *(rate_of(rate) for rate in rates)])
    head = ["encoder", "batch", "network, Gbit/s", "processes", "computing", "sending"]
    table("Training, simulated", [*head, *(f"images/s, spread {spread}" for spread in SPREADS)], rows)


def show_shards(found: dict[str, Any]) -> None:
    graph, dim = lines(found), DIMS[1]
    rows = []
    for n in (10**7, 10**8, 10**9):
        shards = machines(vector_bytes(n, dim) + graph_bytes(n, dim, graph["links"]))
        median = graph_query_seconds(n / shards, dim, graph["query"])
        for load in (0.0, 0.5, 0.8):
            took = simulate_shards(shards, median, graph["spread"], load)
            shown = [duration(SLOW.hop + took[int(share * len(took))]) for share in (0.5, 0.99)]
            rate = load / (median * math.exp(graph["spread"] ** 2 / 2))
            rows.append([count(n), f"{shards}", duration(median), f"{load:.0%}", f"{rate:,.0f}", *shown])
    head = ["N", "shards", "median of one", "load", "queries/s", "median of all", "99 % of all"]
    table(f"Sharded HNSW, D = {dim}, simulated: the slowest shard decides", head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constants", type=Path, help="what was measured before, instead of measuring")
    parser.add_argument("--out", type=Path, help="where to keep what is measured")
    given = parser.parse_args()
    if given.constants:
        found = json.loads(given.constants.read_text())
    else:
        from scaling_constants import measure

        found = measure(lambda text: print(f"measuring {text}", flush=True))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1))
    encoders = [Encoder(**one) for one in found["encoders"]]
    show_constants(found, encoders)
    show_vectors(found, encoders)
    show_search(found)
    show_crossings(found)
    show_training(found, encoders)
    show_shards(found)


if __name__ == "__main__":
    main()
