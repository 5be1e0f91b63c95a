"""The audit for a reader: a page with pictures side by side, and tables on the terminal."""

import shlex
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version

import numpy as np
import pandas as pd

from osteo.audit.findings import Audit, Exposure
from osteo.audit.label_noise import COIN, largest_noise
from osteo.data.manifest import CONTRADICTORY, COPY, REPEATED
from osteo.errors import counted, listed
from osteo.evaluation.bootstrap import Interval, format_interval
from osteo.reading.reader import read_picture
from osteo.report.html import HEIGHT, embed, render
from osteo.report.tables import Terminal, without_zeros

MAX_SETS = 60  # sets of pictures per section; audit.json lists all
MAX_ODD = 10  # odd pictures on the terminal
LEAKS = {
    "pictures": "set of files with the same bytes",
    "clusters": "set of pictures of one exposure or one patient",
    "patients": "patient",
}


def conclusions(audit: Audit) -> list[str]:
    """What was found, in sentences, the worst first."""
    contradictory = [pair for pair in audit.exposures if pair.contradictory]
    moved = sum(bool(pair.change) for pair in audit.exposures)
    lines = [
        f"Contradictory labels: {counted(len(audit.contradictory), 'set')} of identical files and"
        f" {counted(len(contradictory), 'pair')} of altered copies with two different classes.",
        f"Copies: {counted(len(audit.exact), 'set')} of identical files and {counted(len(audit.exposures), 'pair')} of"
        f" altered copies ({moved} mirrored, rotated or inverted).",
        *noise_conclusions(audit),
    ]
    leaking = [leak_title(name, sets) for name, sets in audit.leaks.items() if sets]
    lines += [f"The split leaks: {title} on more than one side." for title in leaking]
    if not leaking:
        lines.append("The split does not leak: no picture, copy or patient is on more than one side.")
    trivial = [cut for cut in audit.shortcuts if cut.target == "label"]
    if works := [cut for cut in trivial if cut.works]:
        best = max(works, key=lambda cut: cut.accuracy.value)
        lines.append(
            f"{len(works)} of {counted(len(trivial), 'trivial model')} {'beats' if len(works) == 1 else 'beat'} chance;"
            f" the best sees only {best.title} and reaches an accuracy of"
            f" {format_interval(best.accuracy)}."
        )
    if audit.fitted_shortcuts:
        lines.append(_after_fit(audit))
    if audit.unreadable or audit.odd:
        lines.append(
            f"{counted(len(audit.unreadable), 'file')} cannot be used;"
            f" {counted(len(audit.odd), 'picture')} {'looks' if len(audit.odd) == 1 else 'look'} odd."
        )
    return lines


def _after_fit(audit: Audit) -> str:
    """What is left of the shortcuts in what a network sees."""
    cuts, start = audit.fitted_shortcuts, f"In what a network sees after data.fit={audit.fit},"
    works = [cut for cut in cuts if cut.works]
    if not works:
        return f"{start} none of {counted(len(cuts), 'trivial model')} is significantly better than chance."
    best = max(works, key=lambda cut: cut.auroc.value)
    beat = "beats" if len(works) == 1 else "beat"
    return (
        f"{start} {len(works)} of {counted(len(cuts), 'trivial model')} {beat} chance;"
        f" the best sees only {best.title} and reaches an AUROC of {format_interval(best.auroc)}."
    )


def noise_conclusions(audit: Audit) -> list[str]:
    """How many labels are wrong, judged by the copies, and how well a perfect classifier does on such labels."""
    _, found, cleaned = audit.label_noise
    start, noise, auroc = "Label noise:", found.noise, found.auroc
    if not found.exposures:
        return [f"{start} no picture has a copy, so the share of wrong labels cannot be estimated."]
    if not found.contradictory:
        agree = f"{start} the labels of {counted(found.exposures, 'exposure')} with copies agree"
        if auroc.low <= COIN:
            return [f"{agree}; there are too few of them to say more."]
        return [
            f"{agree}, so at most {noise.high:.0%} of the labels are wrong, and a classifier that knows the true class"
            f" reaches an AUROC of at least {auroc.low:.2f} on them."
        ]
    lines = [
        f"{start} labels disagree on {found.contradictory} of {counted(found.exposures, 'exposure')} with copies. If"
        f" every label is equally likely to be wrong, {_percent(noise)} of them are; a classifier"
        f" that knows the true class then reaches an AUROC of no more than {format_interval(auroc, 2)} and an accuracy"
        f" of no more than {format_interval(found.accuracy, 2)} on these labels. Setting contradictory copies aside"
        f" leaves {_percent(cleaned.noise)} of the others wrong."
    ]
    ranked = [cut for cut in audit.shortcuts if cut.target == "label" and np.isfinite(cut.auroc.low)]
    best = max(ranked, key=lambda cut: cut.auroc.low, default=None)
    if best is not None and best.auroc.low > auroc.value:
        limit = largest_noise(best.auroc.low, found.share)
        certain = "are" if best.auroc.low > auroc.high else "may be"
        lines.append(
            f"From {best.title} alone, the label can be predicted with an AUROC of {format_interval(best.auroc, 2)},"
            f" more than {auroc.value:.2f}: at most {limit:.0%} of all labels are wrong, and pictures that have copies"
            f" {certain} labelled worse than the others."
        )
    return lines


def _percent(interval: Interval) -> str:
    return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


def noise_table(audit: Audit) -> pd.DataFrame:
    """Share of wrong labels and what it allows at best, by what it is judged by."""
    return pd.DataFrame(
        {
            "estimated from": noise.title,
            "exposures": noise.exposures,
            "contradictory": noise.contradictory,
            "wrong labels": format_interval(noise.noise),
            "highest AUROC": format_interval(noise.auroc),
            "highest accuracy": format_interval(noise.accuracy),
        }
        for noise in audit.label_noise
    )


def leak_title(name: str, sets: Sequence[Sequence[str]]) -> str:
    """How many sets of image_ids leak, and what they have in common, in words."""
    noun, rest = LEAKS[name].partition(" ")[::2]
    return f"{counted(len(sets), noun)} {rest}".rstrip()


def print_audit(audit: Audit, console: Terminal) -> None:
    """Prints the tables and sentences of an audit."""
    console.table(audit.flow, title="pictures", keys=2)
    console.table(audit.by_split, title="splits")
    if audit.exact:
        sets = [
            {"identical file": other, "of": group[0], "": "CONTRADICTORY" * (group in audit.contradictory)}
            for group in _worst_first(audit)[:MAX_SETS]
            for other in group[1:]
        ]
        console.table(pd.DataFrame(sets), title="identical files", keys=2)
    if audit.exposures:
        rows = [(pair.first, pair.second, pair.similarity, _remarks(pair)) for pair in audit.exposures[:MAX_SETS]]
        copied = pd.DataFrame(rows, columns=["altered copy", "of", "similarity", ""])
        console.table(copied, title="copies", keys=2)
    if audit.label_noise[1].exposures:
        console.table(noise_table(audit), title="wrong labels, and the best results they allow")
    console.table(shortcut_table(audit), title="what can be predicted without seeing bone")
    for line in conclusions(audit):
        console.say(line, bullet="- ")
    for cut in audit.shortcuts:
        if cut.works:
            console.say(cut.sentence(), bullet="- ")
    for image_id, reason in list(audit.unreadable.items())[:MAX_SETS]:
        console.say(f"cannot be used: {image_id}: {reason}", bullet="- ")
    for image_id, flags in list(audit.odd.items())[:MAX_ODD]:
        console.say(f"odd: {image_id}: {', '.join(flags)}", bullet="- ")
    for note in audit.notes:
        console.say(note, bullet="- ")


def _worst_first(audit: Audit) -> list[list[str]]:
    """Sets of identical files, those of two classes first."""
    return sorted(audit.exact, key=lambda group: group not in audit.contradictory)


def _remarks(pair: Exposure) -> str:
    remarks = {"CONTRADICTORY": pair.contradictory, pair.change: pair.change, "same pixels": pair.same_pixels}
    return ", ".join(remark for remark, applies in remarks.items() if applies)


def shortcut_table(audit: Audit) -> pd.DataFrame:
    """Accuracy and AUROC with intervals, one row per shortcut: of the file, and of what a network sees of it."""
    after = f"after data.fit={audit.fit}"
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for cuts, suffix in ((audit.shortcuts, ""), (audit.fitted_shortcuts, f", {after}")):
        for cut in cuts:
            row = rows.setdefault((cut.title, cut.target), {"pictures": cut.pictures, "larger class": cut.majority})
            row[f"accuracy{suffix}"] = format_interval(cut.accuracy)
            row[f"AUROC{suffix}"] = format_interval(cut.auroc)
    titled = [{"sees only": title, "predicts": target} | row for (title, target), row in rows.items()]
    return pd.DataFrame(titled).fillna("-")


def next_steps(audit: Audit, words: Sequence[str]) -> list[tuple[str, str]]:
    """What to do about what was found: a sentence and, where there is one, the command.

    Args:
        audit: what was found.
        words: of the command line, of which those about the data are repeated.
    """
    data = shlex.join(word for word in words if word.startswith(("data=", "data.")) and word != "data.clean=true")
    train = f"osteo train -m experiment=cross_validation {data}".rstrip()
    contradictory = any(pair.contradictory for pair in audit.exposures) or bool(audit.contradictory)
    steps = []
    if audit.manifest["reason"].isin([REPEATED, CONTRADICTORY, COPY]).any():
        steps.append(("The data were audited as data.clean=true leaves them; train on them as they are.", train))
    elif contradictory or audit.exact or audit.exposures:
        aside = (
            "set contradictory copies aside and count every other picture once"
            if contradictory
            else "count every picture once"
        )
        steps.append((f"Train with data.clean=true, to {aside}.", f"{train} data.clean=true"))
    if any(audit.leaks.values()):
        steps.append(("Split the data anew, with copies and patients kept on one side (data.split.grouped=true).",
                      f"{train} data.clean=true data.split.grouped=true"))  # fmt: skip
    if any(cut.works for cut in audit.shortcuts):
        steps.append(
            ("Compare every result with the shortcuts, as the report does; data.fit=crop, which cuts a square about the"
             " joint, removes some of them. Audit what it leaves.", f"osteo audit {data} data.fit=crop")
        )  # fmt: skip
    if audit.odd:
        steps.append(("Look at the odd pictures, and remove those that are no knee radiographs from the data.", ""))
    if audit.unreadable:
        steps.append(("Files that cannot be used are left out of training; replace them if you can.", ""))
    return steps or [("Nothing needs to be done: train.", train)]


def render_page(audit: Audit, words: Sequence[str] = ()) -> str:
    """The audit as one HTML file, pictures included.

    Args:
        audit: what was found.
        words: of the command line after `osteo audit`, as they were typed.
    """
    labels = audit.manifest.set_index("image_id")["class_name"].to_dict()

    def figure(image_id: str, note: str = "") -> dict[str, str]:
        return {
            "name": image_id,
            "label": labels[image_id],
            "picture": embed(read_picture(audit.read(image_id), HEIGHT)),
            "note": note,
        }

    altered = sorted(audit.exposures, key=lambda pair: (not pair.contradictory, pair.similarity))
    pairs = [
        {
            "figures": [figure(pair.first), figure(pair.second)],
            "contradictory": pair.contradictory,
            "note": f"similarity {pair.similarity:.3f}" + (f", {pair.change}" if pair.change else "")
            + (", same pixels" if pair.same_pixels else ""),
        }
        for pair in altered[:MAX_SETS]
    ]  # fmt: skip
    identical = _worst_first(audit)
    groups = [
        {
            "figures": [figure(image_id) for image_id in group[:6]],
            "contradictory": group in audit.contradictory,
            "note": counted(len(group), "file"),
        }
        for group in identical[:MAX_SETS]
    ]
    return render(
        "audit.html.jinja",
        audit=audit,
        conclusions=conclusions(audit),
        sections=[
            ("Identical files", "Files with the same bytes.", groups, len(identical)),
            (
                "Altered copies",
                "The same exposure, although a copy was altered: resized, equalised, rotated, inverted, ...",
                pairs,
                len(altered),
            ),
        ],
        steps=next_steps(audit, words),
        facts=f"{date.today().isoformat()}, osteo {version('osteo')}",
        command=shlex.join(["osteo", "audit", *words]),
        named=listed(sorted(audit.manifest["source"].unique())),
        odd=[figure(image_id, ", ".join(flags)) for image_id, flags in list(audit.odd.items())[:MAX_SETS]],
        tables=_tables(audit),
        leaks=[(leak_title(name, sets), sets) for name, sets in audit.leaks.items() if sets],
        most=MAX_SETS,
    )


def _tables(audit: Audit) -> list[tuple[str, pd.DataFrame]]:
    """Titles and tables of the page; what holds nothing is left out."""
    return [
        ("Flow", without_zeros(audit.flow)),
        ("By split", without_zeros(audit.by_split.query("pictures > 0"))),
        *([("Label noise", noise_table(audit))] if audit.label_noise[1].exposures else []),
        *([("Shortcuts", shortcut_table(audit))] if audit.shortcuts else []),
    ]
