"""The bare model: forward, backward and optimiser step of a timm backbone on one batch that lies on the device.

`python -m benchmarks.bare BACKBONE SIZE BATCH STEPS` prints the seconds of every step. It is what osteo's own step is
measured against, so it has all that makes the model itself fast: channels_last, bf16 where the hardware gains, a fused
optimiser.
"""

import json
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import timm
import torch

from osteo.training.hardware import choose_accelerator, choose_precision

WARM_UP = 3


def wishes(accelerator: str) -> SimpleNamespace:
    """What osteo chooses the arithmetic by."""
    return SimpleNamespace(accelerator=accelerator, devices="auto", precision="auto", fast=True)


def gains_by_half(accelerator: str = "auto") -> bool:
    """Whether this machine multiplies bf16 faster than float32; then all peers use it."""
    return choose_precision(wishes(accelerator), choose_accelerator(wishes(accelerator))) == "bf16-mixed"


class Bare:
    """A backbone with what its step needs."""

    def __init__(self, backbone: str, size: int, batch: int, accelerator: str = "auto") -> None:
        self.device = choose_accelerator(wishes(accelerator))
        self.half = gains_by_half(accelerator)
        torch.manual_seed(0)
        self.model = timm.create_model(backbone, num_classes=1, in_chans=1)
        self.model.to(self.device, memory_format=torch.channels_last)
        pictures = torch.rand(batch, 1, size, size, device=self.device)
        self.pictures = pictures.contiguous(memory_format=torch.channels_last)
        self.labels = (torch.arange(batch, device=self.device) % 2).float()
        # a graph replays what a capturable optimiser does, and what autocast has not cached
        more = {"capturable": True} if self.device == "cuda" else {}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True, **more)

    def advance(self) -> None:
        """One step; on a GPU, it is told and not waited for."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half, cache_enabled=False):
            logits = self.model(self.pictures)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.squeeze(1).float(), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def graphed(self) -> Callable[[], None]:
        """The step as one CUDA graph."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self.advance()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.advance()
        return graph.replay

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def step(self) -> float:
        """One step; returns its seconds."""
        start = time.perf_counter()
        self.advance()
        self.wait()
        return time.perf_counter() - start


def seconds_of_steps(backbone: str, size: int, batch: int, steps: int) -> list[float]:
    """Seconds of each step after a few to warm up."""
    bare = Bare(backbone, size, batch)
    return [bare.step() for _ in range(WARM_UP + steps)][WARM_UP:]


if __name__ == "__main__":
    print(json.dumps(seconds_of_steps(sys.argv[1], *map(int, sys.argv[2:5]))))
