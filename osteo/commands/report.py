"""osteo report: what the records of a sweep say, as one page, beside the paper's figures and tables."""

import logging
from pathlib import Path

from osteo.app import hydra as application
from osteo.config import ReportConfig
from osteo.errors import UserError
from osteo.records.record import Job

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point."""
    application.run("report", ReportConfig, report)


def report(config: ReportConfig, job: Job) -> bool:
    """Writes report.html, report.md, model cards, figures/ and tables/ beside the runs, and logs them to W&B."""
    from omegaconf import OmegaConf

    from osteo.evaluation.systems import read_experiment
    from osteo.files import write_table
    from osteo.records.record import read_config
    from osteo.records.sweep import leaderboard, runs_of
    from osteo.report import figures, page, paper, rows
    from osteo.report.radiographs import inspect_pictures
    from osteo.report.results import compute
    from osteo.report.summary import show_report
    from osteo.report.tables import write_tables
    from osteo.training.augment import make_augmentation
    from osteo.training.tracking import Place, Tracker, group_of, public

    if not config.runs:
        raise UserError("name a sweep or a run directory: osteo report DIRECTORY")
    directory = Path(config.runs).expanduser()
    board = leaderboard(directory)
    if board.empty:
        raise UserError(f"runs={config.runs} holds no finished run of training; give a sweep or a run directory")
    runs = [run for run in runs_of(directory) if run.directory.name in set(board["run"])]
    experiment = read_experiment(runs, sensitivity=config.sensitivity)
    log.info("%d systems on %d pictures, %d draws", len(experiment.systems), len(experiment.pictures), config.draws)
    results = compute(
        experiment, draws=config.draws, seed=config.seed, prevalence=config.prevalence, sensitivity=config.sensitivity
    )
    best = results.best.system.best_run
    setting, manifest = read_config(best.directory / "config.yaml"), best.read_manifest()
    group = group_of(setting.logger.wandb, directory)

    pictures = inspect_pictures(setting, results, config)
    shared = OmegaConf.to_yaml(OmegaConf.create(public(OmegaConf.to_container(OmegaConf.structured(setting)))))
    composed = page.compose(f"{setting.experiment or 'train'}: {group}", results, board, pictures, shared)
    variants = make_augmentation(setting.augment).variants
    tables = {
        "table1": paper.table_1(manifest, variants=variants, augment_val=setting.augment.val),
        "table2": paper.table_2(board),
        "costs": paper.costs(board),
        **{name: composed.tables[name] for name in ("comparison", "between", "thresholds", "subgroups")},
    }
    numbers = rows.numbers_table(results)
    drawn = {**figures.overview(board, runs, manifest), **pictures.figures, **composed.figures}
    paths = {name: figures.save(figure, directory / "figures", name)[0] for name, figure in drawn.items()}
    write_tables(directory / "tables", tables)
    write_table(directory / "tables" / "comparison.csv", numbers)
    if not (directory / "status.json").exists():
        write_table(directory / "leaderboard.csv", board)
    composed.write(directory)

    facts = {"runs": len(board), "experiment": setting.experiment, "draws": config.draws}
    with Tracker(setting.logger.wandb, facts, Place(directory, group, "report", "report", ["report"])) as tracker:
        tracker.figures(paths)
        texts = {name.replace("table", "table "): table.astype(str) for name, table in tables.items()}
        tracker.tables({**texts, "comparison": numbers})
    show_report(composed, tables, directory)
    return True
