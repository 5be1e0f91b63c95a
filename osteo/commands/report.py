"""osteo report: the paper's figures and tables, from the records of a sweep."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import Config, ReportConfig, check_data
from osteo.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from osteo.runs import Run

log = logging.getLogger(__name__)

SAMPLES, PREDICTIONS = 5, 12  # pictures a class, and of the best run's test split


def main() -> None:
    """Entry point."""
    application.run("report", ReportConfig, report)


def report(config: ReportConfig, job: Job) -> bool:
    """Writes figures/ and tables/ beside the runs, prints our Table 2 beside the paper's, and tells W&B."""
    from osteo.augment import make_augmentation
    from osteo.files import write_text
    from osteo.report import figures, paper
    from osteo.report.tables import as_latex, as_markdown, as_table, terminal
    from osteo.runs import leaderboard, runs_of, shown
    from osteo.tracking import Place, Tracker, group_of

    if not config.runs:
        raise UserError("name a sweep or a run directory: osteo report DIRECTORY")
    directory = Path(config.runs).expanduser()
    runs = {run.directory.name: run for run in runs_of(directory)}
    board = leaderboard(directory)
    if board.empty:
        raise UserError(f"runs={config.runs} holds no finished run; give a sweep or a run directory")
    best = runs[board["run"][0]]
    setting = application.read_config(best.directory / "config.yaml")
    manifest = best.read_manifest()
    variants = make_augmentation(setting.augment).variants
    tables = {
        "table1": paper.table_1(manifest, variants=variants, augment_val=setting.augment.val),
        "table2": paper.table_2(board),
        "costs": paper.costs(board),
    }
    for name, table in tables.items():
        write_text(directory / "tables" / f"{name}.md", as_markdown(table))
        write_text(directory / "tables" / f"{name}.tex", as_latex(table))
    matrices = {label: runs[name].read_json("metrics.json")["test/confusion_matrix"] for label, name in labels(board)}
    made = {
        "collection": figures.collection(manifest),
        "metrics": figures.bars(board),
        "confusion": figures.confusion(matrices),
    }
    try:
        made |= with_pictures(setting, manifest, best)
    except UserError as error:
        log.warning("figures that show pictures are left out: %s", error)
    paths = {name: figures.save(figure, directory / "figures", name)[0] for name, figure in made.items()}
    with Tracker(
        setting.logger.wandb,
        {"runs": len(runs), "experiment": setting.experiment},
        Place(directory, group_of(setting.logger.wandb, directory), "report", "report", ["report"]),
    ) as tracker:
        tracker.figures(paths)
        tracker.tables({name.replace("table", "table "): table.astype(str) for name, table in tables.items()})
    console = terminal()
    console.print(as_table(tables["table1"], title="Table 1: pictures"))
    console.print(as_table(tables["table2"], title="Table 2: ours, the paper's, and the difference"))
    console.print(as_table(tables["costs"], title="cost"))
    console.print(f"figures      {shown(directory)}/figures/\ntables       {shown(directory)}/tables/", soft_wrap=True)
    return True


def labels(board: "pd.DataFrame") -> list[tuple[str, str]]:
    """A name on a figure and the run it stands for: the best run of every backbone."""
    return [(str(row["backbone"]), str(row["run"])) for _, row in board.drop_duplicates("backbone").iterrows()]


def with_pictures(setting: Config, manifest: "pd.DataFrame", best: "Run") -> "dict[str, Figure]":
    """Samples by class, the variants of one picture, and the best run's predictions.

    Raises:
        UserError: the pictures are no longer where they were.
    """
    import numpy as np

    from osteo.augment import paper_twins
    from osteo.data.prepare import read_sources, reader
    from osteo.data.store import decode, square
    from osteo.files import cache_dir
    from osteo.report.figures import Shown, pictures

    check_data(setting.data)
    read = reader(read_sources(setting.data, cache_dir(setting.data.cache)))

    def picture(image_id: str) -> "np.ndarray":
        return square(decode(read(image_id), 224), 224, setting.data.fit)

    used = manifest[manifest["split"] != "excluded"]
    samples = []
    for name in ("normal", "osteoporosis"):
        ids = used.loc[used["class_name"] == name, "image_id"]
        samples.append((name, [Shown(picture(i), "") for i in ids.iloc[_spread(len(ids), SAMPLES)]]))
    one = picture(str(used["image_id"].iloc[0]))
    twins = paper_twins(setting.augment)
    variants = [Shown(one, "original"), *(Shown(change(one), name) for name, change in twins.items())]
    predictions = best.read_table("predictions.csv")
    test = predictions[predictions["split"] == "test"].reset_index(drop=True)
    drawn = test.iloc[_spread(len(test), PREDICTIONS)]
    marked = []
    for image_id, label, probability in drawn[["image_id", "label", "probability"]].itertuples(index=False, name=None):
        guess = int(probability > 0.5)
        sure = probability if guess else 1.0 - probability
        marked.append(Shown(picture(image_id), f"{('normal', 'osteoporosis')[guess]} {sure:.0%}", guess == label))
    return {
        "samples": pictures(samples),
        "augmentations": pictures([("", variants)]),
        "predictions": pictures([("", marked[place : place + 6]) for place in range(0, len(marked), 6)]),
    }


def _spread(count: int, wanted: int) -> list[int]:
    """Positions, evenly spread over `count` rows, at most `wanted` of them."""
    return sorted({round(i * (count - 1) / max(1, wanted - 1)) for i in range(min(wanted, count))})
