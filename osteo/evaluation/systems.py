"""Runs that differ only in fold and seed are one system; a repeat holds the out-of-fold predictions of its runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from osteo.data.splits import copied_to_training
from osteo.errors import UserError
from osteo.evaluation.calibration import calibrate, choose_thresholds, fit_temperature, log_loss
from osteo.evaluation.metrics import check_finite, measure
from osteo.evaluation.outcomes import against_rest, model_names, settings_of
from osteo.evaluation.tests import Answers
from osteo.evaluation.ties import join_ties
from osteo.records.record import Run
from osteo.task import BINARY, RULES, T_SCORE, TASKS, THRESHOLD, Task, details_columns
from osteo.types import Floats, Labels, Mask

TREES = 100  # of the forest that a shortcut is
PICTURE = ["image_id", "label", "group", "source", "patient", "width", "height", "format", "mode", "sha256"]


class Validated(NamedTuple):
    """What a run's validation pictures say; its test pictures have no part in it."""

    temperature: float
    thresholds: dict[str, float]
    """by rule, on calibrated probabilities"""
    skill: float
    """how far the calibrated log loss is below that of the share of cases, at least 0"""


@dataclass(frozen=True)
class System:
    """What is compared: a backbone with its recipe, an ensemble of some, or a shortcut.

    R repeats by N pictures; NaN where a repeat did not test a picture.
    """

    name: str
    kind: str
    """model, ensemble or shortcut"""
    probabilities: Floats
    calibrated: Floats
    """after the temperature that validation asks for"""
    thresholds: dict[str, Floats]
    """by rule of `task.RULES`, on calibrated probabilities"""
    skill: Floats
    """of the run that tested the picture, on its validation pictures"""
    networks: Labels
    """number of the network, or of the repeat's set of networks, that tested the picture; -1 where there is none"""
    details: Floats | None = None
    """what the task says beyond the positive class, (R, N, K): the probabilities of all classes, or the T-score; None
    of what is no model, and where two classes are all"""
    validation: dict[str, float] = field(default_factory=dict)
    """metrics on validation pictures, by name, the mean over runs; of models only"""
    runs: list[Run] = field(default_factory=list)
    source: str = ""
    """of an ensemble that is a system of its own: whose"""

    @property
    def tested(self) -> int:
        """Pictures that at least one repeat tested."""
        return int(np.isfinite(self.probabilities).any(axis=0).sum())

    @property
    def repeats(self) -> int:
        """Repeats that tested something."""
        return int(np.isfinite(self.probabilities).any(axis=1).sum())

    @property
    def backbone(self) -> str:
        """Of a model."""
        return self.runs[0].read_settings().model.backbone

    @property
    def is_fused(self) -> bool:
        """Whether a model takes covariates beside the picture."""
        return any(run.read_settings().model.fusion != "none" for run in self.runs[:1])

    @property
    def best_run(self) -> Run:
        """The run with the best validation AUROC: its checkpoint is the one to use."""
        return max(self.runs, key=lambda run: run.read_metrics()["val/auroc"] or 0.0)

    def answers(self, where: Mask | bool = True) -> Answers:
        """Its answers, called at `task.THRESHOLD`, as a test takes them: of the pictures of a mask (R, N)."""
        scores = np.where(where, self.probabilities, np.nan)
        return Answers(scores, np.full_like(scores, THRESHOLD), self.networks)

    def right(self, labels: Labels) -> Floats:
        """1 where the call at `task.THRESHOLD` is right, 0 where it is wrong, NaN where there is none, (R, N)."""
        return np.where(np.isfinite(self.probabilities), (self.probabilities > THRESHOLD) == (labels == 1), np.nan)


@dataclass(frozen=True)
class Experiment:
    """The systems of a sweep on the same pictures."""

    pictures: pd.DataFrame
    """one row per tested picture, the columns of `PICTURE`"""
    repeats: list[str]
    systems: list[System]
    notes: list[str]
    """what is missing"""
    design: str
    """how pictures came to be tested, in words"""
    task: Task = BINARY
    truth: Floats | None = None
    """the labels of the task, or the T-scores, (N,); None where two classes are all"""

    @property
    def labels(self) -> Labels:
        """1 for the positive class, 0 for the rest, (N,)."""
        return self.pictures["label"].to_numpy(int)

    @property
    def groups(self) -> list[str]:
        """Pictures of one patient or one exposure share a group, (N,)."""
        return [str(group) for group in self.pictures["group"]]

    def of_kind(self, kind: str) -> list[System]:
        """The systems that are models, ensembles or shortcuts."""
        return [system for system in self.systems if system.kind == kind]


def validate(predictions: pd.DataFrame, task: Task = BINARY, *, sensitivity: float = 0.9) -> Validated:
    """Temperature, thresholds and skill from the validation rows of a run's predictions, and from these alone.

    They are of the positive class against the rest.

    Raises:
        UserError: a logit is not finite.
    """
    rows = against_rest(predictions[predictions["split"] == "val"], task)
    check_finite(rows["logit"], rows["image_id"], "validation")
    logits, labels = join_ties(rows["logit"]), rows["label"].to_numpy(int)
    temperature = fit_temperature(logits, labels)
    thresholds = choose_thresholds(calibrate(logits, temperature), labels, sensitivity=sensitivity)
    share = labels.mean()
    of_share = float(-(share * np.log(share) + (1 - share) * np.log(1 - share)))
    return Validated(temperature, thresholds, max(0.0, of_share - log_loss(logits / temperature, labels)))


def read_experiment(runs: Sequence[Run], *, sensitivity: float = 0.9) -> Experiment:
    """The systems of finished runs, their ensembles, and the shortcut of width and height on the same folds.

    Args:
        runs: finished, of one sweep.
        sensitivity: that the third threshold rule keeps on validation.

    Raises:
        UserError: no test picture has been predicted, or the runs are of different tasks.
    """
    tested = [_TestedRun.of(run, sensitivity) for run in runs]
    names = model_names([run.settings for run in tested])
    if len(tasks := {str(run.settings["task"]) for run in tested}) > 1:
        raise UserError(f"the runs are of different tasks ({', '.join(sorted(tasks))}): give a sweep of one of them")
    task = TASKS[tasks.pop()] if tasks else BINARY
    repeats = sorted({run.repeat for run in tested})
    pictures = pd.concat([run.manifest for run in tested]).drop_duplicates("image_id")
    image_ids = set().union(*(run.test["image_id"] for run in tested))
    pictures = pictures[pictures["image_id"].isin(image_ids)][PICTURE].sort_values("image_id").reset_index(drop=True)
    if pictures.empty:
        raise UserError("no run has predicted a test picture")
    column = pd.Series(pictures.index, index=pictures["image_id"])
    models = [
        _model(name, [run for run, its_name in zip(tested, names, strict=True) if its_name == name], repeats, column)
        for name in dict.fromkeys(names)
    ]
    return Experiment(
        pictures,
        [label for label, _ in repeats],
        [*models, *ensembles(models), _shortcut(tested, repeats, column)],
        _missing(tested, names),
        _design(tested),
        task,
        _truth(tested, column) if task.kind != "binary" else None,
    )


def _truth(runs: Sequence["_TestedRun"], column: "pd.Series[int]") -> Floats:
    """The labels of the task, or the T-scores, of the tested pictures, (N,)."""
    found = np.full(len(column), np.nan)
    for run in runs:
        found[column[run.test["image_id"]].to_numpy()] = run.truth
    return found


class _TestedRun(NamedTuple):
    run: Run
    settings: dict[str, Any]
    repeat: tuple[str, str]
    """its name, and how its test pictures were chosen: folds, sources or hold-out"""
    manifest: pd.DataFrame
    test: pd.DataFrame
    """the test rows of its predictions"""
    truth: Floats
    """of these rows: the labels of the task, or the T-scores, (N,)"""
    validated: Validated
    validation: dict[str, float]
    """metrics on its validation pictures, by name"""

    @property
    def part(self) -> str:
        """Which part of its repeat it tested: a fold or a source; empty where all of it."""
        fold, source = self.settings["data.split.fold"], self.settings["data.split.test_source"]
        return f"source {source}" if source else f"fold {fold}" if fold is not None else ""

    @property
    def parts(self) -> set[str]:
        """Those that a whole repeat has; where a fold numbers the repeats of a source, that source."""
        fold, source = self.settings["data.split.fold"], self.settings["data.split.test_source"]
        if fold is not None and not source:
            return {f"fold {fold}" for fold in range(self.settings["data.split.folds"])}
        if source and fold is None:
            used = self.manifest[self.manifest["split"] != "excluded"]
            return {f"source {source}" for source in used["source"]}
        return {self.part}

    @staticmethod
    def of(run: Run, sensitivity: float) -> "_TestedRun":
        settings = settings_of(run)
        split = {key: settings[f"data.split.{key}"] for key in ("seed", "fold", "test_source")}
        design = "sources" if split["test_source"] else "folds" if split["fold"] is not None else "hold-out"
        seed = settings["seed"]
        label = f"seed {seed}" if split["seed"] == seed else f"seed {seed}, split {split['seed']}"
        label += f", repeat {split['fold']}" if design == "sources" and split["fold"] is not None else ""
        task, recorded = TASKS[settings["task"]], run.read_predictions()
        predictions, manifest = (against_rest(table, task) for table in (recorded, run.read_manifest()))
        test, val = (
            rows.assign(logit=join_ties(rows["logit"]))
            for rows in (predictions[predictions["split"] == split] for split in ("test", "val"))
        )
        learnt = manifest.loc[manifest["split"] == "train", "label"]
        for labels, kind, purpose in (
            (val["label"], "validation", "by which models are chosen and thresholds set"),
            (learnt, "training", "without which nothing is learnt"),
        ):
            if set(labels) != {0, 1}:
                raise UserError(
                    f"run {run.name} has no {kind} pictures of both classes, {purpose}; leave it out, or"
                    " train it on another split"
                )
        validated = validate(recorded, task, sensitivity=sensitivity)
        validation = measure(val["label"].to_numpy(int), expit(val["logit"].to_numpy(float))[None])
        of_test = recorded[recorded["split"] == "test"]
        truth = of_test[T_SCORE if T_SCORE in of_test else "label"].to_numpy(float)
        return _TestedRun(run, settings, (label, design), manifest, test, truth, validated, validation)


def _missing(runs: Sequence[_TestedRun], names: Sequence[str]) -> list[str]:
    """What a model's repeat lacks of its folds or sources, whether or not another model has it."""
    found: dict[tuple[str, str], set[str]] = {}
    for run, name in zip(runs, names, strict=True):
        found.setdefault((name, run.repeat[0]), set(run.parts)).discard(run.part)
    return [
        f"{name}, {repeat}, is incomplete: {', '.join(sorted(missing))} {'is' if len(missing) == 1 else 'are'} missing"
        for (name, repeat), missing in found.items()
        if missing
    ]


def _model(
    name: str, runs: Sequence[_TestedRun], repeats: Sequence[tuple[str, str]], column: "pd.Series[int]"
) -> System:
    """The system of runs that differ only in fold and seed; `column` says where a picture stands, by image_id."""
    shape = (len(repeats), len(column))
    logits, temperature, skill = (np.full(shape, np.nan) for _ in range(3))
    thresholds = {rule: np.full(shape, np.nan) for rule in RULES}
    networks = np.full(shape, -1)
    columns = details_columns(TASKS[runs[0].settings["task"]])
    details = np.full((*shape, len(columns)), np.nan)
    for number, run in enumerate(runs):
        at = repeats.index(run.repeat), column[run.test["image_id"]].to_numpy()
        logits[at], temperature[at], skill[at] = run.test["logit"], run.validated.temperature, run.validated.skill
        networks[at] = number
        details[at] = run.test[columns].to_numpy(float)
        for rule, value in run.validated.thresholds.items():
            thresholds[rule][at] = value
    calibrated = calibrate(logits, temperature)  # type: ignore[arg-type]
    means = pd.DataFrame([run.validation for run in runs]).mean()
    validation = {str(name): float(value) for name, value in means.items()}
    return System(
        name, "model", calibrate(logits, 1.0), calibrated, thresholds, skill, networks, details if columns else None,
        validation, [run.run for run in runs],
    )  # fmt: skip


def _design(runs: Sequence[_TestedRun]) -> str:
    kinds, repeats = {run.repeat[1] for run in runs}, len({run.repeat for run in runs})
    times = "once" if repeats == 1 else f"{repeats} times"
    if kinds == {"folds"}:
        folds = runs[0].settings["data.split.folds"]
        saw = "may have seen a copy of it" if any(copied_to_training(run.manifest) for run in runs) else "never saw it"
        return f"{folds}-fold cross-validation, {times}; each picture is tested by a network that {saw}"
    if kinds == {"sources"}:
        sources = ", ".join(sorted({str(run.settings["data.split.test_source"]) for run in runs}))
        return f"leave one source out ({sources}), {times}; each source is tested by networks that never saw it"
    return f"one hold-out split, trained {times}" if kinds == {"hold-out"} else "different kinds of splits, mixed"


def ensembles(models: Sequence[System]) -> list[System]:
    """Means of calibrated probabilities over models, over repeats, and over both; unweighted, and weighted by skill.

    The networks of a source that answer together (`claim.averaged`) have a mean of their own beside those of others.

    The weight of a run is its skill on its own validation pictures. Thresholds are averaged like probabilities.
    """
    repeated = [model for model in models if model.repeats > 1]
    systems = [_average(f"{m.name}, mean of {m.repeats} repeats", [m], over_repeats=True) for m in repeated]
    claims = [model.runs[0].read_settings().claim if model.runs else {} for model in models]
    for source in dict.fromkeys(claim["source"] for claim in claims if claim.get("averaged")):
        members = [m for m, claim in zip(models, claims, strict=True) if claim.get("source") == source]
        if 1 < len(members) < len(models):
            mean = _average(f"{source}: mean of {len(members)} models", members, over_repeats=False)
            systems.append(replace(mean, source=source))
    for over_repeats in (False, True):
        if len(models) > 1 and (repeated or not over_repeats):
            name = f"mean of {len(models)} models"
            name += f" and {max(model.repeats for model in repeated)} repeats" if over_repeats else ""
            systems.append(_average(name, models, over_repeats=over_repeats))
            systems.append(_average(f"{name}, weighted", models, over_repeats=over_repeats, weighted=True))
    return systems


def _average(name: str, members: Sequence[System], *, over_repeats: bool, weighted: bool = False) -> System:
    """One system of several; a mean over repeats stands in every repeat, so that it can be compared with each."""
    skill = np.stack([member.skill for member in members])  # (S, R, N)
    axis = (0, 1) if over_repeats else (0,)
    weights = np.where(np.isfinite(skill), skill if weighted else 1.0, 0.0)
    none = weights.sum(axis=axis, keepdims=True) == 0  # no member has learnt anything: all count alike
    weights = np.where(none & np.isfinite(skill), 1.0, weights)

    def average(values: Sequence[Floats]) -> Floats:
        total = (weights * np.nan_to_num(np.stack(values))).sum(axis=axis)
        with np.errstate(invalid="ignore"):
            return np.array(np.broadcast_to(total / weights.sum(axis=axis), members[0].skill.shape))

    calibrated = average([member.calibrated for member in members])
    thresholds = {rule: average([member.thresholds[rule] for member in members]) for rule in RULES}
    skills = average([member.skill for member in members])
    sets = np.stack([member.networks for member in members], axis=1)  # (R, S, N)
    networks = np.stack([np.unique(of_repeat, axis=1, return_inverse=True)[1].ravel() for of_repeat in sets])
    networks = np.where(np.isfinite(calibrated), networks, -1)
    return System(name, "ensemble", calibrated, calibrated, thresholds, skills, networks)


def _shortcut(runs: Sequence[_TestedRun], repeats: Sequence[tuple[str, str]], column: "pd.Series[int]") -> System:
    """A forest that sees a picture's width and height, trained and tested on the same folds."""
    scores = np.full((len(repeats), len(column)), np.nan)
    networks = np.full(scores.shape, -1)
    done = set()
    for run in runs:
        image_ids = tuple(run.test["image_id"])
        if (run.repeat, image_ids) not in done:
            done.add((run.repeat, image_ids))
            networks[repeats.index(run.repeat), column[list(image_ids)]] = len(done)
            rows = run.manifest.set_index("image_id")
            train = rows[rows["split"] == "train"]
            size = rows[["width", "height"]].astype(float)
            ids = list(image_ids)
            predicted = forest_scores(size.loc[train.index].to_numpy(), train["label"], size.loc[ids].to_numpy())
            scores[repeats.index(run.repeat), column[ids]] = predicted
    thresholds = dict.fromkeys(RULES, np.where(np.isfinite(scores), THRESHOLD, np.nan))
    return System("width and height alone", "shortcut", scores, scores, thresholds, np.zeros_like(scores), networks)


def forest_scores(learnt: Floats, labels: "pd.Series[int]", tested: Floats) -> Floats:
    """Probability of class 1 by a random forest, (M,), trained on features (N, F) and tested on others (M, F)."""
    from sklearn.ensemble import RandomForestClassifier  # slow to import

    forest = RandomForestClassifier(TREES, random_state=0).fit(learnt, labels.astype(int))
    return np.asarray(forest.predict_proba(tested)[:, 1])
