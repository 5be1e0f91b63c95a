"""osteo report: what the records of a sweep say, as one page, beside the paper's figures and tables."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from osteo.app import hydra as application
from osteo.checks import check_data
from osteo.config import ReportConfig
from osteo.errors import UserError
from osteo.records.record import Job

if TYPE_CHECKING:
    import pandas as pd


log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("report", ReportConfig, report)


def report(config: ReportConfig, job: Job) -> bool:
    """Writes report.html, report.md, model cards, figures/ and tables/ beside the runs, and tells W&B."""
    from omegaconf import OmegaConf

    from osteo.data.prepare import clinical_table, read_sources, reader
    from osteo.evaluation.systems import read_experiment
    from osteo.files import cache_dir, display_path, write_table, write_text
    from osteo.records.record import read_config
    from osteo.records.sweep import leaderboard, runs_of
    from osteo.report import figures, page, paper, rows
    from osteo.report.radiographs import look, with_pictures
    from osteo.report.results import compute
    from osteo.report.tables import as_latex, as_markdown, as_table, terminal
    from osteo.training.augment import make_augmentation
    from osteo.training.tracking import Place, WandbLogger, group_of, public, wandb_settings

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
    setting = read_config(best.directory / "config.yaml")
    manifest = best.read_manifest()
    group = group_of(wandb_settings(setting), directory)

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
    with WandbLogger(
        wandb_settings(setting),
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
    console.print(f"report       {display_path(directory)}/report.html", soft_wrap=True)
    return True


def labels(board: "pd.DataFrame") -> list[tuple[str, str]]:
    """A name on a figure and the run it stands for: the best run of every backbone."""
    return [(str(row["backbone"]), str(row["run"])) for _, row in board.drop_duplicates("backbone").iterrows()]
