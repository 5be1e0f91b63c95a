"""What one run costs in files, bytes and seconds, and what ten thousand on a hundred nodes would; see SCALING.md."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path

from benchmarks.faults import settings
from benchmarks.noise import python
from osteo.data.phantom import write_archives

RUNS, NODES, COPIES = 10_000, 100, 1_000
EPOCHS, BACKBONE = 50, "densenet201"


def files_below(folder: Path) -> tuple[int, int]:
    """Files, and their bytes; a file under two names counts once in bytes."""
    found = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return len(found), sum({stat.st_ino: stat.st_size for stat in found}.values())


def checkpoint_bytes() -> int:
    """Of a checkpoint of the paper's largest backbone with the moments of AdamW."""
    from osteo.config import ModelConfig
    from osteo.networks.network import Network

    network = Network(**{**asdict(ModelConfig(BACKBONE)), "image_size": 224})
    return sum(weights.nbytes for weights in network.state_dict().values()) + 2 * sum(
        weights.nbytes for weights in network.parameters()
    )


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes; nothing is printed."""
    start = time.perf_counter()
    with redirect_stdout(StringIO()):
        action()
    return time.perf_counter() - start


def compose_jobs(count: int) -> None:
    """What Hydra does for every job of a sweep before the first of them starts."""
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore

    from osteo.app.hydra import CONF
    from osteo.config import Config

    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for seed in range(count):
            compose("train", [f"seed={seed}"])


def measure() -> list[dict]:
    """One row per quantity."""
    from osteo.records.record import Run
    from osteo.records.sweep import leaderboard, runs_of, trained
    from osteo.report.summary import row

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_archives(folder / "archives", seed=3, kaggle={"normal": 186, "osteoporosis": 186}, mendeley={})
        words = settings(folder / "archives" / "kaggle")
        words = [word for word in words if not word.startswith(("trainer.max_epochs", "data.image_size"))]
        words += [f"trainer.max_epochs={EPOCHS}", "trainer.limit_train_batches=2", "data.image_size=224"]
        command = [*python("osteo"), "train", *words, f"data.cache={folder / 'cache'}", f"output_dir={folder / 'run'}"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        run, sweep = folder / "run", folder / "sweep"
        wandb_files, wandb_bytes = files_below(run / "wandb")
        store_files, store_bytes = files_below(folder / "cache" / "stores")
        shutil.rmtree(run / "wandb")
        shutil.rmtree(run / "checkpoints")
        record_files, record_bytes = files_below(run)
        for number in range(COPIES):
            shutil.copytree(run, sweep / str(number))
        told = {
            "leaderboard": seconds(lambda: leaderboard(trained(sweep, Run.read_results)[0])) / COPIES,
            "status": seconds(lambda: [row(each) for each in runs_of(sweep)]) / COPIES,
            "compose": seconds(lambda: compose_jobs(50)) / 50,
        }
    checkpoint = checkpoint_bytes()
    mib, gib = 2**20, 2**30

    def each(what: str, one: str, all_of_them: str) -> dict:
        return {"what": what, "one run": one, f"{RUNS} runs on {NODES} nodes": all_of_them}

    return [
        each(
            f"files of a record (with {EPOCHS} epochs)",
            f"{record_files} + 3 checkpoints",
            f"{RUNS * (record_files + 3)}",
        ),
        each("bytes of a record", f"{record_bytes / mib:.2f} MiB", f"{RUNS * record_bytes / gib:.1f} GiB"),
        each("files of W&B, offline", f"{wandb_files}", f"{RUNS * wandb_files}"),
        each("bytes of W&B, offline", f"{wandb_bytes / mib:.2f} MiB", f"{RUNS * wandb_bytes / gib:.1f} GiB"),
        each(
            f"checkpoints of {BACKBONE} (best, last, previous)",
            f"3 x {checkpoint / mib:.0f} MiB",
            f"{3 * RUNS * checkpoint / gib / 1024:.1f} TiB",
        ),
        each(
            "store of 372 pictures of 224 x 224, mapped by each node once",
            f"{store_bytes / mib:.0f} MiB in {store_files} files",
            f"{NODES * store_bytes / gib:.1f} GiB read",
        ),
        each("composing a job's configuration, s", f"{told['compose']:.3f}", f"{RUNS * told['compose']:.0f}"),
        each("leaderboard, s", f"{told['leaderboard']:.4f}", f"{RUNS * told['leaderboard']:.0f}"),
        each("osteo status, s", f"{told['status']:.4f}", f"{RUNS * told['status']:.0f}"),
    ]
