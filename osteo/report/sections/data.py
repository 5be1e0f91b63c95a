"""What the report says of its data: leaks and contradictions, and what the results do not show."""

from collections.abc import Sequence

import pandas as pd

from osteo.data.manifest import copies, originals
from osteo.data.prepare import decodable
from osteo.data.splits import leaks
from osteo.errors import counted, is_or_are
from osteo.records.record import Run
from osteo.report.results import Results

LIMITS = [
    "The intervals show how results might vary with other test pictures of the same kind. Other training pictures would"
    " change the networks as well, which the range over repeats shows only in part.",
    "The data are not a population: the share of cases, ages, devices and hospitals differ from those of any clinic.",
    "Grad-CAM enlarges a few cells of the last feature map: it points to regions, not to structures.",
    "Research use only; not a medical device.",
]
OF_FOLDS = (
    "Networks trained on different folds may use different scales of probability. AUROC, average precision and curves"
    " therefore compare only pictures tested by the same network, and are averaged; counts cover all pictures, each"
    " called by its own network."
)
OF_SOURCES = {
    "mendeley": "The Mendeley labels are based on T-scores from quantitative ultrasound, not DXA.",
    "kaggle": "How the Kaggle labels were obtained is not published.",
}
"""Limits of the public archives, by the name of the source."""
PHANTOM = "The pictures are phantoms: results on them say nothing about patients."


def limits_of(results: Results, manifest: pd.DataFrame, *, is_phantom: bool) -> list[str]:
    """What the figures do not say, as far as it applies to this data and this design."""
    sources = set(manifest["source"])
    lines = [line for name, line in OF_SOURCES.items() if name in sources and not is_phantom]
    is_of_folds = any(result.pooled is not None for result in results.models)
    return [*([PHANTOM] if is_phantom else []), LIMITS[0], *([OF_FOLDS] if is_of_folds else []), *lines, *LIMITS[1:]]


def data_findings(runs: Sequence[Run], manifest: pd.DataFrame) -> tuple[int, int, list[str]]:
    """Sets that leak in the worst of the runs, sets of used files with contradictory labels, and lines on both."""
    most = {"clusters": 0, "patients": 0, "pictures": 0}
    for run in runs:
        of_run = leaks(run.read_manifest())
        most = {name: max(most[name], len(of_run[name])) for name in most}
    manifest = originals(manifest)
    exact, contradictory = copies(decodable(manifest))
    used = manifest[manifest["split"] != "excluded"]
    used_exact, used_contradictory = copies(used)
    lines = ["No two files of the data are identical."]
    if exact:
        lines = [
            f"The data came with {counted(len(exact), 'set')} of identical files, {len(contradictory)} with"
            f" contradictory labels. Among the pictures used there {is_or_are(len(used_exact))}"
            f" {counted(len(used_exact), 'such set')}, {len(used_contradictory)} with contradictory labels."
        ]
    lines.append(
        f"The {counted(len(used), 'picture')} used form {counted(used['group'].nunique(), 'group')}: patients, or"
        " copies of one exposure."
    )
    lines.append(
        f"On more than one side of a run's split there are at most {counted(most['pictures'], 'set')} of identical"
        f" files, {counted(most['clusters'], 'set')} of one exposure or patient, and"
        f" {counted(most['patients'], 'patient')}."
        if any(most.values())
        else "No picture, copy or patient is on more than one side of a run's split."
    )
    return most["clusters"], len(used_contradictory), lines
