"""Every experiment that is shipped runs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from osteo.commands.application import CONF

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
SMALL = [
    "data.phantom.kaggle={normal: 14, osteoporosis: 14}",
    "data.phantom.mendeley={normal: 8, osteopenia: 2, osteoporosis: 8}",
    "data.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.accelerator=cpu",
    "logger.wandb.mode=disabled",
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_runs_for_one_step(osteo: Callable, experiment: str) -> None:
    done = osteo("train", "-m", f"experiment={experiment}", "output_dir=sweep", *SMALL)
    assert done.code == 0, done.err
    board = pd.read_csv("sweep/leaderboard.csv")
    assert set(board["backbone"]) == {"densenet201", "resnet50", "densenet121"}
    assert board["test/auroc"].between(0, 1).all()
    assert (Path("sweep") / "0" / "predictions.csv").exists()
    assert "records      sweep/<run>/" in done.out
