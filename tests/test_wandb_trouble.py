"""W&B in trouble: the training is unharmed, and what the server has not got can be uploaded later."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from osteo.records.record import Run
from osteo.training.tracking import WandbLogger
from tests.fake_wandb import KEY, FakeWandb
from tests.test_tracking import WANDB, of_type

OSTEO = str(Path(sys.executable).with_name("osteo"))
WORDS = [
    "data=folder", "data.image_size=64", "data.batch_size=8", "model.backbone=test_resnet", "trainer.max_epochs=3",
    "trainer.accelerator=cpu", "trainer.precision=32-true",
]  # fmt: skip
CONF = Path(__file__).resolve().parents[1] / "conf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWandb]:
    """A server that hears of every epoch within a second; nobody waits long for it."""
    wandb.teardown()  # what other tests have started knows no server
    with FakeWandb() as fake:
        monkeypatch.setenv("WANDB_BASE_URL", fake.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
        monkeypatch.setattr("wandb.apis.public.Api._HTTP_TIMEOUT", 1)  # W&B reads the variable once
        monkeypatch.setattr("osteo.training.tracking.SECONDS_TO_REACH", 3)
        monkeypatch.setattr("osteo.training.tracking.SECONDS_TO_FINISH", 3)
        monkeypatch.setattr("osteo.training.tracking.RETRIES", 1)
        yield fake
        wandb.teardown()


@pytest.fixture
def words(archives: Path) -> list[str]:
    return [*WORDS, f"data.root={archives / 'kaggle'}", "logger.wandb.mode=online"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, archives: Path, cache: Path) -> bytes:
    """The metrics of a run without W&B."""
    folder = tmp_path_factory.mktemp("undisturbed")
    command = [
        OSTEO,
        "train",
        *WORDS,
        f"data.root={archives / 'kaggle'}",
        "logger.wandb.mode=disabled",
        "output_dir=run",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "run/metrics.json").read_bytes()


def after_epoch(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Does something once W&B has got all of an epoch: its training metrics come last."""
    log_metrics = WandbLogger.log_metrics

    def log(self: WandbLogger, metrics: Mapping[str, float], step: int | None = None) -> None:
        log_metrics(self, metrics, step)
        if metrics["epoch"] == number and "train/loss" in metrics:
            act()

    monkeypatch.setattr(WandbLogger, "log_metrics", log)


def kept_epochs(folder: Path) -> list[int]:
    """The epochs in the only file that W&B has kept in a run directory, read with its own reader."""
    (log,) = folder.glob("wandb/*/*.wandb")
    read = subprocess.run([WANDB, "leet", "inspect", "--json", log], capture_output=True, check=True)
    records = [json.loads(line) for line in read.stdout.splitlines() if line.startswith(b"{")]
    return [row["item"]["epoch"] for row in of_type(records, "history") if "val/loss" in row["item"]]


def check_unharmed(folder: Path, undisturbed: bytes) -> None:
    assert Run(folder).state == "done"
    assert (folder / "metrics.json").read_bytes() == undisturbed
    assert list(Run(folder).read_table("history.csv")["epoch"]) == [0, 1, 2]
    assert len(Run(folder).read_table("predictions.csv"))


def upload(out: str) -> None:
    """Does what the only warning says."""
    (words,) = [line.partition("later with: ")[2].split() for line in out.splitlines() if "later with: " in line]
    assert words[:2] == ["wandb", "sync"]
    done = subprocess.run([WANDB, *words[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("what", ["down", "wrong key"])
def test_a_server_that_cannot_be_used_at_the_start(
    osteo: Callable, words: list[str], server: FakeWandb, undisturbed: bytes, tmp_path: Path, what: str
) -> None:
    server.wrong_key = what == "wrong key"
    if what == "down":
        server.down()
    done = osteo("train", *words, "output_dir=run")
    assert done.code == 0, done.err
    check_unharmed(tmp_path / "run", undisturbed)
    assert (
        "W&B cannot be reached (CommError); the run is kept offline, upload it later with: wandb sync run/" in done.out
    )
    assert kept_epochs(tmp_path / "run") == [0, 1, 2]
    assert server.runs == {}
    if what == "down":
        server.up()
    server.wrong_key = False
    upload(done.out)
    assert {name: run.epochs for name, run in server.runs.items()} == {Run(tmp_path / "run").status()["id"]: [0, 1, 2]}


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 2], ids=["middle", "end"])
def test_a_server_that_goes_down(
    osteo: Callable,
    words: list[str],
    server: FakeWandb,
    undisturbed: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    def go_down() -> None:
        assert server.heard_epoch.wait(20)
        server.down()

    after_epoch(monkeypatch, epoch, go_down)
    done = osteo("train", *words, "output_dir=run")
    assert done.code == 0, done.err
    check_unharmed(tmp_path / "run", undisturbed)
    assert "W&B has not received all of the run within 3 s; upload the rest later with: wandb sync" in done.out
    assert kept_epochs(tmp_path / "run") == [0, 1, 2]
    (run,) = server.runs.values()
    assert set(run.epochs) <= set(range(epoch + 1))
    assert run.exit_code is None
    server.up()
    upload(done.out)
    assert set(run.epochs) == {0, 1, 2}
    assert {Path(name).parts[-1].split("_")[0] for name in run.files if "table" in name} >= {"predictions", "roc"}
    assert run.summary["test/auroc"] == json.loads(undisturbed)["test/auroc"]
    assert run.exit_code == 0


def test_a_server_that_comes_back_gets_everything(
    osteo: Callable, words: list[str], server: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osteo.training.tracking.SECONDS_TO_FINISH", 30)
    after_epoch(monkeypatch, 0, lambda: server.heard_epoch.wait(20) and server.down())
    after_epoch(monkeypatch, 2, server.up)
    done = osteo("train", *words, "output_dir=run")
    assert done.code == 0, done.err
    (run,) = server.runs.values()
    assert (run.epochs, run.exit_code) == ([0, 1, 2], 0)
    assert "wandb sync" not in done.out


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_of_the_server(
    osteo: Callable, words: list[str], server: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        after_epoch(patch, 1, cut_off)
        assert osteo("train", *words, "output_dir=run").code == 130
    assert Run(tmp_path / "run").state == "interrupted"
    (run,) = server.runs.values()
    before = len(run.upserts)
    assert run.epochs == [0, 1]
    done = osteo("train", "resume=run")
    assert done.code == 0, done.err
    assert list(server.runs) == [Run(tmp_path / "run").status()["id"]]
    assert len(run.upserts) > before
    assert (sorted(set(run.epochs)), run.exit_code) == ([0, 1, 2], 0)


def test_what_w_and_b_raises_is_said_once(
    osteo: Callable, words: list[str], undisturbed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log(*_: object, **__: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr("wandb.Run.log", log)
    done = osteo("train", *words, "logger.wandb.mode=offline", "output_dir=run")
    assert done.code == 0, done.err
    check_unharmed(tmp_path / "run", undisturbed)
    assert done.out.count("W&B has failed (RuntimeError: no more); the run continues without it") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size where a run's W&B files lie."""
    folder = tmp_path / "run/wandb"
    folder.mkdir(parents=True)

    def mount(size: str) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("a file system cannot be mounted here")
        return folder

    try:
        yield mount
    finally:
        wandb.teardown()
        if folder.is_mount():
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.slow
@pytest.mark.mount
@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize(
    ("size", "said"),
    [
        ("8k", "W&B has failed (OSError: [Errno 28] No space left on device"),
        ("20k", "W&B has kept only a part of the run"),
    ],
    ids=["at the start", "in the middle"],
)
def test_a_full_disk(
    osteo: Callable,
    words: list[str],
    server: FakeWandb,
    undisturbed: bytes,
    tmp_path: Path,
    small_disk: Callable[[str], Path],
    size: str,
    said: str,
    mode: str,
) -> None:
    small_disk(size)
    done = osteo("train", *words, f"logger.wandb.mode={mode}", "output_dir=run")
    assert done.code == 0, done.err
    check_unharmed(tmp_path / "run", undisturbed)
    assert said in done.out
    assert "Logging error" not in done.err
    if mode == "online" and size == "20k":  # what has no room in the folder is uploaded all the same
        (run,) = server.runs.values()
        assert (run.epochs, run.exit_code) == ([0, 1, 2], 0)


def test_a_folder_that_cannot_be_made(osteo: Callable, words: list[str], undisturbed: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/wandb").write_text("a file where W&B wants a folder")
    done = osteo("train", *words, "logger.wandb.mode=offline", "output_dir=run")
    assert done.code == 0, done.err
    check_unharmed(tmp_path / "run", undisturbed)
    assert "W&B records nothing of this run: run/wandb cannot be written" in done.out


@pytest.mark.slow
def test_an_agent_names_its_run(
    osteo: Callable, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abcd1234")
    monkeypatch.setenv("WANDB_RUN_ID", "run12345")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))  # an agent's, not the run's
    done = osteo("train", *words, "logger.wandb.mode=offline", "output_dir=run")
    assert done.code == 0, done.err
    assert Run(tmp_path / "run").status()["id"] == "run12345"
    assert kept_epochs(tmp_path / "run") == [0, 1, 2]
    assert [path.name for path in tmp_path.glob("run/wandb/*/*.wandb")] == ["run-run12345.wandb"]


def test_the_sweep_file_s_command_is_one_of_ours(tmp_path: Path) -> None:
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    chosen = {
        name: {"value": allowed["values"][-1] if "values" in allowed else allowed["max"]}
        for name, allowed in sweep["parameters"].items()
    }
    filled = {"args_no_hyphens": create_sweep_command_args({"args": chosen})["args_no_hyphens"]}
    command = [
        part for word in create_sweep_command(sweep["command"]) for part in filled.get(word.strip("${}"), [word])
    ]
    assert command[:2] == [sweep["program"], "train"]
    done = subprocess.run(
        [OSTEO, "train", "--cfg", "job", *command[2:]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    composed = yaml.safe_load(done.stdout)
    for name, choice in chosen.items():
        group, key = name.split(".")
        assert composed[group][key] == choice["value"]
