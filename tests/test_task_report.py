"""The report of each task, from records that a training would leave."""

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation
from omegaconf import OmegaConf

from osteo.config import Config
from osteo.evaluation.agreement import AGREEMENT, compare_t_scores, t_score_intervals
from osteo.evaluation.bootstrap import Interval, format_interval
from osteo.evaluation.multiclass import class_intervals, compare_classes
from osteo.evaluation.outcomes import evaluate_splits
from osteo.files import write_text
from osteo.networks.outputs import columns_of
from osteo.records.record import Run
from osteo.report import figures, page
from osteo.report.html import inline
from osteo.report.page import Report
from osteo.report.radiographs import _mistakes, called_by
from osteo.report.rows import p_value
from osteo.report.sections.task import POINTS, _doubts, class_confusion
from osteo.report.summary import show_runs
from osteo.task import CLASSES, PREDICTED_T_SCORE, T_SCORE, TASKS, who_class
from osteo.training.tracking import WandbLogger

PICTURES, FOLDS, DRAWS = 72, 2, 100
OF_TASK = ("confusion_classes", *POINTS)
BACKBONES = {"resnet18": 0.7, "densenet121": 0.3}
"""and how far off they are, in standard deviations of T-scores"""


def write_run(folder: Path, task: str, backbone: str, seed: int, fold: int) -> None:
    """The record of a run that sees T-scores with some error, as training would leave it."""
    config = Config()
    config.seed, config.task, config.model.backbone = seed, task, backbone
    config.data.name, config.data.root, config.data.task = "folder", "/nowhere", task
    config.data.split.fold, config.data.split.folds = fold, FOLDS
    config.data.split.seed = seed
    run = Run(folder)
    run.start(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    true = np.random.default_rng(0).uniform(-4.0, 0.5, PICTURES).round(2)
    classes = [who_class(value) for value in true]
    place = np.arange(PICTURES) // 4 % FOLDS
    split = np.where(place == fold, "test", np.where(np.arange(PICTURES) % 4 == 0, "val", "train"))
    manifest = pd.DataFrame(
        {
            "image_id": [f"folder/{i}.png" for i in range(PICTURES)], "path": "x", "source": "folder",
            "label": [TASKS[task].labels[name] for name in classes], "class_name": classes, "patient": "",
            "sha256": [f"{i:064d}" for i in range(PICTURES)], "width": 300,
            "height": 400 + np.arange(PICTURES) % 7, "format": "PNG", "mode": "L",
            "group": [f"g{i // 2}" for i in range(PICTURES)], "split": split, "reason": "",
        }
    )  # fmt: skip
    manifest = manifest.astype({"label": "Int64"})
    excluded = manifest["label"].isna()
    manifest.loc[excluded, ["split", "reason"]] = ["excluded", "osteopenia"]
    run.write_manifest(manifest)
    rng = np.random.default_rng([seed, fold, len(backbone)])
    seen = torch.as_tensor(true + rng.normal(scale=BACKBONES[backbone], size=PICTURES))
    outputs = {
        "binary": (-2.0 if task == "binary" else -1.0) - seen[:, None],
        "nominal": torch.stack([seen + 1.0, 0.5 - (seen + 1.75).abs(), -2.5 - seen], dim=1) * 2.0,
        "ordinal": torch.stack([-1.0 - seen, -2.5 - seen], dim=1) * 2.0,
        "regression": seen[:, None],
    }[TASKS[task].kind]
    predictions = manifest[["image_id", "source", "group", "split", "label"]].assign(
        **columns_of(TASKS[task], outputs.float())
    )
    if TASKS[task].kind == "regression":
        predictions[T_SCORE] = true
    predictions = predictions[manifest["split"].isin(["val", "test"])].astype({"label": int})
    run.write_predictions(predictions)
    run.write_history([{"epoch": i, "train/loss": 0.7, "val/loss": 0.7, "val/auroc": 0.5} for i in range(2)])
    run.write_metrics(evaluate_splits(predictions, TASKS[task]))
    run.write_environment(
        backbone=backbone, seed=seed, fold=fold, parameters=1_000_000, epochs=2, best_epoch=1, seconds=1.0,
        seconds_per_epoch=0.5, pictures_per_second=10.0, peak_memory_mib=100.0, accelerator="cpu",
        precision="32-true", leaks={},
    )  # fmt: skip
    run.set_status("done")


@pytest.fixture(scope="module")
def report_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Report]:
    """The written report of a task, by its name: two folds of two models, or of one."""
    kept: dict[str, Report] = {}
    saved = figures.save

    def save(figure: Figure, folder: Path, name: str) -> list[Path]:
        return saved(figure, folder, name) if name in OF_TASK else figures.files_of(folder, name)

    def drawn(figure: Figure, name: str, description: str, narrow: Figure | None = None) -> Markup:
        return inline(figure, name, description, narrow) if name in OF_TASK else Markup("<svg></svg>")

    def report(task: str) -> Report:
        if task not in kept:
            folder = tmp_path_factory.mktemp(task)
            for backbone in BACKBONES if TASKS[task].kind in ("nominal", "regression") else ["densenet121"]:
                for fold in range(FOLDS):
                    write_run(folder / f"{backbone}{fold}", task, backbone, 0, fold)
            with pytest.MonkeyPatch.context() as patched:  # the other figures are those of every report
                patched.setattr(figures, "save", save)
                patched.setattr(page, "inline", drawn)
                kept[task] = page.write_report(folder, draws=DRAWS)
        return kept[task]

    return report


def page_of(report: Report) -> tuple[str, str, str]:
    """HTML, Markdown and a model card."""
    card = report.results.best.system.best_run.directory / "model_card.md"
    return (
        (report.directory / "report.html").read_text(), (report.directory / "report.md").read_text(), card.read_text()
    )  # fmt: skip


def test_a_report_of_three_classes(report_of: Callable[[str], Report]) -> None:
    report = report_of("three_class")
    results, section = report.results, report.section
    experiment, names = results.experiment, tuple(CLASSES)
    assert section is not None
    assert experiment.truth is not None
    labels = experiment.truth.astype(int)
    assert sorted(set(labels)) == [0, 1, 2]
    best, other = (result.system for result in results.models)
    assert best.name == "densenet121"
    assert best.details is not None
    assert other.details is not None
    options = {"draws": DRAWS, "seed": 0}
    expected = class_intervals(labels, best.details, experiment.groups, networks=best.networks, **options)
    shown = section.by_metric.set_index("metric")["densenet121"]
    for name, title in {
        "auroc_macro": "AUROC, mean of the classes", "auroc_normal": "AUROC, normal",
        "auroc_osteopenia": "AUROC, osteopenia", "auroc_osteoporosis": "AUROC, osteoporosis",
        "balanced_accuracy": "balanced accuracy", "quadratic_weighted_kappa": "quadratic weighted kappa",
        "sensitivity": "sensitivity, osteoporosis", "accuracy": "accuracy",
    }.items():  # fmt: skip
        assert shown[title] == format_interval(expected[name])
    assert max(len(section.tables[name].columns) for name in ("classes", "each_class")) <= 10  # as wide as a page
    assert (
        section.tables["each_class"].set_index("system").loc["densenet121", "AUROC, normal"] == shown["AUROC, normal"]
    )
    numbers = pd.read_csv(report.directory / "tables/classes.csv").set_index("system").loc["densenet121"]
    assert numbers["auroc_macro_low"] == pytest.approx(expected["auroc_macro"].low)
    networks = best.networks, other.networks
    pair = compare_classes(labels, best.details, other.details, experiment.groups, networks=networks, **options)
    tests = section.tables["classes_tests"].iloc[0]
    kappa = pair["quadratic_weighted_kappa"]
    assert tests["quadratic weighted kappa, difference"] == format_interval(kappa.difference)
    assert tests["quadratic weighted kappa, p"] == p_value(kappa.p)
    matrix = section.matrices["densenet121"]
    assert matrix.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert matrix[0].sum() > matrix[0, 1] > 0
    assert (report.directory / "tables/classes.tex").exists()
    assert (report.directory / "figures/confusion_classes.png").exists()
    html, markdown, card = page_of(report)
    for text in (html, markdown):
        assert "Three classes" in text
        assert "densenet121 tells normal, osteopenia and osteoporosis apart with an AUROC of " in text
        assert text.count("everything else on this page is about osteoporosis against the rest") == 1
        assert " for osteoporosis against the rest on 72 test pictures" in text
        here = "on this page" if text == html else "here"
        assert (
            f'Except in the section "Three classes", everything {here} is about osteoporosis against the rest' in text
        )
        assert "called osteoporosis where the probability of that is above 0.5." in text
        assert "assume that 12.6 % of people have osteoporosis" in text
        assert "The paper reports" not in text
        assert "the paper grey" not in text
    assert f">{int(results.best.confusion[0, 0])}<span" in html
    assert html.count('<table class="matrix">') == 4
    assert re.search(r"<th [^>]*>no osteoporosis</th><th [^>]*>osteoporosis</th>", html)
    for name in names:
        assert f'<th scope="row">{name}</th>' in html
    assert f"| quadratic weighted kappa | {format_interval(expected['quadratic_weighted_kappa'])} |" in card
    assert "and the probabilities of normal, osteopenia, osteoporosis" in card
    assert [f"Original {name}" for name in names] == report.paper_tables["table1"]["Sets"].tolist()[:3]
    assert report.paper_tables["table1"].iloc[1, 1:].sum() > 0
    by_run = report.tables["methods"].set_index("system").loc["densenet121", "accuracy, by run"]
    right = best.right(experiment.labels)
    assert by_run.startswith(f"{np.mean([right[best.networks == n].mean() for n in range(FOLDS)]):.3f} (")


def test_a_report_of_ordered_classes(report_of: Callable[[str], Report]) -> None:
    report = report_of("ordinal")
    experiment, section, best = report.results.experiment, report.section, report.results.best.system
    assert section is not None
    assert experiment.truth is not None
    assert best.details is not None
    expected = class_intervals(
        experiment.truth.astype(int), best.details, experiment.groups, networks=best.networks, draws=DRAWS
    )
    shown = section.tables["classes"].iloc[0]
    assert shown["quadratic weighted kappa"] == format_interval(expected["quadratic_weighted_kappa"])
    assert list(section.tables) == ["classes", "each_class"]  # one model has no pair
    assert page_of(report)[0].count('<table class="matrix">') == 2


def test_a_class_that_is_never_called_and_no_lead_over_the_largest_are_said() -> None:
    matrix = np.array([[0.0, 9.0, 0.0], [0.0, 30.0, 1.0], [0.0, 8.0, 2.0]])
    assert _doubts(matrix, tuple(CLASSES), Interval(0.64, 0.55, 0.72)) == [
        "It calls no picture normal.",
        "Its accuracy, 0.64 (0.55 to 0.72), is not significantly above that of always calling osteopenia, 0.62.",
    ]
    assert _doubts(np.eye(3) * 20, tuple(CLASSES), Interval(1.0, 0.95, 1.0)) == []


def test_calls_are_averaged_over_the_repeats_that_tested_a_picture() -> None:
    sure = np.eye(3)
    first, second = sure[[0, 1, 2]], sure[[1, 1, 0]]
    second[2] = np.nan
    found = class_confusion(np.array([0, 1, 2]), np.stack([first, second]))
    assert found.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


@pytest.mark.slow
def test_a_report_of_t_scores(report_of: Callable[[str], Report], monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of("t_score")
    experiment, section = report.results.experiment, report.section
    assert section is not None
    assert experiment.truth is not None
    best, other = (result.system for result in report.results.models)
    assert best.details is not None
    assert other.details is not None
    first, second = best.details[..., 0], other.details[..., 0]
    options = {"draws": DRAWS, "seed": 0}
    expected = t_score_intervals(experiment.truth, first, experiment.groups, networks=best.networks, **options)
    shown = section.by_metric.set_index("metric")[best.name]
    assert list(section.tables) == ["agreement", "cut", "agreement_tests"]
    for metric in AGREEMENT:
        assert shown[metric.title] == format_interval(expected[metric.name])
    assert shown["AUROC, cut at -2.5"] == format_interval(expected["auroc"])
    networks = best.networks, other.networks
    pair = compare_t_scores(experiment.truth, first, second, experiment.groups, networks=networks, **options)
    tests = section.tables["agreement_tests"].iloc[0]
    assert tests["mean absolute error, p"] == p_value(pair["mean_absolute_error"].p)
    assert tests["bias, difference"] == format_interval(pair["bias"].difference)
    drawn = section.figures["bland_altman"].axes[0].lines
    differences = (first - experiment.truth).ravel()
    assert np.sort(drawn[0].get_ydata()) == pytest.approx(np.sort(differences))
    heights = [float(line.get_ydata()[0]) for line in drawn[1:4]]
    assert heights == pytest.approx([expected[name].value for name in ("bias", "agreement_low", "agreement_high")])
    html, markdown, card = page_of(report)
    for text in (html, markdown):
        assert f"predicts T-scores with a mean absolute error of {expected['mean_absolute_error'].value:.2f}" in text
        assert text.count("everything else on this page is about osteoporosis against the rest") == 1
        baseline = np.abs(experiment.truth - np.median(experiment.truth)).mean()
        assert f"for every picture would give a mean absolute error of {baseline:.2f}." in text
        assert "folder/" not in text
    assert html.count("<svg") == 9, "the two of the task for a wide and for a narrow screen"
    assert "of osteoporosis against the rest, and the T-score." in card
    written = {path.name for path in (report.directory / "figures").glob("*.png")}
    assert {"bland_altman.png", "t_scores.png"} <= written
    monkeypatch.setattr(figures, "save", lambda figure, folder, name: figures.files_of(folder, name))
    assert not set(POINTS) & set(report.write())  # which W&B may get
    tables = "".join(path.read_text() for path in (report.directory / "tables").iterdir())
    assert not [score for score in experiment.truth if score < 0 and f"{score:.2f} " in tables.replace("(", "")]


def test_a_report_of_osteopenia_or_worse(report_of: Callable[[str], Report]) -> None:
    report = report_of("osteopenia_or_worse")
    assert report.section is None
    html, _, card = page_of(report)
    assert re.search(r"<th [^>]*>normal</th><th [^>]*>osteopenia or worse</th>", html)
    assert "The paper reports" not in html
    assert "for osteopenia or worse against normal on 72 test pictures" in html
    assert "assume that 55.7 % of people have osteopenia or worse" in html
    assert "- Detects osteopenia or worse in a knee radiograph; gives one logit per picture.\n" in card
    table = report.paper_tables["table1"].set_index("Sets")
    manifest = report.results.best.system.best_run.read_manifest()
    assert table.loc["Original osteopenia or worse", "Total"] == (manifest["label"] == 1).sum()
    assert not [name for name in report.paper_tables["table2"] if "paper" in name]
    assert report.figures["reliability"].axes[0].get_ylabel() == "share with osteopenia or worse"


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("three_class", "each called the most probable of 3 classes"),
        ("t_score", "errors and bias are in T-scores, and what tells two classes apart is of their cut at -2.5"),
        ("osteopenia_or_worse", "of the test pictures at a threshold of 0.5; precision"),
    ],
)
def test_the_board_says_what_its_metrics_are_of(
    report_of: Callable[[str], Report], capsys: pytest.CaptureFixture[str], task: str, sentence: str
) -> None:
    assert show_runs(report_of(task).directory)
    said = " ".join(capsys.readouterr().out.split())
    assert sentence in said
    shown = {"three_class": "kappa", "t_score": "Pearson's r", "osteopenia_or_worse": "F1"}
    assert [name for name, metric in shown.items() if metric in said.partition("one row per model")[0]] == [task]


@pytest.mark.parametrize(
    ("task", "row", "shown"),
    [
        ("binary", {"probability": 0.2}, ("normal", "80%")),
        ("osteopenia_or_worse", {"probability": 0.9}, ("osteopenia or worse", "90%")),
        ("t_score", {"probability": 0.4, "predicted_t_score": -2.12}, ("osteopenia", "T -2.12")),
        (
            "ordinal",
            {"probability": 0.4, "probability_normal": 0.1, "probability_osteopenia": 0.5,
             "probability_osteoporosis": 0.4},
            ("osteopenia", "50%"),
        ),
    ],
)  # fmt: skip
def test_a_prediction_is_shown_as_its_task_calls_it(task: str, row: dict[str, float], shown: tuple[str, str]) -> None:
    assert called_by(TASKS[task], pd.Series(row)) == shown


def test_a_mistake_is_named_by_its_own_class() -> None:
    wrong = pd.DataFrame({"image_id": ["a", "b"], "label": [0, 1], "probability": [0.9, 0.2]})
    manifest = pd.DataFrame({"image_id": ["a", "b"], "label": [1, 2]})
    stored = dict.fromkeys(["a", "b"], np.zeros((8, 8), np.uint8))
    found = _mistakes(wrong, manifest, stored, {}, TASKS["three_class"])
    assert [(m.label, m.call, m.confidence) for m in found] == [
        ("osteopenia", "osteoporosis", "90%"), ("osteoporosis", "no osteoporosis", "80%")
    ]  # fmt: skip


def test_no_arrow_of_the_collection_crosses_what_was_left_out() -> None:
    manifest = pd.DataFrame({"source": ["a", "a", "b", "b"], "split": ["train", "excluded"] * 2,
                             "reason": ["", "no T-score"] * 2, "class_name": "normal"})  # fmt: skip
    axes = figures.collection(manifest).axes[0]
    boxes = [patch.get_path().get_extents() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    red = [box for box in boxes if 4.0 < box.x0 < 5.0]
    assert len(red) == 2
    for arrow in (text for text in axes.texts if isinstance(text, Annotation)):
        ends = np.array([arrow.xyann, arrow.xy])
        for box in red:
            heights = np.interp([box.x0, box.x1], *ends.T)
            assert heights.max() < box.y0 or heights.min() > box.y1


@pytest.mark.parametrize("task", ["three_class", "t_score", "osteopenia_or_worse"])
def test_wandb_gets_the_classes_of_the_task_and_no_measured_t_score(
    report_of: Callable[[str], Report], task: str
) -> None:
    run = report_of(task).results.best.system.best_run
    predictions = run.read_predictions()
    plots: dict[str, Any] = {}
    logger = WandbLogger.__new__(WandbLogger)
    logger.__dict__ |= {"_task": TASKS[task], "_run": SimpleNamespace(summary=plots), "_send": plots.update}
    logger.result({}, predictions)
    table = plots["test/predictions"]
    assert T_SCORE not in table.columns
    assert (PREDICTED_T_SCORE in table.columns) == (task == "t_score")
    confusion = pd.DataFrame(plots["test/confusion"].table.data, columns=["truth", "call", "pictures"])
    assert set(confusion["truth"]) == set(TASKS[task].sides if task == "t_score" else TASKS[task].class_names)
    test = predictions[predictions["split"] == "test"]
    right = confusion[confusion["truth"] == confusion["call"]]["pictures"].sum()
    assert right == round(run.read_metrics()["test/accuracy"] * len(test))
    assert set(pd.DataFrame(plots["test/roc"].table.data)[0]) == {TASKS[task].class_names[-1]}


def test_a_report_of_another_task_leaves_no_table_or_figure_of_this_one(
    report_of: Callable[[str], Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(figure: Figure, folder: Path, name: str) -> list[Path]:
        paths = figures.files_of(folder, name)
        for path in paths:
            write_text(path, name)
        return paths

    monkeypatch.setattr(figures, "save", save)
    monkeypatch.setattr(page, "write_text", lambda path, text: None)
    monkeypatch.setattr(page, "model_card", lambda *_: "")
    monkeypatch.setattr(Report, "html", lambda _: "")
    monkeypatch.setattr(Report, "markdown", lambda _: "")
    report = replace(report_of("three_class"), directory=tmp_path)
    assert report.section is not None
    report.write()
    of_task = {f"{name}.csv" for name in report.section.numbers} | {f"{name}.md" for name in report.section.tables}
    assert of_task <= {path.name for path in (tmp_path / "tables").iterdir()}
    write_text(tmp_path / "tables" / "mine.csv", "kept")
    replace(report, section=None).write()
    left = {path.name for path in (tmp_path / "tables").iterdir()}
    assert not of_task & left
    assert "mine.csv" in left
    assert not {f"{name}.png" for name in report.section.figures} & {p.name for p in (tmp_path / "figures").iterdir()}
