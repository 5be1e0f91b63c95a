"""What a report says of clinical data, from hand-made predictions and records."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy.special import expit

from benchmarks import added_value as benchmark
from osteo.command_settings import ReportConfig
from osteo.evaluation.bootstrap import Interval, format_interval
from osteo.evaluation.clinical import added_value as av
from osteo.evaluation.clinical import strata
from osteo.evaluation.outcomes import evaluate_splits
from osteo.files import write_text
from osteo.report import figures
from osteo.report.page import read_report
from osteo.report.rows import p_value
from osteo.report.sections import added_value as section
from tests.test_added_value import sheet
from tests.test_damage import ENVIRONMENT
from tests.test_systems import PICTURES, manifest, write_logits, write_run

NAMES = ["age", "sex", "bmi"]


def told(of: benchmark.Sheet) -> tuple[SimpleNamespace, pd.DataFrame]:
    """The results that a sweep with these predictions would have, as far as the section reads them, and its sheet."""
    count = len(of.labels)
    size = {"width": 300, "height": 400, "format": "PNG", "mode": "L"}
    pictures = pd.DataFrame({"source": np.where(np.arange(count) % 3, "kaggle", "mendeley"), **size})
    experiment = SimpleNamespace(labels=of.labels, groups=[str(group) for group in of.groups], pictures=pictures)
    system = SimpleNamespace(
        name="resnet50",
        is_fused=False,
        networks=of.networks,
        calibrated=expit(of.logits),
        probabilities=expit(of.logits * 2.0),
    )
    of_fusion = SimpleNamespace(system=SimpleNamespace(name="resnet50, late", is_fused=True))
    best = SimpleNamespace(system=system)
    results = SimpleNamespace(experiment=experiment, models=[of_fusion, best], best=best, draws=200, seed=3)
    age, male, bmi = of.covariates.T
    sex = pd.array([None if np.isnan(value) else ("female", "male")[int(value)] for value in male], "string")
    return results, pd.DataFrame({"age": age, "sex": sex, "bmi": bmi, "row": pd.array(range(count), "Int64")})


@pytest.fixture(scope="module")
def of_age() -> benchmark.Sheet:
    return sheet("age")


def test_the_tables_hold_what_the_functions_say(of_age: benchmark.Sheet) -> None:
    results, clinical = told(of_age)
    found = section.find(results, NAMES, clinical)
    labels, logits, covariates, networks, groups = of_age
    options = {"draws": 200, "seed": 3}
    value = av.added_value(labels, logits, covariates, networks, groups, **options)
    table = found.tables["added_value"].set_index("model")
    assert table["AUROC"].to_dict() == {name: format_interval(interval) for name, interval in value.auroc.items()}
    beyond = format_interval(value.differences[av.CLINICAL].difference, 2)
    assert found.lines[1].endswith(f"; the difference is {beyond}.")
    for name, comparison in value.differences.items():
        expected = [format_interval(comparison.difference), p_value(comparison.p)]
        assert table.loc[name, ["both minus this", "p"]].tolist() == expected
    assert table.loc[[av.BOOSTED, av.BOTH], "p"].tolist() == ["-", "-"]
    (nested,) = found.tables["nested"].to_dict("records")
    assert nested == {
        "image beyond": "age, sex and BMI", "log odds per SD of its logit": pytest.approx(value.nested.log_odds),
        "likelihood ratio": pytest.approx(value.nested.likelihood_ratio),
        "one-sided p": p_value(value.nested.p), "pictures": value.nested.pictures, "adds": "no",
    }  # fmt: skip
    age, sources = covariates[:, 0], results.experiment.pictures["source"]
    within = strata.leads(
        labels, expit(logits), networks, groups, ages=age, **options,
        strata={"source": sources, "sex": covariates[:, 1], "third of age": strata.thirds(age)},
    )  # fmt: skip
    rows = found.tables["strata"].set_index("pairs")
    assert rows["AUROC"].tolist() == [format_interval(interval) for interval in within.values()]
    assert list(rows.index) == ["all pictures", "alike in source", "alike in sex", "alike in third of age",
                                "alike in age within 5 years"]  # fmt: skip
    assert rows["strata"].dropna().tolist() == [2, 2, 3]
    assert (
        rows.loc["alike in sex", "pictures"]
        == np.isfinite(covariates[:, 1]).sum()
        < rows.loc["all pictures", "pictures"]
    )
    (axes,) = found.figures["added_value"].axes
    curve = av.decision_curves(labels, value.probabilities, groups, [section.LIMITS[20]], draws=100)
    assert {drawn.get_label(): drawn.get_ydata()[20] for drawn in axes.lines} == {
        name: pytest.approx(curve[key][0].value) for name, key in
        {**{n: n for n in (av.IMAGE, av.CLINICAL, av.BOTH)}, "call all": "all", "call none": "none"}.items()
    }  # fmt: skip


def test_a_lead_that_is_age_alone_is_said_in_the_verdict(of_age: benchmark.Sheet) -> None:
    results, clinical = told(of_age)
    found = section.find(results, NAMES, clinical)
    beyond, lead = found.verdict
    assert beyond.startswith("resnet50 is not found to add to age, sex and BMI (nested logistic models, one-sided p = ")
    assert "clinical data alone reach an AUROC of 0.9" in beyond
    assert "its lead vanishes among those alike in" in lead
    assert "age within 5 years" in lead.split("vanishes")[1].split(";")[0]


def test_bone_beyond_age_is_found_and_no_lead_vanishes(monkeypatch: pytest.MonkeyPatch) -> None:
    of_bone = sheet("image")
    results, clinical = told(of_bone._replace(logits=of_bone.logits + 1.5 * of_bone.labels))
    found = section.find(results, NAMES, clinical)
    (beyond,) = found.verdict
    assert beyond.startswith("resnet50 adds to age, sex and BMI (nested logistic models, one-sided p ")
    assert found.tables["nested"]["adds"].tolist() == ["yes"]
    within = {strata.ALL_PICTURES: Interval(0.9, 0.85, 0.95), section.THIRD: Interval(0.55, 0.45, 0.65)}
    monkeypatch.setattr(section, "leads", lambda *_, **__: within)
    beyond, lead = section.find(results, NAMES, clinical).verdict
    assert beyond.startswith("resnet50 adds to age, sex and BMI")
    assert "; little of its lead is left among those alike in third of age, 0.550 (0.450 to 0.650), so most" in lead
    lead = section.find(results, ["sex"], clinical).verdict[1]
    assert "; its lead vanishes among those alike in third of age, 0.550 (0.450 to 0.650), which the cov" in lead


def test_only_pictures_with_a_row_count_and_small_strata_are_left_out(of_age: benchmark.Sheet) -> None:
    results, clinical = told(of_age)
    results.draws = 100
    clinical.iloc[300:] = None
    clinical["sex"] = np.where(np.arange(len(clinical)) < 9, "male", "female")
    results.experiment.pictures["source"] = "kaggle"
    found = section.find(results, ["age"], clinical)
    assert found.lines[0] == "300 of 400 tested pictures have a row in a clinical sheet; only these are used here."
    assert found.tables["nested"]["pictures"].tolist() == [300]
    assert found.tables["strata"]["pairs"].tolist() == ["all pictures", "alike in third of age",
                                                           "alike in age within 5 years"]  # fmt: skip


def test_a_hold_out_says_why_there_is_no_clinical_model(of_age: benchmark.Sheet) -> None:
    results, clinical = told(of_age._replace(networks=np.zeros_like(of_age.networks)))
    results.draws = 100
    found = section.find(results, NAMES, clinical)
    assert set(found.tables) == {"nested", "strata"}
    assert found.figures == {}
    assert found.lines[-1].startswith(
        "Models of clinical data alone and of both are left out: they are tested on folds"
    )
    clinical["row"] = pd.NA
    clinical[NAMES] = None
    nobody = section.find(results, NAMES, clinical.astype({"age": float, "bmi": float}))
    assert nobody.lines[1] == "Whether resnet50 adds to age, sex and BMI could not be tested."


def test_without_covariates_there_are_strata_alone(of_age: benchmark.Sheet) -> None:
    results, clinical = told(of_age)
    results.draws = 100
    found = section.find(results, [], clinical)
    assert (found.lines, found.figures, list(found.tables)) == ([], {}, ["strata"])
    assert found.tables["strata"]["pairs"].tolist() == [
        "all pictures",
        "alike in source",
        "alike in sex",
        "alike in age",
    ]
    gone = section.find(results, NAMES, None)
    assert (gone.lines, list(gone.tables)) == ([], ["strata"])
    assert gone.tables["strata"]["pairs"].tolist() == ["all pictures", "alike in source"]
    results.experiment.pictures["source"] = "kaggle"
    assert section.find(results, [], None) == section.Findings()


def test_of_models_that_take_covariates_themselves_nothing_is_said(of_age: benchmark.Sheet) -> None:
    results, clinical = told(of_age)
    results.models = results.models[:1]
    found = section.find(results, NAMES, clinical)
    assert found.lines == [section.ALL_FUSED.format(names="age, sex and BMI")]
    assert set(found.tables) == {"strata"}
    assert not any("tell the sources apart" in line for line in found.verdict)
    clinical[NAMES] = clinical[NAMES].where(results.experiment.pictures["source"] == "mendeley")
    said = f"resnet50, late uses covariates, and no picture from kaggle has any: {section.BY_ABSENCE}"
    assert section.find(results, NAMES, clinical).verdict[-1] == said


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of a folder, labelled by a table, with a sheet whose ages tell the class."""
    folder = tmp_path_factory.mktemp("clinic")
    (folder / "knees").mkdir()
    rng, table = np.random.default_rng(0), manifest(0)
    for name in table["image_id"]:
        cv2.imwrite(str(folder / "knees" / Path(name).name), rng.integers(0, 255, (64, 48), dtype=np.uint8))
    files = table["image_id"].map(lambda name: Path(name).name)
    ages = (50.0 + 15.0 * table["label"] + rng.normal(0.0, 8.0, PICTURES)).map("{:.4f}".format)
    pd.DataFrame({"file": files, "label": table["label"]}).to_csv(folder / "labels.csv", index=False)
    pd.DataFrame({"file": files, "age": ages}).to_csv(folder / "sheet.csv", index=False)
    return folder


def test_the_page_has_the_section_where_covariates_were_asked_for(
    clinic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = pd.read_csv(clinic / "sheet.csv", dtype={"age": str})["age"]
    changes = {
        "covariates": ["age"], "data__covariates": ["age"], "data__root": str(clinic / "knees"),
        "data__labels": str(clinic / "labels.csv"), "data__clinical": str(clinic / "sheet.csv"),
        "data__cache": str(tmp_path / "cache"), "data__image_size": 32, "logger": {},
    }  # fmt: skip
    runs = [write_run(tmp_path / f"sweep/{fold}", "resnet18", fold=fold, **changes) for fold in range(3)]
    for fold, run in enumerate(runs):
        places = run.read_table("predictions.csv")["image_id"].map(lambda name: int(Path(name).stem))
        write_logits(run, (ages[places].astype(float).reset_index(drop=True) - 57.0) / 5.0)
        run.write_metrics(evaluate_splits(run.read_predictions()))
        run.write_environment(**ENVIRONMENT | {"fold": fold, "precision": "32"})
        run.set_status("done")
    report = read_report(ReportConfig(runs=str(tmp_path / "sweep"), draws=100, pictures=False))

    def save(_: Figure, folder: Path, name: str) -> list[Path]:
        write_text(folder / f"{name}.png", "")
        return [folder / f"{name}.png"]

    monkeypatch.setattr(figures, "save", save)
    (tmp_path / "sweep/figures").mkdir()
    report.write()
    html, markdown = (tmp_path / "sweep/report.html").read_text(), (tmp_path / "sweep/report.md").read_text()
    assert '<a href="#added">Added value</a>' in html
    assert "\n## Added value\n\n- 60 of 60 tested pictures have a row in a clinical sheet" in markdown
    assert html.index('id="subgroups"') < html.index('<h2 id="added">') < html.index('id="mistakes"')
    tables, drawn = tmp_path / "sweep/tables", tmp_path / "sweep/figures/added_value.png"
    for name in section.TABLES:
        assert (tables / f"{name}.md").read_text() in markdown
        assert (tables / f"{name}.tex").exists()
    assert drawn.exists()
    assert any("add to age" in line for line in report.verdict)
    card = (report.results.best.system.best_run.directory / "model_card.md").read_text()
    assert "".join(f"\n{line}" for line in report.added) in card
    written = [path.read_text() for path in (tmp_path / "sweep").rglob("*.*") if path.suffix in {".md", ".tex", ".csv"}]
    assert not [age for age in ages if any(age in text for text in [html, *written])]

    kept = {name: table for name, table in report.tables.items() if name not in section.TABLES}
    drawn_again = {name: figure for name, figure in report.figures.items() if name != section.FIGURE}
    without = replace(report, added=[], tables=kept, figures=drawn_again, verdict=report.verdict[:1])
    assert "Added value" not in without.html() + without.markdown()
    without.write()
    assert not [path for path in tables.iterdir() if path.stem in section.TABLES]
    assert not drawn.exists()
