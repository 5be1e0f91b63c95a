"""Every experiment that is shipped runs."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from osteo.app.hydra import CONF

RECIPES = ("best", "finetune", "ladder", "literature", "probe", "scratch")
"""Of other backbones: test_docs.py runs them, test_literature.py the literature and test_ladder.py the ladder."""
EXPERIMENTS = sorted({path.stem for path in (CONF / "experiment").glob("*.yaml")} - set(RECIPES))
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


WHOLE = [name for name in EXPERIMENTS if name not in ("cross_validation", "external")]


@pytest.mark.parametrize(
    "experiment", [pytest.param(name, marks=() if name == "quickstart" else pytest.mark.slow) for name in WHOLE]
)
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


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_sweeps_the_paper_s_backbones(experiment: str) -> None:
    inherited = "paper" if experiment == "paper_clean" else experiment
    chosen = yaml.safe_load((CONF / "experiment" / f"{inherited}.yaml").read_text())
    assert chosen["hydra"]["sweeper"]["params"]["model.backbone"] == "densenet201,resnet50,densenet121"


@pytest.mark.slow
def test_cross_validation_sweeps_folds_and_seeds(osteo: Callable, archives: Path) -> None:
    done = osteo(
        "train", "-m", "experiment=cross_validation", "output_dir=sweep", *SMALL, "model.backbone=test_resnet",
        f"data.kaggle={archives / 'kaggle'}", f"data.mendeley={archives / 'mendeley'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    board = pd.read_csv("sweep/leaderboard.csv").sort_values("run")
    assert board["fold"].tolist() == [0, 1, 2, 3, 4] * 2
    assert board["seed"].tolist() == [0] * 5 + [1] * 5
    manifests = [pd.read_csv(f"sweep/{run}/manifest.csv") for run in range(10)]
    for repeat in (manifests[:5], manifests[5:]):
        tested = pd.concat([table.loc[table["split"] == "test", "image_id"] for table in repeat])
        assert sorted(tested) == sorted(repeat[0].loc[repeat[0]["split"] != "excluded", "image_id"])
    assert (manifests[0]["split"] != manifests[5]["split"]).any()  # another seed, other folds


@pytest.mark.slow
def test_external_tests_on_a_source_that_was_never_seen(osteo: Callable, archives: Path) -> None:
    done = osteo(
        "train", "-m", "experiment=external", "output_dir=sweep", *SMALL, "model.backbone=test_resnet", "seed=0",
        f"data.kaggle={archives / 'kaggle'}", f"data.mendeley={archives / 'mendeley'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    for run, source in enumerate(("kaggle", "mendeley")):
        manifest = pd.read_csv(f"sweep/{run}/manifest.csv")
        used = manifest[manifest["split"] != "excluded"]
        assert ((used["split"] == "test") == (used["source"] == source)).all()
    report = osteo("report", "sweep", "draws=100", "pictures=false")
    assert report.code == 0, report.err
    assert "leave one source out (kaggle, mendeley), once" in Path("sweep/report.md").read_text().lower()


def test_the_paper_s_choices_stand_in_its_file(osteo: Callable) -> None:
    done = osteo("train", "--cfg", "job", "experiment=paper", "data.kaggle=.", "data.mendeley=.")
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
