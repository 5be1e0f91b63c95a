"""What a user types, and what the terminal answers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from osteo.app.hydra import claimed
from osteo.app.words import quoted, readable, unquoted
from osteo.config import Config


def test_help_lists_the_commands(osteo: Callable) -> None:
    done = osteo("--help")
    assert done.code == 0
    assert "train      train one model, or sweep many with -m" in done.out


def test_no_command_and_a_wrong_one(osteo: Callable) -> None:
    assert osteo().code == 2
    done = osteo("trian")
    assert (done.code, done.out) == (2, "")
    known = (
        "prepare, audit, pretrain, train, status, rerun, evaluate, predict, serve, explain, report, dashboard, export"
    )
    assert done.err == f"osteo: command 'trian' is unknown; choose one of: {known}; did you mean train?\n"


def test_the_configuration_can_be_looked_at(osteo: Callable) -> None:
    done = osteo("train", "--cfg", "job", "optimizer=sgd", "data.image_size=96")
    assert done.code == 0
    assert "image_size: 96" in done.out
    assert "name: sgd" in done.out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lrr=1"], "key 'optimizer.lrr' is unknown; choose one of: name, lr, weight_decay"),
        (
            ["optimiser.lr=1"],
            "key 'optimiser' is unknown; choose one of: plugins, seed, output_dir, experiment, protocol, task, ",
        ),
        (["+extra=1"], "key 'extra' is unknown; choose one of: plugins, seed"),
        (["trainer.max_epochs=ten"], "trainer.max_epochs=ten: must be a whole number"),
        (["trainer.max_epochs=0"], "trainer.max_epochs=0 is too small; the smallest allowed is 1"),
        (["model.pretrained=maybe"], "model.pretrained=maybe: must be true or false"),
        (["optimizer.lr=fast"], "optimizer.lr=fast: must be a number"),
        (["data.classes={a: 1}"], "data.classes={a: 1}: must be a list, as in [one,two]"),
        (["picture.png"], "'picture.png' has no key; usage: osteo train [-m] [key=value ...]"),
        (["optimizer=adam"], "optimizer 'adam' is unknown; choose one of: adamw, sgd"),
        (["data=xray"], "data 'xray' is unknown; choose one of: clean, folder, kaggle, mendeley, paper, phantom"),
        (["augment.name=mixup"], "augment.name 'mixup' is unknown; choose one of: online, paper"),
        (["trainer.accelerator=tpu"], "trainer.accelerator 'tpu' is unknown; choose one of: auto, cpu"),
        (["trainer.precision=8"], "trainer.precision '8' is unknown; choose one of: auto, 32-true"),
        (["optimizer.lr=0"], "optimizer.lr=0.0 is too small; it must be above 0.0"),
        (["data.image_size=[1"], "cannot read 'data.image_size=[1' as key=value"),
        (["data=folder"], "data=folder needs data.root=PATH, a folder or a zip"),
        (["data=folder", "data.root=nowhere"], "data.root=nowhere: no such file or folder"),
        (["data=paper", "data.kaggle=."], "data=paper needs data.mendeley=PATH"),
        (["data.root=."], "data.root is not read by data=phantom; it goes with data=folder"),
        (["data.split.fold=5"], "data.split.fold=5 is outside its range, 0 to 4 for data.split.folds=5"),
        (["data.split.fold=-1"], "data.split.fold=-1 is too small; the smallest allowed is 0"),
        (["data.split.train=0.9", "data.split.val=0.2"], "must add up to less than 1"),
        (["data.split.stratify=[age]"], "data.split.stratify 'age' is unknown"),
        (["model.pretrained=true", "model.weights_file=x.pth"], "exclude each other"),
        (["model.weights_file=gone.pth"], "model.weights_file=gone.pth: no such file"),
        (["model.weights_file=/dev/null"], "model.weights_file=/dev/null: no such file"),
        ([f"model.weights_file={__file__}"], "model.weights_file=test_cli.py must end in one of .safetensors, .pth"),
        (["model.tta=[vflip]"], "model.tta: 'vflip' is not a view that keeps the label; allowed"),
        (["model.tta=[hflip,hflip]"], "model.tta=['hflip', 'hflip'] names a view twice"),
        (["data.image_size=64", "model.patches=5"], "data.image_size=64 cannot be cut into model.patches=5 equal"),
        (["augment.val=true"], "augment.val=true goes with augment=paper"),
        (["trainer.devices=0"], "trainer.devices=0 is not allowed"),
        (["seed=-1"], "seed=-1 is too small"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    osteo: Callable, tmp_path: Path, overrides: list[str], message: str
) -> None:
    done = osteo("train", *overrides)
    assert done.code == 2
    assert done.out == ""  # a training that begins shows its configuration first
    assert done.err.count("\n") == 1, done.err
    assert done.err.startswith(f"osteo train: {message}") or message in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backbone=densenet12"], "model.backbone 'densenet12' is unknown among"),
        (["model.backbone=densenet121", "data.image_size=16"], "data.image_size=16 does not fit"),
        (["data.batch_size=500"], "data.batch_size=500 is larger than the data of 28 pictures; choose at most 19"),
        (["data.root=one_class"], "has no pictures of class osteoporosis; found only: normal"),
        (["data.root=empty"], "holds no pictures in class folders"),
        (["trainer.accelerator=cuda"], "this machine shows no CUDA device; use trainer.accelerator=cpu or auto"),
        (["data.split.file=gone.csv"], "data.split.file=gone.csv: no such file"),
        (
            ["data.split.test_source=mendeley"],
            "data.split.test_source=mendeley leaves nothing to test on: data=folder is a single source",
        ),
    ],
)
def test_a_mistake_found_later_is_one_line_too(
    osteo: Callable,
    tmp_path: Path,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "one_class" / "normal").mkdir(parents=True)
    (tmp_path / "one_class" / "normal" / "a.png").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    done = osteo("train", *tiny, *overrides)
    assert done.code == 2
    assert done.err.count("\n") == 1, done.err
    assert message in done.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_directory_is_never_overwritten(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    assert osteo("train", *tiny, "output_dir=run", "logger.wandb.mode=disabled").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    done = osteo("train", *tiny, "output_dir=run", "logger.wandb.mode=disabled")
    assert done.code == 2
    assert done.err == "osteo train: run holds a finished run already; choose another output_dir\n"
    assert {p: p.read_bytes() for p in before if p.name != "train.log"} == {
        p: c for p, c in before.items() if p.name != "train.log"
    }
    done = osteo("train", "-m", *tiny, "output_dir=run", "seed=0,1")
    assert done.code == 2
    assert "run holds a finished run already; choose another output_dir" in done.err


def test_a_file_where_the_run_should_go(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    done = osteo("train", *tiny, "output_dir=taken/run")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert (tmp_path / "taken").read_text() == "mine"


def test_completion_knows_commands_and_values(osteo: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "osteo tr")
    monkeypatch.setenv("COMP_POINT", "8")
    assert osteo("-sc", "query=bash").out.split() == ["train"]
    monkeypatch.setenv("COMP_LINE", "osteo train optimizer=")
    monkeypatch.setenv("COMP_POINT", "22")
    assert osteo("-sc", "query=bash").out.split() == ["optimizer=adamw", "optimizer=sgd"]


def test_a_run_leaves_its_record(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    done = osteo("train", *tiny, "output_dir=run", "logger.wandb.mode=disabled", "trainer.max_epochs=2")
    assert done.code == 0, done.err
    names = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert names == {
        "config.yaml", "manifest.csv", "history.csv", "predictions.csv", "metrics.json", "environment.json",
        "status.json", "checkpoints/best.ckpt", "train.log",
    }  # fmt: skip
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert (status["state"], status["error"], len(status["id"])) == ("done", None, 8)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    wanted = "accuracy precision_macro recall_macro f1_macro auroc sensitivity specificity confusion_matrix"
    assert {f"test/{name}" for name in wanted.split()} <= set(metrics)
    import pandas as pd

    history = pd.read_csv(tmp_path / "run/history.csv")
    assert list(history["epoch"]) == [0, 1]
    assert not history.isna().any().any()
    predictions = pd.read_csv(tmp_path / "run/predictions.csv")
    assert list(predictions.columns) == ["image_id", "source", "group", "split", "label", "logit", "probability"]
    test = predictions[predictions["split"] == "test"]
    right = ((test["probability"] > 0.5) == test["label"]).mean()
    assert metrics["test/accuracy"] == pytest.approx(right, abs=1e-6)
    log = (tmp_path / "run/train.log").read_text()
    assert "configuration (all of it: print_config=true)\n  data.name=folder data.root=kaggle data.image_size=64" in log
    assert "wandb leet" not in done.out
    assert "test_resnet" in done.out


def test_flags_of_hydra_that_exclude_each_other_are_one_line(osteo: Callable) -> None:
    done = osteo("train", "-m", "--cfg", "job")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "Only one of --run, --multirun, --cfg" in done.err


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("output_dir=a[1]", "output_dir='a[1]'"),
        ("output_dir=Knie Röntgen", "output_dir='Knie Röntgen'"),
        ("output_dir=lr=0.1", "output_dir='lr=0.1'"),
        ("output_dir=1e3", "output_dir='1e3'"),
        ("output_dir=it's", r"output_dir='it\'s'"),
        ("data.root=~/knees(2)", "data.root='~/knees(2)'"),
        ("output_dir=runs/a-1", "output_dir=runs/a-1"),
        ("output_dir='a b'", "output_dir='a b'"),
        ("output_dir=s-${seed}", "output_dir=s-${seed}"),
        ("output_dir=null", "output_dir=null"),
        ("model.backbone=a,b", "model.backbone=a,b"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("data=folder", "data=folder"),
        ("experiment=1", "experiment=1"),
        ("hydra.sweep.subdir=ü", "hydra.sweep.subdir=ü"),
    ],
)
def test_texts_that_hydra_would_not_read_are_quoted(given: str, read: str) -> None:
    assert readable([given], Config) == [read]


@pytest.mark.parametrize("text", ["a=b/ü [1], {2}", "it's", "back\\slash", "end\\", "${seed}", r"\'"])
def test_a_quoted_text_stands_for_itself(text: str) -> None:
    assert unquoted(quoted(text)) == text
    value = OverridesParser.create().parse_override(f"output_dir={quoted(text)}").value()
    assert OmegaConf.create({"output_dir": value, "seed": 3}).output_dir == text


def test_a_path_may_have_an_equals_sign(osteo: Callable, tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    for given in ("runs/lr=0.1", "Knie Röntgen [1]", "a=b", "./seed=3", "~/none"):
        what = "holds no run" if given == "a=b" else "no such run or sweep"
        assert osteo("status", given).err.startswith(
            f"osteo status: {given}{' ' if given == 'a=b' else ': '}{what}; give"
        )
    assert "key 'seed' is unknown" in osteo("status", "seed=3").err
    done = osteo("evaluate", "a=b/best.ckpt")
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("output_dir=a,b", """for one text with a comma type 'output_dir="a,b"', for a sweep -m"""),
        (
            "data.classes=[[gesund:normal,künstlich:normal]",
            """and all of it for the shell: 'data.classes=["...","..."]'""",
        ),
    ],
)
def test_what_cannot_be_read_says_how_to_quote(osteo: Callable, override: str, hint: str) -> None:
    done = osteo("train", override)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert hint in done.err


def test_streams_that_are_closed_end_nothing(tmp_path: Path) -> None:
    """Closed by the shell, by a reader that has seen enough, or a disk that is full."""
    osteo = f"{sys.executable} -m osteo"
    script = "import sys; from osteo.cli import main; sys.argv = ['osteo', '--help']; main(); print('x' * 10**6)"
    code = f'{sys.executable} -c "{script}"'
    shell = ["bash", "-o", "pipefail", "-c"]
    for line, status, err in (
        (f"{code} | head -1", 0, ""),
        (f"{code} 2>&- | head -1", 0, ""),
        (f"{osteo} nonsense 2>&-", 2, ""),
        (f"{osteo} >&-", 2, ""),
        (
            f"{osteo} --version > /dev/full",
            1,
            "osteo: the output cannot be written: No space left on device\n",
        ),
    ):
        done = subprocess.run([*shell, line], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (status, err), line
    assert list(tmp_path.iterdir()) == []


def test_runs_begun_in_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    default = str(tmp_path / "outputs/2027-01-01/12-00-00")
    assert [claimed("mine", default), claimed(None, default), claimed(None, default), claimed("", default)] == [
        "mine", default, f"{default}-2", f"{default}-3",
    ]  # fmt: skip
    assert sorted(path.name for path in Path(default).parent.iterdir()) == ["12-00-00", "12-00-00-2", "12-00-00-3"]
    (tmp_path / "file").touch()
    assert claimed(None, str(tmp_path / "file/run")) == str(
        tmp_path / "file/run"
    )  # a line later says that it cannot be
