"""What README and docs say to type runs as it stands, on few small pictures and with small networks."""

import csv
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from safetensors.torch import save_file

from osteo.cli import COMMANDS
from osteo.data.phantom import write_archives

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIALS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((DOCS / "tutorials").glob("*.md"))}
STORIES = {"README": README, **TUTORIALS}
"""Pages that are followed from top to bottom, each command with what those before it have left."""
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8")
    for path in [*sorted(DOCS.glob("*/*.md")), DOCS / "pretraining.md", DOCS / "literature.md"]
    if path.parent.name != "tutorials"
}
"""Pages whose commands stand alone; docs/extending.md has a test of its own."""
ELSEWHERE = {
    "osteo serve": "test_serve_live.py", "osteo dashboard": "test_dashboard.py",
    "slurm": "test_launchers.py", "torchrun": "test_distributed.py", "trainer.devices=4": "test_distributed.py",
    "resume=RUN": "test_resume.py", "osteo pretrain": "test_pretrain.py", "weights_file=phase1": "test_pretrain.py",
    "task=three_class 'experiment/literature": "test_literature.py", "experiment=literature": "test_literature.py",
    "experiment=ladder": "test_ladder.py",
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
    (r"\bmultirun/<date>/<time>", "sweep"), (r"\boutputs/<date>/<time>", "run"),
    (r"\b(picture|knee)\.png", "kaggle/normal/10n.png"), (r"image_size=(96|224)", "image_size=64"),
    (r"\bhealthy:normal,ill:", "normal:normal,osteoporosis:"),
    (r"model\.backbone=tiny,\w+", "model.backbone=tiny"),
    (r"model\.backbone=(\w+,[\w,]+)", "model.backbone=test_resnet,test_vit"),
    (r"model\.backbone=(?!tiny)\w+(?![\w,/])", "model.backbone=test_resnet"), (r"n_trials=40", "n_trials=2"),
    (r"experiment=best", "experiment=best seed=0 data.split.folds=2"), (r"seed=0,1,2", "seed=0,1"),
    (r"data=paper \.\.\.", "data=paper data.kaggle=kaggle data.mendeley=mendeley"),
]  # fmt: skip


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of shell blocks that call osteo, without their comments."""
    lines = re.sub(r" *\\\n +", " ", "".join(blocks(text, "sh"))).splitlines()
    calls = [re.split(r" +#", line)[0].strip() for line in lines]
    return list(dict.fromkeys(call for call in calls if re.match(r"osteo |torchrun ", call)))


def smaller(command: str) -> str:
    for pattern, words in SMALLER:
        command = re.sub(pattern, words, command)
    return command


def alone() -> list[tuple[str, str]]:
    """Pages and commands that are not part of a story, each of what is the same when made smaller once."""
    in_stories = [command for text in STORIES.values() for command in commands(text)]
    known = {re.sub(r" output_dir=\S+", "", smaller(command)) for command in in_stories}
    found = {}
    for page, text in PAGES.items():
        for command in commands(text):
            if not any(words in command for words in ELSEWHERE) and (small := smaller(command)) not in known:
                found.setdefault(small, (page, command))
    return list(found.values())


class Typist:
    """Types commands in a folder that has what they name."""

    def __init__(self, osteo: Callable[..., Any], folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.osteo, self.folder, self.patch = osteo, folder, patch
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("WANDB_MODE", "disabled")

    def write_files(self, text: str) -> None:
        """Files of a page begin with a comment that names them."""
        for block in [*blocks(text, "python"), *blocks(text, "yaml")]:
            if name := re.match(r"(?:# @package \w+\n)?# ([\w/]+\.(?:py|yaml))\n", block):
                path = self.folder / name[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block)

    def type(self, command: str) -> None:
        command = smaller(command)
        words = shlex.split(command)[1:]
        asked = {word.partition("=")[0] for word in words}
        if words[0] in ("train", "prepare") and "resume=" not in command and not {"--help", "--cfg"} & set(words):
            if words[0] == "train":
                kept = asked - {"data.image_size", "trainer.max_epochs", "model.pretrained"}
                kept |= {"logger.wandb.mode"} if "logger=null" in words else set()
                words += [word for word in SMALL if word.partition("=")[0] not in kept]
                words += [] if "model.backbone" in asked else ["model.backbone=test_resnet"]
            words += [] if {"data.kaggle", "data.root"} & asked else PHANTOMS
        if re.search(r"experiment=(best|probe|finetune)|model\.freeze=", command):
            save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
            self.patch.setenv("OSTEO_WEIGHTS", "weights.safetensors")
            words += [] if "experiment=best" in command else ["model.weights_file=weights.safetensors"]
        words += ["draws=100"] if words[0] == "report" else []
        done = self.osteo(*words)
        assert done.code == 0, f"{command}\n{done.out[-1000:]}{done.err}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kaggle/ and mendeley/, with a table of labels beside them."""
    root = tmp_path_factory.mktemp("docs") / "archives"
    classes = {"normal": 16, "osteoporosis": 16}
    write_archives(root, seed=11, kaggle=classes, mendeley={"normal": 9, "osteopenia": 9, "osteoporosis": 9})
    with (root / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "patient"])
        for path in sorted((root / "kaggle").glob("*/*")):
            name = path.relative_to(root / "kaggle").as_posix()
            rows.writerow([name, path.parent.name, name.replace("/", "_")])
    return root


@pytest.fixture
def typist(osteo: Callable[..., Any], place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Typist:
    for name in ("kaggle", "mendeley", "labels.csv"):
        (tmp_path / name).symlink_to(place / name)
    return Typist(osteo, tmp_path, monkeypatch)


TRAINED: dict[str, Path] = {}


@pytest.fixture
def trained(typist: Typist, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], None]:
    """Puts a run, or a sweep, where a command finds it; each is trained once."""

    def put(name: str) -> None:
        if name not in TRAINED:
            base = ["train", "data=folder", "data.root=kaggle", *SMALL, "model.backbone=test_resnet"]
            more = ["-m", "seed=0,1", "output_dir=sweep"] if name == "sweep" else ["output_dir=run"]
            assert typist.osteo(*base, *more).code == 0
            TRAINED[name] = tmp_path_factory.mktemp("trained") / name
            shutil.copytree(name, TRAINED[name], symlinks=True)
        else:
            shutil.copytree(TRAINED[name], name, symlinks=True)

    return put


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), alone(), ids=[command for _, command in alone()])
def test_a_command_of_a_page_runs(page: str, command: str, typist: Typist, trained: Callable[[str], None]) -> None:
    for name in ("run", "sweep"):
        if re.search(rf"\b{name}\b(?!er)", smaller(command)):
            trained(name)
    typist.write_files(PAGES[page])
    typist.type(command)


@pytest.mark.slow
@pytest.mark.parametrize("name", STORIES)
def test_a_page_is_followed_from_top_to_bottom(name: str, typist: Typist, trained: Callable[[str], None]) -> None:
    if "RUN" in STORIES[name]:
        trained("run")
    typist.write_files(STORIES[name])
    for command in commands(STORIES[name]):
        if other := next((test for words, test in ELSEWHERE.items() if words in command), None):
            assert (Path(__file__).parent / other).exists()
        else:
            typist.type(command)


def test_every_command_of_osteo_is_in_a_page() -> None:
    found = [call for text in [*STORIES.values(), *PAGES.values()] for call in commands(text)]
    assert len(found) > 60
    assert {call.split()[1] for call in found if call.startswith("osteo")} >= set(COMMANDS)


def test_the_script_runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
    [script] = blocks(README, "python")
    assert script in (DOCS / "reference/python.md").read_text(encoding="utf-8")
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


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) < 150
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
        assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_package_shows_a_readme_without_links_that_lead_nowhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = README
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    assert re.findall(r"\]\((?!https?:)", text) == []
    assert "[first sweep](docs/tutorials/first_sweep.md)" in README
    assert "| Tutorials | first sweep, your own radiographs," in text


def test_the_citation_is_of_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["references"][0]["doi"] == "10.61952/jlabw.v1i3.42"


def pins(text: str) -> dict[str, str]:
    """What a list of requirements asks for, by package; a release that depends on the Python stands once for each."""
    return {line.partition("==")[0] + line.partition(" ;")[2]: line for line in text.splitlines() if line[:1].isalnum()}


def test_the_cpu_build_is_the_locked_release_without_cuda() -> None:
    made = subprocess.run([ROOT / ".ci/cpu-lock"], check=True, capture_output=True, text=True).stdout
    locked, asked = pins((ROOT / "requirements.lock").read_text()), pins(made)
    gone = {line.partition("==")[0] for line in locked.values()} - {line.partition("==")[0] for line in asked.values()}
    assert {"nvidia-cudnn-cu13", "cuda-toolkit", "triton"} <= gone
    assert all(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in gone)
    changed = {name for name, line in asked.items() if line != locked[name]}
    assert changed == {"torch", "torchvision"}
    for name in changed:  # the hashes are those of the other build
        assert asked[name] == locked[name].removesuffix(" \\")
        assert re.search(rf"^{name}==[\d.]+\n[a-z]", made, re.MULTILINE)
    assert made.count("--hash=") > 1000


@pytest.mark.parametrize(
    ("chosen", "sync"), [("cpu", "--torch-backend=cpu .venv/cpu.lock"), ("pypi", "requirements.lock")]
)
def test_setup_takes_torch_and_torchvision_from_one_index(chosen: str, sync: str) -> None:
    command = ["make", "--dry-run", "--always-make", "setup", f"TORCH={chosen}"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    [line] = [line for line in done.stdout.splitlines() if "pip sync" in line]
    assert line.endswith(f"--python .venv/bin/python {sync}")
