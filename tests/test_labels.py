"""Labels from a table, patients from a column or a pattern, and classes by other names."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest

from osteo.checks import check_data
from osteo.config import DataConfig, SplitConfig
from osteo.data.clinical import read_sheet
from osteo.data.manifest import assign_groups, build_manifest
from osteo.data.prepare import configured, prepare, read_sources
from osteo.data.sources import Source, read_kaggle, t_scores
from osteo.data.splits import assign_splits, read_split_file
from osteo.errors import UserError
from osteo.task import TASKS
from tests import dicom
from tests.test_sources import png, write, zipped

NAMES = [f"{'no' if i % 2 else 'os'}_{i // 2}{'LR'[i % 2]}.png" for i in range(4)]  # os_0L, no_0R, os_1L, no_1R
CLASSES = ["osteoporosis", "normal"] * 2
FULL = "File Name,Class\n" + "".join(f"{name},{word}\n" for name, word in zip(NAMES, CLASSES, strict=True))


@pytest.fixture
def sourced(tmp_path: Path) -> Callable[..., Source]:
    """Reads four pictures in one folder with a table of labels, as a configuration with some more settings says."""
    write(tmp_path / "flat", **{name: png(i) for i, name in enumerate(NAMES)})

    def read(table: str | bytes = FULL, **settings: Any) -> Source:
        path = tmp_path / "L.csv"
        path.write_bytes(table if isinstance(table, bytes) else table.encode())
        config = configured(tmp_path / "flat", {"labels": str(path), **settings})
        return read_sources(config, tmp_path / "cache")["folder"]

    return read


def labels(source: Source) -> list[tuple[str, str, str, str]]:
    return [(p.name, p.class_name, p.patient, p.split) for p in sorted(source.pictures, key=lambda p: p.name)]


EXPECTED = sorted(zip(NAMES, CLASSES, [""] * 4, [""] * 4, strict=True))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_in_any_usual_encoding(
    sourced: Callable[..., Source], tmp_path: Path, encoding: str, separator: str
) -> None:
    write(tmp_path / "flat", **{"Röntgen.png": png(9)})
    table = (FULL + "Röntgen.png,normal\n").replace(",", separator)
    assert labels(sourced(table.encode(encoding))) == sorted([*EXPECTED, ("Röntgen.png", "normal", "", "")])


def test_excel_s_own_first_line_and_a_workbook(sourced: Callable[..., Source]) -> None:
    assert labels(sourced("sep=;\r\n" + FULL.replace(",", ";").replace("\n", "\r\n"))) == EXPECTED
    book, content = openpyxl.Workbook(), io.BytesIO()
    for row in [["image", "osteoporosis"], *([name, float(word != "normal")] for name, word, *_ in EXPECTED)]:
        book.worksheets[0].append(row)
    book.save(content)
    assert labels(sourced(content.getvalue())) == EXPECTED


@pytest.mark.parametrize(
    "rows",
    [
        [name.removesuffix(".png") for name in NAMES],
        [name.upper() for name in NAMES],
        [f"folder/{name}" for name in NAMES],  # as the manifest of a run has it
        [f".\\{name}" for name in NAMES],
        [f'"{name}"' for name in NAMES],
    ],
)
def test_a_picture_is_named_in_any_usual_way(sourced: Callable[..., Source], rows: list[str]) -> None:
    table = "image_id,label\n" + "".join(
        f"{row},{int(word != 'normal')}\n" for row, word in zip(rows, CLASSES, strict=True)
    )
    assert labels(sourced(table)) == EXPECTED


def test_columns_and_words_of_other_names_are_mapped(sourced: Callable[..., Source]) -> None:
    table = "Nr;Datei;Befund;Fall;Gruppe\n" + "".join(
        f"{i};{name};{'Gesund' if word == 'normal' else 'Krank'};fall{i // 2};{('Training', 'test')[i // 2]}\n"
        for i, (name, word) in enumerate(zip(NAMES, CLASSES, strict=True))
    )
    found = sourced(
        table, columns=["Datei:picture", "BEFUND:Class", "gruppe:split"], patient="fall",
        classes=["gesund:Normal", "krank:osteoporosis"],
    )  # fmt: skip
    assert labels(found) == [
        ("no_0R.png", "normal", "FALL0", "train"),
        ("no_1R.png", "normal", "FALL1", "test"),
        ("os_0L.png", "osteoporosis", "FALL0", "train"),
        ("os_1L.png", "osteoporosis", "FALL1", "test"),
    ]


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        ("", {}, "data.labels=L.csv cannot be used: empty"),
        ("a\0b\0\0\0", {}, "cannot be used: not a table, or in an encoding"),
        ("file,class\n", {}, "has no row below its headings"),
        ("file,class\na,normal,x\n", {}, "cannot be used: more cells in row 2 than headings"),
        ('file,class\n"a,normal\n', {}, "cannot be used: damaged at line 2"),
        ("file,class,class\na,b,c\n", {}, "cannot be used: two columns named class"),
        ("file,Class,class\na,b,c\n", {}, "has the columns 'Class' and 'class', which cannot be told apart"),
        ("datei,class\na,b\n", {}, "has no column for the picture, such as image_id, .*columns are: datei, class"),
        (FULL, {"columns": ["bild:picture"]}, "has no column 'bild'; its columns are: File Name, Class"),
        (FULL, {"columns": ["class:label"]}, "is not a COLUMN:MEANING with a meaning of picture, class, split"),
        ("file,class\nx,normal\n", {}, r"names none of 4 pictures, such as no_0R.png; its first row names 'x'"),
        ("file,class\nx,ill\n", {}, "1 of 1 row has none of normal, .*osteoporosis in column 'class': ill; map it"),
        (FULL + "os_0L,normal\n", {}, "rows 2 and 6 differ in the class of os_0L.png; keep one of them"),
        (FULL + "L,normal\n", {"patient": "P"}, "data.patient=P is neither a column of data.labels=L.csv nor a "),
        (FULL, {"patient": "(x)"}, "finds no patient in any of 4 pictures, such as no_0R.png"),
        ("file,class,split\nos_0L,normal,train\nno_0R,normal,\n", {}, "has no split in 1 of 2 rows"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit_is_one_line(
    sourced: Callable[..., Source], table: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sourced(table, **settings)
    assert "\n" not in str(caught.value)


GRADED = "file,label\n" + "".join(f"{name},{i % 3}\n" for i, name in enumerate(NAMES))  # osteopenia is 1 here


def test_numbers_other_than_0_and_1_stand_for_nothing_until_somebody_says_what(
    sourced: Callable[..., Source], caplog: pytest.LogCaptureFixture
) -> None:
    said = (
        r"column 'label' has 0, 1, 2; say what they mean, as in data.classes=\[0:normal,1:osteopenia,2:osteoporosis\]"
    )
    for table in (GRADED, GRADED.replace("\n", ".0\n").replace("label.0", "label")):
        with pytest.raises(UserError, match=said):
            sourced(table)
        found = sourced(table, classes=["0.0:normal", "1:osteopenia", "2:osteoporosis"])
        expected = dict(zip(NAMES, ("normal", "osteopenia", "osteoporosis", "normal"), strict=True))
        assert {p.name: p.class_name for p in found.pictures} == expected
    with pytest.raises(UserError, match="has 1, 2; say what they mean"):
        sourced(GRADED.replace(",0", ",2"))
    with pytest.raises(UserError, match="has 6 different numbers; say"):
        sourced("file,label\n" + "".join(f"f{i},{i}\n" for i in range(6)))
    sourced(GRADED, classes=["0:normal", "2:osteoporosis"])
    assert "1 of 4 rows have none of normal, osteopenia, osteoporosis in column 'label': 1; map it" in caplog.text


def test_a_path_as_it_is_written_wins_before_one_in_another_case(
    sourced: Callable[..., Source], tmp_path: Path
) -> None:
    (tmp_path / "flat" / "OS_0L.png").write_bytes(png(9))
    if (tmp_path / "flat" / "os_0L.png").read_bytes() == png(9):
        pytest.skip("names that differ in case are one here")
    found = sourced(FULL + "OS_0L.png,normal\nfolder/OS_0L.png,normal\n")
    assert labels(found) == sorted([*EXPECTED, ("OS_0L.png", "normal", "", "")])
    with pytest.raises(UserError, match=r"'Os_0L.png' in row 6 may be OS_0L.png or os_0L.png; give paths"):
        sourced(FULL + "Os_0L.png,normal\n")


def test_a_name_that_may_be_two_pictures_is_not_guessed(sourced: Callable[..., Source], tmp_path: Path) -> None:
    write(tmp_path / "flat" / "more", **{"os_0L.png": png(8)})
    with pytest.raises(UserError, match=r"'os_0L' in row 2 may be more/os_0L.png or os_0L.png; give paths"):
        sourced(FULL.replace("os_0L.png", "os_0L"))
    assert labels(sourced(FULL)) == EXPECTED, "the whole path of one is that one"


def test_what_does_not_fit_is_counted_in_a_warning(
    sourced: Callable[..., Source], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "flat" / "normal", **{"folder.png": png(7)})
    found = sourced(FULL.replace("no_1R.png,normal", "no_1R.png,?") + "gone.png,normal\nfolder,osteoporosis\n")
    assert [name for name, *_ in labels(found)] == ["no_0R.png", "normal/folder.png", "os_0L.png", "os_1L.png"]
    assert found.strays == ["no_1R.png"]
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "data.labels=L.csv: 1 of 6 rows have none of normal, osteopenia, osteoporosis in column 'Class': ?;"
        " map it with data.classes=[WORD:CLASS]",
        "data.labels=L.csv has 1 row (gone.png first) without a picture",
        "data.labels=L.csv has no row with a class for 1 picture (no_1R.png first): left out",
        "data.labels=L.csv disagrees with the class of the folder for 1 picture (normal/folder.png first): the file"
        " counts",
    ]


def test_words_that_may_be_names_of_patients_stand_in_no_message(sourced: Callable[..., Source]) -> None:
    table = "file,class\n" + "".join(f"f{i},Secret {i}\n" for i in range(6))
    with pytest.raises(UserError) as caught:
        sourced(table)
    assert "Secret" not in str(caught.value)


def test_a_pattern_finds_patients_and_keeps_their_pictures_together(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{c}/{p}{c[0]}_{side}" for c in ("normal", "osteoporosis") for p in range(6) for side in ("l", "R")]
    root = write(tmp_path / "data", **{f"{name}.png": png(i) for i, name in enumerate([*names, "normal/other"])})
    config = configured(root, {"patient": r"(\d\w)_[^/]*$"})
    table = assign_groups(build_manifest(read_sources(config, tmp_path), tmp_path / "cache"))
    assert set(table["patient"]) == {f"{p}{c}" for p in range(6) for c in "NO"} | {""}
    assert (table[table["patient"] != ""].groupby("patient")["group"].nunique() == 1).all()
    assert table["group"].nunique() == 13
    split = assign_splits(table, SplitConfig(train=0.5, val=0.25))
    assert (split[split["patient"] != ""].groupby("patient")["split"].nunique() == 1).all()
    assert "finds no patient in 1 picture (normal/other.png first): each counts as one of its own" in caplog.text
    assert "0N" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patient": "(["}, r"data.patient=\(\[ is not a regular expression: unterminated character set at position 1"),
        ({"patient": "P"}, "data.patient=P has 0 groups; the one that holds the patient is needed, as in"),
        ({"patient": "(a)(b)"}, r"has 2 groups"),
        ({"columns": ["a:picture"]}, "data.columns goes with data.labels=FILE"),
        ({"labels": "nowhere.csv"}, "data.labels=nowhere.csv: no such file"),
        ({"classes": ["a:well"]}, "data.classes: 'a:well' is no FOLDER:CLASS with a class of normal, osteopenia, "),
        ({"classes": ["A:normal", "a:osteoporosis"]}, "data.classes: 'a' stands for normal and for osteoporosis"),
        ({"split": SplitConfig(test_source="folder")}, "leaves nothing to train on: data=folder is a single source"),
    ],
)
def test_a_mistake_is_found_before_anything_is_read(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_data(DataConfig(name="folder", root=str(tmp_path), **settings))
    assert "\n" not in str(caught.value)


def test_capitals_and_partial_mappings_of_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("Healthy/1", "healthy/2", "Osteoporosis/3", "x/doubtful/4", "doubtful/5")
    root = write(tmp_path / "data", **{f"{name}.png": png(i) for i, name in enumerate(names)})
    config = configured(root, {"classes": [" HEALTHY : Normal", "gone:osteopenia"]})
    found = read_sources(config, tmp_path)["folder"]
    assert {p.name: p.class_name for p in found.pictures} == {
        "Healthy/1.png": "normal", "healthy/2.png": "normal", "Osteoporosis/3.png": "osteoporosis",
    }  # fmt: skip
    assert caplog.messages == [
        "2 pictures left out, in folders that name no class: doubtful (1), x/doubtful (1);"
        " map them with data.classes=[FOLDER:CLASS]",
        "data.classes names folders that hold no picture: gone",
    ]


def test_a_split_that_the_labels_state_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    from tests.test_splits import manifest

    table = manifest({("folder", 0): 9, ("folder", 1): 9})
    stated = table.assign(split=["train", "val", "test"] * 6)
    assert (assign_splits(stated, SplitConfig())["split"] == stated["split"]).all()
    assert caplog.text == ""
    assign_splits(stated, SplitConfig(fold=1, folds=3))
    assert "the split in the labels file is not used: data.split asks for another" in caplog.text
    with pytest.raises(UserError, match="split 'some' is unknown; choose one of: train, val, test"):
        assign_splits(table.assign(split="some"), SplitConfig())


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_a_split_file_and_a_clinical_sheet_in_any_usual_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes("image_id;split\nk/ä.png;train\nNA;test\n".encode(encoding))
    assert read_split_file(path, "data.split.file=split.csv") == {"k/ä.png": "train", "NA": "test"}
    sheet = read_sheet("Patient Id;Gender;Age:;T-score Value\nn1;Female;61;-2,6\n".encode(encoding))
    assert sheet is not None
    assert sheet.loc["N1", ["sex", "age", "t_score"]].to_list() == ["female", 61.0, -2.6]
    assert read_sheet("Patient Id;File\nn1;a.png\n".encode(encoding)) is None


@pytest.mark.parametrize(("name", "classes"), [("kaggle", 2), ("mendeley", 3)])
def test_one_archive_alone(archives: Path, tmp_path: Path, name: str, classes: int) -> None:
    config = DataConfig(name=name, **{name: str(archives / name)})
    check_data(config)
    sources = read_sources(config, tmp_path)
    assert list(sources) == [name]
    assert len({picture.class_name for picture in sources[name].pictures}) == classes
    other = {"kaggle": "mendeley", "mendeley": "kaggle"}[name]
    with pytest.raises(
        UserError, match=f"data.{other} is not read by data={name}; it goes with data=paper or data=clean"
    ):
        check_data(DataConfig(name=name, **{name: str(archives / name), other: "."}))
    with pytest.raises(
        UserError, match=f"data={name} needs data.{name}=PATH, a folder or a zip, or data.download=true"
    ):
        check_data(DataConfig(name=name))
    with pytest.raises(UserError, match=f"data.labels goes with data=folder, not with data={name}"):
        check_data(DataConfig(name=name, labels="L.csv", **{name: str(archives / name)}))


def test_experiments_take_one_archive(osteo: Callable[..., Any], archives: Path) -> None:
    import yaml

    done = osteo("train", "--cfg", "job", "experiment=paper", "data=mendeley", f"data.mendeley={archives / 'mendeley'}")
    chosen = yaml.safe_load(done.out)["data"]
    assert (chosen["name"], chosen["fit"], chosen["clean"], chosen["split"]["grouped"]) == (
        "mendeley",
        "resize",
        True,
        False,
    )
    assert done.code == 0


def test_pictures_of_dicom_are_prepared_from_folders_and_zips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(3)
    secret = {"PatientName": "Secret^Person", "PatientID": "SECRET9"}
    content = [dicom.file(rng.integers(0, 4096, (40, 30)).astype(np.uint16), 12, **secret) for _ in range(12)]
    files = {
        f"{('normal', 'osteoporosis')[i % 2]}/{f'{i}.dcm' if i < 6 else f'IM{i:04d}'}": c for i, c in enumerate(content)
    }
    root = write(tmp_path / "data", **files, **{"normal/DICOMDIR": content[0], "normal/notes": b"x" * 200})
    tables = []
    for place in (root, zipped(root, tmp_path / "D.zip")):
        config = configured(
            place, {"image_size": 32, "cache": str(tmp_path / "cache"), "split": SplitConfig(train=0.5)}
        )
        manifest, store = prepare(config)
        assert (manifest["split"] != "excluded").all(), list(manifest["reason"])
        assert set(manifest[["width", "height", "format", "mode"]].itertuples(index=False, name=None)) == {
            (30, 40, "DICOM", "MONOCHROME2")
        }
        assert len(store.rows) == 12
        assert all(store.pictures[0, row].std() > 10 for row in store.rows.values())
        tables.append(manifest)
    assert list(tables[0]["sha256"]) == list(tables[1]["sha256"])
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert b"secret" not in kept.lower()
    assert "secret" not in caplog.text.lower()


def test_patients_of_a_pattern_are_those_of_the_clinical_sheet(tmp_path: Path) -> None:
    root = write(
        tmp_path / "data",
        **{"normal/p1_l.png": png(1), "osteoporosis/p2_l.png": png(2)},
        **{"sheet.csv": b"Patient Id,Age,T-score Value\nP1,50,-0.5\nP2,70,-3.0\n"},
    )
    sources = read_sources(configured(root, {"patient": "(p[0-9])_"}), tmp_path)
    assert t_scores(build_manifest(sources, tmp_path / "cache"), sources) == {
        "folder/normal/p1_l.png": -0.5, "folder/osteoporosis/p2_l.png": -3.0,
    }  # fmt: skip
    assert read_kaggle(str(root)).pictures[0].patient == ""


T_SCORES = 'file,T-Score\nos_0L,"-2,6"\nno_0R,0.3\nos_1L,-2.5\nno_1R,-1\n'


def measured(source: Source) -> dict[str, float | None]:
    return {picture.name: picture.t_score for picture in source.pictures}


def test_t_scores_of_labels_are_read_and_say_the_class_where_it_is_left_out(sourced: Callable[..., Source]) -> None:
    source = sourced(T_SCORES, task="t_score")
    assert measured(source) == {"os_0L.png": -2.6, "no_0R.png": 0.3, "os_1L.png": -2.5, "no_1R.png": -1.0}
    assert {picture.name: picture.class_name for picture in source.pictures} == {
        "os_0L.png": "osteoporosis", "no_0R.png": "normal", "os_1L.png": "osteoporosis", "no_1R.png": "osteopenia",
    }  # fmt: skip
    assert "-2.6" not in repr(source.pictures)
    named = sourced(FULL.replace("\n", ",-2\n").replace("Class,-2", "Class,T"), columns=["T:t_score"])
    assert (labels(named), set(measured(named).values())) == (EXPECTED, {-2.0})
    missing = sourced(T_SCORES.replace("0.3", "n/a"), task="t_score")
    assert "no_0R.png" not in measured(missing)


@pytest.mark.parametrize(
    ("table", "settings", "message"),
    [
        (T_SCORES, {}, "has no column for the class, such as"),
        (T_SCORES.replace("0.3", "25"), {"task": "t_score"},
         "data.labels=L.csv: 'T-Score' in row 3 is not a number from -10 to 10"),
        (T_SCORES.replace("T-Score", "T").replace("0.3", "x"), {"task": "t_score", "columns": ["T:t_score"]},
         "data.labels=L.csv: 'T' in row 3 is not a number from -10 to 10"),
        (T_SCORES + "os_0L,-2.7\n", {"task": "t_score"},
         "rows 2 and 6 differ in the T-score of os_0L.png; keep one of them"),
    ],
)  # fmt: skip
def test_t_scores_of_labels_that_cannot_be_are_one_line(
    sourced: Callable[..., Source], table: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sourced(table, **settings)
    assert "\n" not in str(caught.value)


def test_t_scores_of_labels_go_with_those_of_a_sheet_unless_they_contradict(
    sourced: Callable[..., Source], tmp_path: Path
) -> None:
    table = "file,class,T-score\nos_0L,osteoporosis,-2.6\nno_0R,normal,\nno_1R,osteopenia,-1.2\n"
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("file,T-score\nos_0L,-2.6\nno_0R,0.4\n")
    sources = {"folder": sourced(table, task="t_score", clinical=str(sheet))}
    assert t_scores(build_manifest(sources, tmp_path / "cache", task=TASKS["t_score"]), sources) == {
        "folder/os_0L.png": -2.6, "folder/no_0R.png": 0.4, "folder/no_1R.png": -1.2,
    }  # fmt: skip
    sheet.write_text("file,T-score\nos_0L,-2.7\nno_0R,0.4\n")
    with pytest.raises(
        UserError, match=r"the T-score of os_0L\.png in data.labels is not that of its patient"
    ) as caught:
        sourced(table, task="t_score", clinical=str(sheet))
    assert "2.6" not in str(caught.value)
    assert "2.7" not in str(caught.value)


def test_t_scores_of_labels_serve_the_task_and_stay_out_of_the_manifest(tmp_path: Path) -> None:
    values = [-2.75, -2.625, -2.5625, -1.75, -1.625, -1.5625, 0.75, 0.625, 0.5625]
    root = write(tmp_path / "flat", **{f"{i}.png": png(i) for i in range(len(values))})
    labels_file = tmp_path / "L.csv"
    labels_file.write_text("file,t_score\n" + "".join(f"{i},{value}\n" for i, value in enumerate(values)))
    settings = {"labels": str(labels_file), "task": "t_score", "image_size": 16, "cache": str(tmp_path / "cache")}
    split = SplitConfig(train=0.34, val=0.34)
    manifest = prepare(configured(root, settings | {"split": split})).manifest
    assert manifest.set_index("image_id")["t_score"].to_dict() == {
        f"folder/{i}.png": value for i, value in enumerate(values)
    }
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").rglob("*.csv"))
    assert b"2.5625" not in kept


def test_a_t_score_counts_whatever_its_folder_says(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = [-2.6, -2.7, -2.8, -2.3, -1.2, -1.7, 0.8, 0.7, 0.6]
    classes = ["osteoporosis"] * 4 + ["osteopenia"] * 2 + ["normal"] * 3
    root = write(tmp_path / "data", **{f"{name}/{i}.png": png(i) for i, name in enumerate(classes)})
    labels_file = tmp_path / "L.csv"
    labels_file.write_text(
        "file,class,t_score\n" + "".join(f"{i},{c},{t}\n" for i, (c, t) in enumerate(zip(classes, values, strict=True)))
    )
    settings = {"labels": str(labels_file), "task": "t_score", "image_size": 16, "cache": str(tmp_path / "cache")}
    table = prepare(configured(root, settings | {"split": SplitConfig(train=0.34, val=0.34)})).manifest
    assert ((table["label"] == 2) == (table["t_score"] <= -2.5)).all()
    rows = table.set_index("image_id")
    assert rows.loc["folder/osteoporosis/3.png", ["label", "class_name"]].tolist() == [1, "osteopenia"]
    assert (
        "the T-score of 1 picture (folder/osteoporosis/3.png first) disagrees with the class of the folder: the T-score"
        " counts"
    ) in caplog.messages
    three = prepare(configured(root, settings | {"task": "three_class"}), split=False).manifest.set_index("image_id")
    assert three.loc["folder/osteoporosis/3.png", "label"] == 2
