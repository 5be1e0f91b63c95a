"""What a task says beyond the positive class against the rest: metrics, paired differences, matrices, figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from osteo.errors import listed
from osteo.evaluation.agreement import AGREEMENT, CUT, compare_t_scores, t_score_intervals
from osteo.evaluation.bootstrap import Comparison, Interval, format_interval
from osteo.evaluation.metrics import all_metrics
from osteo.evaluation.multiclass import class_intervals, class_metrics, compare_classes
from osteo.evaluation.systems import System
from osteo.report.figures import COLOURS, INK, MOST, STYLE, confusion, grid_of_panels
from osteo.report.results import Results, mean_over_repeats
from osteo.report.rows import p_value
from osteo.task import THRESHOLD, Task
from osteo.types import Floats, Labels

POINTS = ("bland_altman", "t_scores")
"""Figures that show the T-score of every picture: they leave the directory of the report only by hand."""
SOFT = "#888888"

Intervals: TypeAlias = Mapping[str, Interval]
Comparisons: TypeAlias = Mapping[str, Comparison]


class Pair(NamedTuple):
    """Two models on the same pictures."""

    first: str
    second: str
    by_metric: Comparisons
    """first less second"""


@dataclass(frozen=True)
class TaskSection:
    """A section of the page, where a task is more than two classes."""

    title: str
    introduction: str
    sentences: list[str]
    """of the verdict"""
    tables: dict[str, pd.DataFrame]
    """of the page, also files: first the metrics, one row per model, in tables that fit a page; then, where there are
    several, their pairs"""
    numbers: dict[str, pd.DataFrame]
    """the same as numbers"""
    notes: dict[str, tuple[str, str]]
    """heading and note of each table"""
    class_names: tuple[str, ...]
    matrices: dict[str, Floats]
    """by model, truth down, call across: pictures, the mean over repeats; none of T-scores"""
    figures: dict[str, Figure]
    captions: dict[str, str]
    """of the figures of the page; any other is a file alone"""

    @property
    def by_metric(self) -> pd.DataFrame:
        """The metrics turned: metrics down, models across."""
        tables = [table.set_index("system") for table in self.tables.values() if "system" in table]
        return pd.concat(tables, axis=1).T.rename_axis("metric").rename_axis(None, axis=1).reset_index()

    def of_model(self, name: str) -> pd.DataFrame:
        """The metrics of one model, one row each."""
        return self.by_metric[["metric", name]].rename(columns={name: "95 % interval"})


def task_section(results: Results) -> TaskSection | None:
    """What the sweep's task says beyond the positive class; None where two classes are all."""
    kind = results.experiment.task.kind
    if kind == "binary":
        return None
    return _t_scores(results) if kind == "regression" else _classes(results)


# --- classes ---------------------------------------------------------------------------------------------------------


def _classes(results: Results) -> TaskSection:
    task = results.experiment.task
    labels, names = _truth(results).astype(int), task.class_names
    probabilities = {result.system.name: _details(result.system) for result in results.models}
    intervals, pairs = _measured(results, labels, probabilities, class_intervals, compare_classes, class_names=names)
    titles = {name: metric.title for name, metric in class_metrics(names).items()}
    titles |= {name: f"{titles[name]}, {names[-1]}" for name in ("sensitivity", "specificity")}
    compared = ("auroc_macro", "balanced_accuracy", "quadratic_weighted_kappa", "accuracy")
    of_each = (*(f"auroc_{name}" for name in names), "sensitivity", "specificity")
    shown = {"classes": (*compared, "precision_macro", "f1_macro"), "each_class": of_each}
    matrices = {name: class_confusion(labels, of_model) for name, of_model in probabilities.items()}
    tables, numbers = _tables(shown, intervals, pairs, titles, compared)
    best = results.best.system.name
    reached = {name: format_interval(intervals[best][name], 2) for name in compared}
    absent = [name for label, name in enumerate(names) if label not in labels]
    return TaskSection(
        title="Three classes",
        introduction=f"Here each picture is called the most probable of {listed(names)}; elsewhere on this page it is"
        f" called {names[-1]} where the probability of that is above {THRESHOLD}.",
        sentences=[
            f"No test picture is of class {' or '.join(absent)}, so {best} has no AUROC over all classes; over those"
            f" present it has a balanced accuracy of {reached['balanced_accuracy']} and a quadratic weighted kappa of"
            f" {reached['quadratic_weighted_kappa']}; 95 % intervals."
            if absent
            else f"{best} tells {listed(names)} apart with an AUROC of {reached['auroc_macro']}, the mean over the"
            f" classes, each against the others, a balanced accuracy of {reached['balanced_accuracy']} and a quadratic"
            f" weighted kappa of {reached['quadratic_weighted_kappa']}; 95 % intervals.",
            *_doubts(matrices[best], names, intervals[best]["accuracy"]),
            _elsewhere(task, "Three classes"),
        ],
        tables=tables,
        numbers=numbers,
        notes=_notes(
            "classes",
            "AUROC compares pictures tested by the same network. Balanced accuracy is the macro average of recall;"
            " precision and F1 are macro averages, too. Kappa counts a call two classes off as four times as wrong as"
            " a call one class off",
        )
        | {"each_class": ("One class against the others", "With 95 % intervals")},
        class_names=names,
        matrices=matrices,
        figures={"confusion_classes": confusion(dict(list(matrices.items())[:MOST]), names)},
        captions={},
    )


def _doubts(matrix: Floats, names: Sequence[str], accuracy: Interval) -> list[str]:
    """What makes these figures less than they seem: a class that is never called, calls no better than the largest."""
    lines = [f"It calls no picture {name}." for name, calls in zip(names, matrix.sum(axis=0), strict=True) if not calls]
    shares = matrix.sum(axis=1) / matrix.sum()
    if accuracy.low <= shares.max():
        lines.append(
            f"Its accuracy, {format_interval(accuracy, 2)}, is not significantly above that of always calling"
            f" {names[int(shares.argmax())]}, {shares.max():.2f}."
        )
    return lines


def class_confusion(labels: Labels, probabilities: Floats) -> Floats:
    """Pictures by class, down, and call, across, (C, C): each picture's calls are averaged over its repeats.

    Args:
        labels: from 0 to C - 1, (N,).
        probabilities: (R, N, C); NaN where a repeat did not test a picture.
    """
    number = probabilities.shape[-1]
    known = np.asarray(np.isfinite(probabilities).all(axis=-1))
    calls = np.where(known[..., None], np.eye(number)[np.nan_to_num(probabilities).argmax(axis=-1)], np.nan)
    shares = np.nan_to_num(mean_over_repeats(calls))  # (N, C)
    return np.asarray(np.eye(number)[labels].T @ shares)


# --- T-scores --------------------------------------------------------------------------------------------------------


def _t_scores(results: Results) -> TaskSection:
    task, true = results.experiment.task, _truth(results)
    predicted = {result.system.name: _details(result.system)[..., 0] for result in results.models}
    intervals, pairs = _measured(results, true, predicted, t_score_intervals, compare_t_scores)
    titles = {metric.name: metric.title for metric in AGREEMENT}
    shown = {"agreement": tuple(titles), "cut": ("auroc", "accuracy", "sensitivity", "specificity")}
    titles |= {name: f"{all_metrics()[name].title}, cut at {CUT}" for name in shown["cut"]}
    compared = ("mean_absolute_error", "bias", "pearson_r", "auroc")
    tables, numbers = _tables(shown, intervals, pairs, titles, compared)
    best = results.best.system.name
    reached = {name: format_interval(intervals[best][name], 2) for name in titles}
    drawn = dict(list(predicted.items())[:MOST])
    of_median = np.abs(true - np.median(true)).mean()
    return TaskSection(
        title="T-scores",
        introduction=f"T-scores are in standard deviations of young adults; {task.class_names[-1]} is a T-score at or"
        f" below {CUT}.",
        sentences=[
            f"{best} predicts T-scores with a mean absolute error of {reached['mean_absolute_error']} and a bias of"
            f" {reached['bias']} (predicted minus measured); the limits of agreement are {reached['agreement_low']} and"
            f" {reached['agreement_high']}, Pearson's r is {reached['pearson_r']}; 95 % intervals. Predicting"
            f" the median T-score for every picture would give a mean absolute error of {of_median:.2f}.",
            _elsewhere(task, "T-scores"),
        ],
        tables=tables,
        numbers=numbers,
        notes=_notes(
            "agreement",
            "Bias is the mean of predicted minus measured; the limits of agreement lie 1.96 standard deviations of"
            " these differences above and below it (Bland and Altman 1986)",
        )
        | {"cut": (f"The cut at {CUT}", "With 95 % intervals")},
        class_names=task.class_names,
        matrices={},
        figures={"bland_altman": bland_altman(true, drawn, intervals), "t_scores": against_measured(true, drawn)},
        captions={
            "bland_altman": "Predicted minus measured T-score against the mean of both, one point per picture and"
            " repeat: bias (solid) and limits of agreement (dashed) with their 95 % intervals.",
            "t_scores": f"Predicted against measured T-scores, one point per picture and repeat; the diagonal is"
            f" perfect agreement, the dotted lines are the cut at {CUT}.",
        },
    )


def bland_altman(true: Floats, predicted: Mapping[str, Floats], intervals: Mapping[str, Intervals]) -> Figure:
    """Differences against means, with bias and limits of agreement and their intervals as bands, one panel per model.

    Args:
        true: measured T-scores, (N,).
        predicted: by model, (R, N); NaN where a repeat did not test a picture.
        intervals: by model, the metrics of `AGREEMENT` by name.
    """
    with rc_context(STYLE):
        figure, panels = grid_of_panels(list(predicted))
        for axes, (name, values) in zip(panels, predicted.items(), strict=True):
            _points(axes, (values + true) / 2.0, values - true)
            for metric, style in (("bias", "-"), ("agreement_low", "--"), ("agreement_high", "--")):
                interval = intervals[name][metric]
                if np.isfinite(interval.value):
                    axes.axhline(interval.value, color=COLOURS[1], lw=1.4, ls=style)
                if np.isfinite(interval.low):
                    axes.axhspan(interval.low, interval.high, color=COLOURS[1], alpha=0.18, lw=0)
            axes.axhline(0.0, color=SOFT, lw=0.8, ls=":")
            axes.set_xlabel("mean of both T-scores")
        panels[0].set_ylabel("predicted minus measured")
        return figure


def against_measured(true: Floats, predicted: Mapping[str, Floats]) -> Figure:
    """Predicted against measured T-scores with the diagonal and the cut, one panel per model; arguments as above."""
    with rc_context(STYLE):
        figure, panels = grid_of_panels(list(predicted))
        every = np.concatenate([true, *(values.ravel() for values in predicted.values())])
        ends = float(np.nanmin(every)) - 0.3, float(np.nanmax(every)) + 0.3
        for axes, values in zip(panels, predicted.values(), strict=True):
            _points(axes, np.broadcast_to(true, values.shape), values)
            axes.plot(ends, ends, color=SOFT, lw=0.8)
            axes.axhline(CUT, color=INK, lw=0.8, ls=":")
            axes.axvline(CUT, color=INK, lw=0.8, ls=":")
            axes.set(xlim=ends, ylim=ends, xlabel="measured T-score", aspect="equal")
        panels[0].set_ylabel("predicted T-score")
        return figure


def _points(axes: Axes, x: Floats, y: Floats) -> None:
    axes.plot(x.ravel(), y.ravel(), "o", color=COLOURS[0], ms=3.5, alpha=0.5, mew=0)


# --- both ------------------------------------------------------------------------------------------------------------


def _truth(results: Results) -> Floats:
    truth = results.experiment.truth
    assert truth is not None, "of every task beyond two classes"
    return truth


def _details(system: System) -> Floats:
    assert system.details is not None, "of every model of such a task"
    return system.details


def _measured(
    results: Results,
    truth: Floats | Labels,
    details: Mapping[str, Floats],
    measure: Callable[..., Intervals],
    compare: Callable[..., Comparisons],
    **options: Any,
) -> tuple[dict[str, Intervals], list[Pair]]:
    """Each model's metrics, and the pairs of models that the page compares elsewhere, too.

    Args:
        results: of the sweep.
        truth: of every picture, (N,).
        details: what each model says, by its name, (R, N) or (R, N, C).
        measure: of one model.
        compare: two of them.
        options: of both.
    """
    networks = {result.system.name: result.system.networks for result in results.models}
    groups, options = results.experiment.groups, {"draws": results.draws, "seed": results.seed, **options}
    intervals = {name: measure(truth, details[name], groups, networks=networks[name], **options) for name in networks}
    pairs = []
    for first, second in ((pair.first, pair.second) for pair in results.between):
        both = networks[first], networks[second]
        found = compare(truth, details[first], details[second], groups, networks=both, **options)
        pairs.append(Pair(first, second, found))
    return intervals, pairs


def _tables(
    shown: Mapping[str, Sequence[str]],
    intervals: Mapping[str, Intervals],
    pairs: list[Pair],
    titles: Mapping[str, str],
    compared: tuple[str, ...],
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """The metrics of each table that is shown, and the pairs, NAME_tests, of those that are compared; both as text.

    The same as numbers, of all metrics, under the name of the first table.
    """
    name = next(iter(shown))
    texts = {
        table: pd.DataFrame(
            {"system": model} | {titles[metric]: format_interval(of_model[metric]) for metric in metrics}
            for model, of_model in intervals.items()
        )
        for table, metrics in shown.items()
    }
    numbers = [
        {"system": model}
        | {
            f"{metric}{ending}": value
            for metric, interval in of_model.items()
            for ending, value in zip(("", "_low", "_high"), interval, strict=True)
        }
        for model, of_model in intervals.items()
    ]
    if not pairs:
        return texts, {name: pd.DataFrame(numbers)}
    tests = [
        {"first": pair.first, "second": pair.second}
        | dict(
            chain.from_iterable(
                (
                    (f"{titles[metric]}, difference", format_interval(pair.by_metric[metric].difference)),
                    (f"{titles[metric]}, p", p_value(pair.by_metric[metric].p)),
                )
                for metric in compared
            )
        )
        for pair in pairs
    ]
    differences = [
        {"first": pair.first, "second": pair.second, "metric": metric, "difference": difference.value,
         "low": difference.low, "high": difference.high, "p": p}
        for pair in pairs
        for metric, (difference, p) in pair.by_metric.items()
    ]  # fmt: skip
    return (
        texts | {f"{name}_tests": pd.DataFrame(tests)},
        {name: pd.DataFrame(numbers), f"{name}_tests": pd.DataFrame(differences)},
    )


def _notes(name: str, note: str) -> dict[str, tuple[str, str]]:
    return {
        name: ("Every model with 95 % intervals", note),
        f"{name}_tests": (
            "Paired differences between models",
            "First minus second, on the same pictures and with the same draws; p is not corrected for multiple testing",
        ),
    }


def _elsewhere(task: Task, title: str) -> str:
    return (
        f'This sentence and the section "{title}" are about the whole task; everything else on this page is about'
        f" {task.contrast}."
    )
