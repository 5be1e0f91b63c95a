"""Splits: never across a group, balanced, and the same everywhere."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from osteo.config import SplitConfig
from osteo.data.manifest import typed
from osteo.data.splits import assign_splits, deal
from osteo.errors import UserError


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
