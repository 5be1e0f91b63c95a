"""Directories of results: nothing of another call is overwritten, nothing of two calls is mixed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from osteo.command_settings import AuditConfig, EvaluateConfig, ExplainConfig, PredictConfig, RerunConfig
from osteo.config import Config
from osteo.errors import UserError
from osteo.files import sha256_of, write_json, write_text
from osteo.records import locks, outputs
from osteo.records.outputs import AUDIT, LISTING, PREDICTIONS, claim, drop_earlier, replaced

CONFIGS = [Config(), EvaluateConfig(), RerunConfig(), PredictConfig(), ExplainConfig(), AuditConfig()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made(folder: Path, kind: str) -> Path:
    """A directory that holds a run, a sweep or what is left of one, or somebody's own files."""
    folder.mkdir()
    state = {"state": "done" if "finished" in kind else "interrupted", "error": None, "id": "0"}
    if kind in ("run", "finished run"):
        write_json(folder / "status.json", state)
    elif kind in ("sweep", "finished sweep"):
        (folder / "0").mkdir()
        write_json(folder / "0" / "status.json", state)
    elif kind == "sweep without runs":
        (folder / "multirun.yaml").write_text("hydra: {}\n")
    elif kind == "what is left of a run":
        (folder / "config.yaml").write_text("seed: 0\n")
        (folder / "predictions.csv").write_text("image_id,logit\n")
    elif kind == "predictions":
        (folder / "predictions.csv").write_text("image_id,logit\n")
    return folder


@pytest.mark.parametrize(
    "kind",
    ["run", "finished run", "sweep", "finished sweep", "sweep without runs", "what is left of a run", "predictions"],
)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_what_is_there_is_refused(tmp_path: Path, config: object, kind: str) -> None:
    folder = made(tmp_path / "there", kind)
    before = contents(folder)
    makes_record, results = (
        isinstance(config, Config | EvaluateConfig | RerunConfig),
        ("predictions", "what is left of a run"),
    )
    if kind in results and isinstance(config, AuditConfig | ExplainConfig):
        claim(folder, config)  # nothing of it is written by these
    else:
        found = "predictions.csv" if kind == "predictions" or (kind in results and not makes_record) else "(a run|runs)"
        found = f"a {kind}" if "finished" in kind and isinstance(config, Config) else found
        with pytest.raises(UserError, match=rf"there holds {found} already.*; choose another output_dir") as error:
            claim(folder, config)
        goes_on = isinstance(config, Config) and kind != "predictions" and "finished" not in kind
        assert ("resume=" in str(error.value)) == goes_on
    locks.release(folder)
    assert contents(folder) == before


def test_predict_into_a_run_is_one_line(osteo: Callable, run: Path, knees: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    before = contents(copy)
    one = next(knees.rglob("*.png"))
    for command in ("predict copy", "evaluate copy data=folder"):
        done = osteo(
            *command.split(), f"input={one}" if "predict" in command else f"data.root={knees}", "output_dir=copy"
        )
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert f"osteo {command.split()[0]}: copy holds a run already; choose another output_dir" in done.err
    assert contents(copy) == before


def test_a_second_predict_replaces_the_first_and_two_at_once_do_not_mix(
    osteo: Callable, run: Path, knees: Path, tmp_path: Path
) -> None:
    first, second = sorted(knees.rglob("*.png"))[:2]
    words = ["predict", str(run), "interval=false", "output_dir=answers"]
    assert osteo(*words, f"input={first}").code == 0
    names = {"predictions.csv", "predictions.json", "predictions.html", f"overlays/{first.name}.png"}
    before = contents(tmp_path / "answers")
    assert set(before) == names

    holder = "import sys; from pathlib import Path; from osteo.records import locks; locks.hold(Path('answers'));"
    with subprocess.Popen(
        [sys.executable, "-c", f"{holder} print(flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout
        other.stdout.readline()
        refused = osteo(*words, f"input={second}")
        other.communicate("\n")
    assert refused.code == 2
    assert refused.err == "osteo predict: another process works on answers; wait for it or stop it\n"
    assert {name: content for name, content in contents(tmp_path / "answers").items() if name in names} == before

    (tmp_path / "answers/.results-of-a-killed-one").mkdir()
    (tmp_path / "answers/notes.txt").write_text("the user's own")
    assert osteo(*words, f"input={second}", "overlay=false").code == 0
    assert set(contents(tmp_path / "answers")) == {
        "predictions.csv",
        "predictions.json",
        "predictions.html",
        "notes.txt",
    }
    assert pd.read_csv("answers/predictions.csv")["file"].tolist() == [second.name]
    assert sorted(path.name for path in (tmp_path / "answers").iterdir() if path.is_dir()) == []


def test_a_file_among_the_overlays_that_predict_has_not_written_is_not_lost(tmp_path: Path) -> None:
    (tmp_path / "overlays/deep").mkdir(parents=True)
    write_json(tmp_path / "predictions.json", {"pictures": [], "overlays": ["deep/a.png"]})
    for name in ("deep/a.png", "deep/mine.png"):
        (tmp_path / "overlays" / name).write_bytes(b"")
    with pytest.raises(UserError, match=r"holds overlays/deep/mine.png already, which osteo predict has not written;"):
        claim(tmp_path, PredictConfig())
    (tmp_path / "overlays/deep/mine.png").unlink()
    claim(tmp_path, PredictConfig())
    locks.release(tmp_path)


def test_what_fails_leaves_the_earlier_results(tmp_path: Path) -> None:
    for name in AUDIT.names:
        write_text(tmp_path / name, '{"exact_duplicate_groups": []}')
    before = contents(tmp_path)

    def fail() -> None:
        with replaced(tmp_path, AUDIT) as folder:
            write_text(folder / AUDIT.names[0], "{}")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert contents(tmp_path) == before
    claim(tmp_path, AuditConfig())
    locks.release(tmp_path)


def test_a_folder_of_somebody_s_own_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "overlays").mkdir()
    for content in (None, "no JSON", "[]", json.dumps({"mine": 1})):
        if content is not None:
            (tmp_path / "predictions.json").write_text(content)
        with pytest.raises(UserError, match="which osteo predict has not written; choose another output_dir"):
            claim(tmp_path, PredictConfig())
    locks.release(tmp_path)
    assert outputs.OF_CONFIG[PredictConfig] is PREDICTIONS


def test_answers_do_not_lie_within_the_pictures(tmp_path: Path) -> None:
    (tmp_path / "pictures/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("pictures")
    for folder in ("pictures", "pictures/inner", "link"):
        with pytest.raises(UserError, match=r"lies within input=.*; choose another output_dir"):
            claim(tmp_path / folder, PredictConfig(input=str(tmp_path / "pictures")))
        assert not (tmp_path / folder / locks.LOCK).exists()
    claim(tmp_path, PredictConfig(input=str(tmp_path / "pictures")))
    locks.release(tmp_path)


def test_predict_into_its_pictures_is_one_line(osteo: Callable, tmp_path: Path) -> None:
    (tmp_path / "xd").mkdir()
    (tmp_path / "xd/a.png").write_bytes(b"a picture")
    done = osteo("predict", "no-run", "input=xd", "output_dir=xd")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert done.err.startswith("osteo predict: xd lies within input=xd, so that overlays")
    assert list(contents(tmp_path)) == ["xd/a.png"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_nothing_is_written_inside_a_run(tmp_path: Path, config: object) -> None:
    folder = made(tmp_path / "7", "run") / "checkpoints"
    folder.mkdir()
    (tmp_path / "7/config.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"checkpoints lies within the run 7; choose another output_dir$"):
        claim(folder, config)
    assert not (folder / locks.LOCK).exists()


def test_a_linked_folder_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/mine.png").write_bytes(b"mine")
    (tmp_path / "answers").mkdir()
    for has_overlays in (True, False):
        (tmp_path / "answers/overlays").symlink_to(tmp_path / "elsewhere")
        with replaced(tmp_path / "answers", PREDICTIONS) as folder:
            if has_overlays:
                write_text(folder / "overlays/a.png", "new")
        found = ["answers/overlays/a.png"] if has_overlays else []
        assert list(contents(tmp_path)) == [*found, "elsewhere/mine.png"]
        shutil.rmtree(tmp_path / "answers/overlays", ignore_errors=True)


def test_a_report_leaves_nothing_of_an_earlier_one_and_all_of_anybody_else(tmp_path: Path) -> None:
    def write(*names: str) -> list[Path]:
        paths = [tmp_path / name for name in names]
        for path in paths:
            write_text(path, path.name)
        return paths

    drop_earlier(tmp_path, write("figures/roc.png", "figures/confusion.png", "tables/classes.csv", "tables/costs.md"))
    write("figures/mine.png", "tables/notes.txt", "outside.txt")
    write_text(tmp_path / "tables/costs.md", "changed by its reader")
    drop_earlier(tmp_path, write("figures/roc.png", "tables/agreement.csv"))
    left = {"figures/roc.png", "figures/mine.png", "tables/agreement.csv", "tables/notes.txt", "tables/costs.md"}
    assert set(contents(tmp_path)) == {*left, "outside.txt", LISTING}
    listed = json.loads((tmp_path / LISTING).read_text())
    assert set(listed) == {"figures/roc.png", "tables/agreement.csv"}
    sha256 = listed["figures/roc.png"]
    outside = {"outside.txt": sha256_of(tmp_path / "outside.txt"), f"figures/../{'outside.txt'}": sha256}
    for damage in (json.dumps(outside), "{", "[]", ""):
        (tmp_path / LISTING).write_text(damage)
        drop_earlier(tmp_path, [tmp_path / "figures/roc.png"])
        assert (tmp_path / "outside.txt").exists()
