"""The paper's tables and figures from run records."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import pandas as pd
import pytest

from osteo.config import DataConfig
from osteo.data.phantom import write_archives
from osteo.data.prepare import prepare
from osteo.errors import UserError
from osteo.evaluation.bootstrap import Interval
from osteo.report.page import write_report
from osteo.report.paper import TABLE_2, table_1, table_2
from osteo.report.tables import as_latex, as_markdown
from tests.browser import SIZES, check_fits, in_browser, needs_chromium, opened
from tests.conftest import REAL_DATA
from tests.test_tracking import of_type, offline_runs

SMALLEST_TYPE = """() => Math.min(...[...document.querySelectorAll(".figure svg")].filter(one => one.checkVisibility())
  .flatMap(one => [...one.querySelectorAll("text")]
    .map(text => parseFloat(getComputedStyle(text).fontSize) * one.getScreenCTM().a)))"""


@pytest.fixture(scope="module")
def whole_archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in the numbers of the real archives."""
    root = tmp_path_factory.mktemp("whole") / "archives"
    write_archives(
        root, seed=0, kaggle={"normal": 186, "osteoporosis": 186},
        mendeley={"normal": 36, "osteopenia": 154, "osteoporosis": 49},
    )  # fmt: skip
    return root


@pytest.mark.slow
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


def models(**accuracies: float) -> list[SimpleNamespace]:
    names = ("accuracy", "precision_macro", "recall_macro", "f1_macro")
    return [
        SimpleNamespace(
            system=SimpleNamespace(name=backbone, backbone=backbone),
            intervals=dict.fromkeys(names, Interval(value, value, value)),
        )
        for backbone, value in accuracies.items()
    ]


def test_table_2_puts_the_paper_beside_ours() -> None:
    table = table_2(models(densenet201=0.9, convnext_tiny=0.8)).set_index("Metrics")  # type: ignore[arg-type]
    assert list(table) == ["densenet201", "densenet201, paper", "densenet201, difference", "convnext_tiny"]
    assert table.loc["Accuracy"].tolist() == ["0.9000", "0.8511", "+0.0489", "0.8000"]
    assert table.loc["Precision", "densenet201, difference"] == "+0.0426"
    assert set(TABLE_2) == {"densenet201", "resnet50", "densenet121"}


def test_tables_in_markdown_and_latex() -> None:
    frame = pd.DataFrame({"a_b": ["x|y", "50 %"], "n": [1.0, float("nan")]})
    assert as_markdown(frame) == "| a_b | n |\n| --- | --- |\n| x\\|y | 1.000 |\n| 50 % | - |\n"
    assert "a\\_b & n \\\\" in as_latex(frame)
    assert "50 \\% & - \\\\" in as_latex(frame)


@pytest.fixture(
    scope="module",
    params=[
        "phantoms",
        pytest.param(
            "real",
            marks=[
                pytest.mark.slow,
                pytest.mark.real_data,
                pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the original X-rays are not at hand"),
            ],
        ),
    ],
)
def reported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, archives: Path) -> Path:
    """A sweep of two backbones, two folds and two seeds, and the report on it, run as a user would."""
    folder = tmp_path_factory.mktemp("reported")
    data = [f"data.kaggle={archives / 'kaggle'}", f"data.mendeley={archives / 'mendeley'}"]
    if request.param == "real":
        data = ["data=folder", f"data.root={REAL_DATA / 'kaggle'}"]
    sweep = [
        "train", "-m", "experiment=cross_validation", *data, "data.split.folds=2", "data.image_size=64",
        "data.batch_size=8", "model.backbone=test_resnet,test_convnext", "trainer.max_epochs=2",
        "trainer.accelerator=cpu", "logger.wandb.mode=offline", "output_dir='my sweep'",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    for command in (sweep, ["report", "my sweep", "draws=300", "report.upload_pictures=true"]):
        command = [str(Path(sys.executable).with_name("osteo")), *command]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (folder / "terminal.txt").write_text(done.stdout)
    return folder / "my sweep"


FIGURES = {
    "collection", "samples", "augmentations", "metrics", "confusion", "predictions",
    "forest", "roc_pr", "training", "reliability", "decision", "feature_maps_right", "feature_maps_wrong",
}  # fmt: skip


def test_a_report_leaves_figures_and_tables(reported: Path) -> None:
    for name in FIGURES:
        picture = cv2.imread(str(reported / "figures" / f"{name}.png"))
        assert min(picture.shape[:2]) > 150, name
        assert picture.std() > 5, name
        assert (reported / "figures" / f"{name}.svg").read_text().startswith("<?xml")
    tables = ["table1", "table2", "costs", "comparison", "between", "exploratory", "thresholds", "subgroups"]
    sources = pd.read_csv(reported / "0" / "manifest.csv")["source"]
    tables += ["strata"] if sources.nunique() > 1 else []  # the real files are of one source
    names = {f"{name}.{ending}" for name in tables for ending in ("md", "tex")} | {"comparison.csv"}
    assert {path.name for path in (reported / "tables").iterdir()} == names
    board = pd.read_csv(reported / "leaderboard.csv")
    assert len(board) == 8
    assert sorted(board["fold"].unique()) == [0, 1]
    comparison = pd.read_csv(reported / "tables" / "comparison.csv")
    assert comparison["kind"].tolist() == ["model"] * 2 + ["ensemble"] * 6 + ["shortcut"]
    assert (comparison["auroc_low"] <= comparison["auroc"]).all()
    assert (comparison["auroc"] <= comparison["auroc_high"]).all()


def test_every_picture_is_tested_once_a_repeat(reported: Path) -> None:
    board = pd.read_csv(reported / "leaderboard.csv")
    for _, runs in board.groupby(["backbone", "seed"]):
        tables = [pd.read_csv(reported / str(run) / "predictions.csv") for run in runs["run"]]
        tested = pd.concat([table.loc[table["split"] == "test", "image_id"] for table in tables])
        manifest = pd.read_csv(reported / str(runs["run"].iloc[0]) / "manifest.csv")
        assert sorted(tested) == sorted(manifest.loc[manifest["split"] != "excluded", "image_id"])


def test_the_page_says_what_a_reviewer_asks(reported: Path) -> None:
    html, markdown = (reported / "report.html").read_text(), (reported / "report.md").read_text()
    sources = set(pd.read_csv(reported / "0" / "manifest.csv")["source"])
    for text in (html, markdown):
        assert "reaches an AUROC of" in text
        assert "A random forest that sees only a picture" in text
        assert "The paper reports an accuracy of 0.851 for densenet201" in text
        assert "2-fold cross-validation, 2 times" in text
        assert "No picture, copy or patient is on more than one side of a run's split." in text.replace("&#39;", "'")
        assert ("quantitative ultrasound" in text) == ("mendeley" in sources)
        assert "lies outside the knee" in text
        assert "Spearman" in text
    assert len(html) < 5_000_000
    assert html.count("<svg") == 14, "each for a wide and for a narrow screen"
    assert "What the network sees" in html
    assert len(re.findall(r": 6 of \d+ channels, each \d+ x \d+", html)) == 12  # three layers, two pictures, twice
    assert "Added value" not in html + markdown, "no covariates were asked for"
    assert html.count('alt="the same with Grad-CAM"') == 8
    terminal = (reported.parent / "terminal.txt").read_text()
    assert "report       my sweep/report.html" in terminal


def test_table_2_and_the_matrices_are_of_the_same_pictures_as_the_page(reported: Path) -> None:
    """All folds together, and the mean over repeats: what predictions.csv of all runs add up to."""
    board = pd.read_csv(reported / "leaderboard.csv")
    ours = pd.read_csv(reported / "tables" / "comparison.csv").set_index("system")
    table = [line.split(" | ") for line in (reported / "tables" / "table2.md").read_text().splitlines()]
    accuracies = dict(
        zip([name.strip("| ") for name in table[0]], [value.strip("| ") for value in table[2]], strict=True)
    )
    for backbone, runs in board.groupby("backbone"):
        by_seed = []
        for _, of_seed in runs.groupby("seed"):
            tables = [pd.read_csv(reported / str(run) / "predictions.csv") for run in of_seed["run"]]
            test = pd.concat(tables).query("split == 'test'")
            by_seed.append(float(((test["probability"] > 0.5) == (test["label"] == 1)).mean()))
        mean = sum(by_seed) / len(by_seed)
        assert ours.loc[str(backbone), "accuracy"] == pytest.approx(mean)
        assert float(accuracies[str(backbone)]) == pytest.approx(mean, abs=5e-5)


def test_nothing_of_the_machine_stands_in_what_is_shared(reported: Path) -> None:
    cards = list(reported.glob("*/model_card.md"))
    assert len(cards) == 2
    for path in [reported / "report.html", reported / "report.md", *cards, *reported.glob("tables/*")]:
        text = path.read_text()
        assert str(reported.parent) not in text, path
        assert str(REAL_DATA) not in text, path
        assert str(Path.home()) + "/" not in text, path
    for card in cards:
        text = card.read_text()
        checkpoint = card.parent / "checkpoints" / "best.ckpt"
        assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in text
        assert "Not a medical device" in text
        assert "| AUROC | 0." in text
        assert "sensitivity of at least 0.90: 0." in text


def test_wandb_gets_the_report_in_the_group_of_its_runs(reported: Path) -> None:
    runs = offline_runs(reported)
    assert [of_type(records, "run")[0]["job_type"] for records in runs] == ["train"] * 8 + ["report"]
    assert len({of_type(records, "run")[0]["run_group"] for records in runs}) == 1
    logged = {path.name.rsplit("_", 2)[0] for path in reported.glob("wandb/*/files/media/images/figures/*.png")}
    assert logged == FIGURES
    tables = {path.name.rsplit("_", 2)[0] for path in reported.glob("wandb/*/files/media/table/tables/*.json")}
    assert {"comparison", "between", "exploratory", "thresholds", "subgroups", "costs"} <= tables


@in_browser
@needs_chromium
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(reported: Path, scheme: str, size: tuple[int, int]) -> None:
    with opened(reported / "report.html", size, scheme) as page:
        messages: list[str] = []
        requested: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requested.append(request.url))
        page.reload()
        images = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth > 0)")
        assert len(images) == 16
        assert all(images)
        assert messages == []
        assert [url for url in requested if not url.startswith("data:")] == [(reported / "report.html").as_uri()]
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 22, 27)"}[scheme]
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the results"
        specificity = page.locator("td[data-label=specificity]").first.bounding_box()
        assert 0 <= specificity["x"] <= specificity["x"] + specificity["width"] <= size[0]
        check_fits(page)
        small = page.evaluate(SMALLEST_TYPE)
        assert small >= 7.0, "of the figures, in pixels"


def test_a_report_without_pictures(
    osteo: Callable, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # neither needs it
    assert osteo("train", *tiny, "output_dir=run", "logger=null").code == 0
    (tmp_path / "run/figures").mkdir()
    (tmp_path / "run/figures/samples.png").write_bytes(b"of an earlier report")
    done = osteo("report", "run", "pictures=false", "draws=100")
    assert done.code == 0, done.err
    assert not [path for path in tmp_path.rglob("*") if "wandb" in path.name]
    html = (tmp_path / "run" / "report.html").read_text()
    assert "data:image" not in html
    assert "Radiographs are left out, as asked" in html
    assert not (tmp_path / "run" / "figures" / "samples.png").exists()
    assert "one hold-out split, trained once" in html.lower()
    costs = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert costs["peak_memory_mib"] > 100
    assert costs["pictures_per_second"] > 0
    assert 0 < costs["seconds_per_epoch"] <= costs["seconds"]


@pytest.mark.slow
def test_a_report_of_a_transformer_whose_pictures_are_gone(
    osteo: Callable, tiny: list[str], archives: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(archives / "kaggle", tmp_path / "pictures")
    words = [word for word in tiny if not word.startswith(("model.backbone", "data.root"))]
    words += [f"data.root={copy}", "model.backbone=test_vit", "output_dir=run", "logger.wandb.mode=disabled"]
    assert osteo("train", *words).code == 0
    refused = osteo("report", "run", "draws=100")
    assert refused.code == 0, refused.err
    assert "Grad-CAM needs a spatial feature map, and test_vit has none" in (tmp_path / "run/report.html").read_text()
    shutil.rmtree(copy)
    gone = osteo("report", "run", "draws=100")
    assert gone.code == 0, gone.err
    page = (tmp_path / "run/report.html").read_text()
    assert "What needs the pictures is left out" in page
    assert "reaches an AUROC of" in page


def test_a_report_from_python(run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    report = write_report(folder, draws=100, pictures=False)
    assert f"<h1>{report.title}</h1>" in (folder / "report.html").read_text()
    numbers = pd.read_csv(folder / "tables" / "comparison.csv").set_index("system")
    assert report.results.best.intervals["auroc"].value == pytest.approx(numbers.loc["test_resnet", "auroc"])
    with pytest.raises(UserError, match="draws=1 is too small"):
        write_report(folder, draws=1)
    with pytest.raises(UserError, match="nowhere: no such run or sweep"):
        write_report(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such run or sweep"),
        ([], "name a sweep or a run directory: osteo report DIRECTORY"),
        (["nowhere", "draws=10"], "draws=10 is too small; the smallest allowed is 100"),
        (["nowhere", "prevalence=1.5"], "prevalence=1.5 is too large; the largest allowed is 0.999"),
    ],
)
def test_a_report_of_nothing_is_one_line(osteo: Callable, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = osteo("report", *arguments)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert list(tmp_path.iterdir()) == []
