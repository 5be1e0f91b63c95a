"""report.html, report.md and a model card for the best checkpoint of each model."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from osteo.checks import check
from osteo.command_settings import ReportConfig
from osteo.config import Config
from osteo.data.manifest import DELIBERATE, originals
from osteo.data.splits import by_split, flow
from osteo.errors import UserError, counted, listed, unknown
from osteo.evaluation.bootstrap import FEWEST, FEWEST_IN_ALL
from osteo.evaluation.metrics import all_metrics
from osteo.evaluation.outcomes import check_run
from osteo.files import public, write_table, write_text
from osteo.records.named import FINISHED, directory_of, holds_none
from osteo.records.outputs import drop_earlier
from osteo.records.record import Run
from osteo.records.sweep import changes, leaderboard, runs_of, trained, unfinished
from osteo.records.tracked import group_of, wandb_settings
from osteo.report import figures, paper, plots, rows
from osteo.report.card import model_card
from osteo.report.html import inline, render
from osteo.report.radiographs import FEATURE_MAPS, RADIOGRAPHS, PictureFindings, inspect_pictures
from osteo.report.results import Results, compute
from osteo.report.sections import added_value, ladder, record
from osteo.report.sections.data import PHANTOM, data_findings, limits_of
from osteo.report.sections.task import POINTS, TaskSection, task_section
from osteo.report.tables import without_zeros, write_tables
from osteo.report.verdict import verdict
from osteo.task import BINARY, PREVALENCE
from osteo.training.augment import make_augmentation
from osteo.training.hardware import present_accelerator

log = logging.getLogger(__name__)

CAPTIONS = {
    "forest": "AUROC and accuracy with 95 % intervals: models in blue, ensembles in green, the shortcut in red{paper}.",
    "roc_pr": "ROC and precision-recall curves{averaged}, with pointwise 95 % bands.",
    "training": "Loss and AUROC by epoch{mean}.",
    "reliability": "Observed share of cases by predicted probability, with 95 % intervals; the diagonal is perfect.",
    "decision": "Decision curves: net benefit with the best model's 95 % band, at the share of cases in this data.",
    added_value.FIGURE: added_value.CAPTION,
    ladder.FIGURE: ladder.CAPTION,
    **FEATURE_MAPS,
}
SECTIONS = {
    "results": "Results", "ladder": "Protocol ladder", "tests": "Tests", "curves": "Curves",
    "calibration": "Calibration", "decisions": "Thresholds", "subgroups": "Subgroups", "added": "Added value",
    "mistakes": "Mistakes", "data": "Data", "record": "Record", "limits": "Limits",
}  # fmt: skip
NO_LADDER = ladder.Findings()


@dataclass(frozen=True)
class Report:
    """A sweep with everything that its pages show."""

    directory: Path
    """of the sweep, or of its only run"""
    title: str
    setting: Config
    """of the best run"""
    board: pd.DataFrame
    results: Results
    pictures: PictureFindings
    figures: dict[str, Figure]
    """of the page"""
    tables: dict[str, pd.DataFrame]
    """of the page"""
    paper_figures: dict[str, Figure]
    paper_tables: dict[str, pd.DataFrame]
    added: list[str]
    """what the section "Added value" says; none where there is no such section"""
    verdict: list[str]
    audit: list[str]
    limits: list[str]
    section: TaskSection | None
    """what the task says beyond the positive class; None where there is nothing"""

    def context(self) -> dict[str, Any]:
        """What the templates read."""
        best = self.results.best.system.best_run
        configuration = OmegaConf.to_container(OmegaConf.structured(self.setting))
        return {
            "title": self.title,
            "facts": self.facts,
            "heat_caption": self.heat_caption,
            "results": self.results,
            "tables": self.tables,
            "pictures": self.pictures,
            "added": self.added,
            "verdict": self.verdict,
            "notes": self.results.experiment.notes,
            "audit": self.audit,
            "limits": self.limits,
            "section": self.section,
            "sides": self.results.experiment.task.sides,
            "matrices_of_sides": {result.system.name: result.confusion for result in self.results.models},
            "primary": all_metrics()[self.results.primary].title,
            "fewest": (FEWEST, FEWEST_IN_ALL),
            "lower_is_better": [metric.title for metric in all_metrics().values() if metric.direction == "min"],
            "record": {
                "run": best.name,
                "configuration": OmegaConf.to_yaml(OmegaConf.create(public(configuration))),
                "osteo": best.read_environment()["osteo"],
            },
        }

    @property
    def facts(self) -> str:
        """Where the page comes from, below its title."""
        experiment = f"Experiment {self.setting.experiment}" if self.setting.experiment else "No experiment"
        group = group_of(wandb_settings(self.setting), self.directory)
        version = self.results.best.system.best_run.read_environment()["osteo"]
        return f"{experiment}, {group}, {counted(len(self.board), 'run')}, osteo {version}"

    @property
    def heat_caption(self) -> str:
        """What the maps beside the mistakes are; empty where there are none."""
        if not any(mistake.overlay for mistake in self.pictures.mistakes):
            return ""
        finding = self.results.experiment.task.sides[1]
        if self.pictures.sanity is None or self.pictures.sanity.passed:
            return f"where the evidence for {finding} lies, by Grad-CAM of the network that tested it"
        return "Grad-CAM, which did not pass its sanity check here and is no evidence of what was learnt"

    @property
    def captions(self) -> dict[str, str]:
        """What stands below the figures that every task has, as far as it applies to this sweep."""
        over = ["networks"] * self.results.has_folds + ["repeats"] * self.results.has_repeats
        has_mean = len(self.board) > len(self.results.models)
        words = {
            "paper": ", the paper grey" if self.results.experiment.task == BINARY else "",
            "averaged": f", averaged over {listed(over)}" if over else "",
            "mean": ": the mean over the runs of each model, and their range" if has_mean else "",
        }
        return {name: text.format(**words) for name, text in CAPTIONS.items()}

    def html(self) -> str:
        """One HTML file with everything in it."""
        drawn, titles = {**self.figures, **self.pictures.figures}, list(SECTIONS.items())
        captions = self.captions
        if self.section:
            drawn, captions = drawn | self.section.figures, captions | self.section.captions
            titles.insert(1, ("task", self.section.title))
        present = {
            "added": self.added,
            "ladder": ladder.TABLE in self.tables,
            "subgroups": len(self.tables["subgroups"]),
        }
        absent = {name for name, has in present.items() if not has}
        narrow = {**self.pictures.narrow, "forest": plots.forest(self.results, is_narrow=True)}
        return render(
            "report.html.jinja",
            figures={
                name: inline(drawn[name], name, text, narrow.get(name))
                for name, text in captions.items()
                if name in drawn
            },
            captions=captions,
            sections=[(id_, name) for id_, name in titles if id_ not in absent],
            **self.context(),
        )

    def markdown(self) -> str:
        """The same as Markdown, without pictures of patients; its figures lie in figures/."""
        return render("report.md.jinja", **self.context())

    @property
    def files(self) -> dict[str, pd.DataFrame]:
        """The tables that are files too, by their names."""
        names = ["comparison", "literature", ladder.TABLE, "between", "exploratory", "thresholds", "subgroups"]
        names += added_value.TABLES
        return {
            **self.paper_tables,
            **(self.section.tables if self.section else {}),
            **{name: self.tables[name] for name in names if name in self.tables},
        }

    def write(self) -> dict[str, Path]:
        """Writes pages, figures/ and tables/ into the directory, and a model card beside each model's best run.

        What an earlier report has left in figures/ and tables/ goes, unless someone has changed it.

        Returns:
            The figures as PNG, by their names; those that show every picture's T-score are for the directory alone.
        """
        drawn = {**self.paper_figures, **self.pictures.figures, **self.figures}
        drawn |= self.section.figures if self.section else {}
        for name in set(RADIOGRAPHS) - set(drawn):  # whoever has drawn them
            figures.remove(self.directory / "figures", name)
        saved = {name: figures.save(figure, self.directory / "figures", name) for name, figure in drawn.items()}
        written = [*chain(*saved.values()), *write_tables(self.directory / "tables", self.files)]
        numbers = {"comparison": rows.numbers_table(self.results), **(self.section.numbers if self.section else {})}
        for name, table in numbers.items():
            written.append(self.directory / "tables" / f"{name}.csv")
            write_table(written[-1], table)
        drop_earlier(self.directory, written)
        if not (self.directory / "status.json").exists():
            write_table(self.directory / "leaderboard.csv", self.board)
        write_text(self.directory / "report.html", self.html())
        write_text(self.directory / "report.md", self.markdown())
        for result in self.results.models:
            added = self.added if result is self.results.best else []
            card = model_card(self.results, result, self.section, self.audit, self.limits, added)
            write_text(result.system.best_run.directory / "model_card.md", card)
        return {name: paths[0] for name, paths in saved.items() if name not in POINTS}


def write_report(runs: str | Path, **options: Any) -> Report:
    """Writes the report of a sweep or a run beside its records, as `osteo report` does, and returns it.

    Args:
        runs: a sweep or a run directory.
        options: other fields of `ReportConfig`, as in draws=500.

    Raises:
        UserError: an option is outside its range, or there is no finished run.
    """
    config = ReportConfig(runs=str(runs), **options)
    check(config)
    report = read_report(config)
    report.write()
    return report


def read_report(config: ReportConfig) -> Report:
    """Reads the records of a sweep, computes what they say, and inspects its pictures.

    Raises:
        UserError: no directory is named, it holds no finished run, or the accelerator is not there.
    """
    directory = directory_of(config.runs, "report", FINISHED)
    if config.primary not in all_metrics():
        raise unknown("primary", config.primary, all_metrics())
    config = replace(config, accelerator=present_accelerator(config.accelerator))
    runs, damaged = trained(directory, check_run)
    left_out = [*damaged, *unfinished(directory)]
    if not runs and damaged:
        raise UserError(f"runs={config.runs} holds no run that can be read: {damaged[0]}")
    if not runs:
        raise holds_none(config.runs)
    board = leaderboard(runs)
    experiments = ladder.read_by_protocol(runs, sensitivity=config.sensitivity)
    experiment = experiments[ladder.main_protocol(experiments)]
    experiment = replace(experiment, notes=[*left_out, *changes(runs), *experiment.notes])
    log.info(
        "measuring %s on %s with %s of the bootstrap", counted(len(experiment.systems), "system"),
        counted(len(experiment.pictures), "picture"), counted(config.draws, "draw"),
    )  # fmt: skip
    results = compute(
        experiment, draws=config.draws, seed=config.seed, sensitivity=config.sensitivity, primary=config.primary,
        prevalence=config.prevalence or PREVALENCE[experiment.task.class_names[-1]],
    )  # fmt: skip
    setting = results.best.system.best_run.read_settings()
    climbed = ladder.find(experiments, draws=config.draws, seed=config.seed)
    if setting.data.split.variants_first:
        pictures = PictureFindings(
            note="Sections that need the pictures are left out: the variants that were tested are in no file."
        )
    else:
        pictures = inspect_pictures(setting, results, config)
    return compose(directory, setting, board, results, pictures, climbed)


def compose(
    directory: Path, setting: Config, board: pd.DataFrame, results: Results, pictures: PictureFindings,
    climbed: ladder.Findings = NO_LADDER,
) -> Report:  # fmt: skip
    """Puts a report together.

    Args:
        directory: of the sweep.
        setting: of the best run.
        board: the leaderboard.
        results: of the sweep.
        pictures: what they show.
        climbed: what a sweep of several protocols shows.
    """
    runs = [run for result in results.models for run in result.system.runs]
    manifest = results.best.system.best_run.read_manifest()
    leaking, contradictions, audit = data_findings(runs, manifest)
    sanity = pictures.sanity.sentence if pictures.sanity else ""
    fit = setting.data.fit
    sentences = verdict(
        results, leaking, contradictions, trials=trials_of(directory), sanity=sanity, probes=pictures.probes, fit=fit
    )
    beyond = added_value.find(results, setting.covariates, pictures.clinical)
    section, task = task_section(results), results.experiment.task
    is_phantom = setting.data.name == "phantom"
    return Report(
        directory=directory,
        title=title_of(results, setting),
        setting=setting,
        board=board,
        results=results,
        pictures=pictures,
        figures={
            "forest": plots.forest(results),
            "roc_pr": plots.roc_and_pr(results),
            "training": plots.training(
                {r.system.name: [run.read_history() for run in r.system.runs] for r in results.models}
            ),
            "reliability": plots.reliability(results),
            "decision": plots.decision(results),
            **beyond.figures,
            **climbed.figures,
        },
        tables=_tables(results, board, manifest, pictures.clinical, climbed.rungs)
        | {"probes": rows.probe_table(results, pictures.probes, fit), **beyond.tables, **climbed.tables},
        paper_figures=figures.overview(results.models, originals(manifest), task),
        paper_tables=_paper_tables(setting, board, results, manifest),
        added=beyond.lines,
        verdict=[
            *(section.sentences if section else []),
            *sentences,
            *beyond.verdict,
            *climbed.verdict,
            *([PHANTOM] if is_phantom else []),
        ],
        audit=audit,
        limits=limits_of(results, manifest, is_phantom=is_phantom),
        section=section,
    )


def title_of(results: Results, setting: Config) -> str:
    """Models, what they detect, and in which data."""
    names = [result.system.name for result in results.models]
    models = counted(len(names), "model") if len(names) > 3 else listed(names)
    data = (
        "phantom radiographs"
        if setting.data.name == "phantom"
        else listed(sorted(results.experiment.pictures["source"].unique()))
    )
    return f"{models}: {results.experiment.task.contrast} in {data}"


def _paper_tables(
    setting: Config, board: pd.DataFrame, results: Results, manifest: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    task = results.experiment.task
    variants = make_augmentation(setting.augment, side=setting.data.image_size).variants
    return {
        "table1": paper.table_1(manifest, task, variants=variants, augment_val=setting.augment.val),
        "table2": paper.table_2(results.models, task),
        "costs": paper.costs(board, results.models),
    }


def _tables(
    results: Results, board: pd.DataFrame, manifest: pd.DataFrame, clinical: pd.DataFrame | None,
    rungs: Sequence[ladder.Rung],
) -> dict[str, pd.DataFrame]:  # fmt: skip
    runs = [run for result in results.models for run in result.system.runs]
    has_claims = any(run.read_settings().claim for run in runs)
    age = added_value.auroc_of_age(results, clinical) if has_claims and clinical is not None else None
    claims = rows.literature_table(results, age)
    return {
        "comparison": rows.comparison_table(results),
        **({} if claims.empty else {"literature": ladder.beside_claims(claims, rungs)}),
        "methods": rows.methods_table(results),
        "between": rows.primary_table(results),
        "exploratory": rows.exploratory_table(results),
        "calibration": rows.calibration_table(results),
        "thresholds": rows.thresholds_table(results),
        "subgroups": rows.subgroup_table(results, results.best, clinical),
        "costs": paper.costs(board, results.models),
        "flow": without_zeros(flow(originals(manifest), DELIBERATE)),
        "by_split": without_zeros(by_split(manifest, None).query("pictures > 0")),
        "runs": record.runs_table(board, results.experiment.task),
        "versions": record.versions_table(runs),
        "hashes": record.hashes_table(results, manifest),
    }


def trials_of(directory: Path) -> str:
    """What a search chose from: its trials, and how many of them it ended early; empty where there was no search."""
    if not any((directory / name).exists() for name in ("search.json", "study.db")):
        return ""
    runs = runs_of(directory)
    done, _ = trained(directory, Run.read_environment)
    pruned = sum(bool(run.read_environment().get("pruned")) for run in done)
    return (
        f"a search of {counted(len(runs), 'trial')}: {pruned} stopped early, {len(runs) - len(done)} without a result"
    )
