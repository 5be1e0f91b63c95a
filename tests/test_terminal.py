"""What a terminal of 80 columns shows: tables of which nothing is lost, the jobs of a sweep, and its runs by name."""

import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd
import pytest

from osteo.app import sweeps
from osteo.config import AugmentConfig, Config
from osteo.errors import UserError, counted
from osteo.evaluation.metrics import all_metrics
from osteo.evaluation.systems import read_experiment
from osteo.inference.answer import WITHHELD, answer
from osteo.inference.model import Model
from osteo.inference.predictions import Row
from osteo.records.sweep import best_of, runs_of
from osteo.report import predictions, rows, summary
from osteo.report.results import Results, compute
from osteo.report.tables import Terminal
from osteo.types import Grey
from tests.test_systems import write_logits, write_run

OSTEO = str(Path(sys.executable).with_name("osteo"))
WIDTH = 80


class Shown(NamedTuple):
    """A block of a table."""

    headings: list[str]
    """words, those of a heading that is broken included"""
    last: list[str]
    """of the headings' last line"""
    rows: list[str]


def blocks(out: str) -> list[Shown]:
    """The blocks of all tables that were printed; none has a line that is too long, or a shortened cell."""
    assert "…" not in out
    found = []
    for paragraph in re.split(r"\n\s*\n", out):
        lines = paragraph.splitlines()
        for place, line in enumerate(lines):
            if line.strip("─ ") or "─" not in line:
                continue
            begin = next((n + 1 for n in range(place - 1, -1, -1) if len(lines[n]) != len(line)), 0)
            found.append(Shown(" ".join(lines[begin:place]).split(), lines[place - 1].split(), lines[place + 1 :]))
            assert max(map(len, lines[begin:])) <= WIDTH
    return found


class Trained(NamedTuple):
    sweep: Path
    out: str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, archives: Path, cache: Path) -> Trained:
    """Two backbones, each with two seeds, and what the terminal said meanwhile."""
    folder = tmp_path_factory.mktemp("terminal")
    command = [
        OSTEO, "train", "-m", "data=folder", f"data.root={archives / 'kaggle'}", "data.image_size=64",
        "data.batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1",
        "model.backbone=test_resnet,test_vit", "seed=0,1", "logger.wandb.mode=disabled", "output_dir=s",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return Trained(folder / "s", done.stdout)


def test_one_row_per_model_has_the_mean_and_the_range_of_its_runs(trained: Trained) -> None:
    found = [block for block in blocks(trained.out) if block.headings[0] == "model"]
    board = pd.read_csv(trained.sweep / "leaderboard.csv")
    best = board.groupby("backbone")["val/auroc"].mean()
    assert found[0].headings[1] == "AUROC"
    for block in found:
        assert sorted(row.split()[0] for row in block.rows) == ["test_resnet", "test_vit"]
        marked = [row.split()[0] for row in block.rows if row.split()[1] == "*"]
        assert len(marked) == 1
        assert best[marked[0]] == best.max()
        assert block.rows[0].startswith(marked[0])
    for row in found[0].rows:
        values = board.loc[board["backbone"] == row.split()[0], "test/auroc"]
        assert f"  {values.mean():.3f} ({values.min():.2f} to {values.max():.2f})  " in row
    words = {word for block in found for word in block.headings}
    titles = {key.partition("/")[2] for key in board if key.startswith("test/")}
    shown = {all_metrics()[name].title for name in titles if name in all_metrics()}
    wanted = {*shown, "sensitivity", "specificity", "validation AUROC", "epochs", "parameters", "seconds", "runs"}
    assert {word for title in wanted for word in title.split()} <= words
    assert "one row per model, the mean over its runs (lowest to highest); * the best by AUROC on val" in trained.out


def test_a_job_says_which_it_is_and_how_long_the_rest_takes(trained: Trained) -> None:
    begun = re.findall(r"^job (\d) of 4: s/(\d)(; about \d+:\d\d:\d\d left)?\n  (.*)$", trained.out, re.MULTILINE)
    given = [f"model.backbone={backbone} seed={seed}" for backbone in ("test_resnet", "test_vit") for seed in (0, 1)]
    assert [(int(number), int(place), own) for number, place, _, own in begun] == [
        (number + 1, number, own) for number, own in enumerate(given)
    ]
    assert [bool(left) for _, _, left, _ in begun] == [False, True, True, True]
    ended = re.findall(r"^job (\d) of 4 is done: AUROC (\S+) on validation, (\S+) on test", trained.out, re.MULTILINE)
    board = pd.read_csv(trained.sweep / "leaderboard.csv").set_index("run").sort_index()
    assert ended == [(str(n + 1), f"{row['val/auroc']:.3f}", f"{row['test/auroc']:.3f}") for n, row in board.iterrows()]


def test_runs_have_names_beside_their_numbers(trained: Trained, osteo: Callable, archives: Path) -> None:
    folder = trained.sweep / "by_name"
    links = {path.name: str(path.readlink()) for path in folder.iterdir()}
    assert links == {
        "test_resnet-seed0": "../0", "test_resnet-seed1": "../1", "test_vit-seed0": "../2", "test_vit-seed1": "../3"
    }  # fmt: skip
    assert [run.name for run in runs_of(trained.sweep)] == list("0123")
    assert sorted(pd.read_csv(trained.sweep / "leaderboard.csv")["run"]) == [0, 1, 2, 3]
    models = read_experiment(runs_of(trained.sweep)).of_kind("model")
    assert [(model.name, model.repeats) for model in models] == [("test_resnet", 2), ("test_vit", 2)]
    told = osteo("status", str(trained.sweep))
    assert "4 runs: 4 done" in told.out
    (block,) = blocks(told.out)
    assert block.headings == ["run", "AUROC", "state", "backbone", "fold", "seed", "epochs", "left"]
    reached = [run.read_metrics()["val/auroc"] for run in runs_of(trained.sweep)]
    assert ["*" in " ".join(row) for row in block.rows] == [value == max(reached) for value in reached]
    assert ("are equal)" in told.out) == (reached.count(max(reached)) > 1)
    picture = str(next(archives.glob("kaggle/normal/*")))
    by_name = osteo("predict", str(folder / "test_vit-seed1"), picture, "interval=false", "output_dir=n")
    assert by_name.code == 0, by_name.err
    assert osteo("predict", str(trained.sweep / "3"), picture, "interval=false", "output_dir=3").code == 0
    assert Path("n/predictions.csv").read_bytes() == Path("3/predictions.csv").read_bytes()


def test_two_runs_of_one_name_get_their_numbers_too(tmp_path: Path) -> None:
    for number in "01":
        (tmp_path / "s" / number).mkdir(parents=True)
        for _ in range(2):  # a sweep that is taken up
            sweeps.link(tmp_path / "s" / number, tmp_path / "s/by_name", "lr0.001")
    links = {path.name: str(path.readlink()) for path in (tmp_path / "s/by_name").iterdir()}
    assert links == {"lr0.001": "../0", "lr0.001-1": "../1"}
    moved = shutil.move(tmp_path / "s", tmp_path / "elsewhere")
    assert (Path(moved) / "by_name/lr0.001-1").resolve() == tmp_path / "elsewhere/1"


def test_the_best_run_of_a_sweep_is_named_where_a_run_is_wanted(
    tmp_path: Path, osteo: Callable, archives: Path
) -> None:
    for number, strength in enumerate((1.0, 2.0, 4.0, 3.0, 5.0)):
        run = write_run(tmp_path / "s" / str(number), "resnet18", seed=number, strength=strength)
        if number != 4:  # the highest of all has lost its checkpoint
            run.best_checkpoint.parent.mkdir()
            run.best_checkpoint.write_bytes(b"PK")
    said = "s is a sweep; give one of its runs, such as s/0, or its best on validation: s/2"
    for words in (["predict", "s", str(archives)], ["evaluate", "s"], ["explain", "s", str(archives)]):
        done = osteo(*words)
        assert (done.code, done.err) == (2, f"osteo {words[0]}: {said}\n")
    with pytest.raises(UserError, match=re.escape(said)):
        best_of(Path("s"))


def test_a_picture_may_follow_the_run(run: Path, knees: Path, osteo: Callable) -> None:
    picture = str(sorted(knees.rglob("*.png"))[0])
    named = osteo("predict", str(run), f"input={picture}", "interval=false", "output_dir=named")
    short = osteo("predict", str(run), picture, "interval=false", "output_dir=short")
    assert (named.code, short.code) == (0, 0), short.err
    assert Path("short/predictions.csv").read_bytes() == Path("named/predictions.csv").read_bytes()
    assert short.out == named.out.replace("named/", "short/")
    assert re.search(r"^1 picture: (1 answered|0 answered, 1 withheld)$", short.out, re.MULTILINE)
    assert "threshold" in blocks(short.out)[0].headings


@pytest.mark.parametrize(
    ("low", "high", "is_borderline"),
    [
        (0.2, 0.39, False), (0.2, 0.4, False),  # the threshold itself is not above it
        (0.4, 0.41, True), (0.1, 0.9, True), (0.41, 0.9, False), (math.nan, math.nan, False),
    ],
)  # fmt: skip
def test_borderline_is_said_where_the_range_straddles_the_threshold(
    models: list[Model], picture: Grey, capsys: pytest.CaptureFixture[str],
    low: float, high: float, is_borderline: bool,
) -> None:  # fmt: skip
    (found,) = answer(models, [picture], rule="0.5", interval=False)
    found = replace(found, low=low, high=high, threshold=0.4, calibrated=low, call="normal")
    assert found.is_borderline is is_borderline
    withheld = replace(found, call=WITHHELD)
    predictions.show(Path("out"), [Row("a.png", "", found, None), Row("b.png", "", withheld, None)], models)
    out = capsys.readouterr().out
    assert out.count("borderline") == out.count("normal, borderline") == is_borderline
    (block,) = blocks(out)
    assert block.headings[-1] == "threshold"
    assert [row.split()[-1] for row in block.rows] == ["0.400", "0.400"]
    assert ("range" in block.headings) is not math.isnan(low)
    assert "2 pictures: 1 answered, 1 withheld" in out
    assert "-" in block.rows[1].split()  # no number where the answer is withheld


def at_terminal(folder: Path, *words: str, until: str = "") -> tuple[int, str]:
    """Exit code and output of a command on a terminal of 80 columns, which Ctrl-C is sent to once it has said so."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "dumb"}
    process = subprocess.Popen([OSTEO, *words], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    out = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux's way of saying that nobody writes any more
            break
        if not piece:
            break
        out += piece
        if until and until.encode() in out:
            process.send_signal(signal.SIGINT)
            until = ""
    os.close(ours)
    return process.wait(timeout=60), out.decode().replace("\r\n", "\n")


def test_a_watch_ends_when_all_runs_are_done(trained: Trained) -> None:
    code, out = at_terminal(trained.sweep.parent, "status", "s", "watch=true")
    assert (code, out.count("4 runs: 4 done")) == (0, 1)
    assert "Ctrl-C" not in out
    assert max(map(len, out.splitlines())) <= WIDTH


def test_ctrl_c_ends_a_watch_and_no_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s/0", "resnet18")
    run.hold()
    try:
        run.set_status("running")
        code, out = at_terminal(tmp_path, "status", "s", "watch=true", until="Ctrl-C ends this, and no run")
        assert code == 0, out
        assert "Traceback" not in out
        assert "1 run: 1 running" in out.partition("Ctrl-C ends this")[2]
        assert run.state == "running"
    finally:
        run.release()


def test_a_watch_needs_a_terminal(trained: Trained, osteo: Callable) -> None:
    done = osteo("status", str(trained.sweep), "watch=true")
    assert (done.code, done.out) == (2, "")
    assert "this output is not a terminal; leave it out" in done.err


@pytest.mark.parametrize("width", [40, 80, 110])
def test_a_table_folds_into_blocks_and_loses_nothing(capsys: pytest.CaptureFixture[str], width: int) -> None:
    long = "a_backbone_of_somebody_s_own_library/with_a_long_name_that_fits_nowhere_and_goes_on_to_100_columns_and_more"
    columns = {f"metric {n}": [n + 0.125, n + 0.25] for n in range(24)}
    frame = pd.DataFrame({"model": ["short", long], **columns, "AUROC": [0.975, 0.985], "notes": ["n" * 60, ""]})
    Terminal(width=width, highlight=False, markup=False, emoji=False).table(frame)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    assert "…" not in out
    cells = out.split()
    for values in columns.values():
        assert [cells.count(f"{value:.3f}") for value in values] == [1, 1]
    assert sum(line.count("n" * 5) > 0 for line in out.splitlines()) == -(-60 // out_width(out))
    heading = next(line for line in out.splitlines() if line.startswith("model"))
    assert heading.split()[1] == "AUROC"
    first = out.partition("\n\n")[0]
    assert "".join(line.split()[0] for line in first.splitlines()[2:]).replace("short", "", 1) == long


def out_width(out: str) -> int:
    """Signs of the longest piece of a text of n's."""
    return max(len(piece) for piece in re.findall("n{5,}", out))


def results_by(tmp_path: Path, primary: str) -> Results:
    """Of two models: one ranks validation without a mistake but far from the threshold, and one calls it better."""
    runs = [write_run(tmp_path / name, name) for name in ("resnet18", "densenet121")]
    for run in runs:
        table = run.read_table("predictions.csv")
        logit = table["label"] - 5.0 if run.directory.name == "resnet18" else 2.0 * table["label"] - 1.0
        wrong = table.groupby(["split", "label"]).cumcount() == 0
        write_logits(run, logit if run.directory.name == "resnet18" else logit.where(~wrong, -logit))
    return compute(read_experiment(runs), draws=50, seed=0, prevalence=0.1, sensitivity=0.9, primary=primary)


@pytest.mark.parametrize(("primary", "best"), [("auroc", "resnet18"), ("accuracy", "densenet121")])
def test_a_report_marks_the_best_by_its_primary_endpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], primary: str, best: str
) -> None:
    results = results_by(tmp_path, primary)
    reached = {model.system.name: model.system.validation[primary] for model in results.models}
    assert max(reached, key=reached.__getitem__) == best
    assert len(set(reached.values())) == 2
    counts = pd.DataFrame({"Sets": ["Original"], "Train": [3]})
    files = {"table1": counts, "table2": counts, "costs": counts, "comparison": rows.comparison_table(results)}
    report: Any = SimpleNamespace(
        files=files, results=results, section=None, verdict=[], pictures=SimpleNamespace(sentences=[]),
        directory=tmp_path,
    )  # fmt: skip
    summary.show_report(report)
    out = capsys.readouterr().out
    found = [block for block in blocks(out) if block.headings[0] == "system"]
    assert found[0].headings[1] == "AUROC"
    assert {row.split()[0] for block in found for row in block.rows if "*" in row} == {best}
    title = {"auroc": "AUROC", "accuracy": "accuracy"}[primary]
    assert f"\n* the best model by {title} on validation\n" in out


def test_numbers_agree_with_their_nouns() -> None:
    said = {noun: [counted(number, noun) for number in (0, 1, 2)] for noun in ("row", "file", "picture")}
    assert said == {noun: [f"0 {noun}s", f"1 {noun}", f"2 {noun}s"] for noun in said}


def test_which_auroc_on_validation_counts_is_said_where_they_may_differ() -> None:
    def run(precision: str, *, augmented: bool = False) -> Any:
        setting = Config(augment=AugmentConfig(val=augmented))
        return SimpleNamespace(read_environment=lambda: {"precision": precision}, read_settings=lambda: setting)

    start = "; AUROC on validation is computed anew in float32; what an epoch showed was computed "
    end = ", and may differ"
    assert summary.measured_anew([run("32-true")]) == ""
    assert summary.measured_anew([run("32-true"), run("bf16-mixed")]) == f"{start}in bf16{end}"
    both = summary.measured_anew([run("bf16-mixed", augmented=True)])
    assert both == f"{start}in bf16 and on augmented pictures{end}"
