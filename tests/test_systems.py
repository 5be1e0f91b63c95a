"""Runs become systems, and systems ensembles, from records alone."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy.special import expit

from osteo.config import Config
from osteo.errors import UserError
from osteo.evaluation.bootstrap import format_interval
from osteo.evaluation.metrics import all_metrics
from osteo.evaluation.probes import probe_on_folds
from osteo.evaluation.systems import read_experiment, validate
from osteo.evaluation.tests import holm
from osteo.records.record import Run
from osteo.report import rows
from osteo.report.results import compute
from osteo.report.verdict import verdict

PICTURES = 60


def manifest(fold: int | None, folds: int = 3) -> pd.DataFrame:
    """Sixty pictures; the taller half of them has osteoporosis more often, so that the shortcut works."""
    rng = np.random.default_rng(0)
    label = np.arange(PICTURES) % 2
    tall = (rng.random(PICTURES) < 0.25 + 0.5 * label).astype(int)
    place = np.arange(PICTURES) // 2 % folds
    split = np.where(place == (fold or 0), "test", np.where(place == ((fold or 0) + 1) % folds, "val", "train"))
    return pd.DataFrame(
        {
            "image_id": [f"folder/{i}.png" for i in range(PICTURES)], "path": "x", "source": "folder", "label": label,
            "class_name": np.where(label == 1, "osteoporosis", "normal"), "patient": "",
            "sha256": [f"{i:064d}" for i in range(PICTURES)], "width": 300, "height": 400 + 300 * tall,
            "format": "PNG", "mode": np.where(np.arange(PICTURES) < 30, "L", "RGB"),
            "group": [f"g{i}" for i in range(PICTURES)], "split": split, "reason": "",
        }
    )  # fmt: skip


def write_run(
    folder: Path, backbone: str, *, seed: int = 0, fold: int | None = None, strength: float = 1.0, **changes: Any
) -> Run:
    """The record of a run whose logits are right with some strength, as training would leave it."""
    config = Config()
    config.seed, config.model.backbone = seed, backbone
    config.data.name, config.data.split.fold, config.data.split.folds = "folder", fold, 3
    config.data.split.seed = seed if fold is not None else 0
    content = OmegaConf.create(asdict(config))
    for key, value in changes.items():
        OmegaConf.update(content, key.replace("__", "."), value)
    run = Run(folder)
    run.start(OmegaConf.to_yaml(content))
    table = manifest(fold)
    run.write_manifest(table)
    rng = np.random.default_rng([seed, len(backbone), fold or 0])
    logit = strength * (2.0 * table["label"] - 1.0) + rng.normal(size=PICTURES)
    columns = ["image_id", "source", "group", "split", "label"]
    predictions = table[columns].assign(logit=logit, probability=expit(logit))
    run.write_predictions(predictions[predictions["split"] != "train"])
    run.write_history([{"epoch": i, "train/loss": 0.7, "val/loss": 0.7, "val/auroc": 0.5} for i in range(2)])
    run.write_metrics({"val/auroc": 0.5 + strength / 10, "test/auroc": 0.5, "test/accuracy": 0.5,
                       "test/confusion_matrix": [[1, 1], [1, 1]]})  # fmt: skip
    run.set_status("done")
    return run


def write_logits(run: Run, logit: "pd.Series[float]") -> None:
    """Replaces the logits of a run's predictions, and their probabilities with them."""
    run.write_predictions(run.read_table("predictions.csv").assign(logit=logit, probability=expit(logit)))


@pytest.fixture
def sweep(tmp_path: Path) -> list[Run]:
    """Two models of different strength, three folds, two repeats."""
    return [
        write_run(tmp_path / f"{name}{seed}{fold}", name, seed=seed, fold=fold, strength=strength)
        for name, strength in (("resnet18", 0.4), ("densenet121", 1.2))
        for seed in (0, 1)
        for fold in range(3)
    ]


def test_folds_are_pooled_within_repeats(sweep: list[Run]) -> None:
    found = read_experiment(sweep)
    assert found.repeats == ["seed 0", "seed 1"]
    assert found.design == "3-fold cross-validation, 2 times; each picture is tested by a network that never saw it"
    assert found.notes == []
    assert len(found.pictures) == PICTURES
    models = found.of_kind("model")
    assert [model.name for model in models] == ["resnet18", "densenet121"]
    for model in models:
        assert (model.tested, model.repeats, len(model.runs)) == (PICTURES, 2, 6)
    run = sweep[4]  # resnet18, seed 1, fold 1
    test = run.read_table("predictions.csv").query("split == 'test'").set_index("image_id")
    validated = validate(run.read_table("predictions.csv"))
    for place, image_id in enumerate(found.pictures["image_id"]):
        if image_id in test.index:
            assert models[0].probabilities[1, place] == pytest.approx(test.loc[image_id, "probability"])
            expected = expit(test.loc[image_id, "logit"] / validated.temperature)
            assert models[0].calibrated[1, place] == pytest.approx(expected)
            assert models[0].thresholds["Youden"][1, place] == validated.thresholds["Youden"]
    folds = np.arange(PICTURES) // 2 % 3  # by number; `pictures` are ordered by name
    of_pictures = [folds[int(Path(image_id).stem)] for image_id in found.pictures["image_id"]]
    for model in models:
        assert model.networks.tolist() == [of_pictures, [3 + fold for fold in of_pictures]]


def test_what_differs_beside_folds_and_seeds_names_a_system(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", "resnet18", optimizer__lr=0.1),
        write_run(tmp_path / "b", "resnet18", optimizer__lr=0.2),
        write_run(tmp_path / "c", "resnet18", seed=1, optimizer__lr=0.2),
    ]
    found = read_experiment(runs)
    assert [(m.name, m.repeats) for m in found.of_kind("model")] == [
        ("resnet18 optimizer.lr=0.1", 1), ("resnet18 optimizer.lr=0.2", 2)
    ]  # fmt: skip
    assert found.design == "one hold-out split, trained 2 times"
    assert len(found.pictures) == PICTURES // 3


def test_another_split_is_another_repeat(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{seed}{split}", "resnet18", seed=seed, data__split__seed=split)
            for seed in (0, 1) for split in (0, 1)]  # fmt: skip
    found = read_experiment(runs)
    assert found.repeats == ["seed 0", "seed 0, split 1", "seed 1", "seed 1, split 0"]
    assert found.of_kind("model")[0].repeats == 4


def test_leaving_sources_out_is_a_repeat_too(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, "resnet18", data__split__test_source=name) for name in ("kaggle", "mendeley")]
    found = read_experiment(runs)
    assert found.design.startswith("leave one source out (kaggle, mendeley), once")
    assert found.of_kind("model")[0].name == "resnet18"


def test_a_missing_fold_is_said(sweep: list[Run]) -> None:
    found = read_experiment(sweep[:5] + sweep[6:])
    assert found.notes == ["resnet18, seed 1, is incomplete: fold 2 is missing"]
    results = compute(found, draws=100, seed=0, prevalence=0.1, sensitivity=0.9)
    assert np.isfinite(results.best.intervals["auroc"]).all()
    assert np.isfinite(results.between[0].by_metric["auroc"].p)
    assert "The experiment is incomplete: these results cover only what has been tested so far." in verdict(
        results, 0, 0
    )


def test_folds_that_every_model_lacks_are_said(sweep: list[Run]) -> None:
    found = read_experiment([run for run in sweep if run.read_config()["data"]["split"]["fold"] == 1])
    assert found.notes == [
        f"{name}, seed {seed}, is incomplete: fold 0, fold 2 are missing"
        for name in ("resnet18", "densenet121")
        for seed in (0, 1)
    ]


def test_sources_that_were_not_left_out_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "resnet18", data__split__test_source="folder")
    assert read_experiment([run]).notes == []
    table = run.read_manifest()
    run.write_manifest(table.assign(source=np.where(table["split"] == "train", "kaggle", "folder")))
    assert read_experiment([run]).notes == ["resnet18, seed 0, is incomplete: source kaggle is missing"]


def test_ensembles_are_means_of_calibrated_probabilities(sweep: list[Run]) -> None:
    found = read_experiment(sweep)
    by_name = {system.name: system for system in found.systems}
    assert list(by_name) == [
        "resnet18", "densenet121", "resnet18, mean of 2 repeats", "densenet121, mean of 2 repeats",
        "mean of 2 models", "mean of 2 models, weighted", "mean of 2 models and 2 repeats",
        "mean of 2 models and 2 repeats, weighted", "width and height alone",
    ]  # fmt: skip
    weak, strong = by_name["resnet18"], by_name["densenet121"]
    assert by_name["mean of 2 models"].probabilities == pytest.approx((weak.calibrated + strong.calibrated) / 2)
    both = by_name["mean of 2 models and 2 repeats"].probabilities
    assert both[0] == pytest.approx((weak.calibrated + strong.calibrated).sum(axis=0) / 4)
    assert (both[0] == both[1]).all()
    weights = weak.skill / (weak.skill + strong.skill)
    expected = weights * weak.calibrated + (1 - weights) * strong.calibrated
    assert by_name["mean of 2 models, weighted"].probabilities == pytest.approx(expected)
    assert (weights < 0.5).mean() > 0.8  # the stronger model counts more


def test_the_shortcut_is_tested_on_the_same_folds(sweep: list[Run]) -> None:
    found = read_experiment(sweep)
    shortcut = found.systems[-1]
    assert (shortcut.kind, shortcut.tested, shortcut.repeats) == ("shortcut", PICTURES, 2)
    heights = found.pictures["height"].to_numpy()
    for row in shortcut.probabilities:
        assert row[heights == 700].mean() > row[heights == 400].mean() + 0.2


@pytest.mark.slow
def test_what_the_network_sees_is_probed_on_the_same_folds(sweep: list[Run]) -> None:
    found = read_experiment(sweep)
    rng = np.random.default_rng(0)
    fitted = {}
    for image_id, height in zip(found.pictures["image_id"], found.pictures["height"], strict=True):
        picture = np.zeros((32, 32), np.uint8)
        width = round(32 * 300 / height)  # as fit=pad has it: black on both sides
        picture[:, (32 - width) // 2 :][:, :width] = rng.integers(60, 200, (32, width))
        fitted[image_id] = picture
    probes = probe_on_folds(found.of_kind("model")[0], found.pictures, fitted, draws=100, seed=0)
    results = compute(found, draws=100, seed=0, prevalence=0.126, sensitivity=0.9)
    size = results.shortcut.intervals["auroc"].value
    assert probes["outline"]["auroc"].value == pytest.approx(size, abs=0.01)  # padding says what the file said
    assert size > 0.6
    table = rows.probe_table(results, probes, "pad")
    assert table["of the"].tolist() == ["file"] + ["picture after data.fit=pad"] * 4
    assert table["AUROC"].tolist()[-1] == format_interval(probes["outline"]["auroc"])
    line = next(
        line for line in verdict(results, 0, 0, probes=probes, fit="pad") if line.startswith("After data.fit=pad")
    )
    assert f"outline still predicts the label (AUROC {probes['outline']['auroc'].value:.2f} (" in line


def test_results_and_words(sweep: list[Run]) -> None:
    found = read_experiment(sweep)
    results = compute(found, draws=300, seed=0, prevalence=0.126, sensitivity=0.9)
    assert results.best.system.name == "densenet121"
    assert set(results.best.intervals) == set(all_metrics())
    for result in results.ranked:
        for interval in result.intervals.values():
            assert interval.low <= interval.value <= interval.high
    assert results.best.confusion.sum() == pytest.approx(PICTURES)
    lines = verdict(results, leaks=3, contradictions=2)
    assert (results.tied, results.has_folds, results.has_repeats) == (1, True, True)
    assert lines[0].startswith("densenet121, the best of 2 models by its AUROC on validation, reaches an AUROC of 0.9")
    results.models[1].system.validation["auroc"] = results.best.system.validation["auroc"]
    tied = verdict(results, leaks=3, contradictions=2)[0]
    assert results.tied == 2
    assert tied.startswith("densenet121, the first of 2 of 2 models that share the best AUROC on validation, reaches")
    assert lines[1] == (
        "The primary endpoint is the AUROC, whose 3 tests are corrected together (Holm); everything else is"
        " exploratory."
    )
    assert any(line.startswith("On the test pictures, densenet121 has the best AUROC, 0.9") for line in lines[4:])
    lead = next(line for line in lines if "Its lead over resnet18 in AUROC" in line)
    assert "is significant (paired bootstrap, p " in lead
    assert "densenet121 is significantly better" in next(line for line in lines if "width and height" in line)
    assert any(line.startswith("The intervals take the trained networks as given") for line in lines)
    assert "0.851 for densenet201 on 47 pictures; the 95 % interval of that is 0.72 to 0.93" in lines[-3]
    assert lines[-2].startswith("The split leaks: 3 sets of pictures of one exposure or one patient are on")
    assert "2 sets of identical files are used with two different labels" in lines[-1]
    primary = rows.primary_table(results)
    assert primary[["first", "second"]].to_numpy().tolist() == [
        ["densenet121", "resnet18"],
        ["densenet121", "width and height alone"],
        ["resnet18", "width and height alone"],
    ]
    p_values = [test.comparison.p for test in results.family]
    assert [test.p for test in results.family] == pytest.approx(holm(p_values))
    assert list(rows.exploratory_table(results))[:4] == ["first", "second", "accuracy, difference", "accuracy, p"]
    by_accuracy = compute(found, draws=300, seed=0, prevalence=0.126, sensitivity=0.9, primary="accuracy")
    assert list(rows.primary_table(by_accuracy))[2] == "accuracy, difference"
    assert "by its accuracy on validation, reaches an accuracy of 0." in verdict(by_accuracy, 0, 0)[0]
    assert len(rows.thresholds_table(results)) == 6
    by_mode = rows.subgroup_table(results, results.best).query("by == 'file'")
    assert by_mode["subgroup"].tolist() == ["PNG L", "PNG RGB"]
    assert by_mode["pictures"].tolist() == [30, 30]


def test_no_ranking_where_there_is_none(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name, strength=1.0) for name in ("resnet18", "densenet121")]
    results = compute(read_experiment(runs), draws=300, seed=0, prevalence=0.1, sensitivity=0.9)
    lines = verdict(results, leaks=0, contradictions=0)
    assert any("in AUROC" in line and "is not significant" in line for line in lines)
    assert "These test pictures are too few to rank the models." in lines


def test_the_best_on_validation_leads_whatever_its_test_pictures_say(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, name, strength=1.0) for name in ("resnet18", "densenet121")]
    for run, on_val, on_test in ((runs[0], 3.0, 0.5), (runs[1], 0.5, 3.0)):
        table = run.read_table("predictions.csv")
        factor = np.where(table["split"] == "val", on_val, on_test)
        write_logits(run, table["logit"] + factor * (2.0 * table["label"] - 1.0))
    results = compute(read_experiment(runs), draws=300, seed=0, prevalence=0.1, sensitivity=0.9)
    assert [result.system.name for result in results.models] == ["resnet18", "densenet121"]
    assert results.best.intervals["auroc"].value < results.models[1].intervals["auroc"].value
    assert results.on_test is not None
    assert results.on_test.number == 1
    assert results.on_test.corrected.value <= results.on_test.naive.value
    lines = verdict(results, leaks=0, contradictions=0)
    assert lines[0].startswith("resnet18, the best of 2 models by its AUROC on validation, reaches")
    [behind] = [
        place for place, line in enumerate(lines) if line.startswith("Its difference from densenet121 in AUROC, -0.")
    ]
    assert "On the test pictures, densenet121 has the best AUROC" in lines[behind + 2]  # after what "its" is said of


def test_a_model_that_calls_everything_alike_is_called_that(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "resnet18")
    table = run.read_table("predictions.csv")
    write_logits(run, pd.Series(0.1 + 1e-3 * np.arange(len(table)) % 7e-3))
    results = compute(read_experiment([run]), draws=200, seed=0, prevalence=0.1, sensitivity=0.9)
    lines = verdict(results, 0, 0)
    assert "At a threshold of 0.5 it calls every picture osteoporosis." in lines
    assert "Its accuracy is no better than that of always calling the larger class, 0.50." in lines
    assert "Its AUROC does not differ significantly from chance: its interval includes 0.50." in lines
    assert "accuracy, by run" not in rows.methods_table(results)  # one run has no range
    assert lines[0].startswith("resnet18 reaches an AUROC of ")
    assert "The primary endpoint is the AUROC; everything else is exploratory." in lines


def test_worse_than_width_and_height_is_called_that(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "resnet18")
    table, manifest_ = run.read_table("predictions.csv"), run.read_manifest()
    write_logits(run, -3.0 * (2.0 * table["label"] - 1.0) + table["logit"])
    run.write_manifest(manifest_.assign(height=400 + 300 * manifest_["label"]))
    lines = verdict(compute(read_experiment([run]), draws=200, seed=0, prevalence=0.1, sensitivity=0.9), 0, 0)
    assert "resnet18 is significantly worse (p" in next(line for line in lines if "width and height" in line)


def test_offsets_between_folds_are_named_and_leave_the_headline_alone(sweep: list[Run]) -> None:
    before = compute(read_experiment(sweep[6:]), draws=100, seed=0, prevalence=0.1, sensitivity=0.9).best
    for fold, run in enumerate(sweep[6:]):
        table = run.read_table("predictions.csv")
        write_logits(run, table["logit"] + 4.0 * (fold % 3))
    results = compute(read_experiment(sweep[6:]), draws=100, seed=0, prevalence=0.1, sensitivity=0.9)
    assert results.best.intervals["auroc"] == before.intervals["auroc"]
    assert results.best.pooled is not None
    assert results.best.pooled.value < before.intervals["auroc"].value - 0.1
    assert any(line.startswith("Over all pictures, whichever network tested them") for line in verdict(results, 0, 0))
    assert "AUROC, pooled over networks" in rows.methods_table(results)


def test_p_values_are_printed_as_journals_do() -> None:
    printed = [rows.p_value(p) for p in (float("nan"), 0.0002, 0.0123, 0.0498, 0.0502, 1.0)]
    assert printed == ["-", "< 0.001", "0.012", "0.0498", "0.0502", "1.000"]


def test_wilson_stands_beside_the_value_that_it_is_of(sweep: list[Run]) -> None:
    result = compute(read_experiment(sweep), draws=100, seed=0, prevalence=0.1, sensitivity=0.9).best
    for name in ("accuracy", "sensitivity", "specificity"):
        assert result.wilson[name].value == pytest.approx(result.intervals[name].value)
    table = sweep[0].read_manifest()
    groups = dict(zip(table["image_id"], [f"g{i // 2}" for i in range(PICTURES)], strict=True))
    for run in sweep:
        predictions, of_run = run.read_predictions(), run.read_manifest()
        run.write_predictions(predictions.assign(group=predictions["image_id"].map(groups)))
        run.write_manifest(of_run.assign(group=of_run["image_id"].map(groups)))
    assert compute(read_experiment(sweep), draws=100, seed=0, prevalence=0.1, sensitivity=0.9).best.wilson == {}


def test_the_surest_mistakes_come_first(sweep: list[Run]) -> None:
    results = compute(read_experiment(sweep), draws=100, seed=0, prevalence=0.1, sensitivity=0.9)
    weak = next(result for result in results.models if result.system.name == "resnet18")
    found = rows.mistakes(results, weak, 5)
    assert len(found) == 5
    assert ((found["probability"] > 0.5) != (found["label"] == 1)).all()
    assert (found["probability"] - 0.5).abs().is_monotonic_decreasing


def test_shuffled_test_labels_change_no_temperature_and_no_threshold(sweep: list[Run]) -> None:
    before = read_experiment(sweep)
    rng = np.random.default_rng(0)
    for run in sweep:
        tables = [run.read_table("predictions.csv"), run.read_manifest()]
        on_test = tables[1]["split"] == "test"
        image_ids = tables[1].loc[on_test, "image_id"]
        labels = dict(zip(image_ids, rng.permutation(tables[1].loc[on_test, "label"]), strict=True))
        predictions, of_manifest = (
            t.assign(label=t["image_id"].map(labels).fillna(t["label"]).astype("Int64")) for t in tables
        )
        run.write_predictions(predictions)
        run.write_manifest(of_manifest.assign(class_name=of_manifest["label"].map({0: "normal", 1: "osteoporosis"})))
    after = read_experiment(sweep)
    for one, other in zip(before.systems[:-1], after.systems[:-1], strict=True):
        assert np.array_equal(one.calibrated, other.calibrated)
        for rule, thresholds in one.thresholds.items():
            assert np.array_equal(thresholds, other.thresholds[rule]), rule


def test_runs_with_one_class_in_validation_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "resnet18")
    predictions, manifest = run.read_table("predictions.csv"), run.read_manifest()
    for table, write in ((predictions, run.write_predictions), (manifest, run.write_manifest)):
        write(table[(table["split"] != "val") | (table["label"] == 1)])
    with pytest.raises(UserError, match="run a has no validation pictures of both classes"):
        read_experiment([run])
    run.write_predictions(predictions)
    run.write_manifest(manifest[(manifest["split"] != "train") | (manifest["label"] == 1)])
    with pytest.raises(UserError, match="run a has no training pictures of both classes, without which nothing is"):
        read_experiment([run])


def test_runs_without_test_predictions_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", "resnet18")
    table = run.read_table("predictions.csv")
    run.write_predictions(table[table["split"] == "val"])
    with pytest.raises(UserError, match=r"predictions.csv is damaged: it lacks 20 pictures, \S+ of split test first"):
        read_experiment([run])
    assert json.loads((tmp_path / "a" / "status.json").read_text())["state"] == "done"
