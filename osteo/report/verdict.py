"""A report's results in words, as a careful reader would sum them up."""

from collections.abc import Mapping, Sequence

import numpy as np

from osteo.errors import counted, is_or_are, listed
from osteo.evaluation.bootstrap import FEWEST, Interval, clusters_of, format_interval, number_clusters, proportion
from osteo.evaluation.metrics import all_metrics
from osteo.evaluation.probes import PROBES
from osteo.report.paper import TABLE_2, TEST_PICTURES
from osteo.report.results import PrimaryTest, Result, Results
from osteo.report.rows import p_value
from osteo.task import BINARY, THRESHOLD

MOST_NAMED = 4  # models that are compared in a sentence each
APART = 0.01  # from this difference on, an AUROC that is pooled over networks is named beside the other


def verdict(
    results: Results,
    leaks: int,
    contradictions: int,
    *,
    trials: str = "",
    sanity: str = "",
    probes: Mapping[str, Mapping[str, Interval]] | None = None,
    fit: str = "",
) -> list[str]:
    """What is known and what is not, in words.

    Args:
        results: of the sweep.
        leaks: sets of pictures of one exposure or patient on more than one side of a split.
        contradictions: sets of used files with the same bytes and different labels.
        trials: what a search chose from; empty where there was none.
        sanity: what the maps' sanity check found wrong; empty where nothing.
        probes: what forests reach on what the network sees after `data.fit`; none where pictures were out of reach.
        fit: as `data.fit`.
    """
    lines = [*_headline(results, trials), *_doubts(results), *_ranking(results), *_best_on_test(results)]
    lines += [_beside_shortcut(results), *_after_fit(probes or {}, fit)]
    if results.experiment.task == BINARY:  # the only one that the paper has
        lines.append(_beside_paper(results))
    if sanity:
        lines.append(sanity)
    if leaks:
        lines.append(
            f"The split leaks: {counted(leaks, 'set')} of pictures of one exposure or one patient"
            f" {is_or_are(leaks)} on more than one side, so every result here is too good."
        )
    if contradictions:
        lines.append(
            f"{counted(contradictions, 'set')} of identical files {is_or_are(contradictions)} used with two different"
            " labels; no model can be right on both."
        )
    return lines


def _headline(results: Results, trials: str) -> list[str]:
    best, experiment, primary = results.best, results.experiment, all_metrics()[results.primary]
    parts = [_reached(best, name) for name in _leading(results)]
    asked = "" if experiment.task == BINARY else f" for {experiment.task.contrast}"
    lines = [
        f"{best.system.name}{_chosen(results)} reaches {' and '.join(parts)}{asked} on"
        f" {counted(best.system.tested, 'test picture')} ({experiment.design}); 95 % intervals in brackets."
    ]
    tests = len(results.family)
    corrected = f", whose {tests} tests are corrected together (Holm)" if tests > 1 else ""
    lines.append(f"The primary endpoint is the {primary.title}{corrected}; everything else is exploratory.")
    if trials:
        lines.append(f"The model comes from {trials}.")
    return lines


def _best_on_test(results: Results) -> list[str]:
    """What the model that leads on test would be worth; after all that is said of the one that validation chose."""
    selected = results.on_test
    if selected is None:
        return []
    return [
        f"On the test pictures, {results.models[selected.number].system.name} has the best"
        f" {all_metrics()[results.primary].title}, {format_interval(selected.naive, 2)}; corrected for having been"
        f" picked from {len(results.models)} models on these same pictures, it is"
        f" {format_interval(selected.corrected, 2)}."
    ]


def _chosen(results: Results) -> str:
    number = len(results.models)
    if number < 2:
        return ""
    metric = f"{all_metrics()[results.primary].title} on validation"
    if results.tied > 1:
        return f", the first of {results.tied} of {number} models that share the best {metric},"
    return f", the best of {number} models by its {metric},"


def _leading(results: Results) -> tuple[str, str]:
    """The primary endpoint and the metric beside it."""
    return results.primary, "accuracy" if results.primary != "accuracy" else "auroc"


def _reached(result: Result, name: str) -> str:
    title = all_metrics()[name].title
    article = "an" if title[0].lower() in "aeio" or title[:1] == "F" else "a"
    return f"{article} {title} of {format_interval(result.intervals[name], 2)}"


def _doubts(results: Results) -> list[str]:
    """What makes the first figures less than they seem."""
    best, experiment = results.best, results.experiment
    auroc, accuracy = best.intervals["auroc"], best.intervals["accuracy"]
    lines = []
    if experiment.notes:
        lines.append("The experiment is incomplete: these results cover only what has been tested so far.")
    if unknown := _too_few(results):
        lines.append(unknown)
    if best.pooled is not None and abs(best.pooled.value - auroc.value) >= APART:
        lines.append(
            f"Over all pictures, whichever network tested them, its AUROC is {format_interval(best.pooled, 2)}:"
            " the networks use different scales of probability, so only pictures tested by the same network are"
            " compared."
        )
    if auroc.low <= 0.5 <= auroc.high:
        lines.append("Its AUROC does not differ significantly from chance: its interval includes 0.50.")
    elif auroc.high < 0.5:
        lines.append("Its AUROC is significantly below chance (0.50): are the labels the right way round?")
    negatives, positives = best.confusion.sum(axis=0)
    if min(negatives, positives) == 0.0:
        which, finding = "every" if positives > 0.0 else "no", experiment.task.class_names[-1]
        lines.append(f"At a threshold of {THRESHOLD} it calls {which} picture {finding}.")
    share = float(best.confusion.sum(axis=1).max() / best.confusion.sum())
    if accuracy.value <= share + 0.005:
        lines.append(f"Its accuracy is no better than that of always calling the larger class, {share:.2f}.")
    elif accuracy.low <= share:
        lines.append(f"Its accuracy is not significantly above the share of the larger class, {share:.2f}.")
    if "cross-validation" in experiment.design:
        lines.append(
            "The intervals take the trained networks as given: other training pictures would change those, too."
        )
    return lines


def _too_few(results: Results) -> str:
    experiment = results.experiment
    controls, cases = clusters_of(experiment.labels, number_clusters(experiment.groups))
    few = [
        f"{len(groups)} with {name}"
        for groups, name in zip((controls, cases), experiment.task.sides, strict=True)
        if len(groups) < FEWEST
    ]
    if not few:
        return ""
    return (
        f"Too few patients or exposures were tested ({' and '.join(few)}; at least {FEWEST} are needed): what"
        ' depends on them has no interval, and "-" stands in its place.'
    )


def _ranking(results: Results) -> list[str]:
    family = [test for test in results.family if test.pair in results.between]
    first, title = results.best.system.name, all_metrics()[results.primary].title
    if len(results.models) > MOST_NAMED:
        return [_many(results, family)]
    lines = []
    for test in family:
        if first in (test.pair.first, test.pair.second):
            difference, other = test.comparison.difference, test.pair.second
            if first == test.pair.second:
                difference, other = _turned(difference), test.pair.first
            ahead = "lead over" if _is_better(results, difference.value) else "difference from"
            lines.append(
                f"Its {ahead} {other} in {title}, {format_interval(difference, 2)}, {_conclusion(test)}"
                f" (paired bootstrap, {_is(test)}{', corrected' if len(results.family) > 1 else ''})."
            )
    if family and all(test.p >= 0.05 for test in family):
        lines.append("These test pictures are too few to rank the models.")
    return lines


def _many(results: Results, family: Sequence[PrimaryTest]) -> str:
    """Of many models: how many the chosen one is significantly ahead of, or behind; the table has each."""
    first, title = results.best.system.name, all_metrics()[results.primary].title
    ahead: list[str] = []
    behind: list[str] = []
    for test in family:
        if test.p < 0.05 and first in (test.pair.first, test.pair.second):
            difference = test.comparison.difference
            turned = difference if first == test.pair.first else _turned(difference)
            other = test.pair.second if first == test.pair.first else test.pair.first
            (ahead if _is_better(results, turned.value) else behind).append(other)
    others = len(results.models) - 1
    found = [f"{word} {listed(names)}" for word, names in (("ahead of", ahead), ("behind", behind)) if names]
    if not found:
        return f"Its difference in {title} from any of the other {others} models is not significant (table in Tests)."
    return f"In {title} it is significantly {' and '.join(found)}, of {others} other models (table in Tests)."


def _turned(difference: Interval) -> Interval:
    return Interval(-difference.value, -difference.high, -difference.low)


def _is_better(results: Results, difference: float) -> bool:
    return difference > 0 if all_metrics()[results.primary].direction == "max" else difference < 0


def _conclusion(test: PrimaryTest) -> str:
    if not np.isfinite(test.p):
        return "could not be tested"
    return "is significant" if test.p < 0.05 else "is not significant"


def _is(test: PrimaryTest) -> str:
    if not np.isfinite(test.p):
        return "too few pictures in common"
    text = p_value(test.p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def _beside_shortcut(results: Results) -> str:
    name = results.best.system.name
    test = next(t for t in results.family if t.pair in results.against_shortcut and t.pair.first == name)
    parts = [_reached(results.shortcut, metric) for metric in _leading(results)]
    start = (
        f"A random forest that sees only a picture's width and height reaches {' and '.join(parts)} on the same folds;"
    )
    if test.p < 0.05:
        better = "better" if _is_better(results, test.comparison.difference.value) else "worse"
        return f"{start} {name} is significantly {better} ({_is(test)})."
    if not np.isfinite(test.p):
        return f"{start} whether {name} is better could not be tested."
    behind = _is_better(results, -test.comparison.difference.value)
    better = "behind that, though not significantly" if behind else "not significantly better"
    return f"{start} {name} is {better} ({_is(test)}), so it may not have used the bone at all."


def _after_fit(probes: Mapping[str, Mapping[str, Interval]], fit: str) -> list[str]:
    """What is left of width and height, and of other shortcuts, in what the network sees."""
    if not probes or not np.isfinite(probes["outline"]["auroc"].low):
        return []
    outline = probes["outline"]["auroc"]
    others = {name: of["auroc"] for name, of in probes.items() if name != "outline"}
    best = max(others, key=lambda name: others[name].value)
    is_above = outline.low > 0.5
    still = "still predicts the label" if is_above else "does not predict the label significantly better than chance"
    reached = f"AUROC {format_interval(outline, 2)} on the same folds"
    return [
        f"After data.fit={fit}, the picture's outline {still} ({reached}"
        f"{'' if is_above else ', an interval that is not above 0.50'});"
        f" {PROBES[best]} alone: {format_interval(others[best], 2)}."
    ]


def _beside_paper(results: Results) -> str:
    reported = max(TABLE_2, key=lambda name: TABLE_2[name]["accuracy"])
    accuracy = TABLE_2[reported]["accuracy"]
    interval, ours = proportion(round(accuracy * TEST_PICTURES), TEST_PICTURES), results.best.intervals["accuracy"]
    beside = f", ours is {ours.low:.2f} to {ours.high:.2f}" if np.isfinite(ours.low) else ""
    return (
        f"The paper reports an accuracy of {accuracy:.3f} for {reported} on {TEST_PICTURES} pictures; the 95 %"
        f" interval of that is {interval.low:.2f} to {interval.high:.2f}{beside}."
    )
