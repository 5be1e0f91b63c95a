"""Fixtures: small phantom archives, a cache of our own, and osteo called as a user would."""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at the first import of timm
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several processes on two cores wait for each other

from osteo.data.phantom import write_archives

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = {"kaggle": {"normal": 14, "osteoporosis": 14}, "mendeley": {"normal": 6, "osteopenia": 2, "osteoporosis": 6}}


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing that a test decodes or draws is left on the machine, and nothing of the machine is used."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_RUN_GROUP"):
            patch.delenv(name, raising=False)
        patch.setenv("OSTEO_CACHE", str(folder))
        patch.setenv("NETRC", str(folder / "no-netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "wandb"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "wandb"))
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb"))
        yield folder


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small phantom archives, kaggle/ and mendeley/."""
    root = tmp_path_factory.mktemp("phantom") / "archives"
    write_archives(root, seed=3, kaggle=SMALL["kaggle"], mendeley=SMALL["mendeley"])
    return root


@pytest.fixture
def osteo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Calls osteo in this process, in an empty working directory."""
    from osteo.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["osteo", *arguments])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            logging.getLogger().handlers.clear()  # Hydra's write to this call's stdout
        return Result(code, *capfd.readouterr())

    return call


@pytest.fixture
def tiny(archives: Path) -> list[str]:
    """Overrides that make a run a matter of a second."""
    return [
        "data=folder",
        f"data.root={archives / 'kaggle'}",
        "data.image_size=64",
        "data.batch_size=8",
        "model.backbone=test_resnet",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
    ]
