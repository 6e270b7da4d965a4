"""A Ray cluster of three nodes on this machine, run as a process of its own: embeds, loses a node that is at work, and goes on.

Arguments: run, data, out. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path


def main(run: str, data: str, out: str) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    from nearfar.embedding import embed_stream

    small = {"object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80 << 20) for _ in range(2)]
    lost = {}

    def lose_one() -> None:
        """The node whose worker wrote a part, with parts left to do."""
        while not list(Path(out).glob("part-*.parquet")):
            time.sleep(0.02)
        victim = next(node for node in nodes if has_worker(node))
        lost["parts"] = len(list(Path(out).glob("part-*.parquet")))
        cluster.remove_node(victim, allow_graceful=False)

    def has_worker(node: object) -> bool:
        raylet = node.all_processes["raylet"][0].process.pid  # type: ignore[attr-defined]
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal():
                try:
                    about = (folder / "stat").read_text().rpartition(")")[2].split()
                    title = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if int(about[1]) == raylet and b"_Worker" in title:
                    return True
        return False

    thread = threading.Thread(target=lose_one, daemon=True)
    thread.start()
    said = embed_stream(run, data, out=out, rows=5, ray=cluster.address)
    thread.join(5)
    print(json.dumps({**said, "lost_at": lost.get("parts"), "address": cluster.address}), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
