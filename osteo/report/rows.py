"""The tables of a report, from its results."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from osteo.config import Config
from osteo.evaluation import curves
from osteo.evaluation.bootstrap import Interval, bootstrap, format_interval
from osteo.evaluation.calibration import calibration_error
from osteo.evaluation.metrics import all_metrics, metric_intervals
from osteo.evaluation.probes import PROBES
from osteo.evaluation.systems import Experiment, System
from osteo.report.results import PrimaryTest, Result, Results, mean_over_repeats
from osteo.task import RULES, TASKS, THRESHOLD

SMALLEST = 10  # pictures of a subgroup that has a row
MAIN = ("accuracy", "auroc", "sensitivity", "specificity")  # metrics of a subgroup, and of the terminal


def probe_table(results: Results, probes: Mapping[str, Mapping[str, Interval]], fit: str) -> pd.DataFrame:
    """What is predicted without seeing bone, by forests that see the file, or the picture after `data.fit`."""
    seen: list[tuple[str, str, Mapping[str, Interval]]] = [("width and height", "file", results.shortcut.intervals)]
    seen += [(PROBES[name], f"picture after data.fit={fit}", intervals) for name, intervals in probes.items()]
    return pd.DataFrame(
        {
            "sees only": title,
            "of the": of,
            **{all_metrics()[name].title: format_interval(intervals[name]) for name in ("auroc", "accuracy")},
        }
        for title, of, intervals in seen
    )


def p_value(p: float) -> str:
    """A p-value as journals print it."""
    if not np.isfinite(p):
        return "-"
    digits = 4 if abs(p - 0.05) < 0.0005 else 3  # so that 0.0498 does not read as 0.050
    return "< 0.001" if p < 0.001 else f"{p:.{digits}f}"


def comparison_table(results: Results) -> pd.DataFrame:
    """One row per system: metrics with bootstrap intervals, the primary endpoint and the main ones first."""
    metrics = sorted(
        all_metrics().values(), key=lambda metric: (metric.name != results.primary, metric.name not in MAIN)
    )
    return pd.DataFrame(
        {
            "system": result.system.name,
            **{metric.title: format_interval(result.intervals[metric.name]) for metric in metrics},
            "pictures": result.system.tested,
            "repeats": result.system.repeats,
        }
        for result in results.ranked
    )


def literature_table(results: Results, age: Interval | None = None) -> pd.DataFrame:
    """What sources claim of their systems beside what is measured here: models that follow a source, and shortcuts.

    A claim about another number of classes is named, and not compared. The p-value is of the primary endpoint, against
    width and height, after Holm's correction.

    Args:
        results: of the sweep.
        age: AUROC of age alone, where it is known.
    """
    settings = {r.system.name: r.system.runs[0].read_settings() for r in results.models}
    if not any(setting.claim for setting in settings.values()):
        return pd.DataFrame()
    shortcut = results.shortcut.system.name
    against = {
        test.pair.first: _against(test, results.primary) for test in results.family if test.pair.second == shortcut
    }
    lines = []
    for result in results.models:
        if claim := claim_of(settings[result.system.name]):
            run = result.system.runs[0]
            line = _claimed(claim, result, classes=len(results.experiment.task.class_names))
            stated = f" ({claim['parameters'] / 1e6:.1f} stated)" if "parameters" in claim else ""
            line |= {
                "parameters (M)": f"{run.read_environment()['parameters'] / 1e6:.1f}{stated}",
                "p against width and height": against.get(result.system.name, "-"),
                "read": claim.get("read", "-"),
            }
            lines.append(line)
    of_source = [r for r in results.ranked if r.system.kind == "ensemble" and r.system.source]
    lines += [_claimed({}, result) for result in (*of_source, results.shortcut)]
    if age is not None and np.isfinite(age.value):
        reached = format_interval(age)
        lines.append({"system": "age alone", "metric": "AUROC", "measured": reached, "AUROC, measured": reached})
    return pd.DataFrame(lines).fillna("-")


def _against(test: PrimaryTest, primary: str) -> str:
    """The p-value of a test, and that the first is worse where it is."""
    sign = 1.0 if all_metrics()[primary].direction == "max" else -1.0
    is_worse = test.p < 0.05 and sign * test.comparison.difference.value < 0
    return p_value(test.p) + (" (worse)" if is_worse else "")


def claim_of(setting: Config) -> dict[str, Any]:
    """What the source of a run claims of its task; its metrics, where it has some for this very task."""
    claim = {name: value for name, value in setting.claim.items() if name not in TASKS}
    if own := setting.claim.get(setting.task):
        claim = {name: value for name, value in claim.items() if name not in all_metrics()}
        claim |= {"classes": len(TASKS[setting.task].class_names), **own}
    return claim


def _claimed(claim: Mapping[str, Any], result: Result, classes: int | None = None) -> dict[str, object]:
    """A claim beside what is measured; of what claims nothing, what is measured alone."""
    metrics = all_metrics()
    first = next((name for name in claim if name in metrics), "accuracy")
    claimed, measured, of_classes = claim.get(first), result.intervals[first], claim.get("classes", classes)
    other = "" if of_classes == classes else f" ({of_classes} classes)"
    unknown = "not stated" if claim.get("read") else "-"
    return {
        "system": result.system.name,
        "metric": metrics[first].title,
        "claimed": unknown if claimed is None else f"{claimed:.3f}{other}",
        "test pictures": claim.get("test_pictures", unknown),
        "measured": format_interval(measured),
        "pictures": result.system.tested,
        "claim vs. interval": _place(None if other else claimed, measured),
        "AUROC, measured": format_interval(result.intervals["auroc"]),
    }


def _place(claimed: float | None, measured: Interval) -> str:
    if claimed is None or not np.isfinite(measured.low):
        return "-"
    return "above" if claimed > measured.high else "below" if claimed < measured.low else "within"


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
    """The same values in other ways: all pictures pooled, the range over repeats and over runs, Wilson's interval."""
    rows, metrics = [], all_metrics()
    for result in results.ranked:
        row = {"system": result.system.name, "AUROC, pooled over networks": format_interval(result.pooled)}
        for name in ("auroc", "accuracy"):
            values = result.by_repeat[name]
            title, is_repeated = metrics[name].title, len(values) > 1 and result.system.kind == "model"
            row[f"{title}, by repeat"] = f"{values.min():.3f} to {values.max():.3f}" if is_repeated else "-"
            known = _by_run(results, result.system, name)
            row[f"{title}, by run"] = (
                f"{np.mean(known):.3f} ({min(known):.3f} to {max(known):.3f})" if len(known) > 1 else "-"
            )
        row |= {f"{metrics[name].title}, Wilson": format_interval(interval) for name, interval in result.wilson.items()}
        rows.append(row)
    table = pd.DataFrame(rows).fillna("-")
    return table.loc[:, (table != "-").any()]


def _by_run(results: Results, system: System, name: str) -> list[float]:
    """Accuracy or AUROC of each run of a model, those that are defined, of the positive class against the rest."""
    if name == "accuracy" and results.experiment.task.kind != "binary":  # of which metrics.json has that of the task
        right = system.right(results.experiment.labels)
        return [float(right[system.networks == number].mean()) for number in range(len(system.runs))]
    values = [run.read_metrics()[f"test/{name}"] for run in system.runs]
    return [value for value in values if value is not None]


def primary_table(results: Results) -> pd.DataFrame:
    """One row per test of the primary endpoint: the difference with its interval, and p with Holm's correction."""
    title = all_metrics()[results.primary].title
    return pd.DataFrame(
        {
            "first": test.pair.first,
            "second": test.pair.second,
            f"{title}, difference": format_interval(test.comparison.difference),
            "p": p_value(test.comparison.p),
            "p, Holm": p_value(test.p),
        }
        for test in results.family
    )


def exploratory_table(results: Results) -> pd.DataFrame:
    """One row per pair: what else was compared, with p-values that nothing corrects for their number."""
    metrics, primary = all_metrics(), results.primary
    rows = []
    for pair in [*results.between, *results.against_shortcut]:
        row = {"first": pair.first, "second": pair.second}
        for name in ("auroc", "accuracy"):
            title, comparison = metrics[name].title, pair.by_metric[name]
            if name != primary:
                row[f"{title}, difference"] = format_interval(comparison.difference)
                row[f"{title}, p"] = p_value(comparison.p)
        row["AUROC, DeLong p"] = p_value(pair.delong)
        row["right more often"] = f"{pair.votes[0]} to {pair.votes[1]}"
        row["McNemar exact p"], row["McNemar mid-p"] = p_value(pair.mcnemar), p_value(pair.mcnemar_mid)
        rows.append(row)
    return pd.DataFrame(rows)


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
            calls = metric_intervals(
                experiment.labels, system.calibrated, experiment.groups, thresholds=thresholds,
                names=("accuracy", "f1_macro"), draws=results.draws, seed=results.seed,
            )  # fmt: skip
            chosen = thresholds[np.isfinite(thresholds)]
            names = {"sensitivity": (1,), "specificity": (0,), "PPV": (0, 1), "NPV": (0, 1)}
            rows.append(
                {
                    "system": system.name,
                    "threshold by": title.format(sensitivity=results.sensitivity),
                    "threshold": f"{chosen.min():.2f}" + (f" to {chosen.max():.2f}" if np.ptp(chosen) > 0 else ""),
                    **{
                        name: format_interval(drawn.interval(column, needs))
                        for column, (name, needs) in enumerate(names.items())
                    },
                    **{all_metrics()[name].title: format_interval(interval) for name, interval in calls.items()},
                }
            )
    return pd.DataFrame(rows)


def subgroups(experiment: Experiment, clinical: pd.DataFrame | None) -> dict[str, "pd.Series[str]"]:
    """Ways to divide the pictures, by title, each with one name per picture; an empty name is no subgroup.

    Args:
        experiment: names the pictures.
        clinical: one row per picture, as `osteo.data.sources.clinical_rows` gives them; None where they are not known.
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
        age = clinical["age"].to_numpy(float)
        divisions["sex"] = pd.Series(clinical["sex"].fillna("").to_numpy(str))
        ages = np.where(np.isnan(age), "", np.where(age >= 50, "50 or older", "under 50"))
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
                networks=result.system.networks[:, inside],
                draws=results.draws,
                seed=results.seed,
            )
            rows.append(
                {
                    "by": title,
                    "subgroup": name,
                    "pictures": int(inside.sum()),
                    experiment.task.sides[1]: int(labels.sum()),
                    **{metrics[name].title: format_interval(interval) for name, interval in intervals.items()},
                }
            )
    titles = [metrics[name].title for name in MAIN]
    return pd.DataFrame(rows, columns=["by", "subgroup", "pictures", experiment.task.sides[1], *titles])


def mistakes(results: Results, result: Result, count: int) -> pd.DataFrame:
    """The model's most confident wrong calls, the most confident first: image_id, label, probability, source."""
    probability = mean_over_repeats(result.system.probabilities)
    table = results.experiment.pictures.assign(probability=probability)
    wrong = table[(probability > THRESHOLD) != (table["label"] == 1)].dropna(subset=["probability"])
    margin = (wrong["probability"] - THRESHOLD).abs().sort_values(ascending=False, kind="stable")
    columns = ["image_id", "label", "probability", "source"]
    return pd.DataFrame(wrong.loc[margin.index[:count], columns]).reset_index(drop=True)
