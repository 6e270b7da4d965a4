"""What `examine` returned, as text for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nearfar.memory import mib


def report(found: Mapping[str, Any]) -> str:
    """A table of facts, what would help, and the proof with its verdict."""
    machine, proof = found["machine"], found["proof"]
    there = [name for name, is_there in machine["extras"].items() if is_there]
    missing = [name for name, is_there in machine["extras"].items() if not is_there]
    free = "unknown" if machine["memory_free"] is None else mib(machine["memory_free"])
    facts = {
        "system": machine["system"],
        "cores": f"{machine['cores']}, PyTorch computes with {machine['threads']} threads",
        "instructions": f"{machine['instructions']}, {'with' if machine['bfloat16'] else 'without'} bfloat16",
        "GPUs": ", ".join(machine["gpus"]) or "none",
        "free": f"{free} of memory, {mib(machine['disk_free'])} of disk",
        "versions": ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        "extras": ", ".join(there) or "none",
        "data cache": f"{machine['cache']['folder']}, {mib(machine['cache']['bytes'])}",
    }
    if missing:
        facts["not installed"] = f"{', '.join(missing)}; pip install 'nearfar[{missing[0]}]' and so on"
    lines = [f"  {name:<14}{value}" for name, value in facts.items()]
    if found["advice"]:
        lines += ["", "worth knowing", *(f"  {sentence}" for sentence in found["advice"])]
    if proof is not None:
        lines += [
            "",
            f"{proof['steps']} steps of {proof['recipe']} on made-up images, by plain SGD: how far the weights end apart",
            f"  {'':<36}{'of the weights':>16}{'of the way':>14}",
            *(
                f"  {row['name']:<36}{row['difference']:>16.1e}{row['moved']:>14.1e}{'' if row['holds'] else '   TOO FAR'}"
                for row in proof["rows"]
            ),
            *(f"  not compared: {reason}" for reason in proof["left_out"]),
            "",
            f"all ways of training end in the same weights, to {proof['limit']:.1g}"
            if proof["holds"]
            else "NOT the same weights: several processes or cached gradients cannot be trusted here",
        ]
    return "\n".join(lines)
