"""Plugins: in every process and every command; what a record names is never imported unless the user names it again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from osteo import parts
from osteo.errors import UserError
from osteo.records.record import Run
from tests import slurm

OSTEO = str(Path(sys.executable).with_name("osteo"))
PARTS = """
from pathlib import Path

import timm
from lightning.pytorch import Callback

from osteo import parts

Path(__file__).with_name("imported").touch()
parts.configurations.append(Path(__file__).parent / "conf")


@parts.backbones.register("mine")
def mine(*, in_chans, num_classes, drop_rate, img_size):
    return timm.create_model("test_resnet", in_chans=in_chans, num_classes=num_classes, drop_rate=drop_rate)


@parts.losses.register("hinge")
def hinge(margin=1.0):
    return lambda logits, targets: (margin - (2 * targets - 1) * logits).clamp(min=0)


class Noted(Callback):
    def on_train_end(self, trainer, pl_module):
        print("noted by a callback of a plugin")
"""
CUTTING = """
import os

from osteo.training import callbacks

end = callbacks.Checkpoints.on_train_epoch_end


def killed(self, *arguments):
    end(self, *arguments)
    self.writer.flush()
    os._exit(9)


callbacks.Checkpoints.on_train_epoch_end = killed
"""
OVERLAY = """# @package _global_
defaults:
  - override /loss: hinge
experiment: mine
model: {backbone: mine}
callbacks: {noted: {_target_: extra_parts.Noted}}
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with a plugin in it, which brings an experiment of its own."""
    (tmp_path / "extra_parts.py").write_text(PARTS)
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_text(OVERLAY)
    return tmp_path


@pytest.fixture
def words(tiny: list[str]) -> list[str]:
    kept = [word for word in tiny if not word.startswith("model.backbone")]
    return [*kept, "plugins=[extra_parts]", "experiment=mine", "logger.wandb.mode=disabled"]


def osteo(folder: Path, *arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    everything = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [OSTEO, *arguments]
    return subprocess.run(command, cwd=folder, env=everything, capture_output=True, text=True, check=False)


def line_of(done: "subprocess.CompletedProcess[str]") -> str:
    """The one line of a mistake."""
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout[-500:] + done.stderr
    return done.stderr


def test_what_fails_for_want_of_a_plugin_names_it_alone() -> None:
    wanted = "run was made with plugins=[not_here]; name them again: osteo report run 'plugins=[not_here]'"
    for recorded, message in ((["not_here"], wanted), (["osteo.parts"], "unknown"), ([], "unknown")):
        with pytest.raises(UserError) as error, parts.needed(recorded, "run", "osteo report run"):
            raise UserError("unknown")
        assert str(error.value) == message


@pytest.mark.slow
def test_a_plugin_brings_backbone_loss_callback_and_experiment(place: Path, words: list[str], archives: Path) -> None:
    done = osteo(place, "train", *words, "output_dir=run")
    assert done.returncode == 0, done.stderr
    assert "noted by a callback of a plugin" in done.stdout
    recorded = yaml.safe_load((place / "run/config.yaml").read_text())
    assert (recorded["plugins"], recorded["loss"]["name"]) == (["extra_parts"], "hinge")
    # every other command finds it again when it is named, and says so when it is not
    pictures = str(archives / "kaggle")
    named = "plugins=[extra_parts]"
    for command in (
        ["evaluate", "run", "data=folder", f"data.root={pictures}"], ["predict", "run", f"input={pictures}"],
        ["report", "run", "draws=100"], ["export", "run", "format=torchscript"], ["rerun", "run"],
    ):  # fmt: skip
        (place / "imported").unlink()
        if command[0] != "report":  # which reads records; what needs the network is left out with a reason
            refused = line_of(osteo(place, *command))
            assert "made with plugins=[extra_parts]; name them again" in refused, command
            assert "plugins=[extra_parts]'" in refused or "plugins=[extra_parts]\n" in refused
            assert not (place / "imported").exists(), "what a record names must not be imported"
        done = osteo(place, *command, named)
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr
        assert (place / "imported").exists()
    assert "all" in done.stdout
    assert "metrics are identical" in done.stdout


@pytest.mark.slow
def test_a_run_and_a_sweep_go_on_with_plugins_that_are_named_again(place: Path, words: list[str]) -> None:
    (place / "cutting.py").write_text(CUTTING)
    long = [word for word in words if not word.startswith(("trainer.max", "plugins"))]
    both = [*long, "trainer.max_epochs=2"]
    for kind in ([], ["-m", "seed=0,1"]):
        folder = "sweep" if kind else "run"
        done = osteo(place, "train", *kind, *both, "plugins=[extra_parts,cutting]", f"output_dir={folder}")
        assert done.returncode == 9
        (place / "imported").unlink()
        assert "name them again: osteo train resume=" in line_of(osteo(place, "train", f"resume={folder}"))
        assert not (place / "imported").exists()
        (place / "cutting.py").write_text("")
        done = osteo(place, "train", f"resume={folder}", "plugins=[extra_parts,cutting]")
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr
        assert "going on after last.ckpt" in done.stdout
        (place / "cutting.py").write_text(CUTTING)
    assert [Run(place / "sweep" / number).state for number in "01"] == ["done", "done"]


@pytest.mark.slow
def test_a_sweep_with_a_folder_of_yaml_goes_on(place: Path, tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "yaml/experiment"
    folder.mkdir(parents=True)
    (folder / "short.yaml").write_text("# @package _global_\nexperiment: short\ntrainer: {max_epochs: 1}\n")
    given = [*tiny, "experiment=short", "seed=0,1", "logger.wandb.mode=disabled", "output_dir=s"]
    done = osteo(place, "train", "-m", "--config-dir", "yaml", *given)
    assert done.returncode == 0, done.stderr
    before = (place / "s/0/metrics.json").read_bytes()
    for path in (place / "s/1").rglob("*"):
        if path.is_file():
            path.unlink()
    done = osteo(place, "train", "resume=s")
    assert done.returncode == 0, done.stderr
    assert Run(place / "s/1").read_config()["experiment"] == "short"
    assert (place / "s/0/metrics.json").read_bytes() == before
    (tmp_path / "yaml").rename(tmp_path / "moved")
    assert "was begun with --config-dir yaml, which is gone; give it again" in line_of(
        osteo(place, "train", "resume=s")
    )
    assert osteo(place, "train", "resume=s", "--config-dir", "moved").returncode == 0


@pytest.mark.slow
def test_a_plugin_in_the_processes_of_a_sweep(place: Path, words: list[str]) -> None:
    done = osteo(place, "train", "-m", *words, "seed=0,1", "hydra/launcher=processes", "output_dir=s")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    alone = osteo(place, "train", *words, "seed=1", "output_dir=alone")
    assert alone.returncode == 0
    assert Run(place / "s/1").read_json("metrics.json") == Run(place / "alone").read_json("metrics.json")


@pytest.mark.slow
def test_a_plugin_in_the_processes_of_two_devices(place: Path, words: list[str]) -> None:
    done = osteo(place, "train", *words, "trainer.devices=2", "output_dir=run")
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert Run(place / "run").read_json("environment.json")["processes"] == 2


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))
def test_a_plugin_in_jobs_of_a_cluster(place: Path, words: list[str], tmp_path: Path) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    with slurm.running(cluster) as environment:
        on_it = [*words, "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]
        command = [OSTEO, "train", "-m", *on_it, "seed=0,1", "output_dir=s"]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr
    assert [Run(place / "s" / number).state for number in "01"] == ["done", "done"]
    board = pd.read_csv(place / "s/leaderboard.csv")
    assert set(board["backbone"]) == {"mine"}


@pytest.mark.slow
def test_an_installed_package_is_a_plugin_by_its_entry_point(place: Path, words: list[str]) -> None:
    (place / "site/extra-1.0.dist-info").mkdir(parents=True)
    (place / "site/extra-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (place / "site/extra-1.0.dist-info/entry_points.txt").write_text("[osteo.plugins]\nmine = extra_parts\n")
    (place / "extra_parts.py").rename(place / "site/extra_parts.py")
    (place / "conf").rename(place / "site/conf")
    without = [word for word in words if not word.startswith("plugins")]
    done = osteo(
        place, "train", *without, "output_dir=run", PYTHONPATH=f"site{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nowhere", "plugins=[bad] cannot be imported (it needs nowhere)"),
        ("1 / 0", "plugins=[bad] cannot be imported (ZeroDivisionError: division by zero)"),
        ("from osteo.parts import heads\nheads.register('x')(3)", "plugins=[bad]: model.head=x: 3 cannot be called"),
        ("from osteo.parts import heads\n@heads.register('x')\ndef a(f): ...\n@heads.register('x')\ndef b(f): ...",
         "plugins=[bad]: model.head=x is registered twice, by bad.a and by bad.b"),
    ],
)  # fmt: skip
def test_a_plugin_with_a_fault_is_one_line(place: Path, tiny: list[str], content: str, message: str) -> None:
    (place / "bad.py").write_text(content)
    assert message in line_of(osteo(place, "train", *tiny, "plugins=[bad]", "output_dir=run"))
    assert not (place / "run").exists()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ("3", "model.backbone=odd of bad is not a torch module but int"),
        ("nn.Linear(1, 1)", "model.backbone=odd of bad lacks num_features, pretrained_cfg, forward_features"),
        ("timm.create_model('test_vit', in_chans=in_chans, num_classes=7)", "gives (2, 7) for two pictures"),
    ],
)  # fmt: skip
def test_a_backbone_that_breaks_its_contract_is_one_line(place: Path, tiny: list[str], made: str, message: str) -> None:
    (place / "bad.py").write_text(
        "import timm\nfrom torch import nn\nfrom osteo import parts\n@parts.backbones.register('odd')\n"
        f"def odd(*, in_chans, num_classes, drop_rate, img_size):\n    return {made}\n"
    )
    words = [word for word in tiny if not word.startswith(("model.", "data.image_size"))]
    arguments = [*words, "plugins=[bad]", "model.backbone=odd", "data.image_size=160", "output_dir=run"]
    assert message in line_of(osteo(place, "train", *arguments))


def test_what_is_no_module_and_what_is_unknown(place: Path, tiny: list[str]) -> None:
    assert "plugins=[nowhere] is not found; name a module that is installed" in line_of(
        osteo(place, "train", *tiny, "plugins=[nowhere]")
    )
    assert "model.head 'deep' is unknown" in line_of(osteo(place, "train", *tiny, "model.head=deep"))
    done = osteo(place, "train", *tiny, "callbacks.x._target_=extra_parts.Noted", "output_dir=run")
    assert "extra_parts.Noted is none of lightning, torch" in line_of(done)
    assert "plugins=[extra_parts]" in done.stderr
    assert not (place / "imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["os.system", "extra_parts.Noted", "lightning.pytorch.utilities.os.system"])
def test_a_record_from_elsewhere_runs_no_code(place: Path, tiny: list[str], target: str) -> None:
    done = osteo(place, "train", *tiny, "output_dir=run", "logger.wandb.mode=disabled")
    assert done.returncode == 0, done.stderr
    recorded = yaml.safe_load((place / "run/config.yaml").read_text())
    recorded["callbacks"] = {"x": {"_target_": target, "command": "touch pwned"}}
    (place / "run/config.yaml").write_text(yaml.safe_dump(recorded))
    status = json.loads((place / "run/status.json").read_text())
    for state, command in (("running", ["train", "resume=run"]), ("done", ["rerun", "run"])):
        (place / "run/status.json").write_text(json.dumps(status | {"state": state}))
        assert f"callbacks.x._target_={target}" in line_of(osteo(place, *command))
    assert not (place / "pwned").exists()
    assert not (place / "imported").exists()


def test_a_name_is_kept_once_and_a_module_may_be_imported_again() -> None:
    register: parts.Register[object] = parts.Register("model.head")
    register.register("x")(test_a_name_is_kept_once_and_a_module_may_be_imported_again)
    register.register("x")(test_a_name_is_kept_once_and_a_module_may_be_imported_again)
    assert list(register) == ["x"]
    with pytest.raises(UserError, match=r"model.head=x is registered twice"):
        register.register("x")(line_of)
    with pytest.raises(UserError, match=r"model.head 'y' is unknown; choose one of: x"):
        _ = register["y"]
