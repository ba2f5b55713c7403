"""One tree of random streams: every draw is a function of the run's seed, a purpose and counters.

A resumed run needs its counters, not the hidden state of generators that were advanced since.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def seed_sequence(seed: int, purpose: str, *indices: int) -> np.random.SeedSequence:
    """Root of the stream (seed, purpose, indices...); equal keys give equal streams."""
    numbers = tuple(int(number) for number in (seed, *indices))
    if min(numbers) < 0:
        raise ValueError(f"seeds and counters are at least 0, found {numbers}")
    # hashed, because SeedSequence pads short keys with zeros: (seed, 1) and (seed, 1, 0) are one
    key = hashlib.sha256(repr((purpose, numbers)).encode()).digest()
    return np.random.SeedSequence(int.from_bytes(key, "little"))


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """NumPy generator (Philox) of the stream; about 20 microseconds, so make one per use."""
    return np.random.Generator(np.random.Philox(seed_sequence(seed, purpose, *indices)))


def torch_seed(seed: int, purpose: str, *indices: int) -> int:
    """Seed in [0, 2**63) for a torch generator of the stream."""
    words = seed_sequence(seed, purpose, *indices).generate_state(1, np.uint64)
    return int(words[0]) >> 1


def torch_generator(
    seed: int, purpose: str, *indices: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Torch generator of the stream on `device`; long-lived ones are saved with the run."""
    generator = torch.Generator(device=device)
    generator.manual_seed(torch_seed(seed, purpose, *indices))
    return generator
