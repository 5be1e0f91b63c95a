"""osteo report: what the records of a sweep say, as one page, beside the paper's figures and tables."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from osteo.commands import application
from osteo.commands.application import Job
from osteo.config import Config, ReportConfig, check_data
from osteo.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from osteo.data.sources import Source
    from osteo.data.store import Store
    from osteo.report.page import Looked
    from osteo.report.results import Results
    from osteo.runs import Run

log = logging.getLogger(__name__)

SAMPLES, PREDICTIONS = 5, 12  # pictures a class, and of the best run's test split
EXPLAINED = 400  # pictures at most whose Grad-CAM is looked at
RANDOMISED = 12  # pictures a run whose map is compared with an untrained network's


def main() -> None:
    """Entry point."""
    application.run("report", ReportConfig, report)


def report(config: ReportConfig, job: Job) -> bool:
    """Writes report.html, report.md, model cards, figures/ and tables/ beside the runs, and tells W&B."""
    from omegaconf import OmegaConf

    from osteo.augment import make_augmentation
    from osteo.data.prepare import clinical_table, read_sources, reader
    from osteo.evaluation.systems import read_experiment
    from osteo.files import cache_dir, write_table, write_text
    from osteo.report import figures, page, paper, rows
    from osteo.report.results import compute
    from osteo.report.tables import as_latex, as_markdown, as_table, terminal
    from osteo.runs import leaderboard, runs_of, shown
    from osteo.tracking import Place, Tracker, group_of, public

    if not config.runs:
        raise UserError("name a sweep or a run directory: osteo report DIRECTORY")
    directory = Path(config.runs).expanduser()
    runs = {run.directory.name: run for run in runs_of(directory)}
    board = leaderboard(directory)
    if board.empty:
        raise UserError(f"runs={config.runs} holds no finished run of training; give a sweep or a run directory")
    experiment = read_experiment(
        [runs[name] for name in runs if name in set(board["run"])], sensitivity=config.sensitivity
    )
    log.info("%d systems on %d pictures, %d draws", len(experiment.systems), len(experiment.pictures), config.draws)
    results = compute(
        experiment, draws=config.draws, seed=config.seed, prevalence=config.prevalence, sensitivity=config.sensitivity
    )
    best = results.best.system.best_run
    setting = application.read_config(best.directory / "config.yaml")
    manifest = best.read_manifest()
    group = group_of(setting.logger.wandb, directory)

    variants = make_augmentation(setting.augment).variants
    matrices = {label: runs[name].read_json("metrics.json")["test/confusion_matrix"] for label, name in labels(board)}
    made = {
        "collection": figures.collection(manifest),
        "metrics": figures.bars(board),
        "confusion": figures.confusion(matrices),
    }
    clinical, looked = None, page.Looked()
    try:
        check_data(setting.data)
        sources = read_sources(setting.data, cache_dir(setting.data.cache))
        clinical = clinical_table(sources)
        if config.pictures:
            made |= with_pictures(setting, reader(sources), manifest, best)
        looked = look(setting, sources, results, config)
    except UserError as error:
        log.warning("what needs the pictures is left out: %s", error)
        looked = page.Looked(note=f"What needs the pictures is left out: {error}")
    settings = OmegaConf.to_yaml(OmegaConf.create(public(OmegaConf.to_container(OmegaConf.structured(setting)))))
    story = page.tell(f"{setting.experiment or 'train'}: {group}", results, board, looked, settings, clinical)
    tables = {
        "table1": paper.table_1(manifest, variants=variants, augment_val=setting.augment.val),
        "table2": paper.table_2(board),
        "costs": paper.costs(board),
        **{name: story.tables[name] for name in ("comparison", "between", "thresholds", "subgroups")},
    }
    for name, table in tables.items():
        write_text(directory / "tables" / f"{name}.md", as_markdown(table))
        write_text(directory / "tables" / f"{name}.tex", as_latex(table))
    write_table(directory / "tables" / "comparison.csv", rows.numbers_table(results))
    if not (directory / "status.json").exists():
        write_table(directory / "leaderboard.csv", board)
    made |= story.figures
    paths = {name: figures.save(figure, directory / "figures", name)[0] for name, figure in made.items()}
    write_text(directory / "report.html", story.html())
    write_text(directory / "report.md", story.markdown())
    for result in results.models:
        write_text(result.system.best_run.directory / "model_card.md", page.model_card(story, result.system))
    with Tracker(
        setting.logger.wandb,
        {"runs": len(board), "experiment": setting.experiment, "draws": config.draws},
        Place(directory, group, "report", "report", ["report"]),
    ) as tracker:
        tracker.figures(paths)
        told = {name.replace("table", "table "): table.astype(str) for name, table in tables.items()}
        tracker.tables(told | {"comparison": rows.numbers_table(results)})
    console = terminal()
    console.print(as_table(tables["table1"], title="Table 1: pictures"))
    console.print(as_table(tables["table2"], title="Table 2: ours, the paper's, and the difference"))
    console.print(as_table(tables["costs"], title="cost"))
    short = ["system", "accuracy", "AUROC", "sensitivity", "specificity"]
    console.print(as_table(tables["comparison"][short], title="with 95 % intervals"))
    for line in [*story.verdict, *looked.findings, *experiment.notes]:
        console.print(f"- {line}", soft_wrap=True)
    console.print(f"report       {shown(directory)}/report.html", soft_wrap=True)
    return True


def labels(board: "pd.DataFrame") -> list[tuple[str, str]]:
    """A name on a figure and the run it stands for: the best run of every backbone."""
    return [(str(row["backbone"]), str(row["run"])) for _, row in board.drop_duplicates("backbone").iterrows()]


def look(setting: Config, sources: "dict[str, Source]", results: "Results", config: ReportConfig) -> "Looked":
    """The best model's surest mistakes, and where the networks that tested the pictures look.

    Raises:
        UserError: the pictures are no longer what they were, or a checkpoint is gone.
    """
    import numpy as np

    from osteo.data.prepare import prepare
    from osteo.evaluation import explain
    from osteo.report.html import embed
    from osteo.report.page import Looked
    from osteo.report.rows import mistakes

    _, store = prepare(setting.data, sources)
    system = results.best.system
    wrong = mistakes(results, results.best, config.mistakes)
    pictures = results.experiment.pictures
    sha256 = {str(i): str(sha) for i, sha in zip(pictures["image_id"], pictures["sha256"], strict=True)}
    if gone := sorted(image_id for image_id, sha in sha256.items() if sha not in store.rows):
        raise UserError(f"{len(gone)} pictures are no longer what they were, {gone[0]} first")
    note = ""
    try:
        log.info("looking where %s looks", system.name)
        maps, alike = grad_cams(system.runs, list(wrong["image_id"]), sha256, store)
    except UserError as error:
        maps, alike, note = {}, [], str(error)
    shown = []
    if not config.pictures:
        wrong, note = wrong[:0], "Radiographs are left out, as asked (pictures=false)."
    for image_id, label, probability in wrong[["image_id", "label", "probability"]].itertuples(index=False, name=None):
        picture = store.pictures[0, store.rows[sha256[image_id]]]
        names = ("normal", "osteoporosis")
        call = int(probability > 0.5)
        shown.append(
            {
                "name": image_id,
                "picture": embed(picture),
                "map": embed(explain.overlay(picture, maps[image_id])) if image_id in maps else "",
                "label": names[int(label)],
                "call": names[call],
                "sure": f"{probability if call else 1 - probability:.0%}",
            }
        )
    found = {i: explain.attention(np.asarray(store.pictures[0, store.rows[sha256[i]]]), cam) for i, cam in maps.items()}
    measured = {image_id: one for image_id, one in found.items() if one is not None}
    findings = explain.findings(measured, pictures, alike) if measured else []
    return Looked(shown, findings, note)


def grad_cams(
    runs: "list[Run]", first: list[str], sha256: dict[str, str], store: "Store"
) -> "tuple[dict[str, np.ndarray], list[float]]":
    """Grad-CAM of test pictures by the network that tested them, by image_id, float32 (S, S).

    Also how alike a map and an untrained network's are (Spearman's correlation), for some pictures of each run.

    Args:
        runs: of one model.
        first: pictures that are looked at in any case.
        sha256: of the other pictures too, by image_id.
        store: holds them.

    Raises:
        UserError: the backbone has no feature map, or a checkpoint is gone.
    """
    import torch

    from osteo.data.datamodule import unit
    from osteo.evaluation import explain
    from osteo.module import load

    maps: dict[str, np.ndarray] = {}
    alike: list[float] = []
    for run in runs:
        predictions = run.read_table("predictions.csv")
        tested = [i for i in predictions.loc[predictions["split"] == "test", "image_id"] if i not in maps]
        kept = [i for i in tested if i in first]
        kept += [i for i in tested if i not in first][: max(0, EXPLAINED // len(runs) - len(kept))]
        if not kept:
            continue
        network = load(run.best_checkpoint).network
        rows = [store.rows[sha256[i]] for i in kept]
        for place in range(0, len(rows), 32):
            pictures = unit(torch.from_numpy(store.pictures[0, rows[place : place + 32]]))
            cams = explain.grad_cam(network, pictures)
            maps |= dict(zip(kept[place : place + 32], cams.numpy(), strict=True))
            if place == 0:
                some = pictures[:RANDOMISED]
                alike += explain.agreement(cams[:RANDOMISED], explain.grad_cam(explain.randomised(network), some))
    return maps, alike


def with_pictures(
    setting: Config, read: Callable[[str], bytes], manifest: "pd.DataFrame", best: "Run"
) -> "dict[str, Figure]":
    """Samples by class, the variants of one picture, and the best run's predictions.

    Raises:
        UserError: the pictures are no longer where they were.
    """
    from osteo.augment import paper_twins
    from osteo.data.store import decode, square
    from osteo.report.figures import Shown, pictures

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
