"""The clinical sheet, with its odd headings."""

from pathlib import Path

import pytest

from osteo.data.clinical import mismatches, read_sheet, who_class
from osteo.data.prepare import sheet_mismatches, t_scores
from osteo.data.sources import read_mendeley
from tests.conftest import REAL_DATA

SHEET = REAL_DATA / "mendeley" / "patient details.xlsx"


def test_the_sheet_of_an_archive_is_read(archives: Path) -> None:
    source = read_mendeley(str(archives / "mendeley"))
    assert source.clinical is not None
    assert len(source.clinical) == 15
    assert source.clinical["age"].between(18, 95).all()
    assert set(source.clinical["sex"]) == {"female", "male"}
    assert source.clinical.loc["OS1", "t_score"] <= -2.5
    lines = sheet_mismatches({"mendeley": source})
    assert lines == ["mendeley: 1 rows without a picture: N15"]


def test_patients_that_do_not_fit_are_listed(archives: Path) -> None:
    sheet = read_mendeley(str(archives / "mendeley")).clinical
    assert sheet is not None
    sheet.loc["OS2", "t_score"] = -1.5
    missing, spare, wrong = mismatches(sheet, {"N1", "X9"})
    assert missing == ["X9"]
    assert "OS1" in spare
    assert wrong == ["OS2"]


@pytest.mark.parametrize(
    ("t_score", "name"),
    [(-0.99, "normal"), (-1.0, "osteopenia"), (-2.49, "osteopenia"), (-2.5, "osteoporosis"), (-4.0, "osteoporosis")],
)
def test_the_cut_offs_of_the_who(t_score: float, name: str) -> None:
    assert who_class(t_score) == name


def test_what_is_no_sheet_is_none() -> None:
    assert read_sheet(b"not a workbook") is None
    import io

    import openpyxl

    book, buffer = openpyxl.Workbook(), io.BytesIO()
    book.worksheets[0].append(["other", "table"])
    book.save(buffer)
    assert read_sheet(buffer.getvalue()) is None


def test_t_scores_go_by_image(archives: Path, tmp_path: Path) -> None:
    from osteo.data.manifest import build_manifest

    sources = {"mendeley": read_mendeley(str(archives / "mendeley"))}
    scores = t_scores(build_manifest(sources, tmp_path), sources)
    assert len(scores) == 14
    assert all((score <= -2.5) == ("/osteoporosis/" in image_id) for image_id, score in scores.items())


@pytest.mark.real_data
@pytest.mark.skipif(not SHEET.exists(), reason="the original sheet is not at hand")
def test_the_real_sheet() -> None:
    sheet = read_sheet(SHEET.read_bytes())
    assert sheet is not None
    assert sheet["diagnosis"].value_counts().to_dict() == {"osteopenia": 154, "osteoporosis": 49, "normal": 37}
    assert sheet["age"].notna().all()
    assert mismatches(sheet, sheet.index) == ([], [], [])
