"""What --help says, what a run shows of its configuration, and how mistakes of the command line are answered."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from osteo.app import choices, configuration
from osteo.app.messages import CONF
from osteo.app.reference import as_markdown, purposes
from osteo.app.words import as_typed, as_value, quoted, readable
from osteo.command_settings import COMMANDS
from osteo.config import Config, ModelConfig, TrainerConfig, WandbConfig, field_of
from osteo.search.settings import SearchSettings
from osteo.training.hardware import count_processes
from tests.test_start import HEAVY

SCHEMAS = {name: command.schema for name, command in COMMANDS.items()} | {"search": SearchSettings, "W&B": WandbConfig}
EACH = """
import contextlib, io, json, sys
from osteo.cli import main
pages = {}
for command in sys.argv[1].split():
    sys.argv, out = ["osteo", command, "--help"], io.StringIO()
    with contextlib.redirect_stdout(out):
        main()
    pages[command] = out.getvalue()
print(json.dumps([pages, [name for name in %r if name in sys.modules]]))
"""


def entries(schema: type[Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of a schema with their fields, and those within."""
    for entry in fields(schema):
        if is_dataclass(inner := entry.default_factory):
            yield from entries(inner, f"{prefix}{entry.name}.")
        elif not entry.name.startswith("_"):
            yield f"{prefix}{entry.name}", entry


def unexplained(schema: type[Any]) -> list[str]:
    return [key for key, entry in entries(schema) if not entry.metadata.get("meaning", "").strip()]


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """The help of every command, from one process, which loads nothing slow for it."""
    done = subprocess.run(
        [sys.executable, "-c", EACH % (HEAVY,), " ".join(COMMANDS)], capture_output=True, text=True, check=True
    )
    found, loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    return dict(found)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_key_has_a_meaning(name: str) -> None:
    assert unexplained(SCHEMAS[name]) == []
    assert (SCHEMAS[name].__doc__ or "").endswith(".")


def test_a_key_without_a_meaning_is_found() -> None:
    @dataclass
    class Mute:
        said: int = 3

    assert unexplained(Mute) == ["said"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_keys_of_its_command_alone(pages: dict[str, str], command: str) -> None:
    page, about = pages[command], COMMANDS[command]
    lines = page.splitlines()
    assert lines[0] == f"osteo {command}: {about.purpose}"
    assert lines[2] == f"usage: {about.usage}"
    assert max(map(len, lines)) <= 80
    assert "\033" not in page
    shown = [line.split("=")[0].strip() for line in lines if line.startswith("  ") and "=" in line.split("  ")[1]]
    shown = [key for key in shown if not key.startswith(("hydra", "logger.")) and field_of(about.schema, key)]
    overlays = ["experiment", "protocol", "debug"]
    expected = [key for key, _ in entries(about.schema) if key not in about.refused]
    expected = [key for key in expected if key not in (*overlays, "callbacks", "logger")]
    assert sorted(set(shown) - {*overlays, "callbacks", "logger", "data", "augment", "optimizer", "loss"}) == sorted(
        expected
    )


def test_help_says_meaning_choices_range_and_default(pages: dict[str, str]) -> None:
    page = " ".join(pages["train"].split())
    assert "data.image_size=224 side of the square picture that the network sees, in pixels [16 to 2048]" in page
    assert "optimizer.lr=0.001 learning rate, at its peak [above 0]" in page
    assert "[pad, resize, crop, bone, clusters]" in page
    assert "logger.wandb.project=osteo project of the run" in page
    assert "hydra.sweeper.n_trials=20 trials of this sweep directory [from 1]" in page
    assert "quickstart Three backbones on phantom radiographs, small enough for a laptop (`make run`)" in page
    assert "trainer.max_epochs=100 epochs to train [from 1]" in " ".join(pages["pretrain"].split())  # its own default
    assert "experiment" not in pages["predict"]


@pytest.mark.parametrize("group", [*choices.CHOICES, "experiment", "protocol", "debug", "callbacks", "hydra/launcher"])
def test_every_choice_says_in_a_line_what_it_is_for(group: str) -> None:
    found = purposes(group)
    assert set(found) >= {path.stem for path in (CONF / group).glob("*.yaml")}
    assert {name: text for name, text in found.items() if not 10 < len(text) <= 100 or not text[0].isupper()} == {}


def test_help_of_one_group_or_one_key(osteo: Callable) -> None:
    whole = osteo("train", "--help").out
    assert osteo("help", "train").out == whole
    assert osteo("train", "-m", "seed=0,1", "-h").out == whole
    one = osteo("help", "train", "optimizer.lr").out
    assert one.splitlines()[3] == "  optimizer.lr=0.001          learning rate, at its peak [above 0]"
    assert one.count("=") == 1
    split = osteo("help", "audit", "data.split").out
    assert "data.split.fold=null" in split
    assert "data.image_size" not in split
    paper = osteo("train", "experiment=paper", "--help", "trainer.max_epochs").out
    assert "trainer.max_epochs=50" in paper
    wrong = osteo("help", "train", "optimiser")
    assert (wrong.code, wrong.out) == (2, "")
    assert "the nearest are: optimizer" in wrong.err


def test_the_reference_is_the_schema_s(pages: dict[str, str]) -> None:
    text = as_markdown("train")
    assert text.startswith("# osteo train\n\nTrain one model, or sweep many with -m.\n")
    assert "| `data.batch_size` | `16` | from 1 | pictures per training step, on all devices together |\n" in text
    assert "- `sgd`: SGD with momentum at a constant rate, without weight decay\n" in text
    assert "your own by `_target_`" in text
    rows = [line for line in as_markdown("report").splitlines() if line.startswith("| `")]
    assert len(rows) == len(list(entries(COMMANDS["report"].schema)))


def test_the_overview_fits_and_names_each_command_once(osteo: Callable) -> None:
    page = osteo("--help").out
    assert osteo("help").out == page
    assert max(map(len, page.splitlines())) <= 80
    for name, command in COMMANDS.items():
        assert f"  {name:10} {command.purpose}\n" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (1e-3, "0.001"), ("a b", "a b"), ("1e3", "'1e3'"), ("", "''"),
        (["a", "b"], "[a,b]"), ({"a": 1, "b": [0.9, None]}, "{a:1,b:[0.9,null]}"), (["a,b"], "['a,b']"),
    ],
)  # fmt: skip
def test_values_stand_as_on_the_command_line(value: Any, text: str) -> None:
    assert as_value(value) == text


def test_a_command_line_is_shown_as_it_was_typed() -> None:
    typed = ["data=folder", "data.root=/a b/c[1]", "output_dir=1e3", "data.classes=[healthy:normal]", "-m", "seed=0,1"]
    assert as_typed(readable(typed, Config)) == typed
    assert as_typed(["data.root=" + quoted("/a/it's")]) == ["data.root=/a/it's"]


def test_what_differs_from_the_defaults_is_shown() -> None:
    usual = asdict(Config())
    assert configuration.differences(usual, usual, "x") == "configuration (x)\n  the defaults"
    config = Config(
        output_dir="/tmp/run",
        seed=3,
        model=ModelConfig(backbone="densenet121", tta=["hflip"]),
        callbacks={"ema": {"_target_": "osteo.training.callbacks.ExponentialMovingAverage", "decay": 0.9}},
        claim={"source": "Alrabai 2025", "read": "full text"},
        trainer=TrainerConfig(max_epochs=50, monitor="epoch"),
    )
    assert configuration.differences(asdict(config), usual, "x") == (
        "configuration (x)\n"
        "  seed=3 claim.source=Alrabai 2025 model.backbone=densenet121 model.tta=[hflip]\n"
        "  trainer.max_epochs=50 trainer.monitor=epoch\n"
        "  callbacks.ema=ExponentialMovingAverage(decay=0.9)"
    )
    tree = configuration.as_tree(asdict(config)).splitlines()
    assert tree[0] == "configuration"
    assert "├── seed=3" in tree
    assert "│   ├── max_epochs=50" in tree


def test_a_sweep_shows_what_its_jobs_share_once(osteo: Callable, tiny: list[str]) -> None:
    swept = osteo("train", "-m", *tiny, "seed=0,1", "output_dir=sweep", "logger.wandb.mode=disabled")
    assert swept.code == 0, swept.err
    lines = swept.out.splitlines()
    assert lines[:2] == ["sweep of 2 jobs: seed=0,1", "configuration (of all jobs; all of it: print_config=true)"]
    assert swept.out.count("image_size") == 1
    starts = [place for place, line in enumerate(lines) if line.startswith("job ") and ": sweep/" in line]
    assert [(lines[place].partition(";")[0], lines[place + 1]) for place in starts] == [
        ("job 1 of 2: sweep/0", "  seed=0"),
        ("job 2 of 2: sweep/1", "  seed=1"),
    ]
    assert "; about 0:00:" in lines[starts[1]]  # the time left, once a job has ended
    assert swept.out.count("configuration") == 1
    assert "Launching" not in swept.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.backbone=test_resnet,test_vit", "data.batch_size=0"], "data.batch_size=0 is too small; the smallest"),
        (["seed=0,1", "data=folder"], "data=folder needs data.root=PATH"),
        (["seed=0,1", "model.backbone=densenet12"], "the nearest are: densenet121"),
        (["seed=-1,-2"], "seed=-1 is too small"),
        (["model.backbone=test_vit,resnat"], "job 2 of 2 (model.backbone=resnat): model.backbone 'resnat' is unknown"),
        (["seed=0,1,-3,2"], "job 3 of 4 (seed=-3): seed=-3 is too small"),
        (
            ["optimizer.lr=interval(0.001,0.1)", "hydra/sweeper=search", "optimizer.name=choice(sgd,adamwx)"],
            "a trial (optimizer.name=adamwx): optimizer.name 'adamwx' is unknown among",
        ),
        (["experiment=quickstart", "trainer.monitor=val/acc"], "trainer.monitor 'val/acc' is unknown"),
        (["seed=0,1", "optimizer.lrr=1"], "key 'optimizer.lrr' is unknown"),
        (
            ["optimizer.lr=interval(0.001,0.1)", "hydra/sweeper=search", "data.batch_size=0"],
            "data.batch_size=0 is too small",
        ),
    ],
)
def test_a_sweep_that_cannot_run_stops_before_its_first_job(
    osteo: Callable, tmp_path: Path, words: list[str], message: str
) -> None:
    for place in ([], ["output_dir=sweep"]):
        done = osteo("train", "-m", *words, *place)
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
        assert message in done.err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "logger=null"], "evaluate: key 'logger' is unknown; choose one of: plugins, ckpt"),
        (["predict", "experiment=null"], "predict: key 'experiment' is unknown"),
        (["train", "experiment/literature=null"], "key 'experiment/literature' is unknown; choose one of: plugins, "),
        (["train", "hydra/launcher=null"], "hydra/launcher 'null' is unknown; choose one of: processes, slurm"),
        (["train", "model=null"], "model=null: holds keys, and no value of its own: model.backbone, model.pretrained"),
        (["train", "data=null"], "data 'null' is unknown; choose one of: clean, folder, kaggle"),
        (["train", "claim.accuracy="], "claim.accuracy= must be a number from 0 to 1"),
        (["train", "hydra.launcher.jobs_per_gpu=2"], "hydra.launcher.jobs_per_gpu goes with hydra/launcher=processes"),
        (["train", "hydra.launcher.nodes=2"], "hydra.launcher.nodes goes with hydra/launcher=slurm"),
        (["train", "hydra.sweeper.n_trials=2"], "hydra.sweeper.n_trials goes with hydra/sweeper=search"),
        (["train", "claim={Ä:1}"], "needs quotes; quote the texts within, and all of it for the shell: 'claim={name: "),
        (["train", "lr=0.1"], "key 'lr' is unknown; choose one of: plugins, "),
        (["train", "lr=0.1"], "; did you mean optimizer.lr?"),
        (["train", "epochs=3"], "; did you mean trainer.max_epochs?"),
        (["train", "optimizer.lrr=3"], "; did you mean lr?"),
        (["train", "--epochs", "5"], "--epochs is no flag; what is configured is given as trainer.max_epochs=VALUE"),
        (["train", "--cfg"], "--cfg needs a value, as in --cfg job"),
        (["train", "--cfg", "jobs"], "--cfg 'jobs' is unknown; choose one of: job, hydra, all"),
        (["train", "data=folder", "-m", "seed=0,1"], "data=folder needs data.root=PATH"),
        (["trian"], "command 'trian' is unknown; choose one of: prepare, audit, "),
        (["help", "trian"], "; did you mean train?"),
    ],
)
def test_a_mistake_of_the_command_line_is_one_clear_line(
    osteo: Callable, tmp_path: Path, words: list[str], message: str
) -> None:
    done = osteo(*words)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), done.err
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_any_names_needs_no_quotes(osteo: Callable, tmp_path: Path) -> None:
    (tmp_path / "knees").mkdir()
    done = osteo("train", "--cfg", "job", "data=folder", "data.root=knees", "data.classes=[Ärger:normal, krank:normal]")
    assert done.code == 0, done.err
    assert "  - Ärger:normal\n  - krank:normal\n" in done.out


def test_the_cpu_takes_no_more_processes_than_it_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert count_processes(TrainerConfig(devices=2), "cpu") == 2
    with pytest.raises(Exception, match=r"trainer.devices=9 asks for 9 processes on the CPU, which has 2 cores; use 2"):
        count_processes(TrainerConfig(devices=9), "cpu")


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("osteo help aud", ["audit"]),
        ("osteo train data.fit=", [f"data.fit={fit}" for fit in ("pad", "resize", "crop", "bone", "clusters")]),
        ("osteo train -m data.fit=pad,re", ["data.fit=pad,resize"]),
        ("osteo train model.pretrained=", ["model.pretrained=true", "model.pretrained=false"]),
        ("osteo predict rule=", ["rule=0.5", "rule=Youden", "rule=sensitivity"]),
        ("osteo train data.image_size=", ["data.image_size=224"]),
        ("osteo train task=o", ["task=osteopenia_or_worse", "task=ordinal"]),
        ("osteo train optimizer.schedule=co", ["optimizer.schedule=constant", "optimizer.schedule=cosine"]),
    ],
)
def test_completion_offers_the_choices(
    osteo: Callable, monkeypatch: pytest.MonkeyPatch, line: str, completed: list[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert osteo("-sc", "query=bash").out.split() == completed
