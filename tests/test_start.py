"""A mistake is told, and a name completed, before any slow library is imported."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from osteo import libraries

HEAVY = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "kornia", "wandb", "matplotlib", "pandas",
         "sklearn", "scipy", "cv2")  # fmt: skip
MISTAKES = [
    (["trian"], "command 'trian' is unknown"),
    (["train", "optimizer.lrr=1"], "key 'optimizer.lrr' is unknown"),
    (["train", "optimizer=adam"], "optimizer 'adam' is unknown"),
    (["train", "trainer.max_epochs=ten"], "must be a whole number"),
    (["train", "trainer.graph=maybe"], "trainer.graph 'maybe' is unknown; choose one of: auto, true, false"),
    (["train", "callbacks=[swa,ema]"], "each put an average of the weights into checkpoints: leave one out"),
    (["train", "data.image_size=[1"], "cannot read"),
    (["train", "plugins=[gone]"], "plugins=[gone] is not found"),
    (["train", "optimizer.lr=0"], "optimizer.lr=0.0 is too small"),
    (["train", "loss.name=entropy"], "loss.name 'entropy' is unknown"),
    (["train", "trainer.devices=0"], "trainer.devices=0 is not allowed"),
    (["train", "trainer.precision=8"], "trainer.precision '8' is unknown"),
    (["train", "callbacks.mine=3"], "callbacks.mine=3 is not a part"),
    (["train", "model.backbone=densenet12"], "the nearest are: densenet121"),
    (["train", "model.backbone=resnet50.a9_in1k"], "resnet50.a1_in1k"),
    (["train", "model.backbone=torchvision/alexnt"], "torchvision/alexnet"),
    (["train", "model.backbone=gru/resnut50"], "backbone 'resnut50' is unknown"),
    (["train", "model.head=deep"], "model.head 'deep' is unknown"),
    (["train", "optimizer.name=adamwx"], "the nearest are: adamw"),
    (["train", "optimizer.args={beta: 1}"], "optimizer.args 'beta' is unknown"),
    (["train", "optimizer.schedule=cosin"], "optimizer.schedule 'cosin' is unknown"),
    (["train", "augment.ops=[{RandomAfine: {}}]"], "the nearest are: RandomAffine"),
    (["train", "augment.ops=[{RandomAffine: {degree: 10}}]"], "augment.ops[0].RandomAffine 'degree' is unknown"),
    (["train", "augment.ops=[{RandomMixUpV2: {}}]"], "does not work on single 2-D pictures"),
    (["train", "trainer.extra={profile: simple}"], "trainer.extra 'profile' is unknown"),
    (["train", "callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStoping}"], "EarlyStopping"),
    (["train", "logger.csv={_target_: lightning.pytorch.loggers.CSVLogger, dir: x}"], "logger.csv 'dir' is unknown"),
    (["train", "data=folder", "data.root=nowhere"], "data.root=nowhere: no such file or folder"),
    (["train", "data=paper", "data.kaggle=gone.zip"], "data.kaggle=gone.zip: no such file or folder"),
    (["train", "data.split.file=gone.csv"], "data.split.file=gone.csv: no such file"),
    (["train", "model.weights_file=gone.pth"], "model.weights_file=gone.pth: no such file"),
    (["train", "resume=nowhere"], "resume=nowhere is neither a run"),
    (["train", "output_dir=taken/run"], "output_dir cannot be written"),
    (["pretrain", "data=phantom", "against=nowhere"], "against=nowhere: no such file or directory"),
    (["pretrain", "data=phantom", "model.backbone=densenet12"], "the nearest are: densenet121"),
    (["prepare", "data=folder", "data.root=nowhere"], "data.root=nowhere: no such file or folder"),
    (["prepare", "export_augmented=taken"], "export_augmented=taken exists already"),
    (["audit", "against=nowhere"], "against=nowhere: no such file or directory"),
    (["report"], "name a sweep or a run directory"),
    (["report", "nowhere"], "nowhere: no such run or sweep"),
    (["status"], "name a sweep or a run directory"),
    (["status", "nowhere"], "nowhere: no such run or sweep"),
    (["dashboard"], "name a sweep or a run directory"),
    (["dashboard", "nowhere"], "nowhere: no such run or sweep"),
    (["rerun"], "name a run directory"),
    (["rerun", "nowhere"], "run=nowhere is not a finished run"),
    (["evaluate"], "name a run or a checkpoint"),
    (["evaluate", "nowhere"], "nowhere: no such run, sweep or checkpoint"),
    (["evaluate", "taken"], "taken is not a checkpoint of osteo"),
    (["predict", "nowhere"], "name the pictures: osteo predict RUN PICTURE"),
    (["predict", "nowhere", "input=taken"], "nowhere: no such run, sweep or checkpoint"),
    (["predict", "zip.ckpt", "input=gone.png"], "input=gone.png: no such file or folder"),
    (["serve", "nowhere"], "nowhere: no such run, sweep or checkpoint"),
    (["explain", "nowhere", "input=taken"], "nowhere: no such run, sweep or checkpoint"),
    (["export", "nowhere"], "nowhere: no such run, sweep or checkpoint"),
]
EACH = """
import contextlib, io, json, sys
from osteo.cli import main
told = []
for line in json.loads(sys.argv[1]):
    sys.argv, err = ["osteo", *line], io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            told.append([end.code, err.getvalue(), [name for name in %r if name in sys.modules]])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def kept(cache: Path) -> Path:
    """The names of libraries, as the first run of each version leaves them."""
    for package in libraries.LIBRARIES:
        libraries.keep(package, cache / "names" / f"{package}-{version(package)}.json")
    return cache / "names"


@pytest.mark.slow
def test_no_mistake_waits_for_a_slow_library(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    (tmp_path / "zip.ckpt").write_bytes(b"PK")  # as every file of torch's begins
    lines = [json.dumps([line for line, _ in MISTAKES])]
    done = subprocess.run(
        [sys.executable, "-c", EACH % (HEAVY,), *lines], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    found = {" ".join(line): loaded for (line, _), (*_, loaded) in zip(MISTAKES, told, strict=True)}
    assert found == {" ".join(line): [] for line, _ in MISTAKES}
    for (line, message), (code, err, _) in zip(MISTAKES, told, strict=True):
        assert (code, err.count("\n")) == (2, 1), (line, err)
        assert message in err
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["taken", "zip.ckpt"]


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("osteo train model.backbone=densenet20", ["model.backbone=densenet201"]),
        ("osteo train -m model.backbone=resnet18,densenet20", ["model.backbone=resnet18,densenet201"]),
        ("osteo train model.dro", ["model.drop_rate="]),
    ],
)
def test_completion_needs_no_slow_library(kept: Path, line: str, completed: list[str]) -> None:
    code = f"""
import sys
from osteo.cli import main
sys.argv = ["osteo", "-sc", "query=bash"]
try:
    main()
finally:
    print([name for name in {HEAVY} if name in sys.modules])
"""
    environment = os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [*completed, "[]"]


def test_names_are_asked_for_once_and_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    asked: list[str] = []

    def ask() -> libraries.Names:
        asked.append("backbones")
        return {"mine": []}

    monkeypatch.setenv("OSTEO_CACHE", str(tmp_path))
    monkeypatch.setattr(libraries, "LIBRARIES", {"numpy": {"backbones": ask}})
    assert libraries.known("backbones") == {"mine": []}  # numpy is loaded: a plugin may have added to it
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delitem(sys.modules, "numpy")
    path = tmp_path / "names" / f"numpy-{version('numpy')}.json"
    for content in (None, "{", "[]"):  # none, one cut short, and one of something else
        if content is not None:
            path.write_text(content)
        assert libraries.known("backbones") == {"mine": []}
        assert json.loads(path.read_text()) == {"backbones": {"mine": []}}
    assert len(asked) == 4
    assert libraries.known("backbones") == {"mine": []}
    assert len(asked) == 4


def test_what_a_plugin_adds_to_timm_is_known(
    tmp_path: Path, osteo: Callable, tiny: list[str], monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    (tmp_path / "brought.py").write_text(
        "from timm.models import register_model\nfrom timm.models.resnet import test_resnet\n"
        "@register_model\ndef brought_resnet(pretrained=False, **options):\n    return test_resnet(**options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = osteo("train", *tiny, "plugins=[brought]", "model.backbone=brought_resnet", "logger.wandb.mode=disabled")
    assert done.code == 0, done.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal that a process could die of")
def test_ctrl_c_amid_the_imports_shows_no_traceback() -> None:
    code = """
import importlib, signal, sys
from osteo import cli
importlib.import_module = lambda name: signal.raise_signal(signal.SIGINT)
sys.argv = ["osteo", "train"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
