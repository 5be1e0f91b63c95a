"""The clinical sheet, with its odd headings."""

import io
import time
import zipfile
from pathlib import Path

import openpyxl
import pytest

from osteo.data.clinical import mismatches, read_sheet
from osteo.data.sources import read_mendeley, sheet_mismatches, t_scores
from osteo.reading import tables
from osteo.reading.pictures import Unusable
from osteo.task import who_class
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
    assert lines == ["mendeley: 1 row without a picture: N15"]


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


def workbook(*rows: list[object], **replaced: bytes) -> bytes:
    """A workbook of one sheet; the parts that `replaced` names have other content."""
    book, first, last = openpyxl.Workbook(), io.BytesIO(), io.BytesIO()
    for row in rows:
        book.worksheets[0].append(row)
    book.save(first)
    with zipfile.ZipFile(first) as made, zipfile.ZipFile(last, "w", zipfile.ZIP_DEFLATED) as target:
        for part in made.infolist():
            content = replaced.get(Path(part.filename).stem, made.read(part))
            target.writestr(part.filename, content)
    return last.getvalue()


def sheet_xml(rows: bytes, dimension: str = "A1:B2") -> bytes:
    space = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
    return space + f'<dimension ref="{dimension}"/><sheetData>'.encode() + rows + b"</sheetData></worksheet>"


HEADINGS = (
    b'<row r="1"><c r="A1" t="inlineStr"><is><t>Patient ID</t></is></c>'
    b'<c r="B1" t="inlineStr"><is><t>Age</t></is></c></row>'
)
ONE_PATIENT = b'<row r="%d"><c r="A%d" t="inlineStr"><is><t>n1</t></is></c></row>'


def test_another_table_is_no_sheet() -> None:
    assert read_sheet(workbook(["other", "table"])) is None
    assert read_sheet(workbook()) is None


def test_a_sheet_that_claims_to_be_huge_is_read_for_what_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_CELLS", (20_000, 256))
    xml = sheet_xml(HEADINGS + ONE_PATIENT % (2, 2) + ONE_PATIENT.replace(b"n1", b"n2") % (10**12, 3), "A1:XFD1048576")
    found = read_sheet(workbook([], sheet1=xml))
    assert found is not None
    assert list(found.index) == ["N1"], "no row below the last that Excel has"


BOMBS = {
    "rows": workbook([], sheet1=sheet_xml(HEADINGS + b"<row><c><v>1</v></c></row>" * 60_000)),
    "bytes": workbook([], sheet1=sheet_xml(HEADINGS + b"<row/>" * 3_000_000)),
    "styles": workbook([], styles=b" " * 20_000_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_sheet_larger_than_any_of_patients_is_refused_at_once(kind: str) -> None:
    begun = time.monotonic()
    with pytest.raises(Unusable, match="larger than a sheet with one row per patient can be"):
        read_sheet(BOMBS[kind])
    assert time.monotonic() - begun < 10
    assert len(BOMBS[kind]) < 300_000


def test_a_sheet_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_SECONDS", -1.0)
    with pytest.raises(Unusable, match="larger than a sheet"):
        read_sheet(workbook(["Patient ID"]))


DAMAGED = {
    "text": b"not a workbook",
    "cut short": workbook(["Patient ID"], ["N1"])[:-100],
    "cut sheet": workbook([], sheet1=sheet_xml(HEADINGS)[:-20]),
    "entities": workbook([], sheet1=b'<!DOCTYPE a [<!ENTITY b "c">]>' + sheet_xml(HEADINGS)),
    "no workbook": workbook([], workbook=b""),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_sheet_is_named_and_the_pictures_are_used(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal" / "N1.png").write_bytes(b"")
    (tmp_path / "details.xlsx").write_bytes(DAMAGED[kind])
    found = read_mendeley(str(tmp_path))
    assert found.clinical is None
    assert [picture.patient for picture in found.pictures] == ["N1"]
    assert caplog.messages == ["set aside details.xlsx: not a workbook, or damaged"]


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
