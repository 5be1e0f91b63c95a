"""Clinical sheets of any data set: joined to pictures, refused where they cannot be, and made features of."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openpyxl
import pandas as pd
import pytest

from osteo import parts
from osteo.checks import CHARACTERISTICS, check
from osteo.config import Config, DataConfig
from osteo.data.manifest import build_manifest
from osteo.data.prepare import configured, prepare, read_sources
from osteo.data.sources import Source, clinical_rows, read_folder, sheet_mismatches, t_scores
from osteo.errors import UserError
from osteo.files import public
from osteo.reading.covariates import Covariates, read_cell
from tests.conftest import REAL_DATA
from tests.test_sources import png, write

MENDELEY = REAL_DATA / "mendeley" / "patient details.xlsx"
BY_PATIENT = "(p[0-9]+)_"
PATIENTS = 16
NORMAL = {f"normal/p{i}_{side}.png": i for i in range(PATIENTS // 2) for side in "lr"}
OSTEOPOROSIS = {f"osteoporosis/p{i}_l.png": i for i in range(PATIENTS // 2, PATIENTS)}
AGES = {i: 40.0 + 2 * i for i in range(PATIENTS)}
SHEET = "Patient,Age (years),Sex,Height,Weight,Smoker,History of fracture\n" + "".join(
    f"P{i},{AGES[i]},{'fm'[i % 2]},{1.5 + i / 100:.2f},{60 + i},{('no', 'yes')[i % 2]},{'wrist' if i % 4 else 'no'}\n"
    for i in range(PATIENTS)
)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen patients, of whom eight have both knees."""
    pictures = {name: png(number, (20, 24)) for number, name in enumerate({**NORMAL, **OSTEOPOROSIS})}
    return write(tmp_path_factory.mktemp("clinic") / "knees", **pictures)


@pytest.fixture
def given(clinic: Path, tmp_path: Path) -> Callable[..., DataConfig]:
    """The configuration of the clinic with a sheet."""

    def configure(sheet: str | bytes = SHEET, covariates: tuple[str, ...] = ("age",), **settings: Any) -> DataConfig:
        path = tmp_path / "sheet.csv"
        path.write_bytes(sheet if isinstance(sheet, bytes) else sheet.encode())
        settings = {"patient": BY_PATIENT, "image_size": 16, "cache": str(tmp_path / "cache")} | settings
        return configured(clinic, {"clinical": str(path), "covariates": list(covariates), **settings})

    return configure


def rows_of(config: DataConfig) -> pd.DataFrame:
    sources = read_sources(config, Path(str(config.cache)))
    return clinical_rows(build_manifest(sources, Path(str(config.cache))), sources)


def with_cell(row: int, column: int, cell: str, sheet: str = SHEET) -> str:
    """The sheet with another value in one cell; the headings are row 1."""
    lines = [line.split(",") for line in sheet.splitlines()]
    lines[row - 1][column] = cell
    return "\n".join(map(",".join, lines)) + "\n"


def test_rows_go_to_pictures_by_patient(given: Callable[..., DataConfig]) -> None:
    rows = rows_of(given())
    assert list(rows.index) == [f"folder/{name}" for name in sorted({**NORMAL, **OSTEOPOROSIS})]
    patient = {f"folder/{name}": i for name, i in {**NORMAL, **OSTEOPOROSIS}.items()}
    assert rows["age"].to_dict() == {name: AGES[i] for name, i in patient.items()}
    assert rows["row"].to_dict() == {name: i + 2 for name, i in patient.items()}
    assert rows.loc["folder/normal/p3_r.png", ["sex", "smoker", "fracture"]].to_list() == ["male", "yes", "yes"]
    assert rows["bmi"]["folder/normal/p3_r.png"] == pytest.approx(63 / 1.53**2)
    assert rows["t_score"].isna().all()


def test_rows_go_to_pictures_by_name_where_there_are_no_patients(
    given: Callable[..., DataConfig], caplog: pytest.LogCaptureFixture
) -> None:
    sheet = (
        "Datei;Alter;Geschlecht;T-Wert\nNORMAL\\p0_l.PNG;61,5;W;-0,4\nfolder/normal/p0_r.png;70;m;\n"
        "p9_l;55;;-2,6\nJane Doe.png;1;m;-9\n"
    )
    columns = ["Datei:picture", "alter:age", "Geschlecht:SEX", "T-Wert:t_score"]
    config = given(sheet, ("age", "sex"), patient=None, clinical_columns=columns)
    rows = rows_of(config)
    assert rows["age"].dropna().to_dict() == {
        "folder/normal/p0_l.png": 61.5, "folder/normal/p0_r.png": 70.0, "folder/osteoporosis/p9_l.png": 55.0,
    }  # fmt: skip
    assert rows["sex"].dropna().to_list() == ["female", "male"]
    assert caplog.messages == ["data.clinical=sheet.csv has 1 row without a picture"]
    sources = read_sources(config, Path(str(config.cache)))
    assert t_scores(build_manifest(sources, Path(str(config.cache))), sources) == {
        "folder/normal/p0_l.png": -0.4, "folder/osteoporosis/p9_l.png": -2.6,
    }  # fmt: skip
    assert sheet_mismatches(sources) == []


def test_a_workbook_and_the_layout_of_mendeley_in_a_folder(given: Callable[..., DataConfig], clinic: Path) -> None:
    book, content = openpyxl.Workbook(), io.BytesIO()
    for row in [["Patient ID", "Gender ", "Age:", "height  (meter)", "Weight (KG)"], ["p1", "Male", 60, 1.7, 80.0]]:
        book.worksheets[0].append(row)
    book.save(content)
    rows = rows_of(given(content.getvalue(), ("age", "sex", "bmi")))
    assert rows.loc["folder/normal/p1_r.png", ["age", "sex"]].to_list() == [60.0, "male"]
    assert rows["bmi"].dropna().tolist() == pytest.approx([80 / 1.7**2] * 2)
    with pytest.raises(
        UserError, match=r"covariates=\[age\] need a clinical sheet, and data=folder has none; give data"
    ):
        read_sources(configured(clinic, {"covariates": ["age"]}), clinic)


def test_rows_of_one_patient_complete_each_other(given: Callable[..., DataConfig]) -> None:
    rows = rows_of(given("patient,age,sex\nP1,50,\nP2,60,f\nP2,60,f\np1,,m\nP1,50,m\n", ("age", "sex")))
    assert rows.loc["folder/normal/p1_l.png", ["age", "sex", "row"]].to_list() == [50.0, "male", 2]
    assert rows.loc["folder/normal/p2_l.png", ["age", "sex", "row"]].to_list() == [60.0, "female", 3]


HEADINGS = r"Patient, Age \(years\), Sex, Height, Weight, Smoker, History of fracture"
REFUSED = [
    (SHEET, ["menopause_age"], {}, f"no column for menopause_age; name it: .*; its columns are: {HEADINGS}"),
    (SHEET, ["age"], {"clinical_columns": ["Alter:age"]}, "has no column 'alter'; its columns are: Patient, Age"),
    (SHEET, ["age"], {"clinical_columns": ["Sex:age", "Height:age"]}, "'Sex' and 'Height' cannot both be the age"),
    (SHEET + "P3,77.7,m,,,,\n", ["age"], {}, r"rows 5 and 18 are of one patient and differ in 'Age \(years\)'; keep"),
    (SHEET + "p3,,,,77.7,,\n", ["age"], {}, "rows 5 and 18 are of one patient and differ in 'Weight'"),
    (with_cell(7, 1, "300"), ["age"], {}, r"'Age \(years\)' in row 7 is not a number from 0 to 120 \(years\)$"),
    (with_cell(7, 1, "fifty7"), ["age"], {}, r"'Age \(years\)' in row 7 is not a number from 0 to 120"),
    (with_cell(9, 4, "700"), ["weight"], {}, r"'Weight' in row 9 is not a number from 10 to 400 \(kg\)$"),
    (with_cell(9, 4, "700"), ["bmi"], {}, "'Weight' in row 9 is not a number from 10 to 400"),
    (with_cell(4, 3, "160"), ["height"], {}, r"'Height' in row 4 is not a number from 0.5 to 2.5 \(m; 165 cm is 1.65"),
    (with_cell(4, 3, "0.016"), ["height"], {}, "'Height' in row 4 is not a number from 0.5 to 2.5"),
    (with_cell(4, 3, "160"), ["age"], {"clinical_columns": ["Height:height"]}, "'Height' in row 4 is not a number"),
    (with_cell(4, 3, "0.6", with_cell(4, 4, "333")), ["bmi"], {}, "BMI, from height and weight in row 4, is not a"),
    ("patient,BMI\nP1,3\n", ["bmi"], {}, r"'BMI' in row 2 is not a number from 8 to 100 \(kg/m²\)$"),
    (with_cell(5, 2, "Xx77"), ["sex"], {}, "'Sex' in row 5 is not one of the known words: female, f, w, woman, "),
    ("P1,61\nP2,62\n", ["age"], {}, "row 1 holds numbers, where headings are needed$"),
    ("P1,61,61\nP2,62,62\n", ["age"], {}, "cannot be used: row 1 holds numbers, where headings are needed$"),
    ("patient,age\n", ["age"], {}, "has no row below its headings"),
    ("Name,age\nJane,61\n", ["age"], {}, "no column for the patient, such as patient, .*; its columns are: Name, age"),
    ("Name,age\nJane,61\n", ["age"], {"patient": None}, r"no column for the picture \(the pictures have no patients"),
    ("patient,age\nJane,61\n", ["age"], {}, "a row for none of 24 pictures, such as normal/p0_l.png of patient P0;"),
    ("file,age\nJane,61\n", ["age"], {"patient": None}, "a row for none of 24 pictures, such as normal/p0_l.png; its"),
    ("file,age\np1_l,61\nP1_L.png,62\n", ["age"], {"patient": None}, "rows 2 and 3 are of one picture and differ in"),
    ("", ["age"], {}, "cannot be used: empty"),
]  # fmt: skip


@pytest.mark.parametrize(("sheet", "covariates", "settings", "message"), REFUSED)
def test_a_sheet_that_cannot_be_used_is_one_line(
    given: Callable[..., DataConfig], sheet: str, covariates: list[str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_sources(given(sheet, tuple(covariates), **settings), Path("cache"))
    said = str(error.value)
    assert said.startswith("data.clinical=sheet.csv")
    assert "\n" not in said
    for value in ("300", "fifty", "700", "77", "333", "160", "016", "Xx", "61", "62", "Jane"):
        assert value not in said


def test_a_picture_of_two_names_is_refused(tmp_path: Path) -> None:
    root = write(
        tmp_path / "knees", **{"normal/a.png": png(1), "osteoporosis/a.png": png(2), "s.csv": b"file,age\na,5\n"}
    )
    config = configured(root, {"clinical": str(root / "s.csv"), "covariates": ["age"]})
    with pytest.raises(UserError, match=r"row 2 may be of normal/a.png or of osteoporosis/a.png; give paths"):
        read_sources(config, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariates": ["t_score"]}, "covariates: t_score is the answer that a picture is asked for, not a covariate"),
        ({"covariates": ["diagnosis"]}, "covariates: diagnosis is the answer"),
        (
            {"covariates": ["agee"]},
            "covariate 'agee' is unknown; choose one of: age, sex, menopause_age, height, weight,",
        ),
        ({"covariates": ["age", "age"]}, "covariates names age twice"),
        ({"clinical_columns": ["Alter:age"]}, "data.clinical_columns goes with data.clinical=FILE"),
        ({"clinical_columns": ["age"]}, "'age' is not a COLUMN:MEANING with a meaning of patient, picture, age, sex"),
        ({"clinical": "none.csv"}, "data.clinical=none.csv: no such file"),
        ({"missing_covariates": "drop"}, "data.missing_covariates 'drop' is unknown; choose one of: impute, exclude"),
    ],
)
def test_a_configuration_that_cannot_be_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(DataConfig(), settings)


def test_the_key_of_training_reaches_the_data(osteo: Callable[..., Any], clinic: Path) -> None:
    words = ["train", "data=folder", f"data.root={clinic}", "output_dir=run"]
    done = osteo(*words, "covariates=[z_score]")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith("osteo train: covariates: z_score is the answer that a picture is asked for")
    with pytest.raises(UserError, match=r"data.covariates follows covariates=\[...\]; leave it out"):
        check(Config(covariates=["age"]))


MISSING = "".join(line for n, line in enumerate(with_cell(6, 1, "").splitlines(keepends=True), 1) if n not in (3, 18))


def test_pictures_without_a_row_or_a_value_are_imputed_or_excluded(
    given: Callable[..., DataConfig], caplog: pytest.LogCaptureFixture
) -> None:
    """Patient 1, with both knees, has no row; patient 4, with both knees, has no age."""
    told = ["no clinical row for 2 pictures (folder/normal/p1_l.png first): ",
            "no value of a covariate for 2 pictures (folder/normal/p4_l.png first): "]  # fmt: skip
    manifest, _ = prepare(given(MISSING))
    assert not (manifest["split"] == "excluded").any()
    assert [line for line in caplog.messages if "clinical" in line or "covariate" in line] == [
        f"{t}imputed" for t in told
    ]
    caplog.clear()
    manifest, _ = prepare(given(MISSING, missing_covariates="exclude", strict=True))
    assert [line for line in caplog.messages if "clinical" in line or "covariate" in line] == [
        f"{t}excluded" for t in told
    ]
    excluded = manifest[manifest["split"] == "excluded"].set_index("image_id")["reason"]
    assert excluded.to_dict() == {
        "folder/normal/p1_l.png": "no clinical row", "folder/normal/p1_r.png": "no clinical row",
        "folder/normal/p4_l.png": "no value of a covariate", "folder/normal/p4_r.png": "no value of a covariate",
    }  # fmt: skip
    manifest, _ = prepare(given(MISSING, ()))
    assert not (manifest["split"] == "excluded").any(), "nobody asked for covariates"


TABLE = pd.DataFrame({
    "age": [50.0, 60.0, 80.0, np.nan, 40.0], "bmi": [20.0, 30.0, 25.0, 25.0, 35.0],
    "sex": pd.array(["female", "male", None, None, "male"], "string"),
    "smoker": pd.array(["no", "no", "yes", "yes", "no"], "string"),
    "height": [1.6, 1.7, np.nan, np.nan, 1.5],
})  # fmt: skip


def test_features_are_learnt_from_training_rows_alone() -> None:
    training = TABLE.iloc[:4]
    fitted = Covariates.fit(["age", "sex", "bmi", "smoker"], training)
    assert fitted.feature_names == ["age", "sex_male", "bmi", "smoker_yes", "age_missing", "sex_missing"]
    features = fitted.features(training)
    assert (features.dtype, features.shape) == (np.float32, (4, 6))
    mean = 190 / 3  # of 50, 60 and 80
    age = np.array([50, 60, 80, mean])
    assert features[:, 0] == pytest.approx((age - mean) / np.std(age), abs=1e-6)
    assert features[:, 1].tolist() == [0, 1, 0, 0]  # as frequent: the first in alphabetical order
    assert features[:, 2] == pytest.approx((training["bmi"] - 25) / np.sqrt(12.5))
    assert features[:, 3:].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]]
    assert features[:, [0, 2]].mean(axis=0) == pytest.approx(0, abs=1e-6)
    assert features[:, [0, 2]].std(axis=0) == pytest.approx(1)
    assert fitted.features(TABLE)[4] == pytest.approx([(40 - mean) / np.std(age), 1, 10 / np.sqrt(12.5), 0, 0, 0])
    assert Covariates.fit(["bmi"], TABLE).feature_names == ["bmi"], "nothing is missing"
    assert Covariates.fit(["sex", "height"], TABLE).flagged == ("sex",), "where height is missing, sex is too"


def test_what_is_learnt_is_plain_and_answers_for_new_patients() -> None:
    fitted = Covariates.fit(["age", "sex", "bmi"], TABLE)
    copy = Covariates.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert copy == fitted
    expected = fitted.features(pd.DataFrame({"age": [61.5], "sex": ["female"], "bmi": [70 / 1.6**2]}))[0]
    assert copy.of_patient({"age": "61,5", "sex": "W", "height": 1.6, "weight": "70"}) == pytest.approx(expected)
    assert copy.of_patient({"age": 61.5, "sex": "Female", "bmi": 70 / 1.6**2}) == pytest.approx(expected)
    nothing = copy.of_patient({})
    assert nothing == pytest.approx(fitted.features(pd.DataFrame({"age": [None], "sex": [None], "bmi": [None]}))[0])
    assert nothing[-2:].tolist() == [1, 1]
    for values, message in [
        ({"age": 300}, r"covariate age is not a number from 0 to 120 \(years\)$"),
        ({"sex": "Xx"}, "covariate sex is not one of the known words: female, "),
        ({"height": 0.6, "weight": 333}, "covariate bmi is not a number from 8 to 100"),
        ({"t_score": -2}, "'t_score' is not a covariate of this model; it takes: age, sex, bmi"),
    ]:
        with pytest.raises(UserError, match=message):
            copy.of_patient(values)


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("age", [np.nan] * 3, "missing in"),
        ("age", [60.0, 60.0, np.nan], "the same in"),
        ("sex", ["male"] * 3, "the same in"),
    ],
)
def test_a_covariate_that_says_nothing_is_refused(name: str, values: list[Any], what: str) -> None:
    with pytest.raises(UserError, match=f"covariate {name} is {what} all of 3 training pictures.*; leave it out"):
        Covariates.fit([name], pd.DataFrame({name: values}))


def test_training_is_refused_where_its_own_pictures_say_nothing(
    osteo: Callable[..., Any], clinic: Path, tmp_path: Path, cache: Path
) -> None:
    """Men are tested alone."""
    sheet = tmp_path / "sheet.csv"
    names = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    splits = ["test", "train", "val", "train"]
    rows = [(name, splits[place % 4], "fm"[place % 4 == 0]) for place, name in enumerate(names)]
    sheet.write_text("file,sex\n" + "".join(f"{name},{sex}\n" for name, _, sex in rows))
    split = tmp_path / "split.csv"
    split.write_text("image_id,split\n" + "".join(f"folder/{name},{part}\n" for name, part, _ in rows))
    words = ["data=folder", f"data.root={clinic}", f"data.clinical={sheet}", f"data.split.file={split}"]
    words += ["covariates=[sex]", f"data.cache={cache}", "data.image_size=32", "model.backbone=test_resnet"]
    done = osteo("train", *words, "data.split.grouped=false", "output_dir=run")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "covariate sex is the same in all of 12 training pictures, so that nothing can be learnt from it" in done.err


def test_cells_are_read_as_clinics_write_them() -> None:
    assert [read_cell("age", cell) for cell in ("61,5", " 61.5 ", 61.5, "n/a", "", None, np.nan, pd.NA)] == [
        61.5
    ] * 3 + [None] * 5
    assert [read_cell("sex", cell) for cell in ("F", "weiblich", "Male", "m", "?")] == ["female"] * 2 + ["male"] * 2 + [
        None
    ]
    assert [read_cell("smoker", cell) for cell in ("No", "nein", 0, "1", True)] == ["no"] * 3 + ["yes"] * 2
    assert [read_cell("fracture", cell) for cell in ("no", "l. wrist", "-")] == ["no", "yes", None]


def test_a_registered_source_is_asked_for_the_same(clinic: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"age": [50.0, 61.0], "height": [1.6, np.nan], "weight": [70, 80]}, index=["P1", "P2"])

    def bring(config: DataConfig, cache: Path) -> dict[str, Source]:
        source = read_folder(str(clinic), patient=BY_PATIENT)
        source.clinical = table
        return {"folder": source}

    monkeypatch.setattr(parts.sources, "_parts", {"mine": bring})
    config = DataConfig(name="mine", covariates=["age", "bmi"])
    sources = read_sources(config, clinic)
    rows = clinical_rows(build_manifest(sources, clinic), sources)
    assert rows["age"].dropna().tolist() == [50, 50, 61, 61]
    assert rows["bmi"].dropna().tolist() == pytest.approx([70 / 1.6**2] * 2)
    table.loc["P2", "weight"] = 700
    with pytest.raises(UserError, match=r"data.name=mine: clinical table of folder: 'weight' in row 2 is not a number"):
        read_sources(config, clinic)
    with pytest.raises(UserError, match="clinical table of folder has no column for sex"):
        read_sources(DataConfig(name="mine", covariates=["sex"]), clinic)


def test_a_faulty_sheet_of_mendeley_is_refused_where_it_is_needed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sheet = b"Patient Id,Gender,Age\nN1,female,50\nOS1,male,770\n,,300\n"
    root = write(tmp_path / "m", **{"normal/N1.jpg": b"", "osteoporosis/OS1.jpg": b"", "details.csv": sheet})
    config = DataConfig(name="mendeley", mendeley=str(root), covariates=["age"])
    with pytest.raises(UserError, match=r"^details.csv: 'Age' in row 3 is not a number from 0 to 120 \(years\)$"):
        read_sources(config, tmp_path)
    config.covariates = ["sex"]
    sources = read_sources(config, tmp_path)
    assert caplog.messages == ["details.csv: 1 value in 'Age' are impossible, and count as not known"]
    assert sources["mendeley"].clinical is not None
    assert sources["mendeley"].clinical["age"].to_dict() == pytest.approx({"N1": 50, "OS1": np.nan}, nan_ok=True)


def test_what_a_sheet_is_called_stays_here() -> None:
    given = {"clinical": "clinic/DOE_JANE.csv", "clinical_columns": ["DOE:age"], "covariates": ["age"]}
    assert public(given) == {"clinical": "given", "clinical_columns": "given", "covariates": ["age"]}


@pytest.mark.real_data
@pytest.mark.skipif(not MENDELEY.exists(), reason="the original sheet is not at hand")
def test_the_real_sheet_goes_to_pictures_of_its_layout(tmp_path: Path) -> None:
    tiny = bytes(cv2.imencode(".jpg", np.zeros((4, 4), np.uint8))[1])
    names = [("normal", "N", "jpg", 36), ("osteopenia", "OP", "JPEG", 154), ("osteoporosis", "OS", "jpg", 49)]
    root = write(
        tmp_path / "mendeley",
        **{f"{name}/{p}{n}.{suffix}": tiny for name, p, suffix, count in names for n in range(1, count + 1)},
    )
    shutil.copy(MENDELEY, root)
    config = DataConfig(name="mendeley", mendeley=str(root), covariates=list(CHARACTERISTICS))
    sources = read_sources(config, tmp_path)
    sheet = sources["mendeley"].clinical
    assert sheet is not None
    assert sheet["diagnosis"].value_counts().to_dict() == {"osteopenia": 154, "osteoporosis": 49, "normal": 37}
    manifest = build_manifest(sources, tmp_path)
    rows = clinical_rows(manifest, sources)
    assert rows["row"].notna().groupby(manifest["class_name"].to_numpy()).sum().to_dict() == {
        "normal": 36, "osteopenia": 154, "osteoporosis": 49,
    }  # fmt: skip
    (absent,) = (line for line in sheet_mismatches(sources) if "without a picture" in line)
    assert re.fullmatch(r"mendeley: 1 row without a picture: N\d+", absent)
    assert rows[["age", "sex", "height", "weight", "bmi", "smoker", "diabetic", "fracture"]].notna().all(axis=None)
    assert (rows["menopause_age"].notna() <= (rows["sex"] == "female")).all()
    fitted = Covariates.fit(CHARACTERISTICS, rows)
    assert fitted.flagged == ("menopause_age",)
    assert np.isfinite(fitted.features(rows)).all()
