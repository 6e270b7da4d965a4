"""Seeds of all that is random in a run, each a function of the run's own."""

from __future__ import annotations

import torch


def mix(seed: int, number: int) -> int:
    """A seed for the ``number``-th random event of a run, spread over 63 bits (SplitMix64; Steele, Lea, Flood 2014)."""
    value = (seed * 0x9E3779B97F4A7C15 + (number + 1) * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (value ^ (value >> 31)) >> 1


def reseed(seed: int, device: str) -> None:
    """Do what `torch.manual_seed` does for the devices in use; for all others it notes a stack trace at every call."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed_all(seed)
