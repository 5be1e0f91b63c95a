"""The tables of a report, from its results."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from osteo.evaluation import curves
from osteo.evaluation.bootstrap import Bootstrapped, Interval, bootstrap
from osteo.evaluation.calibration import calibration_error
from osteo.evaluation.metrics import METRICS, metrics
from osteo.evaluation.systems import Experiment
from osteo.evaluation.tests import holm
from osteo.report.results import Paired, Result, Results, mean
from osteo.types import Statistic

TITLES = {
    "accuracy": "accuracy",
    "precision_macro": "precision",
    "recall_macro": "recall",
    "f1_macro": "F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
}
SMALLEST = 10  # pictures of a subgroup that is shown


def shown(interval: Interval | None, digits: int = 3) -> str:
    """An interval as text: value (low to high)."""
    if interval is None or not np.isfinite(interval.value):
        return "-"
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{value} ({low} to {high})"


def p_value(p: float | None) -> str:
    """A p-value as journals print it."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_table(results: Results) -> pd.DataFrame:
    """A row a system: metrics with intervals of the cluster bootstrap."""
    return pd.DataFrame(
        {
            "system": result.system.name,
            "pictures": result.system.tested,
            "repeats": result.system.repeats,
            **{TITLES[name]: shown(result.intervals[name]) for name in METRICS},
        }
        for result in results.results
    )


def numbers_table(results: Results) -> pd.DataFrame:
    """The same as numbers: a row a system, for each metric its value, low and high."""
    return pd.DataFrame(
        {
            "system": result.system.name,
            "kind": result.system.kind,
            "pictures": result.system.tested,
            "repeats": result.system.repeats,
            **{
                f"{name}{ending}": value
                for name, interval in result.intervals.items()
                for ending, value in zip(("", "_low", "_high"), interval, strict=True)
            },
        }
        for result in results.results
    )


def methods_table(results: Results) -> pd.DataFrame:
    """What other methods say of the same values: Wilson, DeLong, and the range over repeats and over runs."""
    rows = []
    for result in results.results:
        row = {"system": result.system.name}
        row |= {f"{TITLES[name]}, Wilson": shown(interval) for name, interval in result.wilson.items()}
        row["AUROC, DeLong"] = shown(result.delong)
        for name in ("auroc", "accuracy"):
            values = result.by_repeat[name]
            several = len(values) > 1 and result.system.kind == "model"
            row[f"{TITLES[name]}, by repeat"] = f"{values.min():.3f} to {values.max():.3f}" if several else "-"
            runs = [run.read_json("metrics.json")[f"test/{name}"] for run in result.system.runs]
            known = [value for value in runs if value is not None]
            row[f"{TITLES[name]}, by run"] = (
                f"{np.mean(known):.3f} ({min(known):.3f} to {max(known):.3f})" if known else "-"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def tests_table(pairs: Sequence[Paired]) -> pd.DataFrame:
    """A row a pair: differences with intervals, p-values, and the same after Holm's correction within the column."""
    columns: dict[str, Callable[[Paired], float | None]] = {
        "AUROC, bootstrap p": lambda pair: pair.by_metric["auroc"].p,
        "AUROC, DeLong p": lambda pair: pair.delong.p if pair.delong else None,
        "accuracy, bootstrap p": lambda pair: pair.by_metric["accuracy"].p,
        "accuracy, McNemar exact p": lambda pair: pair.mcnemar,
        "McNemar mid-p": lambda pair: pair.mcnemar_mid,
    }
    table = pd.DataFrame(
        {
            "first": [pair.first for pair in pairs],
            "second": [pair.second for pair in pairs],
            "AUROC, difference": [shown(pair.by_metric["auroc"].difference) for pair in pairs],
            "accuracy, difference": [shown(pair.by_metric["accuracy"].difference) for pair in pairs],
            "right more often": [f"{pair.votes[0]} to {pair.votes[1]}" for pair in pairs],
        }
    )
    for name, read in columns.items():
        found = [read(pair) for pair in pairs]
        table[name] = [p_value(p) for p in found]
        if all(p is not None for p in found) and len(found) > 1:
            table[f"{name}, Holm"] = [p_value(p) for p in holm([p for p in found if p is not None])]
    return table


def calibration_table(results: Results) -> pd.DataFrame:
    """Brier score and calibration error of each model before and after the temperature of its validation pictures."""
    rows = []
    for result in results.models:
        after = _bootstrap(results, metrics(results.experiment.labels, result.system.calibrated))
        rows.append(
            {
                "system": result.system.name,
                "Brier score": shown(result.intervals["brier"]),
                "after temperature": shown(after.interval(METRICS.index("brier"))),
                "calibration error": calibration_error(results.experiment.labels, result.system.probabilities),
                "after temperature ": calibration_error(results.experiment.labels, result.system.calibrated),
            }
        )
    return pd.DataFrame(rows)


def thresholds_table(results: Results) -> pd.DataFrame:
    """A row a model and rule: what its thresholds, chosen on validation, reach on test."""
    rules = {
        "0.5": "0.5",
        "Youden": "Youden's index",
        "sensitivity": f"sensitivity of {results.sensitivity:.2f} on validation",
    }
    rows = []
    for result in results.models:
        system = result.system
        for rule, title in rules.items():
            statistic = curves.decisions(
                results.experiment.labels, system.calibrated, system.thresholds[rule], results.prevalence
            )
            made = _bootstrap(results, statistic)
            chosen = system.thresholds[rule][np.isfinite(system.thresholds[rule])]
            names = ("sensitivity", "specificity", "PPV", "NPV")
            rows.append(
                {
                    "system": system.name,
                    "threshold by": title,
                    "threshold": f"{chosen.min():.2f}" + (f" to {chosen.max():.2f}" if np.ptp(chosen) > 0 else ""),
                    **{name: shown(made.interval(column)) for column, name in enumerate(names)},
                }
            )
    return pd.DataFrame(rows)


def _bootstrap(results: Results, statistic: Statistic) -> Bootstrapped:
    experiment = results.experiment
    return bootstrap(statistic, experiment.labels, experiment.groups, draws=results.draws, seed=results.seed)


def subgroups(experiment: Experiment, clinical: pd.DataFrame | None) -> dict[str, "pd.Series[str]"]:
    """Ways to divide the pictures, by title, each a name a picture; an empty name is no subgroup.

    Args:
        experiment: names the pictures.
        clinical: indexed by patient, where there is such a sheet.
    """
    pictures = experiment.pictures
    pixels = (pictures["width"] * pictures["height"]).astype(float)
    tall = (pictures["height"] / pictures["width"]).astype(float)
    found = {
        "source": pictures["source"].astype(str),
        "file": (pictures["format"] + " " + pictures["mode"]).astype(str),
        "pixels": _halves(pixels / 1e6, "megapixels"),
        "shape": _halves(tall, "height to width"),
    }
    if clinical is not None:
        sex, age = pictures["patient"].map(clinical["sex"]), pictures["patient"].map(clinical["age"])
        found["sex"] = sex.fillna("").astype(str)
        found["age"] = pd.Series(np.where(age.isna(), "", np.where(age >= 50, "50 or older", "under 50"))).astype(str)
    return {title: names for title, names in found.items() if (names[names != ""].nunique()) > 1}


def _halves(values: "pd.Series[float]", what: str) -> "pd.Series[str]":
    middle = float(values.median())
    return values.le(middle).map({True: f"at most {middle:.2f} {what}", False: f"above {middle:.2f} {what}"})


def subgroup_table(results: Results, result: Result, clinical: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a subgroup of at least ten pictures: how many, and what the model reaches there."""
    experiment, rows = results.experiment, []
    for title, names in subgroups(experiment, clinical).items():
        for name in sorted(set(names) - {""}):
            inside = (names == name).to_numpy() & np.isfinite(result.system.probabilities).any(axis=0)
            labels = experiment.labels[inside]
            if inside.sum() < SMALLEST:
                continue
            groups = [group for group, is_in in zip(experiment.groups, inside, strict=True) if is_in]
            made = bootstrap(
                metrics(labels, result.system.probabilities[:, inside]),
                labels, groups, draws=results.draws, seed=results.seed,
            )  # fmt: skip
            rows.append(
                {
                    "by": title,
                    "subgroup": name,
                    "pictures": int(inside.sum()),
                    "osteoporosis": int(labels.sum()),
                    **{TITLES[m]: shown(made.interval(METRICS.index(m)))
                       for m in ("accuracy", "auroc", "sensitivity", "specificity")},
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["by", "subgroup", "pictures", "osteoporosis", "accuracy", "AUROC",
                                       "sensitivity", "specificity"])  # fmt: skip


def mistakes(results: Results, result: Result, count: int) -> pd.DataFrame:
    """The wrong calls that the model was surest of, the surest first: image_id, label, probability, source."""
    probability = mean(result.system.probabilities)
    table = results.experiment.pictures.assign(probability=probability)
    wrong = table[(probability > 0.5) != (table["label"] == 1)].dropna(subset=["probability"])
    sure = (wrong["probability"] - 0.5).abs().sort_values(ascending=False, kind="stable")
    columns = ["image_id", "label", "probability", "source"]
    return pd.DataFrame(wrong.loc[sure.index[:count], columns]).reset_index(drop=True)
