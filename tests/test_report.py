"""The paper's tables and figures from run records."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import pandas as pd
import pytest

from osteo.config import DataConfig
from osteo.data.phantom import write_archives
from osteo.data.prepare import prepare
from osteo.report.paper import TABLE_2, table_1, table_2
from osteo.report.tables import as_latex, as_markdown
from tests.test_tracking import of_type, offline_runs


@pytest.fixture(scope="module")
def whole_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the numbers of the real archives."""
    root = tmp_path_factory.mktemp("whole") / "archives"
    write_archives(
        root, seed=0, kaggle={"normal": 186, "osteoporosis": 186},
        mendeley={"normal": 36, "osteopenia": 154, "osteoporosis": 49},
    )  # fmt: skip
    return root


def test_table_1_from_archives_of_the_real_shape(whole_archives: Path) -> None:
    config = DataConfig("paper", kaggle=str(whole_archives / "kaggle"), mendeley=str(whole_archives / "mendeley"))
    config.image_size, config.fit, config.split.grouped, config.split.stratify = 16, "resize", False, ["label"]
    manifest, _ = prepare(config)
    table = table_1(manifest, variants=7, augment_val=True).set_index("Sets")
    assert table.loc["Original normal"].tolist() == [155, 44, 23, 222]
    assert table.loc["Original osteoporosis"].tolist() == [164, 47, 24, 235]
    # the paper's Table 1 counts the same: 930 + 264 and, with a slip of its own in the total, 984 + 282
    assert table.loc["Augmented normal"].tolist() == [930, 264, 0, 1194]
    assert table.loc["Augmented osteoporosis"].tolist() == [984, 282, 0, 1266]
    assert table.loc["Total"].tolist() == [2233, 637, 47, 2917]


def board(**accuracies: float) -> pd.DataFrame:
    rows = [
        {
            "backbone": name,
            **dict.fromkeys(("test/accuracy", "test/precision_macro", "test/recall_macro", "test/f1_macro"), v),
        }
        for name, v in accuracies.items()
    ]
    return pd.DataFrame(rows)


def test_table_2_puts_the_paper_beside_ours() -> None:
    table = table_2(board(densenet201=0.9, convnext_tiny=0.8)).set_index("Metrics")
    assert list(table) == ["densenet201", "densenet201, paper", "densenet201, difference", "convnext_tiny"]
    assert table.loc["Accuracy"].tolist() == ["0.9000", "0.8511", "+0.0489", "0.8000"]
    assert table.loc["Precision", "densenet201, difference"] == "+0.0426"
    assert set(TABLE_2) == {"densenet201", "resnet50", "densenet121"}


def test_tables_in_markdown_and_latex() -> None:
    frame = pd.DataFrame({"a_b": ["x|y", "50 %"], "n": [1.0, float("nan")]})
    assert as_markdown(frame) == "| a_b | n |\n| --- | --- |\n| x\\|y | 1.000 |\n| 50 % | - |\n"
    assert "a\\_b & n \\\\" in as_latex(frame)
    assert "50 \\% & - \\\\" in as_latex(frame)


def test_a_report_of_a_sweep(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    words = [word for word in tiny if not word.startswith("model.backbone")]
    sweep = osteo("train", "-m", *words, "model.backbone=test_resnet,test_vit", "output_dir='my sweep'",
                  "logger.wandb.mode=offline")  # fmt: skip
    assert sweep.code == 0, sweep.err
    done = osteo("report", "my sweep")
    assert done.code == 0, done.err
    folder = tmp_path / "my sweep"
    names = ("collection", "samples", "augmentations", "metrics", "confusion", "predictions")
    for name in names:
        picture = cv2.imread(str(folder / "figures" / f"{name}.png"))
        assert min(picture.shape[:2]) > 150, name
        assert picture.std() > 5, name
        assert (folder / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    assert {path.name for path in (folder / "tables").iterdir()} == {
        f"{name}.{ending}" for name in ("table1", "table2", "costs") for ending in ("md", "tex")
    }
    told = offline_runs(folder)
    assert [of_type(records, "run")[0]["job_type"] for records in told] == ["train", "train", "report"]
    assert len({of_type(records, "run")[0]["run_group"] for records in told}) == 1
    logged = {path.name.rsplit("_", 2)[0] for path in folder.glob("wandb/*/files/media/images/figures/*.png")}
    assert logged == set(names)
    costs = json.loads((folder / "0" / "environment.json").read_text())
    assert costs["peak_memory_mib"] > 100
    assert costs["pictures_per_second"] > 0
    assert 0 < costs["seconds_per_epoch"] <= costs["seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "runs=nowhere holds no finished run"),
        ([], "name a sweep or a run directory: osteo report DIRECTORY"),
    ],
)
def test_a_report_of_nothing_is_one_line(osteo: Callable, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = osteo("report", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
