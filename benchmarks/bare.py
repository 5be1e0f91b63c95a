"""The bare model: forward, backward and optimiser step of a timm backbone on one batch that lies on the device.

`python -m benchmarks.bare BACKBONE SIZE BATCH STEPS` prints the seconds of every step. It is what osteo's own step is
measured against, so it has all that makes the model itself fast: channels_last, bf16 where the hardware gains, a fused
optimiser.
"""

import json
import sys
import time
from types import SimpleNamespace

import timm
import torch

from osteo.training.hardware import choose_accelerator, choose_precision

WARM_UP = 3
WISHES = SimpleNamespace(accelerator="auto", devices="auto", precision="auto", fast=True)


def gains_by_half() -> bool:
    """Whether this machine multiplies bf16 faster than float32; then all peers use it."""
    return choose_precision(WISHES, choose_accelerator(WISHES)) == "bf16-mixed"


class Bare:
    """A backbone with what its step needs."""

    def __init__(self, backbone: str, size: int, batch: int) -> None:
        self.device = choose_accelerator(WISHES)
        self.half = gains_by_half()
        torch.manual_seed(0)
        self.model = timm.create_model(backbone, num_classes=1, in_chans=1)
        self.model.to(self.device, memory_format=torch.channels_last)
        pictures = torch.rand(batch, 1, size, size, device=self.device)
        self.pictures = pictures.contiguous(memory_format=torch.channels_last)
        self.labels = (torch.arange(batch, device=self.device) % 2).float()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)

    def step(self) -> float:
        """One step; returns its seconds."""
        start = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            logits = self.model(self.pictures)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start


def seconds_of_steps(backbone: str, size: int, batch: int, steps: int) -> list[float]:
    """Seconds of each step after a few to warm up."""
    bare = Bare(backbone, size, batch)
    return [bare.step() for _ in range(WARM_UP + steps)][WARM_UP:]


if __name__ == "__main__":
    print(json.dumps(seconds_of_steps(sys.argv[1], *map(int, sys.argv[2:5]))))
