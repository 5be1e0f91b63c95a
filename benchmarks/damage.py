"""Every file of a run, a sweep, a study and a cache damaged in turn: does each command say which file it is?

Each damage is done to a copy, and each command is called on one of its own. An outcome is good where the command names
the file and goes on with the rest, or refuses in one line that names the file, or gives what it gives without damage.
"""

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import yaml

from osteo.data.phantom import write_archives

COMMANDS = ("status", "report", "resume", "rerun", "evaluate", "predict")
GOES_ON, REFUSES, SAME = "names it, goes on", "names it, refuses", "unaffected"
TRACEBACK, SILENT, UNNAMED, HANGS = "TRACEBACK", "SILENT", "NAMES NO FILE", "HANGS"
GOOD = (GOES_ON, REFUSES, SAME)
LONGEST = 120  # seconds of a command
TRAIN = [
    "data=folder", "data.root=../knees/kaggle", "data.image_size=32", "data.batch_size=8", "model.backbone=test_resnet",
    "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "logger.wandb.mode=disabled",
    "keep=all",
]  # fmt: skip
SEARCH = ["hydra/sweeper=search", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(0.001,0.01)"]
OF_A_RUN = ("status.json", "config.yaml", "manifest.csv", "history.csv", "predictions.csv", "metrics.json",
            "environment.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt")  # fmt: skip
OF_A_SWEEP = (*(f"0/{name}" for name in OF_A_RUN if "last" not in name), "multirun.yaml", "leaderboard.csv")
OF_A_STUDY = ("search.json", "study.db", "multirun.yaml", "0/status.json", "0/environment.json", "0/history.csv")
OF_A_CACHE = ("manifests/*.csv", "pairs/*.json", "stores/*/index.json", "stores/*/pictures.npy")


class Said(NamedTuple):
    """What became of a command."""

    code: int
    text: str
    """standard output and standard error"""
    error: str
    """standard error alone"""
    result: str
    """what it printed or left, as far as it should be the same every time"""


def measure() -> list[dict]:
    """One row per file and damage, the commands across; the first counts all."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        make(root)
        return harness(root)


def make(root: Path) -> None:
    """One run, one sweep of two runs, one study of two trials, and their cache, in `root/whole`."""
    write_archives(root / "knees", seed=3, kaggle={"normal": 14, "osteoporosis": 14}, mendeley={})
    shutil.copytree(next((root / "knees").rglob("normal")), root / "asked")
    for path in sorted((root / "asked").iterdir())[2:]:
        path.unlink()
    whole = root / "whole"
    whole.mkdir()
    for words in (["output_dir=run"], ["-m", "seed=0,1", "output_dir=sweep"], ["-m", *SEARCH, "output_dir=study"]):
        done = call(whole, ["train", *words, *TRAIN])
        if done.code:
            raise RuntimeError(done.text)


def harness(root: Path, places: tuple[str, ...] = ("run", "sweep", "study", "cache")) -> list[dict]:
    """Damages every file in turn, and calls every command that reads it."""
    files = {"run": OF_A_RUN, "sweep": OF_A_SWEEP, "study": OF_A_STUDY, "cache": OF_A_CACHE}
    called = {"run": COMMANDS, "sweep": COMMANDS[:3], "study": COMMANDS[:3], "cache": ("report", "rerun", "evaluate")}
    rows: list[dict] = []
    for place in places:
        expected = {command: attempt(root, place, command) for command in called[place]}
        for command, said in expected.items():
            if said.code:
                raise RuntimeError(f"{place}, {command}, undamaged: {said.text}")
        for pattern in files[place]:
            for name in sorted(
                str(p.relative_to(root / "whole" / place)) for p in (root / "whole" / place).glob(pattern)
            ):
                for damage, change in damages(root / "whole" / place / name).items():
                    shown = pattern if "*" in pattern else name
                    row = {"of": place, "file": shown, "damage": damage} | dict.fromkeys(COMMANDS, "-")
                    for command in called[place]:
                        if place == "run" and command == "resume" and name in GONE_WHEN_CUT_OFF:
                            continue  # such a run has none yet
                        said = attempt(root, place, command, name, change)
                        row[command] = judge(said, expected[command], Path(name).name)
                    rows.append(row)
    return [summary(rows), *rows]


def summary(rows: list[dict]) -> dict:
    """How many outcomes of each kind, by command."""
    row: dict = {"of": "all", "file": f"{len(rows)} damages", "damage": ""}
    for command in COMMANDS:
        counts = Counter(each[command] for each in rows if each[command] != "-")
        good = sum(counts[kind] for kind in GOOD)
        bad = [f"{counts[kind]} {kind.lower()}" for kind in (TRACEBACK, SILENT, UNNAMED, HANGS) if counts[kind]]
        row[command] = "; ".join([f"{good} of {counts.total()} good", *bad])
    return row


GONE_WHEN_CUT_OFF = ("predictions.csv", "metrics.json", "environment.json")


def cut_off(run: Path) -> None:
    """Makes of a run one that was killed after its last epoch."""
    for name in GONE_WHEN_CUT_OFF:
        (run / name).unlink()
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running"}))


def attempt(
    root: Path, place: str, command: str, name: str | None = None, change: Callable[[Path], None] | None = None
) -> Said:
    """Calls a command on a copy with one file changed."""
    folder = root / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    target = "run" if place == "cache" else place
    shutil.copytree(root / "whole" / target, folder / target)
    shutil.copytree(root / "whole" / "cache", folder / "cache")
    if command == "resume" and place != "study":  # whose database knows that both have ended
        cut_off(folder / "run" if place == "run" else folder / place / "1")
    if name is not None and change is not None:
        change(folder / place / name)
    data = ["data=folder", "data.root=../knees/kaggle"]
    words = {
        "status": ["status", target],
        "report": ["report", target, "draws=100", "pictures=false"],
        "resume": ["train", f"resume={target}"],
        "rerun": ["rerun", target, "output_dir=again"],
        "evaluate": ["evaluate", target, *data, "output_dir=evaluated"],
        "predict": ["predict", target, "input=../asked", "interval=false", "overlay=false", "output_dir=predicted"],
    }[command]
    said = call(folder, words)
    left = {
        "report": ["tables/comparison.csv", "report.md"],
        "resume": ["metrics.json", "predictions.csv", "0/metrics.json", "1/metrics.json", "leaderboard.csv"],
    }.get(command, [])
    paths = [folder / target / path for path in left]
    paths += [folder / "again/metrics.json", folder / "evaluated/metrics.json", folder / "predicted/predictions.csv"]
    read = [without_times(path) for path in paths if path.exists()]
    return said._replace(result="\n".join([said.text if command == "status" else "", *read]))


def without_times(path: Path) -> str:
    """A file's text without what differs between two runs of the same: seconds, and the memory of the process."""
    if path.suffix == ".csv":
        table = pd.read_csv(path, dtype=str)
        return str(table[[name for name in table if not re.search("second|memory", str(name))]].to_csv())
    return re.sub(r"\d+\.\d+ MiB", "", path.read_text())


def judge(said: Said, expected: Said, name: str) -> str:
    """Which kind of outcome it is."""
    if said.code == -1:
        return HANGS
    if "Traceback" in said.text:
        return TRACEBACK
    known = set(expected.text.splitlines())
    is_named = any(name in line for line in said.text.splitlines() if line not in known)
    if is_named:
        if said.error.count("\n") > 1:
            return TRACEBACK
        return REFUSES if said.code == 2 else GOES_ON
    if said.code == expected.code and said.result == expected.result:
        return SAME
    return UNNAMED if said.code else SILENT


@contextlib.contextmanager
def caught(path: Path) -> Iterator[None]:
    """Sends both standard streams into files, below Python too."""
    kept = os.dup(1), os.dup(2)
    with path.with_suffix(".out").open("wb") as out, path.with_suffix(".err").open("wb") as error:
        os.dup2(out.fileno(), 1)
        os.dup2(error.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)


def call(folder: Path, words: list[str]) -> Said:
    """Calls osteo in this process, in a folder whose cache is its own."""
    from osteo.cli import main
    from osteo.report import figures, radiographs

    def expire(*_: object) -> None:
        raise TimeoutError

    # untrained networks and pictures of figures cost most of a report, and are not what is looked at here
    radiographs.RANDOMISED = 4
    figures.save = lambda figure, folder, name: [folder / f"{name}.png"]
    before, arguments, code = Path.cwd(), sys.argv, 0
    os.environ["OSTEO_CACHE"] = str(folder / "cache")
    os.chdir(folder)
    sys.argv = ["osteo", *words]
    signal.signal(signal.SIGALRM, expire)
    signal.alarm(LONGEST)
    more = io.StringIO()
    with caught(folder / "said"):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        except TimeoutError:
            code = -1
        except BaseException as error:  # noqa: BLE001  what a shell would show as a traceback
            code = 1
            more.write(f"Traceback: {type(error).__name__}: {error}")
        finally:
            signal.alarm(0)
            logging.getLogger().handlers.clear()
            os.chdir(before)
            sys.argv = arguments
    out, error = ((folder / f"said.{kind}").read_text(errors="replace") for kind in ("out", "err"))
    return Said(code, out + error + more.getvalue(), error, "")


def damages(path: Path) -> dict[str, Callable[[Path], None]]:
    """What can befall a file of this kind, by name."""
    size = path.stat().st_size
    found: dict[str, Callable[[Path], None]] = {
        "deleted": lambda p: p.unlink(),
        "emptied": lambda p: p.write_bytes(b""),
        "cut in half": lambda p: p.write_bytes(p.read_bytes()[: size // 2]),
        "bits flipped": flip_bits,
    }
    return found | OF_KIND.get(path.suffix, lambda _: {})(path)


def flip_bits(path: Path) -> None:
    """Turns over the lowest two bits of four bytes in the middle."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4] = bytes(byte ^ 3 for byte in content[middle : middle + 4])
    path.write_bytes(content)


def _of_values(read: Callable[[str], Any], write: Callable[[Any], str]) -> Callable[[Path], dict]:
    def edit(path: Path) -> dict[str, Callable[[Path], None]]:
        def with_value(change: Callable[[Any], Any]) -> Callable[[Path], None]:
            return lambda p: p.write_text(write(change(read(p.read_text()))))

        content = read(path.read_text())
        found = {"of another type": with_value(lambda _: ["a list"])}
        if not isinstance(content, dict):
            return found
        keys = list(content)
        for key in dict.fromkeys((keys[0], keys[len(keys) // 2], keys[-1])):
            found[f"{key} is missing"] = with_value(
                lambda values, key=key: {name: value for name, value in values.items() if name != key}
            )
            found[f"{key} is a list"] = with_value(lambda values, key=key: {**values, key: ["x", 1]})
        return found

    return edit


def _of_table(path: Path) -> dict[str, Callable[[Path], None]]:
    """Edits of a CSV file."""

    def with_table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
        return lambda p: change(pd.read_csv(p, dtype=str, keep_default_na=False)).to_csv(p, index=False)

    def with_column(column: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return with_table(lambda table: table.assign(**{column: change(table[column])}))

    columns = list(pd.read_csv(path))
    found = {
        "rows doubled": with_table(lambda table: pd.concat([table, table])),
        "last row is missing": with_table(lambda table: table[:-1]),
    }
    for column in [c for c in ("image_id", "split", "label", "logit", "seconds", "val/loss", "run") if c in columns]:
        found[f"{column} is missing"] = with_table(lambda table, column=column: table.drop(columns=column))
        found[f"{column} is text"] = with_column(column, lambda _: "x")
    if "label" in columns:
        found["labels turned over"] = with_column("label", lambda values: values.map({"0": "1", "1": "0", "": ""}))
    if "logit" in columns:
        found["a logit is infinite"] = with_column("logit", lambda values: ["inf", *values[1:]])
        found["logits of other probabilities"] = with_column("logit", lambda values: list(values[::-1]))
    return found


def _of_checkpoint(path: Path) -> dict[str, Callable[[Path], None]]:
    """Edits of a checkpoint and of the card in it."""

    def with_content(change: Callable[[dict], object]) -> Callable[[Path], None]:
        def edit(p: Path) -> None:
            content = torch.load(p, weights_only=True)
            change(content)
            torch.save(content, p)

        return edit

    found = {
        f"{key} is missing": with_content(lambda c, key=key: c.pop(key)) for key in ("state_dict", "hyper_parameters")
    }
    if "osteo" not in torch.load(path, weights_only=True):
        return found
    card = {
        "image_size": -1, "class_names": ["normal"], "temperature": float("nan"), "thresholds": {}, "backbone": 7,
        "plugins": "x", "fit": "stretch", "fold": "two",
    }  # fmt: skip
    for key, value in card.items():
        found[f"card: {key}={value}"] = with_content(lambda c, key=key, value=value: c["osteo"].update({key: value}))
    found["card: threshold is infinite"] = with_content(
        lambda c: c["osteo"]["thresholds"].update({"0.5": float("inf")})
    )
    found["card: guard without its mean"] = with_content(lambda c: c["osteo"]["guard"].pop("mean"))
    found["card: mean of the guard is short"] = with_content(lambda c: c["osteo"]["guard"].update(mean=torch.zeros(3)))
    return found


OF_KIND: dict[str, Callable[[Path], dict[str, Callable[[Path], None]]]] = {
    ".json": _of_values(json.loads, json.dumps),
    ".yaml": _of_values(yaml.safe_load, yaml.safe_dump),
    ".csv": _of_table,
    ".ckpt": _of_checkpoint,
}
