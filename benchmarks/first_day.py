"""A first day: from a clone of the repository to a prediction, as the README tells it, timed task by task.

The user's own radiographs are phantoms in class folders, since real ones are not ours to ship. What the machine has
downloaded before, it does not download again: the time of `make setup` is that of unpacking and compiling, with a warm
cache of packages, and the first row says what it left on the disk.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from osteo.data.phantom import write_archives

BACKBONE = """\
import timm
from osteo import parts

@parts.backbones.register("mine")
def mine(*, in_chans, num_classes, drop_rate, img_size):
    return timm.create_model("resnet18", in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate)
"""


class Task(NamedTuple):
    """What a user wants, what they type for it, and what they write into files."""

    name: str
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()


OWN = ".venv/bin/osteo train data=folder data.root=my_xrays data.image_size=128 trainer.max_epochs=5"
TASKS = (
    Task("install", ("git clone --quiet REPOSITORY .", "make setup")),
    Task("first sweep: three backbones", ("make run",)),
    Task("own data", (f"{OWN} model.backbone=resnet18 output_dir=own",)),
    Task(
        "own backbone",
        (f"{OWN} plugins=[my_parts] model.backbone=mine output_dir=mine",),
        (("my_parts.py", BACKBONE),),
    ),
    Task("report on the sweep", (".venv/bin/osteo report multirun/*/*",)),
    Task("prediction for a picture", (".venv/bin/osteo predict own my_xrays/osteoporosis/PICTURE",)),
)


def measure() -> Iterator[dict]:
    """Minutes, commands and lines of every task, and what it leaves on the disk, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "osteo"
        place.mkdir()
        write_archives(Path(folder) / "phantoms", seed=9, kaggle={"normal": 60, "osteoporosis": 60}, mendeley={})
        repository = Path(__file__).parents[1]
        for task in TASKS:
            before = size(place)
            for name, content in task.files:
                (place / name).write_text(content)
            start = time.perf_counter()
            for command in task.commands:
                picture = next(iter(sorted((place / "my_xrays/osteoporosis").glob("*"))), Path())
                typed = command.replace("REPOSITORY", str(repository)).replace("PICTURE", picture.name)
                subprocess.run(["bash", "-c", typed], cwd=place, check=True, capture_output=True)
            minutes = (time.perf_counter() - start) / 60
            if task.name == "install":
                (Path(folder) / "phantoms/kaggle").rename(place / "my_xrays")
            yield {
                "task": task.name,
                "commands": len(task.commands),
                "lines written": sum(len(content.splitlines()) for _, content in task.files),
                "minutes": round(minutes, 2),
                "MiB on disk": round((size(place) - before) / 2**20),
            }


def size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
