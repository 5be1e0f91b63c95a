"""How long an answer takes: one picture and sixteen, with and without its range and its overlay."""

import statistics
from pathlib import Path

import numpy as np
import torch

from benchmarks.noise import note
from osteo.data.phantom import T_SCORES, draw
from osteo.inference import guard
from osteo.inference.answer import answer, heat_map
from osteo.inference.card import Card
from osteo.inference.export import milliseconds
from osteo.inference.model import Model
from osteo.networks.network import Network
from osteo.reading.framing import square

BACKBONES, SIDE, ROUNDS = ("resnet50", "densenet121"), 224, 7


def measure() -> list[dict]:
    """One row per backbone and number of pictures, beside the bare network's time; weights do not change it."""
    rng = np.random.default_rng(0)
    greys = [draw(rng, float(rng.uniform(*T_SCORES["normal"])), height=600, width=500) for _ in range(16)]
    plane = np.stack([square(grey, SIDE, "pad") for grey in greys])
    made = guard.fit(plane, np.arange(8), np.arange(8, 12), np.arange(12, 16))
    rows = []
    for backbone in BACKBONES:
        torch.manual_seed(0)
        thresholds = {"Youden": 0.5}
        card = Card(SIDE, "pad", ["normal", "osteoporosis"], 1.0, thresholds, "", "phantom", backbone, 0, None, "")
        model = Model(Path(backbone), Network(backbone, image_size=SIDE).eval(), card, made)
        for count in (1, 16):
            some = greys[:count]
            prepared = [model.prepare(grey) for grey in some]
            systems = {
                "network": lambda _, p=prepared, m=model: m.logits(p),
                "answer": lambda some, m=model: answer([m], some, rule="Youden", interval=False),
                "answer with range": lambda some, m=model: answer([m], some, rule="Youden"),
                "overlay": lambda some, m=model: [heat_map([m], grey) for grey in some],
            }
            times = dict(zip(systems, milliseconds(list(systems.values()), some, rounds=ROUNDS), strict=True))
            medians = {f"{name}, ms a picture": round(statistics.median(spent), 1) for name, spent in times.items()}
            bare, answered = statistics.median(times["network"]), statistics.median(times["answer"])
            rows.append(
                {"backbone": backbone, "pictures": count, **medians, "answer / network": round(answered / bare, 2),
                 "noise": note(times["network"], times["answer"])}
            )  # fmt: skip
            print(rows[-1], flush=True)
    return rows
