"""A report's results in words."""

from osteo.evaluation.bootstrap import proportion
from osteo.evaluation.tests import holm
from osteo.report.paper import TABLE_2, TEST_PICTURES
from osteo.report.results import Results
from osteo.report.rows import format_interval


def verdict(results: Results, leaks: int, contradictions: int) -> list[str]:
    """What is known and what is not, in words.

    Args:
        results: of the sweep.
        leaks: sets of pictures of one exposure or patient on more than one side of a split.
        contradictions: sets of used files with the same bytes and different labels.
    """
    best, experiment = results.best, results.experiment
    where = f"{best.system.tested} test pictures ({experiment.design})"
    lines = [
        f"{best.system.name} reaches an AUROC of {format_interval(best.intervals['auroc'], 2)} and an accuracy of"
        f" {format_interval(best.intervals['accuracy'], 2)} on {where}; 95 % intervals."
    ]
    lines += _ranking(results)
    lines.append(_beside_shortcut(results))
    lines.append(_beside_paper(results))
    if leaks:
        lines.append(
            f"The split leaks: {leaks} sets of pictures of one exposure or one patient stand on more than one side, so"
            " every figure here is too good."
        )
    if contradictions:
        lines.append(
            f"{contradictions} sets of identical files are used under two different labels; no model can be right on"
            " both."
        )
    return lines


def _ranking(results: Results) -> list[str]:
    if not results.between:
        return []
    pairs = results.between
    corrected = holm([pair.by_metric["auroc"].p for pair in pairs])
    first = results.best.system.name
    lines = []
    for pair, p in zip(pairs, corrected, strict=True):
        if first == pair.first:
            difference = format_interval(pair.by_metric["auroc"].difference, 2)
            conclusion = "is significant" if p < 0.05 else "is not significant"
            note = ", corrected for the number of pairs" if len(pairs) > 1 else ""
            lines.append(
                f"Its lead over {pair.second} in AUROC, {difference}, {conclusion} (paired bootstrap,"
                f" p {_is(p)}{note})."
            )
    if all(p >= 0.05 for p in corrected):
        lines.append("These pictures cannot rank the models.")
    return lines


def _is(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _beside_shortcut(results: Results) -> str:
    pair = next(pair for pair in results.against_shortcut if pair.first == results.best.system.name)
    p = pair.by_metric["auroc"].p
    intervals = results.shortcut.intervals
    auroc, accuracy = (format_interval(intervals[name], 2) for name in ("auroc", "accuracy"))
    start = (
        f"A forest that sees only a picture's width and height reaches an AUROC of {auroc} and an accuracy of"
        f" {accuracy} on the same folds;"
    )
    is_ahead = pair.by_metric["auroc"].difference.value > 0
    if p < 0.05 and is_ahead:
        return f"{start} {pair.first} is significantly better (p {_is(p)})."
    return f"{start} {pair.first} is not significantly better (p {_is(p)}), so it need not have seen any bone."


def _beside_paper(results: Results) -> str:
    reported = max(TABLE_2, key=lambda name: TABLE_2[name]["accuracy"])
    accuracy = TABLE_2[reported]["accuracy"]
    interval = proportion(round(accuracy * TEST_PICTURES), TEST_PICTURES)
    ours = results.best.intervals["accuracy"]
    return (
        f"The paper reports an accuracy of {accuracy:.3f} for {reported} on {TEST_PICTURES} pictures; their 95 %"
        f" interval is {interval.low:.2f} to {interval.high:.2f}, ours is {ours.low:.2f} to {ours.high:.2f}."
    )
