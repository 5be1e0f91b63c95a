"""The protocol ladder: variants made before a split, five protocols, and the section of the report."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from benchmarks.ladder import plant
from osteo.app.hydra import CONF
from osteo.checks import check
from osteo.command_settings import EvaluateConfig, PrepareConfig, ReportConfig
from osteo.config import PAPER_VARIANTS, AugmentConfig, Config, DataConfig, SplitConfig
from osteo.data.datamodule import KneeDataModule, unit
from osteo.data.manifest import VARIANT, originals, read_manifest
from osteo.data.prepare import Prepared, prepare
from osteo.data.splits import copied_to_training, leaks
from osteo.errors import UserError
from osteo.evaluation.metrics import measure, metric_intervals
from osteo.evaluation.systems import Experiment, read_experiment
from osteo.records.record import Run
from osteo.report.page import read_report
from osteo.report.paper import table_1
from osteo.report.radiographs import PictureFindings
from osteo.report.sections import ladder
from osteo.training.augment import make_augmentation
from tests.test_systems import PICTURES, write_run

SMALL = ["data.phantom.kaggle={normal: 10, osteoporosis: 10}",
         "data.phantom.mendeley={normal: 5, osteopenia: 0, osteoporosis: 5}"]  # fmt: skip
PAPER = AugmentConfig(name="paper", brightness=0.05, contrast=0.1)
FIRST = SplitConfig(variants_first=True, grouped=False, stratify=["label"], fold=0)


@pytest.fixture(scope="module", autouse=True)
def few_trees() -> Iterator[None]:
    """What width and height tell is another test's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("osteo.evaluation.systems.TREES", 2)
        yield


@pytest.fixture(scope="module")
def prepared(archives: Path) -> Prepared:
    """Twenty-eight phantoms in seven variants each."""
    return prepare(DataConfig(name="kaggle", kaggle=str(archives / "kaggle"), image_size=32, split=FIRST))


def test_a_picture_is_seven_rows_that_the_split_deals_one_by_one(prepared: Prepared) -> None:
    manifest = prepared.manifest
    assert len(manifest) == 28 * 7
    assert len(originals(manifest)) == 28
    assert manifest["image_id"].is_unique
    first = manifest[manifest["path"] == manifest["path"].iloc[0]]
    assert [image_id.partition("#")[2] for image_id in first["image_id"]] == ["", *PAPER_VARIANTS[1:]]
    assert first[VARIANT].tolist() == list(range(7))
    assert first["sha256"].nunique() == first["group"].nunique() == 1
    # 196 rows in five folds, each class in seven of nine for training, rounded down: 98 - 20, of which 60 train
    counts = manifest.groupby("split").size()
    assert counts.to_dict() == {"test": 40, "train": 120, "val": 36}
    assert len(leaks(manifest)["pictures"]) == 28
    tested = manifest[manifest["split"] == "test"]
    assert copied_to_training(manifest) == len(tested) == 40
    assert len(leaks(manifest)["clusters"]) == len(set(manifest["group"]))


def test_the_record_keeps_the_variants(prepared: Prepared, tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_manifest(prepared.manifest)
    assert run.read_manifest()[VARIANT].tolist() == prepared.manifest[VARIANT].tolist()
    assert VARIANT not in originals(prepared.manifest).drop(columns=VARIANT)
    table = table_1(prepared.manifest, variants=1, augment_val=False).set_index("Sets")
    assert table.loc["Total", "Total"] == 28 * 7
    assert table.loc[["Original normal", "Original osteoporosis"], "Total"].sum() == 28
    assert table.loc["Augmented normal", "Test"] > 0
    assert read_manifest(tmp_path / "manifest.csv")["image_id"].tolist() == prepared.manifest["image_id"].tolist()


@pytest.mark.parametrize(("split", "stage"), [("train", "training"), ("val", "validating"), ("test", "testing")])
def test_every_row_is_seen_in_its_own_variant(prepared: Prepared, split: str, stage: str) -> None:
    augment = make_augmentation(PAPER, side=32)
    datamodule = KneeDataModule(prepared, batch_size=8, augment=augment, variants=augment.variants, augment_val=True)
    datamodule.trainer = Trainer(accelerator="cpu", logger=False, barebones=True)
    rows = prepared.manifest[prepared.manifest["split"] == split].reset_index(drop=True)
    loader: Any = getattr(datamodule, f"{split}_dataloader")()
    assert len(loader.dataset) == len(rows)
    setattr(datamodule.trainer, stage, True)
    batch = datamodule.on_after_batch_transfer(torch.arange(len(rows)), 0)
    stored = torch.from_numpy(prepared.store.pictures[:, [prepared.store.rows[sha] for sha in rows["sha256"]]])
    variants = torch.tensor(rows[VARIANT].to_numpy(int))
    expected = augment(unit(stored[0]), unit(stored[1]), variants, torch.zeros(len(rows), dtype=torch.int64))
    assert torch.equal(batch.pictures, expected)
    assert batch.labels.tolist() == rows["label"].tolist()
    assert len(set(rows[VARIANT])) == 7
    differs = (batch.pictures != unit(stored[0])).flatten(1).any(1)
    assert differs.tolist() == (rows[VARIANT] > 0).tolist()


def test_variants_need_the_paper_s_augmentation(prepared: Prepared) -> None:
    with pytest.raises(UserError, match=r"data\.split\.variants_first=true needs augment=paper"):
        KneeDataModule(prepared, batch_size=8)


def test_planted_copies_leak_by_picture_and_are_gone_without(tmp_path: Path) -> None:
    plant(tmp_path / "k", pictures=12, copied=6, contradictory=2)
    by_picture = DataConfig(name="kaggle", kaggle=str(tmp_path / "k"), image_size=32,
                            split=SplitConfig(grouped=False, stratify=["label"], fold=0, folds=2))  # fmt: skip
    loose = prepare(by_picture).manifest
    assert (len(loose), loose["group"].nunique(), loose["sha256"].nunique()) == (18, 12, 15)  # three are altered
    assert 0 < len(leaks(loose)["clusters"]) <= 6
    used = prepare(replace(by_picture, clean=True)).manifest.query("split != 'excluded'")
    assert len(used) == used["group"].nunique() == 10  # of two, both copies are set aside
    assert leaks(used)["clusters"] == []


def config(**split: Any) -> Config:
    made = Config(augment=PAPER)
    made.data.split = replace(FIRST, **split)
    return made


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (config(grouped=True), "goes with data.split.grouped=false, and not with a given split"),
        (config(fold=None, test_source="kaggle"), "goes with data.split.grouped=false, and not with a given split"),
        (replace(config(), augment=AugmentConfig()), "it needs augment=paper"),
        (replace(config(), augment=replace(PAPER, val=True)), "goes neither with augment.val=true nor with covariates"),
        (PrepareConfig(data=config().data), "data.split.variants_first=true works with osteo train only"),
        (EvaluateConfig(data=config().data), "data.split.variants_first=true works with osteo train only"),
        (config(variants_first=False, ready_made=True), "with a test_source, the fold is the number of the repeat"),
    ],
)
def test_what_does_not_go_with_variants_first_is_one_line(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(given)


def test_one_source_has_no_other_to_test_on(tmp_path: Path) -> None:
    data = DataConfig(name="kaggle", kaggle=str(tmp_path), split=SplitConfig(test_source="mendeley", fold=0))
    with pytest.raises(UserError, match="test_source=mendeley leaves nothing to test on: data=kaggle is a single"):
        check(Config(data=data))
    with pytest.raises(UserError, match="test_source=kaggle leaves nothing to train on: data=kaggle is a single"):
        check(Config(data=replace(data, split=SplitConfig(test_source="kaggle"))))


EXPECTED = {
    "augmented_first": (False, False, ["label"], None, True),
    "by_picture": (False, False, ["label"], None, False),
    "no_copies": (True, False, ["label"], None, False),
    "grouped_folds": (True, True, ["label", "source"], None, False),
    "other_source": (True, True, ["label", "source"], "mendeley", False),
}
"""clean, grouped, stratify, test_source, variants_first"""


def test_only_the_protocol_changes_from_rung_to_rung(osteo: Callable[..., Any]) -> None:
    # of a system of the literature whose recipe is its own
    words = ["experiment=ladder", "experiment/literature=alrabai2025", "data=phantom", "data.split.fold=3"]
    chosen = {
        name: yaml.safe_load(osteo("train", "--cfg", "job", "--resolve", *words, f"protocol={name}").out)
        for name in (*ladder.PROTOCOLS, "null")
    }
    without = chosen.pop("null")
    assert without["protocol"] is None
    same = ("seed", "model", "optimizer", "loss", "trainer", "callbacks", "augment")
    for name, of_name in chosen.items():
        split = of_name["data"]["split"]
        keys = ("grouped", "stratify", "test_source", "variants_first")
        assert (of_name["data"]["clean"], *(split[key] for key in keys)) == EXPECTED[name]
        assert (of_name["protocol"], split["fold"], split["folds"]) == (name, 3, 5)
        assert split["seed"] == (3 if name == "other_source" else 0)
        assert (of_name["augment"]["name"], of_name["augment"]["val"]) == ("paper", False)
        assert {key: of_name[key] for key in same} == {key: without[key] for key in same}


def test_the_ladder_sweeps_every_protocol_that_is_shipped() -> None:
    swept = yaml.safe_load((CONF / "experiment" / "ladder.yaml").read_text())["hydra"]["sweeper"]["params"]
    assert swept["protocol"].split(",") == list(ladder.PROTOCOLS)
    assert {path.stem for path in (CONF / "protocol").glob("*.yaml")} == set(ladder.PROTOCOLS) == set(ladder.MAIN)


CLAIM = {"source": "A", "classes": 2, "accuracy": 0.97, "read": "abstract"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """A claimed system and another, better by picture, where pictures i and i + 2 of folds 0 and 1 are copies."""
    folder, made = tmp_path_factory.mktemp("ladder"), []
    for protocol, strength in (("grouped_folds", 0.4), ("by_picture", 3.0)):
        for backbone in ("resnet18", "densenet121"):
            for fold in range(3):
                claim = CLAIM | {"source": backbone[:1].upper()}
                run = write_run(folder / f"{protocol}_{backbone}_{fold}", backbone, fold=fold, strength=strength,
                                protocol=protocol, claim=claim)  # fmt: skip
                if protocol == "by_picture":
                    number = np.arange(PICTURES)
                    copy_of = pd.Series(np.where(number % 6 // 2 == 1, number - 2, number), index=number)
                    for table, write in ((run.read_manifest(), run.write_manifest),
                                         (run.read_table("predictions.csv"), run.write_predictions)):  # fmt: skip
                        numbers = table["image_id"].str.extract(r"(\d+)\.png")[0].astype(int)
                        write(table.assign(group="g" + numbers.map(copy_of).astype(str)))
                made.append(run)
    return made


@pytest.fixture(scope="module")
def experiments(runs: list[Run]) -> dict[str, Experiment]:
    return ladder.read_by_protocol(runs, sensitivity=0.9)


@pytest.fixture(scope="module")
def found(experiments: Mapping[str, Experiment]) -> ladder.Findings:
    return ladder.find(experiments, draws=200, seed=0)


@pytest.mark.slow
def test_every_protocol_is_an_experiment_of_its_own(
    runs: list[Run], experiments: Mapping[str, Experiment], found: ladder.Findings
) -> None:
    assert list(experiments) == ["by_picture", "grouped_folds"]
    assert ladder.main_protocol(experiments) == "grouped_folds"
    assert [experiment.design.rpartition(" that ")[2] for experiment in experiments.values()] == [
        "may have seen a copy of it", "never saw it"
    ]  # fmt: skip
    assert [(rung.protocol, rung.system) for rung in found.rungs] == [
        (protocol, system) for protocol in experiments for system in ("R: resnet18", "D: densenet121")
    ]
    alone = read_experiment([run for run in runs if run.read_settings().protocol == "by_picture"])
    for rung, system in zip(found.rungs[:2], alone.of_kind("model"), strict=True):
        expected = measure(alone.labels, system.probabilities, networks=system.networks)
        for name in ("auroc", "accuracy", "f1_macro"):
            assert rung.intervals[name].value == pytest.approx(expected[name])
        for fold in range(3):
            where = system.networks[0] == fold
            right = (system.probabilities[0, where] > 0.5) == (alone.labels[where] == 1)
            assert rung.by_run["accuracy"][fold] == pytest.approx(right.mean())
    assert found.rungs[0].intervals["auroc"].value > 0.95 > found.rungs[2].intervals["auroc"].value
    assert ladder.find({"by_picture": alone}, draws=100, seed=0) == ladder.Findings()  # one protocol is no ladder


def test_copies_in_training_are_counted(found: ladder.Findings) -> None:
    # fold 0 tests pictures whose copies validate, fold 1 tests those whose copies train, those of fold 2 have none
    table = found.tables["ladder"]
    assert table["protocol"].tolist() == ["by_picture"] * 2 + ["grouped_folds"] * 2
    assert table["with a copy in training"].tolist() == ["20 of 60"] * 2 + ["0 of 60"] * 2
    assert table["tested"].tolist() == [60] * 4
    assert table["groups"].tolist() == [40, 40, 60, 60]
    assert table["accuracy, claimed"].tolist() == [0.97] * 4
    assert "AUROC, claimed" not in table
    assert found.verdict == [
        "Everything here is about protocol=grouped_folds; the results of protocol=by_picture are in the section"
        " Protocol ladder. Nothing is pooled or tested across protocols."
    ]


def test_intervals_take_a_picture_and_its_copy_as_one(
    experiments: Mapping[str, Experiment], found: ladder.Findings
) -> None:
    loose = experiments["by_picture"]
    assert len(set(loose.groups)) == 40
    system = loose.of_kind("model")[0]
    by_group, by_picture = (
        metric_intervals(
            loose.labels, system.probabilities, groups, networks=system.networks, draws=200, seed=0, names=["accuracy"]
        )["accuracy"]
        for groups in (loose.groups, list(loose.pictures["image_id"]))
    )
    assert found.rungs[0].intervals["accuracy"] == by_group != by_picture


def test_the_claims_have_a_column_for_every_other_protocol(found: ladder.Findings) -> None:
    shown = {"system": ["D: densenet121", "R: resnet18", "width and height alone"],
             "metric": ["AUROC", "accuracy", "accuracy"], "measured": list("abc"), "pictures": 60}  # fmt: skip
    claims = ladder.beside_claims(pd.DataFrame(shown), found.rungs)
    assert list(claims) == ["system", "metric", "measured", "measured, protocol=by_picture", "pictures"]
    table = found.tables["ladder"]
    expected = [table["AUROC"][1], table["accuracy"][0], "-"]
    assert claims["measured, protocol=by_picture"].tolist() == expected
    assert list(ladder.beside_claims(pd.DataFrame(shown), [])) == list(shown)


def test_the_figure_has_a_line_and_a_claim_per_system(found: ladder.Findings) -> None:
    area, accuracy = found.figures["ladder"].axes
    texts = [label.get_text() for label in accuracy.get_xticklabels()]
    assert texts == ["by\npicture\nn = 60\n33% with\na copy", "grouped\nfolds\nn = 60\n0% with\na copy"]
    named = {line.get_label() for line in accuracy.get_lines()}
    assert {"R: resnet18", "R: resnet18, claimed", "D: densenet121", "D: densenet121, claimed"} <= named
    assert not any("claimed" in str(line.get_label()) for line in area.get_lines())
    drawn = next(line for line in area.get_lines() if line.get_label() == "R: resnet18")
    assert list(np.asarray(drawn.get_ydata())) == [found.rungs[place].intervals["auroc"].value for place in (0, 2)]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a sweep of several protocols."""
    return tmp_path_factory.mktemp("sweep") / "s"


@pytest.mark.slow
def test_a_ladder_is_trained_and_reported(
    osteo: Callable[..., Any], sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocols = ["augmented_first", "grouped_folds", "other_source"]
    words = ["experiment=ladder", f"protocol={','.join(protocols)}", "data=phantom", *SMALL, "data.split.fold=0,1",
             "data.split.folds=2", "experiment/literature=kumar2024", "model.backbone=gru/test_resnet",
             "model.pretrained=false", "data.image_size=32", "data.batch_size=8",
             "trainer.max_epochs=1", "trainer.limit_train_batches=1", "trainer.accelerator=cpu",
             "logger=null"]  # fmt: skip
    done = osteo("train", "-m", *words, f"output_dir={sweep}")
    assert done.code == 0, done.err
    assert "augmented_first" in done.out
    board = pd.read_csv(sweep / "leaderboard.csv")
    assert board["protocol"].value_counts().to_dict() == dict.fromkeys(protocols, 2)
    manifests = [Run(sweep / str(run)).read_manifest() for run in range(6)]
    assert [len(leaks(manifest)["pictures"]) for manifest in manifests] == [30, 30, 0, 0, 0, 0]
    assert [len(leaks(manifest)["clusters"]) for manifest in manifests[2:]] == [0] * 4
    assert set(manifests[4].loc[manifests[4]["split"] == "test", "source"]) == {"mendeley"}
    assert (manifests[4]["split"] != manifests[5]["split"]).any()  # a fold is a repeat there
    monkeypatch.setattr("osteo.report.page.inspect_pictures", lambda *_: PictureFindings())
    report = read_report(ReportConfig(runs=str(sweep), draws=100))
    table = report.files["ladder"]
    assert table["protocol"].tolist() == protocols
    assert table[["tested", "groups"]].to_numpy().tolist() == [[210, 30], [30, 30], [10, 10]]
    assert table["with a copy in training"].tolist()[1:] == ["0 of 30", "0 of 20"]
    assert report.figures["ladder"].axes
    claims = report.files["literature"].set_index("system").loc["Athira and Kumar 2024: gru/test_resnet"]
    assert claims["measured, protocol=augmented_first"] == table["accuracy"][0]
    assert claims["measured"] == table["accuracy"][1]
    page = report.html()
    assert '<h2 id="ladder">Protocol ladder</h2>' in page
    assert '<li><a href="#ladder">Protocol ladder</a></li>' in page
    assert ladder.CAPTION in page
    assert "Everything here is about protocol=grouped_folds;" in page
    assert "2-fold cross-validation, once" in page
    assert "incomplete" not in page


@pytest.mark.slow
def test_what_was_trained_on_variants_is_reported_and_answers(osteo: Callable[..., Any], sweep: Path) -> None:
    report = read_report(ReportConfig(runs=str(sweep / "0"), draws=100))
    text = report.markdown()
    assert "Sections that need the pictures are left out: the variants that were tested are in no file." in text
    assert "## Protocol ladder" not in text
    assert report.tables["flow"]["found"].tolist() == [10, 10, 5, 5]  # pictures, not their variants
    done = osteo("evaluate", f"ckpt={sweep / '0'}", "data=phantom", *SMALL, "split=all", "output_dir=e")
    assert done.code == 0, done.err
    assert "was trained on 30 of these 30 pictures: the result is too optimistic" in done.err + done.out
