"""What torch.compile costs and gains: why osteo does not compile by itself on a CPU."""

import statistics

from benchmarks.bare import WARM_UP, Bare
from benchmarks.noise import note

STEPS = 10


def measure() -> list[dict]:
    """One row per backbone and side: seconds to compile, seconds per step before and after, and when it pays back."""
    rows = []
    for backbone, side in (("resnet50", 224), ("resnet50", 64), ("densenet121", 224)):
        bare = Bare(backbone, side, 16)
        before = [bare.step() for _ in range(WARM_UP + STEPS)][WARM_UP:]
        bare.model.compile()
        compiling = bare.step() + bare.step()
        after = [bare.step() for _ in range(WARM_UP + STEPS)][WARM_UP:]
        plain, compiled = statistics.median(before), statistics.median(after)
        pays = (compiling - 2 * plain) / (plain - compiled) if compiled < plain else None
        rows.append(
            {
                "backbone": backbone,
                "side": side,
                "device": bare.device,
                "compiling, s": round(compiling, 1),
                "plain, s a step": round(plain, 3),
                "compiled, s a step": round(compiled, 3),
                "steps until it pays back": round(pays) if pays else "never",
                "noise": note(before, after),
            }
        )
    return rows
