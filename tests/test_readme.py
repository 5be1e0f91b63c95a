"""Every command of the README runs as it stands, on few small pictures and with small networks."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from safetensors.torch import save_file

from osteo.data.phantom import write_archives

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
ELSEWHERE = {
    "osteo serve": "test_serve_live.py", "slurm": "test_launchers.py", "torchrun": "test_distributed.py",
    "resume=RUN": "test_resume.py", "osteo pretrain": "test_pretrain.py", "weights_file=phase1": "test_pretrain.py",
}  # fmt: skip
"""What waits for a person or needs a cluster has tests of its own."""
SMALL = [
    "data.image_size=64", "data.batch_size=8", "trainer.max_epochs=1", "trainer.limit_train_batches=2",
    "trainer.accelerator=cpu", "model.pretrained=false", "logger.wandb.mode=disabled",
]  # fmt: skip
PHANTOMS = [
    "data.phantom.kaggle={normal: 14, osteoporosis: 14}",
    "data.phantom.mendeley={normal: 8, osteopenia: 2, osteoporosis: 8}",
]
SMALLER = [
    (r"\bK\.zip\b", "kaggle"), (r"\bM\.zip\b", "mendeley"), (r"\b(my|their)_xrays\b", "kaggle"), (r"\bRUN\b", "run"),
    (r"\bmultirun/<date>/<time>", "sweep"), (r"\boutputs/<date>/<time>", "run"), (r"picture\.dcm", "kaggle"),
    (r"\bknee\.png", "kaggle/normal/10n.png"),
    (r"\bhealthy:normal,ill:", "normal:normal,osteoporosis:"), (r"trainer\.devices=4", "trainer.devices=2"),
    (r"model\.backbone=(\w+,[\w,]+)", "model.backbone=test_resnet,test_vit"),
    (r"model\.backbone=\w+(?![\w,/])", "model.backbone=test_resnet"), (r"n_trials=40", "n_trials=2"),
    (r"experiment=best", "experiment=best seed=0 data.split.folds=2"),
    (r"launcher=processes \.\.\.", "launcher=processes seed=0,1"),
    (r"data=paper \.\.\.", "data=paper data.kaggle=kaggle data.mendeley=mendeley"),
]  # fmt: skip


def commands() -> list[str]:
    """The lines of the README that call osteo, without their comments."""
    lines = re.sub(r" *\\\n +", " ", README).splitlines()
    calls = [line.strip().partition("  #")[0].strip() for line in lines if line.startswith("    ")]
    calls = [re.split(r" {2,}#", call)[0].strip() for call in calls if re.match(r"osteo |torchrun ", call)]
    return list(dict.fromkeys(calls))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("readme") / "archives"
    classes = {"normal": 16, "osteoporosis": 16}
    write_archives(root, seed=11, kaggle=classes, mendeley={"normal": 9, "osteopenia": 2, "osteoporosis": 9})
    return root


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme_runs(
    osteo: Callable, place: Path, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if other := next((test for words, test in ELSEWHERE.items() if words in command), None):
        assert (Path(__file__).parent / other).exists()
        return
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("kaggle", "mendeley"):
        (tmp_path / name).symlink_to(place / name)
    for pattern, words in SMALLER:
        command = re.sub(pattern, words, command)
    words = shlex.split(command)[1:]
    base = ["data=folder", "data.root=kaggle", *SMALL, "model.backbone=test_resnet"]
    if re.search(r"\brun\b", command):
        assert osteo("train", *base, "output_dir=run").code == 0
    if re.search(r"\bsweep\b(?!er)", command):
        assert osteo("train", "-m", *base, "seed=0,1", "output_dir=sweep").code == 0
    if words[0] == "train" and "resume=" not in command and "--help" not in words and "--cfg" not in words:
        asked = {word.partition("=")[0] for word in words}
        words += [
            word for word in SMALL if word.partition("=")[0] not in asked - {"data.image_size", "model.pretrained"}
        ]
        words += [] if {"data.kaggle", "data.root"} & asked else PHANTOMS
        words += [] if "model.backbone" in asked else ["model.backbone=test_resnet"]
    if re.search(r"experiment=(best|probe|finetune)|model\.freeze=", command):
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "weights.safetensors")
        monkeypatch.setenv("OSTEO_WEIGHTS", "weights.safetensors")
        words += [] if "experiment=best" in command else ["model.weights_file=weights.safetensors"]
    if words[0] == "report":
        words.append("draws=100")
    done = osteo(*words)
    assert done.code == 0, done.out[-1000:] + done.err


def test_the_readme_has_commands() -> None:
    found = commands()
    assert len(found) > 20
    assert {call.split()[1] for call in found if call.startswith("osteo")} >= {
        "prepare", "audit", "train", "report", "status", "rerun", "evaluate", "predict", "serve", "explain", "export",
    }  # fmt: skip


def test_the_script_of_the_readme_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_xrays").symlink_to(place / "kaggle")
    picture = next((place / "kaggle/normal").glob("*.png"))
    smaller = {
        "resnet18": "test_resnet", "=128": "=64", "max_epochs=20": 'max_epochs=1, accelerator="cpu"',
        "outputs/<date>/<time>": str(run), "picture.png": str(picture),
    }  # fmt: skip
    for words, replacement in smaller.items():
        assert words in script
        script = script.replace(words, replacement)
    names: dict[str, Any] = {}
    exec(script, names)
    assert list(names["answers"]["file"]) == [picture.name]
    assert 0.0 <= float(names["trainer"].callback_metrics["test/auroc"]) <= 1.0
