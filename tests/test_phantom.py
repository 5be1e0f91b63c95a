"""Synthetic radiographs: the layouts of the real archives, the same every time, and no giveaway."""

import re
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from osteo.checks import check_data
from osteo.config import DataConfig, PhantomConfig
from osteo.data import phantom
from osteo.data.phantom import CHECKSUMS, draw, write_archives
from osteo.data.prepare import read_sources
from osteo.errors import UserError
from osteo.reading.pictures import decode


def content(root: Path) -> dict[str, bytes]:
    """What the real archives hold too, by its path."""
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and p.name != CHECKSUMS)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_the_same_seed_draws_the_same_files(tmp_path: Path) -> None:
    for name, seed, count in (("a", 1, 2), ("b", 1, 3), ("c", 2, 2)):
        write_archives(tmp_path / name, seed=seed, kaggle={"normal": count, "osteoporosis": 1}, mendeley={"normal": 1})
    files = {name: content(tmp_path / name) for name in "abc"}
    pictures = [name for name in files["a"] if not name.endswith(".xlsx")]
    assert all(files["a"][name] == files["b"][name] for name in pictures), "a picture depends on how many there are"
    assert all(files["a"][name] != files["c"][name] for name in pictures)


def test_the_layouts_are_those_of_the_real_archives(archives: Path) -> None:
    names = set(content(archives))
    folder = "mendeley/Osteoporosis Knee X-ray"
    assert {f"{folder}/normal/N1.JPEG", f"{folder}/osteopenia/OP1.JPEG", f"{folder}/osteoporosis/OS2.jpg"} <= names
    assert f"{folder}/patient details.xlsx" in names
    endings = pd.Series([name.rsplit(".", 1)[1] for name in names if name.startswith("kaggle")]).value_counts()
    assert set(endings.index) == {"png", "jpg", "JPEG"}
    assert {Path(name).parent.as_posix() for name in names if name.startswith("kaggle")} == {
        "kaggle/normal",
        "kaggle/osteoporosis",
    }


def test_every_diagnosis_in_the_sheet_obeys_the_cut_offs(archives: Path) -> None:
    path = archives / "mendeley" / "Osteoporosis Knee X-ray" / "patient details.xlsx"
    rows = list(openpyxl.load_workbook(path).worksheets[0].iter_rows(values_only=True))
    sheet = pd.DataFrame(rows[1:], columns=list(rows[0]))
    known = sheet[sheet["Patient Id"].notna()]
    assert len(sheet) - len(known) == 3
    assert len(known) == 14 + 1  # a patient without a picture
    t = known["T-score Value"].astype(float)
    expected = np.select([t <= -2.5, t > -1.0], ["osteoporosis", "normal"], "osteopenia")
    assert list(known["Diagnosis"]) == list(expected)


def sheet_of(root: Path) -> pd.DataFrame:
    """The clinical sheet, of the patients with a picture and one without."""
    path = root / "mendeley" / "Osteoporosis Knee X-ray" / "patient details.xlsx"
    rows = list(openpyxl.load_workbook(path).worksheets[0].iter_rows(values_only=True))
    sheet = pd.DataFrame(rows[1:], columns=list(rows[0])).set_index("Patient Id")
    return sheet[sheet.index.notna()]


def test_age_follows_the_t_score_by_as_much_as_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "_encode", lambda sketch: b"")  # the sheet is all that is looked at
    slopes = {}
    for slope in (-9.0, 0.0, 4.0):
        phantom.write_archives(
            tmp_path / str(slope), seed=0, kaggle={}, mendeley={"normal": 100, "osteopenia": 100, "osteoporosis": 100},
            age_slope=slope,
        )  # fmt: skip
        sheet = sheet_of(tmp_path / str(slope))
        fit = np.polyfit(sheet["T-score Value"].astype(float), sheet["Age"].astype(float), 1, full=True)
        slopes[slope] = fit[0][0]
        assert (fit[1][0] / len(sheet)) ** 0.5 == pytest.approx(6.0, abs=0.8)
    assert slopes == {slope: pytest.approx(slope, abs=0.5) for slope in slopes}


def test_either_archive_can_have_osteopenia_and_the_sheet_has_the_t_score_that_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, float] = {}
    monkeypatch.setattr(
        phantom, "_encode", lambda sketch: str(drawn.setdefault(Path(sketch.name).stem, sketch.t_score)).encode()
    )
    counts = {"normal": 2, "osteopenia": 3, "osteoporosis": 2}
    write_archives(tmp_path / "p", seed=0, kaggle=counts, mendeley=counts)
    assert len(list((tmp_path / "p" / "kaggle" / "osteopenia").iterdir())) == 3
    sheet = sheet_of(tmp_path / "p").drop(index="N8")  # the patient without a picture
    assert len(sheet) == 7
    assert {name: drawn[name] for name in sheet.index} == sheet["T-score Value"].to_dict()


def shaft_contrast(t_score: float) -> float:
    """How much brighter the cortex of the femur is than its marrow, over many phantoms."""
    contrasts = []
    for seed in range(25):
        picture = draw(np.random.default_rng(seed), t_score, height=400, width=300).astype(float)
        row = np.sort(picture[40:60].mean(axis=0))
        contrasts.append(row[-4:].mean() / np.median(row[row > row.mean()]))
    return float(np.mean(contrasts))


def test_bone_fades_with_the_t_score() -> None:
    assert shaft_contrast(1.0) > shaft_contrast(-1.75) > shaft_contrast(-4.0)


@pytest.mark.parametrize("both", [False, True])
def test_a_picture_has_the_size_asked_for_and_uses_its_range(both: bool) -> None:
    picture = draw(np.random.default_rng(0), 0.0, height=256, width=320, both=both)
    assert (picture.shape, picture.dtype) == ((256, 320), np.uint8)
    assert picture.max() > 150
    assert picture.std() > 30


@pytest.mark.slow
def test_mean_and_spread_alone_do_not_solve_it(tmp_path: Path) -> None:
    write_archives(tmp_path / "p", seed=0, kaggle={"normal": 100, "osteoporosis": 100}, mendeley={})
    files = content(tmp_path / "p")
    pictures = [decode(data) for data in files.values()]
    features = np.array([[picture.mean(), picture.std()] for picture in pictures])
    labels = np.array(["osteoporosis" in name for name in files])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(model, features, labels, cv=5, method="predict_proba")[:, 1]
    assert 0.4 < roc_auc_score(labels, scores) < 0.72


@pytest.mark.parametrize(
    ("kaggle", "mendeley", "message"),
    [
        (
            {"normal": 0, "osteoporosis": 0},
            {"osteopenia": 0},
            "data.phantom.kaggle and data.phantom.mendeley ask for no",
        ),
        ({}, {}, "ask for no pictures; give at least one of them some"),
        ({"nrmal": 3}, {}, "data.phantom.kaggle 'nrmal' is unknown; choose one of: normal, osteopenia, osteoporosis"),
        ({"normal": -3}, {}, "data.phantom.kaggle.normal=-3 is too small; the smallest allowed is 0"),
    ],
)
def test_counts_that_cannot_be_drawn_are_one_line(kaggle: dict, mendeley: dict, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        check_data(DataConfig(phantom=PhantomConfig(kaggle=kaggle, mendeley=mendeley)))


@pytest.mark.parametrize("drawn", ["kaggle", "mendeley"])
def test_an_archive_without_a_picture_is_left_out(tmp_path: Path, drawn: str) -> None:
    counts = {"kaggle": {"normal": 0}, "mendeley": {"osteoporosis": 0}} | {drawn: {"normal": 1, "osteoporosis": 1}}
    assert set(read_sources(DataConfig(phantom=PhantomConfig(**counts)), tmp_path)) == {drawn}
