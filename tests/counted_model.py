"""A linear network that leaves a line in a file for every forward pass, and takes its time."""

import os
import time

import torch
from torch import nn


class Counted(nn.Module):
    """Logs 'pid rows' to the file named by COUNTED_CALLS, then waits."""

    def __init__(self, seed: int, seconds: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(64, 3, generator=generator))
        self.seconds = seconds

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        path = os.environ.get("COUNTED_CALLS")
        if path:
            log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.write(log, f"{os.getpid()} {len(images)}\n".encode())
            os.close(log)
            time.sleep(self.seconds)
        return images.flatten(1) @ self.weight


def first() -> nn.Module:
    """Return a network for 8x8 grey images and 3 classes."""
    return Counted(0, 0.2)


def second() -> nn.Module:
    """Return another."""
    return Counted(1, 0.2)
