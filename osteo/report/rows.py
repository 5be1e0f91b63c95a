"""The tables of a report, from its results."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from osteo.evaluation import curves
from osteo.evaluation.bootstrap import Interval, bootstrap
from osteo.evaluation.calibration import calibration_error
from osteo.evaluation.metrics import all_metrics, metric_intervals
from osteo.evaluation.systems import Experiment
from osteo.evaluation.tests import holm
from osteo.report.results import Paired, Result, Results, mean_over_repeats
from osteo.task import POSITIVE, RULES, THRESHOLD

SMALLEST = 10  # pictures of a subgroup that has a row
MAIN = ("accuracy", "auroc", "sensitivity", "specificity")  # metrics of a subgroup, and of the terminal


def format_interval(interval: Interval | None, digits: int = 3) -> str:
    """An interval as text: value (low to high)."""
    if interval is None or not np.isfinite(interval.value):
        return "-"
    value, low, high = (f"{number:.{digits}f}" for number in interval)
    return f"{value} ({low} to {high})"


def p_value(p: float | None) -> str:
    """A p-value as journals print it."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def comparison_table(results: Results) -> pd.DataFrame:
    """One row per system: metrics with intervals of the cluster bootstrap."""
    metrics = all_metrics().values()
    return pd.DataFrame(
        {
            "system": result.system.name,
            "pictures": result.system.tested,
            "repeats": result.system.repeats,
            **{metric.title: format_interval(result.intervals[metric.name]) for metric in metrics},
        }
        for result in results.ranked
    )


def numbers_table(results: Results) -> pd.DataFrame:
    """The same as numbers: one row per system, for each metric its value, low and high."""
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
        for result in results.ranked
    )


def methods_table(results: Results) -> pd.DataFrame:
    """What other methods say of the same values: Wilson, DeLong, and the range over repeats and over runs."""
    rows, metrics = [], all_metrics()
    for result in results.ranked:
        row = {"system": result.system.name}
        row |= {f"{metrics[name].title}, Wilson": format_interval(interval) for name, interval in result.wilson.items()}
        row["AUROC, DeLong"] = format_interval(result.delong)
        for name in ("auroc", "accuracy"):
            values = result.by_repeat[name]
            title, is_repeated = metrics[name].title, len(values) > 1 and result.system.kind == "model"
            row[f"{title}, by repeat"] = f"{values.min():.3f} to {values.max():.3f}" if is_repeated else "-"
            runs = [run.read_json("metrics.json")[f"test/{name}"] for run in result.system.runs]
            known = [value for value in runs if value is not None]
            row[f"{title}, by run"] = f"{np.mean(known):.3f} ({min(known):.3f} to {max(known):.3f})" if known else "-"
        rows.append(row)
    return pd.DataFrame(rows)


def tests_table(pairs: Sequence[Paired]) -> pd.DataFrame:
    """One row per pair: differences with intervals, p-values, and these after Holm's correction within the column."""
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
            "AUROC, difference": [format_interval(pair.by_metric["auroc"].difference) for pair in pairs],
            "accuracy, difference": [format_interval(pair.by_metric["accuracy"].difference) for pair in pairs],
            "right more often": [f"{pair.votes[0]} to {pair.votes[1]}" for pair in pairs],
        }
    )
    for name, read in columns.items():
        p_values = [read(pair) for pair in pairs]
        table[name] = [p_value(p) for p in p_values]
        if all(p is not None for p in p_values) and len(p_values) > 1:
            table[f"{name}, Holm"] = [p_value(p) for p in holm([p for p in p_values if p is not None])]
    return table


def calibration_table(results: Results) -> pd.DataFrame:
    """Brier score and calibration error of each model before and after the temperature of its validation pictures."""
    experiment, title, rows = results.experiment, all_metrics()["brier"].title, []
    for result in results.models:
        after = metric_intervals(
            experiment.labels, result.system.calibrated, experiment.groups,
            names=["brier"], draws=results.draws, seed=results.seed,
        )  # fmt: skip
        rows.append(
            {
                "system": result.system.name,
                title: format_interval(result.intervals["brier"]),
                "after temperature": format_interval(after["brier"]),
                "calibration error": calibration_error(experiment.labels, result.system.probabilities),
                "after temperature ": calibration_error(experiment.labels, result.system.calibrated),
            }
        )
    return pd.DataFrame(rows)


def thresholds_table(results: Results) -> pd.DataFrame:
    """One row per model and rule: what its thresholds, chosen on validation, reach on test."""
    experiment, rows = results.experiment, []
    for result in results.models:
        system = result.system
        for rule, (title, _) in RULES.items():
            thresholds = system.thresholds[rule]
            statistic = curves.decisions(experiment.labels, system.calibrated, thresholds, results.prevalence)
            drawn = bootstrap(statistic, experiment.labels, experiment.groups, draws=results.draws, seed=results.seed)
            chosen = thresholds[np.isfinite(thresholds)]
            names = ("sensitivity", "specificity", "PPV", "NPV")
            rows.append(
                {
                    "system": system.name,
                    "threshold by": title.format(sensitivity=results.sensitivity),
                    "threshold": f"{chosen.min():.2f}" + (f" to {chosen.max():.2f}" if np.ptp(chosen) > 0 else ""),
                    **{name: format_interval(drawn.interval(column)) for column, name in enumerate(names)},
                }
            )
    return pd.DataFrame(rows)


def subgroups(experiment: Experiment, clinical: pd.DataFrame | None) -> dict[str, "pd.Series[str]"]:
    """Ways to divide the pictures, by title, each with one name per picture; an empty name is no subgroup.

    Args:
        experiment: names the pictures.
        clinical: indexed by patient, where there is such a sheet.
    """
    pictures = experiment.pictures
    pixels = (pictures["width"] * pictures["height"]).astype(float)
    tall = (pictures["height"] / pictures["width"]).astype(float)
    divisions = {
        "source": pictures["source"].astype(str),
        "file": (pictures["format"] + " " + pictures["mode"]).astype(str),
        "pixels": _halves(pixels / 1e6, "megapixels"),
        "shape": _halves(tall, "height to width"),
    }
    if clinical is not None:
        sex, age = pictures["patient"].map(clinical["sex"]), pictures["patient"].map(clinical["age"])
        divisions["sex"] = sex.fillna("").astype(str)
        ages = np.where(age.isna(), "", np.where(age >= 50, "50 or older", "under 50"))
        divisions["age"] = pd.Series(ages).astype(str)
    return {title: names for title, names in divisions.items() if names[names != ""].nunique() > 1}


def _halves(values: "pd.Series[float]", unit: str) -> "pd.Series[str]":
    middle = float(values.median())
    return values.le(middle).map({True: f"at most {middle:.2f} {unit}", False: f"above {middle:.2f} {unit}"})


def subgroup_table(results: Results, result: Result, clinical: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per subgroup of at least ten pictures: how many, and what the model reaches there."""
    experiment, metrics, rows = results.experiment, all_metrics(), []
    for title, names in subgroups(experiment, clinical).items():
        for name in sorted(set(names) - {""}):
            inside = (names == name).to_numpy() & np.isfinite(result.system.probabilities).any(axis=0)
            labels = experiment.labels[inside]
            if inside.sum() < SMALLEST:
                continue
            intervals = metric_intervals(
                labels,
                result.system.probabilities[:, inside],
                [group for group, is_in in zip(experiment.groups, inside, strict=True) if is_in],
                names=MAIN,
                draws=results.draws,
                seed=results.seed,
            )
            rows.append(
                {
                    "by": title,
                    "subgroup": name,
                    "pictures": int(inside.sum()),
                    POSITIVE: int(labels.sum()),
                    **{metrics[name].title: format_interval(interval) for name, interval in intervals.items()},
                }
            )
    titles = [metrics[name].title for name in MAIN]
    return pd.DataFrame(rows, columns=["by", "subgroup", "pictures", POSITIVE, *titles])


def mistakes(results: Results, result: Result, count: int) -> pd.DataFrame:
    """The model's most confident wrong calls, the most confident first: image_id, label, probability, source."""
    probability = mean_over_repeats(result.system.probabilities)
    table = results.experiment.pictures.assign(probability=probability)
    wrong = table[(probability > THRESHOLD) != (table["label"] == 1)].dropna(subset=["probability"])
    margin = (wrong["probability"] - THRESHOLD).abs().sort_values(ascending=False, kind="stable")
    columns = ["image_id", "label", "probability", "source"]
    return pd.DataFrame(wrong.loc[margin.index[:count], columns]).reset_index(drop=True)
