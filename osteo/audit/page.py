"""The audit as a person reads it: a page with pictures side by side, and tables on the terminal."""

import pandas as pd
from rich.console import Console

from osteo.audit.findings import Audit
from osteo.reading.pictures import decode
from osteo.report.html import HEIGHT, embed, render
from osteo.report.tables import as_table
from osteo.types import ReadFile

SHOWN = 60  # sets of pictures a section; audit.json lists all
LEAKED = {
    "pictures": "sets of files with the same bytes",
    "clusters": "sets of pictures of one exposure or one patient",
    "patients": "patients",
}


def verdict(audit: Audit) -> list[str]:
    """What was found, in plain words, the worst first."""
    near = [pair for pair in audit.exposures if pair.contradictory]
    lines = [
        f"Contradictory labels: {_count(len(audit.contradictory), 'set')} of identical files and"
        f" {_count(len(near), 'pair')} of altered copies are filed under two different classes.",
        f"{_count(len(audit.exact), 'set')} of identical files and {_count(len(audit.exposures), 'pair')} of altered"
        f" copies ({sum(pair.mirrored for pair in audit.exposures)} mirrored).",
    ]
    leaking = {name: sets for name, sets in audit.leaks.items() if sets}
    lines += [
        f"The split leaks: {len(sets)} {LEAKED[name]} stand on more than one side." for name, sets in leaking.items()
    ]
    if not leaking:
        lines.append("The split keeps its sides apart: no picture, copy or patient stands on two of them.")
    works = [cut for cut in audit.shortcuts if cut.works and cut.target == "label"]
    if works:
        best = max(works, key=lambda cut: cut.accuracy.value)
        lines.append(
            f"{len(works)} of {sum(cut.target == 'label' for cut in audit.shortcuts)} trivial models beat chance;"
            f" the best sees only {best.title} and reaches {best.accuracy.value:.3f}"
            f" ({best.accuracy.low:.3f} to {best.accuracy.high:.3f})."
        )
    if audit.unreadable or audit.odd:
        lines.append(f"{_count(len(audit.unreadable), 'file')} cannot be used, {len(audit.odd)} look odd.")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show(audit: Audit, console: Console) -> None:
    """Prints what was found."""
    console.print(as_table(audit.flow, title="pictures"))
    console.print(as_table(audit.by_split, title="splits"))
    if audit.exposures:
        rows = [
            (
                pair.first,
                pair.second,
                pair.similarity,
                ", ".join(
                    word
                    for word, is_so in (
                        ("CONTRADICTORY", pair.contradictory), ("mirrored", pair.mirrored),
                        ("same pixels", pair.same_pixels),
                    )
                    if is_so
                ),
            )
            for pair in audit.exposures[:SHOWN]
        ]  # fmt: skip
        console.print(as_table(pd.DataFrame(rows, columns=["altered copy", "of", "similarity", ""]), title="copies"))
    console.print(as_table(shortcut_table(audit), title="what can be told without seeing bone"))
    for line in verdict(audit):
        console.print(f"- {line}", soft_wrap=True)
    for cut in audit.shortcuts:
        if cut.works:
            console.print(f"- {cut.sentence()}", soft_wrap=True)
    for image_id, reason in list(audit.unreadable.items())[:SHOWN]:
        console.print(f"- cannot be used: {image_id}: {reason}", soft_wrap=True)
    for image_id, flags in list(audit.odd.items())[:10]:
        console.print(f"- odd: {image_id}: {', '.join(flags)}", soft_wrap=True)
    for note in audit.notes:
        console.print(f"- {note}", soft_wrap=True)


def shortcut_table(audit: Audit) -> pd.DataFrame:
    """Accuracy and AUROC of each shortcut with intervals, beside the larger class."""
    return pd.DataFrame(
        [
            {
                "sees only": cut.title,
                "tells": cut.target,
                "pictures": cut.pictures,
                "larger class": cut.majority,
                "accuracy": cut.accuracy.value,
                "95 % interval": f"{cut.accuracy.low:.3f} to {cut.accuracy.high:.3f}",
                "AUROC": cut.auroc.value,
                "AUROC 95 %": f"{cut.auroc.low:.3f} to {cut.auroc.high:.3f}",
            }
            for cut in audit.shortcuts
        ]
    )


def page(audit: Audit, read: ReadFile) -> str:
    """One HTML file with everything in it.

    Args:
        audit: what was found.
        read: gives a file's bytes by its image_id.
    """
    labels = audit.manifest.set_index("image_id")["class_name"].to_dict()

    def figure(image_id: str, note: str = "") -> dict[str, str]:
        return {
            "name": image_id,
            "label": labels[image_id],
            "picture": embed(decode(read(image_id), HEIGHT)),
            "note": note,
        }

    near = sorted(audit.exposures, key=lambda pair: (not pair.contradictory, pair.similarity))
    pairs = [
        {
            "figures": [figure(pair.first), figure(pair.second)],
            "contradictory": pair.contradictory,
            "note": f"similarity {pair.similarity:.3f}" + (", mirrored" if pair.mirrored else "")
            + (", same pixels" if pair.same_pixels else ""),
        }
        for pair in near[:SHOWN]
    ]  # fmt: skip
    exact = sorted(audit.exact, key=lambda group: group not in audit.contradictory)
    groups = [
        {
            "figures": [figure(image_id) for image_id in group[:6]],
            "contradictory": group in audit.contradictory,
            "note": f"{len(group)} files",
        }
        for group in exact[:SHOWN]
    ]
    return render(
        "audit.html.jinja",
        audit=audit,
        verdict=verdict(audit),
        sections=[
            ("Identical files", "Files with the same bytes.", groups, len(exact)),
            ("Altered copies", "One exposure, re-encoded, resized, cropped, brighter or mirrored.", pairs, len(near)),
        ],
        odd=[figure(image_id, ", ".join(flags)) for image_id, flags in list(audit.odd.items())[:SHOWN]],
        tables=[("Flow", audit.flow), ("By split", audit.by_split), ("Shortcuts", shortcut_table(audit))],
        leaked=[(LEAKED[name], sets) for name, sets in audit.leaks.items() if sets],
        shown=SHOWN,
    )
