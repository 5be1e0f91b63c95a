"""The recipes of docs/extending.md, executed word for word from a package outside the repository."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = {part.splitlines()[0]: part for part in PAGE.split("\n## ")[1:] if "```sh" in part}
OSTEO = str(Path(sys.executable).with_name("osteo"))
SMALL = [
    "data.image_size=64", "data.batch_size=8", "trainer.max_epochs=2", "trainer.accelerator=cpu",
    "trainer.precision=32-true",
]  # fmt: skip
PHANTOMS = [
    "data.phantom.kaggle={normal: 14, osteoporosis: 14}",
    "data.phantom.mendeley={normal: 6, osteopenia: 2, osteoporosis: 6}",
]


def blocks(recipe: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", recipe, re.DOTALL)


def follow(recipe: str, folder: Path, archives: Path, *more: str) -> list["subprocess.CompletedProcess[str]"]:
    """Writes the files of a recipe and types its commands, on few small pictures."""
    for block in [*blocks(recipe, "python"), *blocks(recipe, "yaml")]:
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block)
    (folder / "my_xrays").symlink_to(archives / "kaggle")
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = []
    for line in "".join(blocks(recipe, "sh")).splitlines():
        words = shlex.split(line)
        if words[1] == "train":
            words += [*SMALL, "model.backbone=test_resnet"] if "model.backbone" not in line else SMALL
            words += [] if "data=" in line else PHANTOMS
            words += [] if "output_dir=" in line else ["output_dir=run"]
        command = [OSTEO, *words[1:], *more]
        done.append(subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False))
    return done


@pytest.fixture(scope="module", params=sorted(RECIPES))
def recipe(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, archives: Path, cache: Path
) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("recipe")
    for done in follow(RECIPES[request.param], folder, archives):
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return request.param, folder


@pytest.mark.slow
def test_a_recipe_is_short_and_runs(recipe: tuple[str, Path]) -> None:
    name, folder = recipe
    written = [*blocks(RECIPES[name], "python"), *blocks(RECIPES[name], "yaml")]
    assert sum(bool(line.strip()) and not line.startswith("#") for block in written for line in block.splitlines()) < 20
    assert json.loads((folder / "run/status.json").read_text())["state"] == "done"


@pytest.mark.slow
def test_a_recipe_does_what_it_says(recipe: tuple[str, Path]) -> None:
    name, folder = recipe
    recorded = yaml.safe_load((folder / "run/config.yaml").read_text())
    history = pd.read_csv(folder / "run/history.csv")
    metrics = json.loads((folder / "run/metrics.json").read_text())
    facts = json.loads((folder / "run/environment.json").read_text())
    if name == "An optimiser and its schedule":
        assert (recorded["optimizer"]["name"], recorded["optimizer"]["args"]) == ("lamb", {"betas": [0.9, 0.95]})
    elif name == "A callback and a logger":
        assert (history["train/gradient_norm"] > 0).all()
        csv = pd.read_csv(next((folder / "run/csv").glob("version_*/metrics.csv")))
        assert csv["train/gradient_norm"].dropna().tolist() == pytest.approx(list(history["train/gradient_norm"]))
    elif name == "An augmentation":
        assert [list(operation) for operation in recorded["augment"]["ops"]] == [
            ["RandomAffine"],
            ["RandomGaussianBlur"],
        ]
    elif name == "A backbone with a head of its own":
        assert facts["parameters"] == 32 * 49 + 32 + 64 + 32 * 8 + 8 + 8 + 1
    elif name == "A data source":
        manifest = pd.read_csv(folder / "run/manifest.csv", dtype=str)
        assert set(manifest["source"]) == {"hospital"}
        assert manifest["patient"].notna().all()
    else:
        expected = 1 - (metrics["test/sensitivity"] + metrics["test/specificity"]) / 2
        assert metrics["test/balanced_error"] == pytest.approx(expected, abs=1e-6)
        assert "balanced error" in (folder / "run/report.html").read_text()
        assert f"{expected:.3f}" in (folder / "run/report.md").read_text()


def test_every_recipe_of_the_issue_is_there() -> None:
    assert len(RECIPES) == 6


def test_no_recipe_needs_a_file_of_osteo_changed(recipe: tuple[str, Path]) -> None:
    _, folder = recipe
    written = {path.relative_to(folder).parts[0] for path in folder.rglob("*.py")}
    assert written <= {"my_package"}
