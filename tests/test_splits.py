"""Splits: never across a group, balanced, and the same everywhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from osteo.config import SplitConfig
from osteo.data.manifest import REPEATED, exclude, typed
from osteo.data.splits import assign_splits, check_test_source, deal
from osteo.errors import UserError
from osteo.task import CLASS_NAMES, TASKS


def manifest(counts: dict[tuple[str, int], int], group_size: int = 1) -> pd.DataFrame:
    rows = [
        {"image_id": f"{source}/{label}/{i}.png", "source": source, "label": label, "sha256": f"{source}{label}{i}"}
        for (source, label), count in counts.items()
        for i in range(count)
    ]
    table = typed(pd.DataFrame(rows))
    number = table.groupby(["source", "label"]).cumcount() // group_size
    return table.assign(group=table["source"] + table["label"].astype("string") + "-" + number.astype("string"))


PAPER = {("kaggle", 0): 186, ("kaggle", 1): 186, ("mendeley", 0): 36, ("mendeley", 1): 49}


def test_table_1_of_the_paper_to_the_picture() -> None:
    config = SplitConfig(grouped=False, stratify=["label"])
    counts = assign_splits(manifest(PAPER), config).groupby(["split", "label"]).size()
    assert counts.to_dict() == {
        ("train", 0): 155, ("val", 0): 44, ("test", 0): 23,
        ("train", 1): 164, ("val", 1): 47, ("test", 1): 24,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("group_size", [1, 2, 3, 5])
def test_no_group_crosses_a_split(seed: int, group_size: int) -> None:
    table = manifest(PAPER, group_size)
    for config in (SplitConfig(seed=seed), SplitConfig(seed=seed, fold=seed % 5)):
        sides = assign_splits(table, config).groupby("group")["split"].nunique()
        assert (sides == 1).all(), f"groups on several sides: {list(sides[sides > 1].index)}"


@pytest.mark.parametrize("seed", range(3))
def test_every_picture_tests_in_exactly_one_fold_and_folds_are_alike(seed: int) -> None:
    table = manifest(PAPER)
    tested = [assign_splits(table, SplitConfig(seed=seed, fold=fold)) for fold in range(5)]
    times = sum((fold["split"] == "test").astype(int) for fold in tested)
    assert (times == 1).all()
    for (source, label), count in PAPER.items():
        sizes = [int(((f["split"] == "test") & (f["source"] == source) & (f["label"] == label)).sum()) for f in tested]
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == count
    totals = [int((fold["split"] == "test").sum()) for fold in tested]
    assert max(totals) - min(totals) <= 1
    assert all({"train", "val", "test"} == set(fold["split"]) for fold in tested)


def test_folds_stay_balanced_when_pictures_come_in_groups() -> None:
    rng = np.random.default_rng(0)
    table = manifest(PAPER)
    # every fifth picture joins a group of up to four of its own label
    joined = table["group"].where(rng.random(len(table)) > 0.2, table["label"].astype("string") + "-cluster")
    numbers = joined.groupby(joined).cumcount() // 4
    table = table.assign(group=joined.where(~joined.str.endswith("cluster"), joined + numbers.astype("string")))
    part = deal(table, [1.0] * 5, SplitConfig())
    for label in (0, 1):
        sizes = part[table["label"] == label].value_counts()
        assert sizes.max() - sizes.min() <= 2  # four strata, each within one picture of the best


def test_the_seed_decides_and_nothing_else() -> None:
    table = manifest(PAPER)
    one = assign_splits(table, SplitConfig(seed=1)).set_index("image_id")["split"]
    shuffled = assign_splits(table.sample(frac=1.0, random_state=0), SplitConfig(seed=1)).set_index("image_id")["split"]
    assert (one == shuffled.reindex(one.index)).all()
    other = assign_splits(table, SplitConfig(seed=2)).set_index("image_id")["split"]
    assert 0.3 < (one != other).mean() < 0.6
    assert list(one.head(8)) == ["test", "train", "train", "test", "test", "val", "val", "val"]


def test_leave_one_source_out() -> None:
    table = assign_splits(manifest(PAPER), SplitConfig(test_source="mendeley"))
    assert set(table.loc[table["source"] == "mendeley", "split"]) == {"test"}
    assert set(table.loc[table["source"] == "kaggle", "split"]) == {"train", "val"}
    with pytest.raises(UserError, match="test_source 'mendelei' is unknown; choose one of: kaggle, mendeley"):
        assign_splits(manifest(PAPER), SplitConfig(test_source="mendelei"))
    again = assign_splits(manifest(PAPER), SplitConfig(test_source="mendeley", fold=3))  # a fold numbers the repeat
    assert (again["split"] == table["split"]).all()


def test_a_given_split_is_taken_as_it_is(tmp_path: object) -> None:
    table = manifest(PAPER)
    drawn = assign_splits(table, SplitConfig(seed=9))
    path = f"{tmp_path}/split.csv"
    drawn[["image_id", "split"]].to_csv(path, index=False)
    assert (assign_splits(table, SplitConfig(seed=1, file=path))["split"] == drawn["split"]).all()
    drawn.loc[0, "split"] = "trian"
    drawn.to_csv(path, index=False)
    with pytest.raises(UserError, match="split 'trian' is unknown; choose one of: train, val, test"):
        assign_splits(table, SplitConfig(file=path))
    drawn[["image_id", "split"]].iloc[2:].to_csv(path, index=False)
    with pytest.raises(UserError, match=r"no row for 2 pictures, kaggle/0/0.png first"):
        assign_splits(table, SplitConfig(file=path))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(UserError, match="the val split has no normal pictures"):
        assign_splits(manifest({("kaggle", 0): 3, ("kaggle", 1): 3}), SplitConfig())


def test_excluded_rows_stay_excluded() -> None:
    table = manifest(PAPER)
    table.loc[:9, ["split", "reason"]] = ["excluded", "not a picture"]
    done = assign_splits(table, replace(SplitConfig(), fold=0))
    assert set(done.loc[:9, "split"]) == {"excluded"}
    assert not (done.loc[10:, "split"] == "excluded").any()


def test_a_picture_in_two_splits_of_a_file_is_named(tmp_path: Path) -> None:
    table, path = manifest(PAPER), tmp_path / "split.csv"
    drawn = assign_splits(table, SplitConfig())[["image_id", "split"]]
    pd.concat([drawn, drawn.head(5)]).to_csv(path, index=False)  # a row twice is no contradiction
    assert (assign_splits(table, SplitConfig(file=str(path)))["split"] == drawn["split"]).all()
    moved = drawn.iloc[[3, 7]].assign(split=["val", "train"])
    pd.concat([drawn, moved]).to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        assign_splits(table, SplitConfig(file=str(path)))
    assert str(caught.value) == (
        "data.split.file=split.csv lists 2 pictures in several splits, kaggle/0/3.png first (train and val);"
        " keep one row of each"
    )


def test_a_file_that_names_pictures_of_another_data_set_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table, path = manifest(PAPER), tmp_path / "split.csv"
    assign_splits(table, SplitConfig())[["image_id", "split"]].to_csv(path, index=False)
    fewer = table.drop(index=[1, 2]).reset_index(drop=True)
    assign_splits(fewer, SplitConfig(file=str(path)))
    assert caplog.messages == [
        "data.split.file=split.csv names 2 pictures that the data does not have, kaggle/0/1.png first"
    ]


def ready_made(*folders: str, count: int = 4) -> pd.DataFrame:
    rows = [
        {"image_id": f"s/{folder}/{label}/{i}.png", "source": "s", "label": label, "class_name": CLASS_NAMES[label],
         "sha256": f"{folder}{label}{i}", "group": f"{folder}{label}{i}"}
        for folder in folders for label in (0, 1) for i in range(count)
    ]  # fmt: skip
    return typed(pd.DataFrame(rows))


def test_a_ready_made_split_is_taken_or_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    table = ready_made("Training", "deep/valid", "TEST", count=8)
    assign_splits(table, SplitConfig())
    assert caplog.messages == [
        "48 of 48 pictures are in folders of a ready-made split (train, val, test), which is not used:"
        " the pictures are split"
        " anew; data.split.ready_made=true uses that split"
    ]
    caplog.clear()
    taken = assign_splits(table, SplitConfig(ready_made=True))
    assert list(taken["split"]) == ["train"] * 16 + ["val"] * 16 + ["test"] * 16
    assert caplog.messages == []
    assign_splits(ready_made("train", count=8), SplitConfig())  # one folder is no split
    assert caplog.messages == []


def test_a_ready_made_split_without_validation_gets_one_from_training() -> None:
    table = ready_made("train", "test", count=9)
    taken = assign_splits(table, SplitConfig(ready_made=True))
    folder = table["image_id"].str.split("/").str[1]
    assert set(taken.loc[folder == "test", "split"]) == {"test"}
    assert taken.loc[folder == "train", "split"].value_counts().to_dict() == {"train": 14, "val": 4}


def test_a_ready_made_split_is_that_of_the_repeated_files_too() -> None:
    """As in the Kaggle archive: every picture in a class folder, and again in train, val or test."""
    table = pd.concat([ready_made("train", "val", "test")] * 2, ignore_index=True)
    table.loc[:23, "image_id"] = (
        table.loc[:23, "image_id"].str.replace(r"^s/\w+/", "s/", regex=True) + "-" + table.loc[:23, "sha256"]
    )
    table = exclude(table, pd.Series(table.index >= 24), REPEATED)
    taken = assign_splits(table, SplitConfig(ready_made=True))
    assert list(taken.loc[:23, "split"]) == ["train"] * 8 + ["val"] * 8 + ["test"] * 8


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("train", "test", "more"), "8 pictures, s/more/0/0.png first, in no folder named train, training, val"),
        (("train", "val"), "no picture lies in a folder named test or testing"),
    ],
)
def test_a_ready_made_split_that_is_none_is_one_line(folders: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        assign_splits(ready_made(*folders), SplitConfig(ready_made=True))


def test_a_source_without_osteopenia_tests_what_three_classes_have_taught() -> None:
    table = manifest(
        {("kaggle", 0): 20, ("kaggle", 2): 20, ("mendeley", 0): 20, ("mendeley", 1): 20, ("mendeley", 2): 20}
    )
    three = TASKS["three_class"]
    check_test_source(table, "kaggle", three)
    split = assign_splits(table, SplitConfig(test_source="kaggle"), three)
    assert set(split.loc[split["split"] == "test", "source"]) == {"kaggle"}
    for name in ("train", "val"):
        assert set(split.loc[split["split"] == name, "label"]) == {0, 1, 2}
    with pytest.raises(UserError, match="the train split has no osteopenia pictures"):
        assign_splits(table[table["source"] == "kaggle"], SplitConfig(), three)
    whole = assign_splits(table[table["source"] == "kaggle"], SplitConfig(), three, complete=False)
    assert (whole["split"] == "test").sum() == 4


@pytest.mark.parametrize(
    ("counts", "source", "message"),
    [
        ({("k", 0): 2, ("k", 2): 2, ("m", 1): 2, ("m", 2): 2}, "k", "leaves no normal pictures to learn from"),
        ({("k", 0): 2, ("k", 2): 2, ("m", 0): 2, ("m", 1): 2, ("m", 2): 2}, "m", "leaves no osteopenia pictures"),
        ({("k", 0): 2, ("m", 0): 2, ("m", 1): 2, ("m", 2): 2}, "k", "k has no osteoporosis pictures to test on"),
        ({("k", 2): 2, ("m", 0): 2, ("m", 1): 2, ("m", 2): 2}, "k", "k has no normal or osteopenia pictures to test"),
    ],
)
def test_a_source_that_cannot_be_left_out_is_one_line(
    counts: dict[tuple[str, int], int], source: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_test_source(manifest(counts), source, TASKS["three_class"])


def test_a_source_of_which_nothing_can_be_used_is_one_line() -> None:
    table = manifest({("k", 0): 2, ("k", 2): 2, ("m", 0): 2, ("m", 1): 2, ("m", 2): 2})
    with pytest.raises(UserError, match="test_source=k has no picture that task=t_score can use: no T-score"):
        check_test_source(exclude(table, table["source"] == "k", "no T-score"), "k", TASKS["t_score"])
