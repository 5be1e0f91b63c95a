"""Every experiment that is shipped runs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from osteo.commands.application import CONF

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
PHANTOMS = [
    "data.phantom.kaggle={normal: 14, osteoporosis: 14}",
    "data.phantom.mendeley={normal: 8, osteopenia: 2, osteoporosis: 8}",
]
SMALL = [
    "data.batch_size=8",
    "data.image_size=64",
    "model.pretrained=false",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=1",
    "trainer.accelerator=cpu",
    "logger.wandb.mode=disabled",
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_runs_for_one_step(osteo: Callable, archives: Path, experiment: str) -> None:
    given = [f"data.kaggle={archives / 'kaggle'}", f"data.mendeley={archives / 'mendeley'}"]
    data = PHANTOMS if experiment == "quickstart" else given
    done = osteo("train", "-m", f"experiment={experiment}", "output_dir=sweep", *SMALL, *data)
    assert done.code == 0, done.err
    board = pd.read_csv("sweep/leaderboard.csv")
    assert set(board["backbone"]) == {"densenet201", "resnet50", "densenet121"}
    assert board["test/auroc"].between(0, 1).all()
    assert (Path("sweep") / "0" / "predictions.csv").exists()
    assert "records      sweep/<run>/" in done.out


def test_the_paper_s_choices_stand_in_its_file(osteo: Callable) -> None:
    done = osteo("train", "--cfg", "job", "experiment=paper", "data.kaggle=.", "data.mendeley=.")
    import yaml

    chosen = yaml.safe_load(done.out)
    assert (chosen["data"]["image_size"], chosen["data"]["batch_size"], chosen["trainer"]["max_epochs"]) == (
        224,
        16,
        50,
    )
    assert (chosen["optimizer"]["name"], chosen["optimizer"]["lr"]) == ("sgd", 0.001)
    assert chosen["optimizer"]["schedule"] == "constant"
    assert chosen["model"]["pretrained"] is True
    assert (chosen["augment"]["name"], chosen["augment"]["val"]) == ("paper", True)
    assert (chosen["data"]["split"]["train"], chosen["data"]["split"]["val"]) == (0.7, 0.2)
    assert chosen["data"]["split"]["grouped"] is False
    clean = yaml.safe_load(osteo("train", "--cfg", "job", "experiment=paper_clean").out)
    assert (clean["data"]["clean"], clean["data"]["split"]["grouped"], clean["augment"]["val"]) == (True, True, False)
    assert clean["optimizer"] == chosen["optimizer"]
    assert clean["trainer"] == chosen["trainer"]
