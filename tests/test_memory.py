from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from nearfar.memory import StepMemory, mib, saved_bytes, step_memory


def test_saved_bytes_are_counted_by_block_and_without_weights() -> None:
    layer, x = nn.Linear(10, 20), torch.randn(5, 10)
    assert saved_bytes(lambda: layer(x), layer)[0] == 5 * 10 * 4  # the input, for the gradient of the weight
    assert saved_bytes(lambda: layer(x).tanh(), layer)[0] == 5 * 10 * 4 + 5 * 20 * 4  # and the output of tanh
    y = torch.randn(7, requires_grad=True)
    assert saved_bytes(lambda: y * y)[0] == 7 * 4  # one block, though it is kept twice


def test_weights_count_with_gradient_and_state_and_nothing_is_changed() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3)).eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pixels = torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8)
    state = torch.get_rng_state()
    memory = step_memory(
        encoder, lambda p: encoder(p.float()), lambda z: z.square().sum(), pixels, images=100, chunk=50, copies=2
    )
    assert memory.weights == (16 * 3 + 3 + 6) * 4 * 4
    assert torch.equal(torch.get_rng_state(), state)
    assert not encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(("power", "cells"), [(1, 4096), (2, 4096**2)])
def test_the_loss_is_extrapolated_as_it_grows(power: int, cells: int) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def loss(z: torch.Tensor) -> torch.Tensor:
        return (z[:, :1] if power == 1 else z @ z.T).exp().sum()

    pixels = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    memory = step_memory(encoder, lambda p: encoder(p.float()), loss, pixels, images=4096, chunk=4096, copies=1)
    assert memory.loss == pytest.approx(cells * 4, rel=0.1 if power == 2 else 30)


def test_too_little_memory_comes_with_what_to_set() -> None:
    enough = StepMemory(weights=2**20, activations=2**20, loss=2**20, free=2**30)
    assert enough.describe(64, 64).endswith("1.0 GiB are free")
    large = StepMemory(weights=2**20, activations=2**33, loss=2**20, free=2**30)
    advice = re.search(r"set train.chunk=(\d+)", large.describe(1024, 1024))
    assert advice
    chunk = int(advice[1])
    assert large.activations / 1024 * chunk < 2**30
    assert chunk > 50
    assert "smaller" in StepMemory(weights=2**31, activations=1, loss=1, free=2**30).describe(8, 8)
    assert "free" not in StepMemory(weights=1, activations=1, loss=1, free=None).describe(8, 8)
    assert mib(3 * 2**29) == "1.5 GiB"


@pytest.mark.slow
def test_the_estimate_is_near_what_a_fresh_process_really_takes() -> None:
    code = """
import torch
from nearfar.encoders import build_encoder
from nearfar.losses import SupConLoss
from nearfar.memory import step_memory
torch.set_num_threads(1)
encoder = build_encoder("conv5", channels=1, size=(28, 28)).train()
loss, labels = SupConLoss(temperature=0.1), torch.arange(1024) % 10
pixels = torch.randint(0, 256, (1024, 1, 28, 28), dtype=torch.uint8)
embed = lambda p: encoder(p.float() / 255)
compare = lambda z: loss(z, labels[: len(z)])
said = step_memory(encoder, embed, compare, pixels, images=1024, chunk=1024, copies=2)
compare(embed(pixels[:64])).backward()
def peak():  # of this process alone; ru_maxrss would start from the parent's
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
compare(embed(pixels)).backward()
print(said.activations + said.loss, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said, took = (int(word) for word in done.stdout.split())
    assert 0.5 < said / took < 2, (said, took)


def test_freed_memory_is_kept_for_the_next_step() -> None:
    code = """
import resource, torch
from nearfar.memory import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def steps(count):
    before = faults()
    for _ in range(count):
        blocks = [torch.ones(1 << 22) for _ in range(4)]  # four blocks of 16 MiB at once, then none
        del blocks
    return faults() - before
steps(2)
given_back = steps(10)
keep_freed_memory()
steps(2)
print(given_back, steps(10))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given_back, kept = (int(word) for word in done.stdout.split())
    assert kept < given_back / 10 or sys.platform != "linux", (given_back, kept)  # it speaks to glibc alone
