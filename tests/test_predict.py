"""A checkpoint in the hands of somebody who has never seen how it was made."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

from osteo.errors import UserError
from osteo.inference import guard
from osteo.inference.answer import VARIANTS, answer, change, combine
from osteo.inference.card import KEY, data_hash
from osteo.inference.model import load_model, load_models, size_to_read
from osteo.inference.predictions import Row, to_table
from osteo.reading.framing import NOT_FOUND, square
from osteo.reading.pictures import decode
from osteo.records.record import Run
from osteo.types import Grey
from tests import dicom


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, knees: Path, cache: Path) -> Path:
    """Two trainings in float32, in one folder."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("runs")
    command = [
        str(Path(sys.executable).with_name("osteo")), "train", "-m", "data=folder", f"data.root={knees}",
        "data.image_size=64", "data.batch_size=8", "trainer.accelerator=cpu", "trainer.precision=32-true",
        "trainer.max_epochs=3", "model.backbone=test_resnet,test_convnext", "logger.wandb.mode=disabled",
        "output_dir=s",
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "s"


def test_a_checkpoint_carries_all_that_its_use_needs(runs: Path) -> None:
    card = load_model(runs / "0/checkpoints/best.ckpt").card
    record = Run(runs / "0")
    used = record.read_manifest().query("split != 'excluded'")
    assert (card.image_size, card.fit, card.class_names) == (64, "pad", ["normal", "osteoporosis"])
    assert (card.trained_on, card.backbone, card.seed) == ("folder", "test_resnet", 0)
    assert card.data_hash == data_hash(list(used["sha256"]), list(used["split"]))
    assert set(card.thresholds) == {"0.5", "Youden", "sensitivity"}
    assert 0.05 <= card.temperature <= 20.0
    assert card.intended_use.startswith("research use only, not a medical device")
    again = load_model(runs / "0/checkpoints/best.ckpt")
    assert again.guard is not None
    assert again.guard.tested == (used["split"] == "test").sum()


def test_a_picture_has_one_logit_wherever_it_is_asked_about(osteo: Callable, runs: Path, knees: Path) -> None:
    """In training's test, in evaluate and in predict, alone or among others."""
    trained = Run(runs / "0").read_table("predictions.csv").set_index("image_id")["logit"]
    data = ["data=folder", f"data.root={knees}"]
    assert osteo("evaluate", str(runs / "0"), *data, "output_dir=e").code == 0
    evaluated = Run(Path("e")).read_table("predictions.csv").set_index("image_id")["logit"]
    assert len(evaluated) == (Run(runs / "0").read_manifest()["split"] == "test").sum()
    assert (evaluated - trained[evaluated.index]).abs().max() < 1e-4
    assert osteo("predict", str(runs / "0"), f"input={knees}", "output_dir=p", "interval=false").code == 0
    predicted = pd.read_csv("p/predictions.csv").assign(id=lambda t: "folder/" + t["file"]).set_index("id")["logit"]
    assert (predicted[trained.index] - trained).abs().max() < 1e-4
    name = trained.index[0].removeprefix("folder/")
    assert osteo("predict", str(runs / "0"), f"input={knees / name}", "output_dir=one", "overlay=false").code == 0
    assert pd.read_csv("one/predictions.csv")["logit"][0] == pytest.approx(trained.iloc[0], abs=1e-4)
    kept = json.loads(Path("e/metrics.json").read_text())
    assert kept == {k: v for k, v in Run(runs / "0").read_json("metrics.json").items() if k.startswith("test/")}


def test_several_checkpoints_answer_together(osteo: Callable, runs: Path, knees: Path) -> None:
    both = f"ckpt=[{runs / '0'},{runs / '1'}]"
    done = osteo("predict", both, f"input={knees / 'normal'}", "output_dir=p", "rule=0.5")
    assert done.code == 0, done.err
    table = pd.read_csv("p/predictions.csv")
    single = [Run(runs / n).read_table("predictions.csv").set_index("image_id") for n in "01"]
    for row in table.assign(id="folder/normal/" + table["file"]).itertuples():
        if row.id in single[0].index:
            mean = np.mean([one.loc[row.id, "probability"] for one in single])
            assert row.probability == pytest.approx(mean, abs=1e-5)
            assert row.low <= row.calibrated <= row.high
    calls = np.where(table["flag"].notna(), "withheld", np.where(table["calibrated"] > 0.5, "osteoporosis", "normal"))
    assert list(table["call"]) == list(calls)
    written = json.loads(Path("p/predictions.json").read_text())
    assert [model["backbone"] for model in written["models"]] == ["test_resnet", "test_convnext"]
    assert len(written["pictures"]) == len(table) == 40
    assert (Path("p/overlays") / f"{table['file'][0]}.png").exists()


def test_odd_files_are_rows_and_odd_pictures_are_flagged(
    osteo: Callable, runs: Path, knees: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    first = cv2.imread(str(sorted((knees / "normal").iterdir())[0]), 0)
    odd = {
        "two knees": np.hstack([first, first[:, ::-1]]),
        "inverted": 255 - first,
        "turned": np.rot90(first),
        "only 20 x 20 pixels": cv2.resize(first, (20, 20)),
        "blank": np.random.default_rng(0).integers(85, 95, first.shape, dtype=np.uint8),
        "unlike": cv2.cvtColor(load_sample_images().images[0], cv2.COLOR_RGB2GRAY),
    }
    for name, picture in odd.items():
        cv2.imwrite(str(folder / f"{name}.png"), picture)
    (folder / "broken.png").write_bytes(b"\x89PNG no")
    (folder / "notes.txt").write_text("not a picture")
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
        archive.writestr("../escape.png", b"x")
    for given in ("in", "in.zip"):
        done = osteo("predict", str(runs / "0"), f"input={given}", f"output_dir=from_{given}")
        assert done.code == 1, done.err
        table = pd.read_csv(f"from_{given}/predictions.csv").set_index("file")
        for name in odd:
            assert name in table.loc[f"{name}.png", "flag"], name
            assert table.loc[f"{name}.png", "call"] == "withheld"
        assert {"two knees.png (left half)", "two knees.png (right half)"} <= set(table.index)
        assert table.loc["broken.png", "error"] == "not a picture"
        assert not any("notes" in str(name) for name in table.index)
        assert not (tmp_path / "escape.png").exists()
    assert table.loc["../escape.png", "error"] == "name leaves the archive"
    assert "withheld" in done.out


def test_an_answer_says_where_the_joint_was_not_found(runs: Path, knees: Path) -> None:
    model = load_model(runs / "0/checkpoints/best.ckpt")
    cropping = replace(model, card=replace(model.card, fit="crop"), guard=None)
    assert (size_to_read([model]), size_to_read([model, cropping])) == (64, 0)
    knee = decode(next(knees.rglob("*.png")).read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (90, 90), dtype=np.uint8)
    answers = answer([cropping], [knee, noise], rule="0.5", interval=False)
    assert [found.notes for found in answers] == [(), (NOT_FOUND,)]
    flags = to_table([Row("noise.png", "", answers[1], None)], "0.5")["flag"]
    assert list(flags) == ["its checkpoint has no guard; the joint was not found: the central square is used"]
    assert answer([model], [noise], rule="0.5", interval=False)[0].notes == (), "which needs no joint"


def test_a_guard_separates_knees_from_what_it_never_saw(knees: Path) -> None:
    pictures = [square(decode(path.read_bytes(), 64), 64, "pad") for path in sorted(knees.rglob("*.*"))]
    order = np.random.default_rng(0).permutation(len(pictures))
    made = guard.fit(np.stack(pictures), order[:50], order[50:65], order[65:])
    assert made.false_alarms <= 4
    assert made.tested == 15
    held = [pictures[row] for row in order[65:]]
    rng = np.random.default_rng(1)
    photographs = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in load_sample_images().images]
    corners = [(rng.integers(0, 300), rng.integers(0, 500), image) for image in photographs for _ in range(20)]
    others: dict[str, list[Grey]] = {
        "photographs": [square(image[y : y + 120, x : x + 120], 64, "pad") for y, x, image in corners],
        "noise": [rng.integers(0, 256, (64, 64), dtype=np.uint8) for _ in range(10)],
        "nothing": [np.full((64, 64), value, np.uint8) for value in (0, 90, 255)],
        "inverted": [np.asarray(255 - picture, np.uint8) for picture in held],
        "turned": [np.ascontiguousarray(np.rot90(picture)) for picture in held],
    }
    for name, strange in others.items():
        scores = np.r_[made.score(held), made.score(strange)]
        assert roc_auc_score([0] * len(held) + [1] * len(strange), scores) > 0.97, name
    back = guard.from_dict(guard.to_dict(made))
    assert np.array_equal(back.score(held), made.score(held))


def test_variants_and_means_are_what_they_say() -> None:
    picture = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(change(picture, VARIANTS[0]), picture)
    assert np.array_equal(
        change(picture, next(v for v in VARIANTS if v[1:] == (0.0, 1.0) and v.mirrored)), picture[:, ::-1]
    )
    assert len(set(VARIANTS)) == len(VARIANTS) == 8

    class Fake:
        card = SimpleNamespace(temperature=2.0)

    logit, probability, calibrated = combine([Fake()], np.array([[0.0, 2.0]]))
    assert (list(logit), list(probability)) == ([0.0, 2.0], pytest.approx([0.5, 0.880797], abs=1e-6))
    assert list(calibrated) == pytest.approx([0.5, 0.731059], abs=1e-6)
    logit, probability, calibrated = combine([Fake(), Fake()], np.array([[0.0, 2.0], [0.0, -2.0]]))
    assert list(logit) == pytest.approx([0.0, 0.0], abs=1e-9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda kept: kept.pop(KEY), "holds no preprocessing"),
        (lambda kept: kept[KEY].update(version=99), "does not know"),
        (lambda kept: kept[KEY].update(temperature=-1.0), "makes no sense"),
        (lambda kept: kept[KEY].update(extra=1), "does not know"),
        (lambda kept: kept[KEY]["guard"].update(extra=1), "holds a card whose guard makes no sense"),
        (lambda kept: kept["hyper_parameters"].update(_target_="os.system"), "is not a checkpoint of osteo"),
        (lambda kept: kept.pop("state_dict"), "is not a checkpoint of osteo"),
    ],
)
def test_a_checkpoint_that_was_tampered_with_is_refused(
    runs: Path, tmp_path: Path, spoil: Callable, message: str
) -> None:
    kept = torch.load(runs / "0/checkpoints/best.ckpt", weights_only=True)
    spoil(kept)
    torch.save(kept, tmp_path / "bad.ckpt")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "bad.ckpt")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (__import__("os").system, ("touch pwned",))


def test_a_pickle_with_code_is_refused(osteo: Callable, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": Bomb()}, tmp_path / "bomb.ckpt")
    (tmp_path / "a.png").touch()
    done = osteo("predict", "bomb.ckpt", "input=a.png")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "bomb.ckpt is not a checkpoint of osteo" in done.err
    assert not (tmp_path / "pwned").exists()
    foreign = osteo("predict", "ckpt=bomb.ckpt", "input=a.png", "+_target_=os.system")
    assert foreign.code == 2
    assert "key '_target_' is unknown" in foreign.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "input=a.png"], "name a run or a checkpoint"),
        (["predict", "nowhere.ckpt", "input=a.png"], "nowhere.ckpt: no such run, sweep or checkpoint"),
        (["predict", "{run}"], "name the pictures: osteo predict RUN PICTURE"),
        (["predict", "{run}", "input=nowhere"], "input=nowhere: no such file or folder"),
        (["predict", "{run}", "input=empty"], "input=empty holds no picture"),
        (["predict", "{run}", "input=notes.xlsx"], "input=notes.xlsx: not a picture; expected PNG, JPEG"),
        (["predict", "notes.xlsx", "input=empty"], "notes.xlsx is not a checkpoint of osteo; give a run or its best"),
        (["predict", "{run}", "input=a.png", "rule=best"], "rule 'best' is unknown; choose one of: 0.5, Youden"),
        (["evaluate", "{run}", "split=some"], "split 'some' is unknown"),
        (["evaluate", "{run}", "data=folder", "data.root=empty"], "holds no pictures in class folders"),
        (
            ["evaluate", "{run}", "data=folder", "data.root=.", "data.classes=[a:b]"],
            "data.classes: 'a:b' is not a FOLDER",
        ),
        (["report", "{evaluation}"], "holds no finished run of training"),
    ],
)
def test_mistakes_are_one_line(
    osteo: Callable, runs: Path, knees: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.xlsx").write_bytes(b"no picture")
    if "{evaluation}" in arguments:
        assert osteo("evaluate", str(runs / "0"), "data=folder", f"data.root={knees}", "output_dir=e").code == 0
        assert "done" in osteo("status", "e").out
    done = osteo(*(a.format(run=runs / "0", evaluation="e") if "{" in a else a for a in arguments))
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert message in done.err


def test_an_external_set_with_other_names(osteo: Callable, runs: Path, knees: Path, tmp_path: Path) -> None:
    for folder, class_name in (("Healthy", "normal"), ("ILL", "osteoporosis")):
        shutil.copytree(knees / class_name, tmp_path / "external" / folder)
    classes = "data.classes=[healthy:normal,ill:osteoporosis]"
    done = osteo("evaluate", str(runs / "0"), "data=folder", "data.root=external", classes, "split=all", "output_dir=e")
    assert done.code == 0, done.err
    table = Run(Path("e")).read_table("predictions.csv")
    assert table["label"].value_counts().to_dict() == {0: 40, 1: 40}
    learnt = Run(runs / "0").read_manifest()["split"].isin(["train", "val"]).sum()
    assert f"was trained on {learnt} of these 80 pictures: the result is too optimistic" in done.out
    intervals = pd.read_csv("e/intervals.csv").set_index("metric")
    value = float(intervals.loc["auroc", "at 0.5 (0.50)"].split()[0])
    assert value == pytest.approx(json.loads(Path("e/metrics.json").read_text())["test/auroc"], abs=6e-4)


@pytest.mark.parametrize(("key", "value"), [("class_names", ["no fracture", "fracture"]), ("image_size", 128)])
def test_a_card_that_is_not_its_networks_is_refused(runs: Path, tmp_path: Path, key: str, value: object) -> None:
    kept = torch.load(runs / "1/checkpoints/best.ckpt", weights_only=True)
    kept[KEY][key] = value
    torch.save(kept, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=rf"other.ckpt holds a card whose {key} .*; it is damaged"):
        load_models([str(runs / "0"), str(tmp_path / "other.ckpt")])


def test_nothing_of_a_patient_reaches_an_output(osteo: Callable, runs: Path, knees: Path, tmp_path: Path) -> None:
    """Names, dates and identifiers are planted in a good file and in one that is cut short."""
    planted = {
        "PatientName": "Zweigelt^Roswitha",
        "PatientID": "ID-4711-0815",
        "PatientBirthDate": "19410317",
        "StudyDate": "20191231",
        "AccessionNumber": "ACC7788123",
        "InstitutionName": "Spital Hinterbruehl",
        "ReferringPhysicianName": "Blaufraenkisch^Anton",
        "PatientAddress": "Rebgasse 9",
        "ImageComments": "seen with daughter Veltlina",
        "StudyInstanceUID": "1.2.3.4.5.6.7.8.98765432",
    }
    knee = cv2.imread(str(sorted((knees / "normal").iterdir())[0]), 0)
    content = dicom.file(knee, 8, **planted)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good").write_bytes(content)
    (folder / "cut.dcm").write_bytes(content[: len(content) // 2])
    done = osteo("predict", str(runs / "0"), "input=in", "output_dir=p")
    assert done.code == 1
    table = pd.read_csv("p/predictions.csv").set_index("file")
    assert table.loc["good", "call"] in ("normal", "osteoporosis")
    assert table.loc["cut.dcm", "error"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file())
    output = written + done.out.encode() + done.err.encode()
    for value in planted.values():
        for part in value.replace("^", " ").split():
            if len(part) > 4:
                assert part.encode() not in output, part
