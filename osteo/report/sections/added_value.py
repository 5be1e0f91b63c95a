"""The section "Added value" of the report: what pictures add to a patient's characteristics, and whose lead it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.special import logit

from osteo.errors import listed
from osteo.evaluation.bootstrap import Interval, format_interval
from osteo.evaluation.clinical import added_value as models
from osteo.evaluation.clinical.added_value import BOTH, CLINICAL, IMAGE, AddedValue
from osteo.evaluation.clinical.strata import ALL_PICTURES, SAME_AGE, describe_lead, is_lost, leads, thirds
from osteo.evaluation.systems import System
from osteo.reading.covariates import as_numbers, sources_without
from osteo.report.figures import COLOURS, STYLE, legend
from osteo.report.plots import LIMITS, SOFT, line
from osteo.report.results import Results
from osteo.report.rows import SMALLEST, p_value, subgroups
from osteo.types import Mask

FIGURE = "added_value"
TABLES = ("added_value", "nested", "strata")
CAPTION = (
    "Net benefit of the image, of clinical data, and of both (with a 95 % band), at the share of cases in this data."
)
THIRD = "third of age"
BY_ABSENCE = "from that alone it can recognise the source, and so predict what is more frequent in one of them."
ALL_FUSED = (
    "Every model here uses {names} itself (model.fusion=late), so what the image alone adds cannot be measured;"
    " a sweep over model.fusion=none,late measures it."
)


@dataclass(frozen=True)
class Findings:
    """What the page shows of the best model; aggregates alone, nothing of one patient."""

    lines: list[str] = field(default_factory=list)
    """of the section; none where no covariates were asked for, and there is no section"""
    verdict: list[str] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """some of `TABLES`; `strata` also where there is no section"""
    figures: dict[str, Figure] = field(default_factory=dict)


def find(results: Results, names: Sequence[str], clinical: pd.DataFrame | None) -> Findings:
    """Image alone, clinical data alone and both, and whether the image's lead vanishes within strata.

    Args:
        results: of the sweep; this is of the best model that sees pictures alone.
        names: of the covariates that were asked for.
        clinical: one row per tested picture, as `osteo.data.sources.clinical_rows` gives them; None where the sheets
            are out of reach.
    """
    if not names or clinical is None:
        return _within_strata(results, clinical, names)
    model = next((result.system for result in results.models if not result.system.is_fused), None)
    value = None if model is None else measure(results, model, names, clinical)
    is_same = value is not None and np.isfinite(value.nested.p) and model is results.best.system
    found = _within_strata(results, clinical, names, adds=value.nested.adds if value and is_same else None)
    if (fused := [result.system.name for result in results.models if result.system.is_fused]) and (
        without := sources_without(names, clinical, list(results.experiment.pictures["source"]))
    ):
        told = f"{fused[0]} uses covariates, and no picture from {' and '.join(without)} has any: {BY_ABSENCE}"
        found = replace(found, verdict=[*found.verdict, told])
    if model is None or value is None:
        return replace(found, lines=[ALL_FUSED.format(names=_listed(names))])
    has_row = int(clinical["row"].notna().sum())
    of_whom = f"{has_row} of {len(clinical)} tested pictures have a row in a clinical sheet; only these are used here."
    lines = [of_whom, _in_words(model.name, names, value)]
    tables, figures = {"nested": _nested_table(names, value)}, {}
    if np.isfinite(value.auroc[CLINICAL].value):
        tables["added_value"] = _models_table(value)
        figures[FIGURE] = _decision(results, value)
    else:
        lines.append(
            "Models of clinical data alone and of both are left out: they are tested on folds that they were not fitted"
            " on, which needs cross-validation (data.split.fold) and pictures of both classes with a row."
        )
    return Findings(lines, [lines[1], *found.verdict], tables | found.tables, figures)


def _listed(names: Sequence[str]) -> str:
    return listed([name.replace("_", " ").replace("bmi", "BMI") for name in names])


def measure(results: Results, system: System, names: Sequence[str], clinical: pd.DataFrame) -> AddedValue:
    """What a model adds to covariates, over the tested pictures that have a row; other arguments as of `find`."""
    experiment = results.experiment
    bounds = np.finfo(float).tiny, 1.0 - np.finfo(float).epsneg  # a probability that has been rounded to 0 or 1
    logits = np.where(clinical["row"].notna().to_numpy(bool), logit(np.clip(system.calibrated, *bounds)), np.nan)
    return models.added_value(
        experiment.labels, logits, as_numbers(names, clinical), system.networks, experiment.groups,
        draws=results.draws, seed=results.seed,
    )  # fmt: skip


def auroc_of_age(results: Results, clinical: pd.DataFrame) -> Interval | None:
    """What age alone reaches, over the tested pictures whose age is known; None where no model of it can be fitted."""
    if not np.isfinite(clinical["age"].to_numpy(float)).any():
        return None
    known = clinical[clinical["age"].notna()].reindex(clinical.index)
    return measure(results, results.best.system, ["age"], known).auroc[CLINICAL]


def _in_words(model: str, names: Sequence[str], value: AddedValue) -> str:
    nested, beyond = value.nested, _listed(names)
    if not np.isfinite(nested.p):
        return f"Whether {model} adds to {beyond} could not be tested."
    p = p_value(nested.p)
    verb = "adds to" if nested.adds else "is not found to add to"
    said = f"{model} {verb} {beyond} (nested logistic models, one-sided p {p if p.startswith('<') else f'= {p}'})"
    if not np.isfinite(value.auroc[CLINICAL].value):
        return f"{said}."
    clinical, both = (format_interval(value.auroc[name], 2) for name in (CLINICAL, BOTH))
    difference = format_interval(value.differences[CLINICAL].difference, 2)
    return (
        f"{said}: clinical data alone reach an AUROC of {clinical}, with the image {both}; the difference is"
        f" {difference}."
    )


def _models_table(value: AddedValue) -> pd.DataFrame:
    """One row per model: its AUROC, and how far that of both is above it."""
    rows = []
    for name, interval in value.auroc.items():
        row = {"model": name, "AUROC": format_interval(interval)}
        if name in value.differences:
            comparison = value.differences[name]
            row |= {"both minus this": format_interval(comparison.difference), "p": p_value(comparison.p)}
        rows.append(row)
    return pd.DataFrame(rows).fillna("-")


def _nested_table(names: Sequence[str], value: AddedValue) -> pd.DataFrame:
    nested = value.nested
    return pd.DataFrame(
        {
            "image beyond": [_listed(names)],
            "log odds per SD of its logit": nested.log_odds,
            "likelihood ratio": nested.likelihood_ratio,
            "one-sided p": p_value(nested.p),
            "pictures": nested.pictures,
            "adds": ("yes" if nested.adds else "no") if np.isfinite(nested.p) else "-",
        }
    )


def _decision(results: Results, value: AddedValue) -> Figure:
    """Net benefit of calling by the image, by clinical data and by both, beside calling all and calling none."""
    tested = np.isfinite(value.probabilities[BOTH]).any(axis=0)
    share = float(results.experiment.labels[tested].mean())
    curves = models.decision_curves(
        results.experiment.labels, {name: value.probabilities[name] for name in (BOTH, IMAGE, CLINICAL)},
        results.experiment.groups, LIMITS, draws=min(results.draws, 500), seed=results.seed,
    )  # fmt: skip
    looks = dict(zip(curves, [*((colour, "-") for colour in COLOURS[:3]), (SOFT, "--"), (SOFT, "-")], strict=True))
    with rc_context(STYLE):
        figure = Figure(figsize=(9.5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for name, intervals in curves.items():
            colour, style = looks[name]
            label = f"call {name}" if name in ("all", "none") else name
            middle, low, high = np.transpose(intervals)
            line(axes, LIMITS, middle, low, high, colour, label, band=name == BOTH, style=style)
        axes.set(xlabel="probability above which a picture is called", ylabel="net benefit per picture")
        axes.set(xlim=(0, 1), ylim=(-0.08, share * 1.08))
        legend(figure)
        return figure


def _within_strata(
    results: Results, clinical: pd.DataFrame | None, names: Sequence[str], *, adds: bool | None = None
) -> Findings:
    """The AUROC of pairs that are alike in source, sex and age, and the sentence where a lead vanishes.

    Args:
        results: of the sweep.
        clinical: as `find` takes it.
        names: of the covariates; with some, strata of age are its thirds, and pairs are matched on age, too, else they
            are those of the subgroups.
        adds: whether the model adds to the covariates; None where nothing was found out.
    """
    experiment, system = results.experiment, results.best.system
    tested: Mask = np.asarray(np.isfinite(system.probabilities).any(axis=0))
    divisions: dict[str, pd.Series[str]] = subgroups(experiment, clinical)
    ages = None
    if names and clinical is not None:
        ages = np.where(tested, clinical["age"].to_numpy(float), np.nan)
        divisions["age"] = pd.Series(thirds(ages)).map({0.0: "lowest", 1.0: "middle", 2.0: "highest"}).fillna("")
    titles = {"source": "source", "sex": "sex", "age": "age" if ages is None else THIRD}
    large = {title: _large(divisions[name], tested) for name, title in titles.items() if name in divisions}
    strata = {title: names for title, names in large.items() if names.nunique() > 1}
    if ages is not None and np.isfinite(ages).sum() < SMALLEST:
        ages = None
    if not strata and ages is None:
        return Findings()
    intervals = leads(
        experiment.labels, system.probabilities, system.networks, experiment.groups,
        strata={title: list(names) for title, names in strata.items()}, ages=ages,
        draws=results.draws, seed=results.seed,
    )  # fmt: skip
    known = {ALL_PICTURES: tested, **{title: names.notna().to_numpy(bool) & tested for title, names in strata.items()}}
    if ages is not None:
        known[SAME_AGE] = np.isfinite(ages)
    table = pd.DataFrame(
        {
            "pairs": title if title == ALL_PICTURES else f"alike in {title}",
            "strata": strata[title].nunique() if title in strata else pd.NA,
            "pictures": int(known[title].sum()),
            "AUROC": format_interval(interval),
        }
        for title, interval in intervals.items()
    )
    lost = any(is_lost(intervals[ALL_PICTURES], interval) for interval in intervals.values())
    of_covariates = [title for name, title in (("sex", "sex"), ("age", THIRD), ("age", SAME_AGE)) if name in names]
    sentences = [describe_lead(system.name, intervals, adds=adds, known=of_covariates)] if lost else []
    return Findings(verdict=sentences, tables={"strata": table.astype({"strata": "Int64"})})


def _large(names: "pd.Series[str]", tested: Mask) -> "pd.Series[str]":
    """Names of strata of at least ten tested pictures; None for the rest."""
    counts = names[tested].value_counts()
    return names.astype(object).where(names.isin(counts.index[counts >= SMALLEST]) & (names != ""), None)
