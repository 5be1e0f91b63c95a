"""Fixtures: small phantom archives, a cache of our own, and osteo called as a user would."""

import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, at the first import of timm
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several processes on two cores wait for each other
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as osteo sets it, so that what it starts is started warm

from osteo.config import PhantomConfig
from osteo.data import phantom

if TYPE_CHECKING:
    from osteo.data.candidates import Candidate
    from osteo.inference.model import Model

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SMALL = {"kaggle": {"normal": 14, "osteoporosis": 14}, "mendeley": {"normal": 6, "osteopenia": 2, "osteoporosis": 6}}

SLOWEST = (
    "test_launchers", "test_duplicates", "test_resume", "test_plugins", "test_report", "test_distributed",
    "test_trouble", "test_real_data", "test_notebook", "test_search", "test_docs", "test_pretrain",
    "test_full_disk", "test_postgresql", "test_ladder",
    "test_wandb_trouble", "test_experiments", "test_lightning", "test_explain", "test_audit",
    "test_feature_maps", "test_extending",
)  # fmt: skip
"""Files that take long, the longest first: one left for the end would have the other worker wait."""


class Result(NamedTuple):
    code: int
    out: str
    err: str


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it of what it runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.loadscopereorder = False  # pytest-xdist would begin with the files of the most tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def pytest_collection_finish() -> None:
    gc.freeze()  # every search for garbage would look at all that the tests have imported


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of pytest-xdist have in common: what one has drawn, the others need not."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Path]:
    """Nothing that a test decodes or draws is left on the machine, and nothing of the machine is used."""
    folder = tmp_path_factory.mktemp("cache")
    (shared / "phantom").mkdir(exist_ok=True)
    (folder / "phantom").symlink_to(shared / "phantom")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_RUN_GROUP"):
            patch.delenv(name, raising=False)
        patch.setenv("OSTEO_CACHE", str(folder))
        patch.setenv("NETRC", str(folder / "no-netrc"))
        patch.setenv("WANDB_CONFIG_DIR", str(folder / "wandb"))
        patch.setenv("WANDB_CACHE_DIR", str(folder / "wandb"))
        patch.setenv("WANDB_DATA_DIR", str(folder / "wandb"))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def warm() -> Iterator[None]:
    """subprocess starts osteo without importing its libraries anew."""
    from tests import warm

    warm.Popen.server = warm.Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", warm.Popen)
        yield
    warm.Popen.server.close()


@pytest.fixture(autouse=True)
def level() -> None:
    """What an earlier test has Hydra log, this one need not."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("osteo").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A folder with small phantom archives, kaggle/ and mendeley/."""
    drawn = phantom.archives(PhantomConfig(3, SMALL["kaggle"], SMALL["mendeley"]), shared)
    return shutil.copytree(drawn, tmp_path_factory.mktemp("phantom") / "archives")


@pytest.fixture(scope="module")
def compared_once() -> Iterator[None]:
    """Two pictures that are searched for copies again, among others, are compared as they were the first time."""
    from osteo.data import duplicates

    compare, lost_detail = duplicates.compare, duplicates.lost_detail
    known: dict[tuple[object, ...], object] = {}

    def compare_once(thumbnails: np.ndarray, described: object, candidate: "Candidate", *, blurred: bool) -> object:
        pictures = [thumbnails[row].tobytes() for row in candidate[:2]]
        key = (*map(hash, pictures), id(candidate.search), blurred)
        if key not in known:
            known[key] = compare(thumbnails, described, candidate, blurred=blurred)
        found = known[key]
        return found and found._replace(candidate=candidate)

    def lost_once(picture: np.ndarray) -> object:
        key = (hash(picture.tobytes()),)
        if key not in known:
            known[key] = lost_detail(picture)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "compare", compare_once)
        patch.setattr(duplicates, "lost_detail", lost_once)
        yield


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


@pytest.fixture(scope="session")
def knees(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """Eighty phantom knees in class folders."""
    config = PhantomConfig(5, {"normal": 40, "osteoporosis": 40}, {"normal": 0, "osteopenia": 0, "osteoporosis": 0})
    drawn = phantom.archives(config, shared)
    return shutil.copytree(drawn / "kaggle", tmp_path_factory.mktemp("knees") / "kaggle")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, knees: Path, cache: Path) -> Path:
    """A training of a few seconds, in float32, started cold as a user starts it."""
    folder = tmp_path_factory.mktemp("run")
    command = [
        sys.executable, str(Path(sys.executable).with_name("osteo")), "train", "data=folder", f"data.root={knees}",
        "data.image_size=64", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "trainer.max_epochs=3", "model.backbone=test_resnet", "logger.wandb.mode=disabled", "output_dir=run",
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="session")
def models(run: Path) -> "list[Model]":
    """The model of the run, ready to answer."""
    from osteo.inference.model import load_models

    return load_models([str(run)])


@pytest.fixture(scope="session")
def picture(knees: Path, models: "list[Model]") -> np.ndarray:
    """Grey, as a file has it, of a phantom that no flag is raised for."""
    from osteo.inference.answer import answer
    from osteo.reading.pictures import decode

    for path in sorted(knees.rglob("*.*")):
        grey = decode(path.read_bytes())
        if not answer(models, [grey], rule="0.5", interval=False)[0].inspection.flags:
            return grey
    raise AssertionError("all are flagged")
