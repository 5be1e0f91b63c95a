"""Late fusion: what a patient's characteristics add to a picture, from training to an exported file."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from starlette.testclient import TestClient

from osteo import load
from osteo.checks import check
from osteo.cli import main
from osteo.command_settings import PredictConfig, ServeConfig
from osteo.config import Config, ModelConfig
from osteo.data.phantom import write_archives
from osteo.errors import UserError
from osteo.inference import export
from osteo.inference.model import Model, load_model, size_to_read
from osteo.inference.predictions import read_patients
from osteo.networks.fusion import LateFusion, Scaling
from osteo.networks.network import Network
from osteo.reading.covariates import Covariates, as_numbers, sources_without
from osteo.reading.reader import read_picture
from osteo.records.record import Run
from osteo.serving import server
from osteo.task import TASKS
from osteo.training import fit
from osteo.training.draws import Mixup
from osteo.training.losses import best_outputs
from osteo.training.module import Classifier

RNG = np.random.default_rng(5)
PATIENTS = pd.DataFrame(
    {
        "age": np.where(RNG.random(90) < 0.2, np.nan, RNG.normal(60, 12, 90)),
        "sex": RNG.choice(["female", "male"], 90),
        "bmi": RNG.normal(27, 4, 90),
    }
)
LEARNT = Covariates.fit(["age", "sex", "bmi"], PATIENTS)
FEATURES = torch.from_numpy(LEARNT.features(PATIENTS))
QUICK = [
    "task=three_class", "covariates=[age,sex,bmi]", "model.fusion=late", "data.image_size=32", "data.batch_size=6",
    "data.split.train=0.4", "data.split.val=0.3", "model.backbone=test_resnet", "trainer.max_epochs=1",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "logger=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom archive of three classes with its clinical sheet."""
    root = tmp_path_factory.mktemp("fusion") / "archives"
    write_archives(root, seed=4, kaggle={}, mendeley={"normal": 9, "osteopenia": 10, "osteoporosis": 9})
    return root / "mendeley"


@pytest.fixture(scope="module")
def run(archive: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training with covariates."""
    folder = tmp_path_factory.mktemp("runs") / "fused"
    with pytest.MonkeyPatch.context() as patch:
        data = ["data=mendeley", f"data.mendeley={archive}"]
        patch.setattr(sys, "argv", ["osteo", "train", *data, *QUICK, f"output_dir={folder}"])
        with pytest.raises(SystemExit, match="0"):
            main()
    return Run(folder)


@pytest.fixture(scope="module")
def model(run: Run) -> Model:
    return load_model(run.best_checkpoint)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "osteopenia_or_worse"])
def test_covariates_shift_the_outputs_as_a_classifier_of_both_would(task: str) -> None:
    network = Network("test_resnet", image_size=32, task=task).eval()
    pictures, chosen = torch.rand(3, 1, 32, 32), FEATURES[:3]
    with torch.no_grad():
        alone = network(pictures)
        network.fuse(LEARNT)
        assert torch.equal(network(pictures, chosen), alone), "nothing is learnt yet"
        assert network.fusion is not None
        network.fusion.weight.normal_(generator=torch.Generator().manual_seed(0))
        shift = (chosen @ network.fusion.weight.T).reshape(alone.shape if task == "three_class" else (3, -1))
        expected = alone + (shift if alone.ndim == 2 else shift[:, 0])
        assert network(pictures, chosen).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
        nothing_known = torch.from_numpy(np.stack([LEARNT.of_patient({})] * 3))
        assert torch.equal(network(pictures), network(pictures, nothing_known))
        twin = network.untrained()
        assert twin.fusion is not None
        assert twin.fusion.covariates == LEARNT


def test_concatenation_and_the_sum_are_one() -> None:
    """A linear classifier of (features, covariates) is the network's own of features, and the fusion's."""
    both = torch.nn.Linear(7 + FEATURES.shape[1], 3)
    fusion = LateFusion(LEARNT, 3)
    pooled = torch.rand(4, 7)
    with torch.no_grad():
        fusion.weight.copy_(both.weight[:, 7:])
        sum_of_two = fusion(torch.nn.functional.linear(pooled, both.weight[:, :7], both.bias), FEATURES[:4])
        joined = both(torch.cat([pooled, FEATURES[:4]], dim=1))
    assert sum_of_two.numpy() == pytest.approx(joined.numpy(), abs=1e-6)


def test_an_exported_file_scales_as_training_does() -> None:
    values = torch.from_numpy(as_numbers(LEARNT.names, PATIENTS).astype(np.float32))
    assert bool(values.isnan().any())
    assert Scaling(LEARNT)(values).numpy() == pytest.approx(FEATURES.numpy(), abs=1e-5)


def begun(task: str, truth: np.ndarray, **loss: Any) -> Classifier:
    """A network that begins at these labels or T-scores."""
    module = Classifier({"backbone": "test_resnet", "image_size": 32, "task": task}, loss=loss)
    module.fuse(LEARNT)
    module.begin_at(best_outputs(module.task, truth.tolist()), torch.from_numpy(truth), FEATURES)
    return module.eval()


def of_no_picture(module: Classifier) -> np.ndarray:
    """Outputs for the patients, whatever the picture."""
    with torch.no_grad():
        outputs = module(torch.zeros(len(FEATURES), 1, 32, 32), FEATURES)
    return np.asarray(outputs.double().numpy())


def test_training_begins_at_the_clinical_model_of_scikit_learn() -> None:
    rng, x = np.random.default_rng(6), FEATURES.double().numpy()
    latent = 1.5 * x[:, 0] - x[:, 1] + rng.normal(size=len(x))
    binary, three = (latent > 0).astype(int), np.digitize(latent, [-0.7, 0.7])
    logistic = LogisticRegression(tol=1e-10, max_iter=10_000)  # C=1: half the sum of squares
    expected = logistic.fit(x, binary).decision_function(x)
    assert of_no_picture(begun("binary", binary.astype(float))) == pytest.approx(expected, abs=1e-3)
    expected = logistic.fit(x, three).predict_proba(x)
    found = begun("three_class", three.astype(float), name="cross_entropy")
    probabilities = torch.from_numpy(of_no_picture(found)).softmax(1).numpy()
    assert probabilities == pytest.approx(expected, abs=1e-3)
    expected = Ridge(alpha=0.5).fit(x, latent).predict(x)
    assert of_no_picture(begun("t_score", latent, name="squared_error")) == pytest.approx(expected, abs=1e-3)


def test_proportional_odds_begin_beyond_the_shares() -> None:
    """The clinical model is likelier than the shares of the classes, and its cuts stay in order."""
    truth = np.digitize(FEATURES[:, 0].numpy() + np.random.default_rng(7).normal(size=len(FEATURES)), [-0.7, 0.7])
    module = begun("ordinal", truth.astype(float), name="cross_entropy")
    outputs = torch.from_numpy(of_no_picture(module))
    assert bool((outputs[:, 0] > outputs[:, 1]).all())
    shares = torch.tensor(best_outputs(module.task, truth.tolist())).double().expand_as(outputs)
    losses = [module._losses(found, torch.from_numpy(truth).double(), 0.0).mean() for found in (outputs, shares)]
    assert losses[0] < 0.9 * losses[1]


def test_covariates_that_one_source_has_alone_are_told_of(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    assert sources_without(["age"], PATIENTS, ["a"] * 90) == []
    assert sources_without(["age"], PATIENTS.assign(age=np.nan), ["a"] * 90) == []
    halves = ["a"] * 45 + ["b"] * 45
    assert sources_without(["age", "bmi"], PATIENTS, halves) == []
    without = PATIENTS.where(pd.Series(halves) == "b")
    assert sources_without(["age", "bmi"], without, halves) == ["a"]
    config = Config(covariates=["age", "bmi"], model=ModelConfig(backbone="test_resnet", fusion="late"))
    names = [f"p{n}" for n in range(90)]
    manifest = pd.DataFrame({"image_id": names, "source": halves, "split": "train", "patient": names})
    known = {"b": SimpleNamespace(clinical=without.set_axis(pd.Index(names, name="image_id")))}
    features = fit.learn_covariates(config, manifest, known, Classifier("test_resnet", image_size=32))
    assert features is not None
    assert features.shape == (90, 4), "age, BMI, and whether either is missing"
    assert "no picture of a has any of the covariates: by that alone" in caplog.text


def test_mixed_pictures_have_mixed_covariates(run: Run) -> None:
    from osteo.data.datamodule import KneeDataModule
    from osteo.data.prepare import prepare

    prepared = prepare(run.read_settings().data)
    known = torch.arange(2.0 * len(prepared.manifest)).view(-1, 2)
    data = KneeDataModule(prepared, batch_size=6, mix=Mixup(0.4), covariates=known)
    of_table = known[torch.tensor(prepared.manifest["split"].isin(["train", "val", "test"]).to_numpy(bool))]
    plain = data.gather(torch.arange(3), "val", augmented=False)
    assert torch.equal(plain.covariates, of_table[plain.rows])
    mixed, draws = (
        data.gather(torch.arange(6), "train", augmented=True),
        data._gather(torch.arange(6), "train", None, augmented=True, epoch=0)[1],
    )
    partners, share = data.mix(draws, len(data._cpu.members["train"]))
    others = of_table[data._cpu.members["train"][partners]]
    expected = share[:, None] * of_table[mixed.rows] + (1 - share[:, None]) * others
    assert mixed.covariates.numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_evaluate_answers_as_the_test_of_training_did(
    osteo: Callable[..., Any], run: Run, archive: Path, tmp_path: Path
) -> None:
    done = osteo("evaluate", str(run.best_checkpoint), "data=mendeley", f"data.mendeley={archive}",
                 "data.split.train=0.4", "data.split.val=0.3", "output_dir=again")  # fmt: skip
    assert done.code == 0, done.err
    told = Run(tmp_path / "again").read_predictions()
    trained = run.read_predictions().query("split == 'test'").set_index("image_id").loc[told["image_id"]]
    assert told["logit"].to_numpy() == pytest.approx(trained["logit"].to_numpy(), abs=1e-5)
    assert told["probability_osteopenia"].to_numpy() == pytest.approx(trained["probability_osteopenia"], abs=1e-5)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/normal").symlink_to(next(archive.glob("*/normal")))
    (tmp_path / "bare/osteoporosis").symlink_to(next(archive.glob("*/osteoporosis")))
    refused = osteo("evaluate", str(run.best_checkpoint), "data=folder", f"data.root={tmp_path / 'bare'}", "split=all")
    assert refused.code == 2
    assert "need a clinical sheet, and data=folder has none" in refused.err
    assert "Traceback" not in refused.err


def test_predict_reads_a_sheet_by_picture_or_by_patient(
    run: Run, model: Model, archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture = sorted(archive.glob("*/osteoporosis/*"))[0]
    names = ["P7.png", "more/P8.png", "P9.png"]
    by_picture = tmp_path / "a.csv"
    by_picture.write_text("Datei,Alter,Sex,Height,Weight,Patient\nP7.png,71,f,1.6,64,X1\nP8,44,male,,,X2\n")
    found = read_patients(str(by_picture), ["Datei:picture", "Alter:age"], names, [model])
    assert found["P7.png"]["age"] == 71
    assert found["P7.png"]["bmi"] == pytest.approx(25)
    assert (found["more/P8.png"]["sex"], "bmi" in found["more/P8.png"], found["P9.png"]) == ("male", False, {})
    by_patient = tmp_path / "b.csv"
    by_patient.write_text("Patient,Age,Sex,BMI\np9,50,F,30\nP1,51,F,31\n")
    assert read_patients(str(by_patient), [], names, [model])["P9.png"]["bmi"] == 30
    assert read_patients(None, [], names, [model]) == {}
    assert "takes the patient's age, sex, bmi too, and no clinical sheet is given (clinical=FILE)" in caplog.text
    for lines, message in [
        (
            "Patient,Age,Sex\nP7,50,F\n",
            r"clinical=b.csv has no column for bmi; name it: clinical_columns=\[COLUMN:bmi\]",
        ),
        (
            "Age,Sex,BMI\n50,F,30\n",
            r"has no column for the picture; name it: clinical_columns=\[COLUMN:picture\]; its col",
        ),
        ("Patient,Age,Sex,BMI\nP7,50,F,300\n", "clinical=b.csv: 'BMI' in row 2 is not a number from 8 to 100"),
        (
            "Patient,Age,Sex,BMI\nP0,50,F,30\n",
            "a row for none of 3 pictures, such as P7.png; its patients were compared",
        ),
    ]:
        by_patient.write_text(lines)
        with pytest.raises(UserError, match=message):
            read_patients(str(by_patient), [], names, [model])
    told = load(run.best_checkpoint).predict(
        [picture, picture], patients=[{"age": "71", "sex": "f", "bmi": 25}, {}], interval=False
    )
    told = told[~told["file"].str.endswith("half)")]
    prepared = model.prepare(read_picture(picture.read_bytes(), size_to_read([model])))
    expected = model.logits([prepared] * 2, model.features([{"age": 71, "sex": "female", "bmi": 25.0}, {}]))
    assert told["logit"].to_numpy() == pytest.approx(expected)
    assert abs(expected[0] - expected[1]) > 0.1
    note = "not known of the patient: age, sex, bmi; typical values from training are used"
    assert [flag.endswith(note) for flag in told["flag"]] == [False, True]
    for patients, message in [
        ([{}], "there are 2 pictures and 1 patients"),
        ([{}, {"ag": 3}], "'ag' is not a covariate of this model; it takes: age, sex, bmi, height, weight"),
        ([{}, {"age": 300}], "covariate age is not a number from 0 to 120"),
    ]:
        with pytest.raises(UserError, match=message):
            load(run.best_checkpoint).predict([picture, picture], patients=patients, interval=False)


def test_a_sheet_is_of_no_use_to_a_model_of_pictures_alone(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("picture,age\na,50\n")
    with pytest.raises(UserError, match="is not used: the model takes no covariates; leave"):
        read_patients(str(tmp_path / "a.csv"), [], ["a.png"], [SimpleNamespace(covariates=None)])  # type: ignore[list-item]


@pytest.mark.parametrize("suffix", [".onnx", ".ts.pt", ".pt2"])
def test_an_exported_file_takes_covariates_as_they_are(model: Model, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    export.write_exported(model, path)
    exported = export.open_exported(path)
    assert exported.card["covariates"]["names"] == ["age", "sex", "bmi"]
    pictures = [np.full((32, 32), level, np.uint8) for level in range(0, 250, 25)]
    assert export.difference(exported, model, pictures) < export.TOLERANCE
    features = model.features([{"age": 81, "sex": "male"}] * len(pictures))
    values = np.array([[81, 1, np.nan]] * len(pictures))
    assert exported.logits(pictures, values) == pytest.approx(model.logits(pictures, features), abs=1e-5)
    assert exported.logits(pictures) == pytest.approx(model.logits(pictures), abs=1e-5)
    assert abs(exported.logits(pictures) - exported.logits(pictures, values)).min() > 0.1


def test_the_page_asks_for_the_patient_and_the_header_tells(model: Model, archive: Path) -> None:
    content = sorted(archive.glob("*/osteoporosis/*"))[0].read_bytes()
    settings = ServeConfig(interval=False, overlay=False)
    with TestClient(server.make_app([model], settings), base_url="http://localhost") as client:
        page = client.get("/").text
        assert '<input type="number" name="age" min="0" max="120"' in page
        assert '<select name="sex"' in page
        assert "X-Patient" in page

        def ask(patient: str) -> Any:
            return client.post("/answer", content=content, headers={server.PATIENT: patient})

        known = ask(json.dumps({"age": "71", "sex": "f", "bmi": 25.0})).json()
        assert known["remarks"] == []
        unknown = client.post("/answer", content=content).json()
        assert unknown["remarks"] == ["not known of the patient: age, sex, bmi; typical values from training are used"]
        assert unknown["calibrated"] != known["calibrated"]
        for patient, message in [
            ('{"age": 810}', "covariate age is not a number from 0 to 120 (years)"),
            ('{"ag": 81}', "'ag' is not a covariate of this model; it takes: age, sex, bmi, height, weight"),
            ("[1]", "the header X-Patient must be a JSON object of numbers and words"),
            ('{"age": [1]}', "the header X-Patient must be a JSON object of numbers and words"),
        ]:
            reply = ask(patient)
            assert (reply.status_code, reply.json()["error"]) == (400, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(model=ModelConfig(fusion="late")), "model.fusion=late needs covariates to fuse, as in covariates=[age"),
        (Config(model=ModelConfig(fusion="early")), "model.fusion 'early' is unknown; choose one of: none, late"),
        (PredictConfig(clinical="gone.csv"), "clinical=gone.csv: no such file"),
        (PredictConfig(clinical_columns=["a:age"]), "clinical_columns goes with clinical=FILE"),
        (PredictConfig(clinical="x", clinical_columns=["a:ag"]), "clinical_columns: 'a:ag' is not a COLUMN:MEANING"),
    ],
)
def test_what_cannot_be_is_one_line(config: Config | PredictConfig, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(config)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
