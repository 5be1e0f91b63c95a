"""Lightning's own ways: a plain script, several loggers at once, callbacks of others, debugging overlays."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from sklearn.metrics import accuracy_score, roc_auc_score

import osteo as package
from benchmarks.faults import differs
from osteo import Classifier, KneeDataModule
from osteo.app.messages import CONF
from osteo.errors import UserError
from osteo.records.record import Run
from osteo.training.callbacks import StochasticWeightAveraging
from tests.test_recipes import interrupt
from tests.test_tracking import of_type, offline_runs

QUIET = {
    "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
    "enable_model_summary": False,
}  # fmt: skip


def test_a_plain_script_fits_validates_tests_and_predicts(knees: Path) -> None:
    seed_everything(0, verbose=False)
    module = Classifier("test_resnet", {"lr": 3e-3, "schedule": "constant"}, image_size=64)
    data = KneeDataModule(knees, image_size=64, batch_size=8)
    trainer = Trainer(max_epochs=3, **QUIET)
    trainer.fit(module, data)
    [validated] = trainer.validate(module, data, verbose=False)
    [tested] = trainer.test(module, data, verbose=False)
    assert set(tested) == {"test/loss", "test/accuracy", "test/auroc"}
    batches = trainer.predict(module, data)
    rows = torch.cat([batch.rows for batch in batches]).numpy()
    table = data.table.loc[rows].assign(probability=torch.cat([batch.logits for batch in batches]).sigmoid().numpy())
    for split, values in (("val", validated), ("test", tested)):
        part = table[table["split"] == split]
        truth = part["label"].to_numpy(int)
        assert values[f"{split}/auroc"] == pytest.approx(roc_auc_score(truth, part["probability"]), abs=1e-6)
        assert values[f"{split}/accuracy"] == pytest.approx(accuracy_score(truth, part["probability"] > 0.5), abs=1e-6)


def test_a_script_s_mistakes_are_one_line(knees: Path) -> None:
    with pytest.raises(UserError, match=r"setting 'image_sise' is unknown; .*, image_size, .*mean image_size\?$"):
        KneeDataModule(knees, image_sise=64)
    with pytest.raises(UserError, match=r"data.root=nowhere: no such file or folder"):
        KneeDataModule("nowhere")
    with pytest.raises(UserError, match=r"optimizer.name 'adamm' is unknown"):
        Classifier("test_resnet", {"name": "adamm"}, image_size=64)
    with pytest.raises(AttributeError, match="module 'osteo' has no attribute 'Clasifier'"):
        _ = package.Clasifier


def test_the_interface_is_small_and_imports_nothing() -> None:
    code = "import osteo, sys; print(sorted(osteo.__all__), sorted({'torch', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Classifier', 'KneeDataModule', 'audit_dataset', 'load', 'write_report'] []"
    rooms = {path.name for path in Path(package.__file__).parent.iterdir() if path.is_dir()}
    assert not rooms & set(package.__all__)
    assert all(getattr(package, name).__doc__ for name in package.__all__)


@pytest.mark.slow
def test_three_loggers_at_once_have_the_same_numbers(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    done = osteo(
        "train", *tiny, "trainer.max_epochs=3", "logger=[wandb,csv,tensorboard]", "logger.wandb.mode=offline",
        "output_dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    kept = Run(tmp_path / "run").read_table("history.csv")
    metrics = Run(tmp_path / "run").read_json("metrics.json")
    [records] = offline_runs(tmp_path / "run")
    wandb_rows = [row["item"] for row in of_type(records, "history")]
    csv = pd.read_csv(next((tmp_path / "run/csv").glob("version_*/metrics.csv")))
    board = event_accumulator.EventAccumulator(str(next((tmp_path / "run/tensorboard").glob("version_*"))))
    board.Reload()
    for name in ("train/loss", "val/loss", "val/auroc", "train/accuracy", "lr"):
        expected = pytest.approx(list(kept[name]), rel=1e-6)
        assert [row[name] for row in wandb_rows if name in row] == expected
        assert list(csv[name].dropna()) == expected
        assert [event.value for event in board.Scalars(name)] == expected
    assert csv["test/auroc"].dropna().tolist() == pytest.approx([metrics["test/auroc"]])
    assert [event.value for event in board.Scalars("test/auroc")] == pytest.approx([metrics["test/auroc"]])
    assert board.Tags()["images"] == ["test/confusion"]
    [told] = board.Tensors("run/text_summary")
    assert told.tensor_proto.string_val == [b"test_resnet-seed0: run, train, test_resnet, folder"]
    written = b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())
    hparams = next((tmp_path / "run/csv").glob("version_*/hparams.yaml")).read_text()
    assert yaml.safe_load(hparams)["data"]["root"] == "kaggle"
    assert written.count(str(tmp_path).encode()) == Path("run/config.yaml").read_bytes().count(str(tmp_path).encode())


def test_mlflow_has_parameters_curves_tags_and_the_confusion_matrix(
    osteo: Callable, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is not installed")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    done = osteo("train", *tiny, "logger=mlflow", "callbacks=[batch_loss]", "output_dir=run")
    assert done.code == 0, done.err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'run'}/mlflow.db")
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    record = Run(tmp_path / "run")
    assert run.data.params["model/backbone"] == "test_resnet"
    assert run.data.metrics["test/auroc"] == pytest.approx(record.read_metrics()["test/auroc"])
    assert run.data.tags["mlflow.runName"] == "test_resnet-seed0"
    assert (run.data.tags["group"], run.data.tags["tag.folder"], run.data.tags["mlflow.user"]) == ("run", "true", "")
    assert {entry.path for entry in client.list_artifacts(run.info.run_id, "test")} == {
        "test/confusion.csv", "test/confusion.png",
    }  # fmt: skip
    assert (tmp_path / "run/mlflow").is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == []
    table = pd.read_csv(client.download_artifacts(run.info.run_id, "test/confusion.csv"), index_col=0)
    assert table.to_numpy().tolist() == record.read_metrics()["test/confusion_matrix"]
    losses = [point.value for point in client.get_metric_history(run.info.run_id, "train/loss_step")]
    assert len(losses) == record.read_history()["step"].iloc[-1]


def test_no_logger_at_all(osteo: Callable, tiny: list[str], tmp_path: Path) -> None:
    for number, word in enumerate(("logger=null", "~logger")):
        assert osteo("train", *tiny, word, f"output_dir={number}").code == 0
    assert not list(tmp_path.rglob("wandb"))


SMALL = ["data=phantom", "data.phantom.kaggle={normal: 14, osteoporosis: 14}",
         "data.phantom.mendeley={normal: 6, osteopenia: 2, osteoporosis: 6}", "data.image_size=64", "data.batch_size=8",
         "model.backbone=test_resnet", "trainer.accelerator=cpu", "trainer.precision=32-true",
         "logger.wandb.mode=disabled"]  # fmt: skip


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "callbacks").glob("*.yaml")))
def test_a_callback_that_is_shipped_runs(osteo: Callable, tmp_path: Path, choice: str) -> None:
    words = [*SMALL, "trainer.max_epochs=3", "optimizer.schedule=constant"]
    if choice == "unfreeze":
        words.append("callbacks.unfreeze.epochs=1")
    logger = ["logger=csv"] if choice in ("lr_monitor", "device_stats") else []
    kept = [word for word in words if not (logger and word.startswith("logger"))]
    done = osteo("train", *kept, *logger, f"callbacks={choice}", "output_dir=run")
    assert done.code == 0, done.err
    assert len(Run(tmp_path / "run").read_table("history.csv")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF / "debug").glob("*.yaml")))
def test_a_debugging_overlay_that_is_shipped_runs(osteo: Callable, tmp_path: Path, choice: str) -> None:
    done = osteo("train", *SMALL, f"debug={choice}", "output_dir=run")
    assert done.code == 0, done.err
    history = Run(tmp_path / "run").read_table("history.csv")
    if choice == "overfit":
        assert history["train/accuracy"].iloc[-1] == 1.0
        assert history["train/loss"].iloc[-1] < 0.1 < history["train/loss"].iloc[0]
    if choice == "one_batch":
        assert history["step"].tolist() == [1]
    if choice == "profile":
        assert "run_training_epoch" in (tmp_path / "run/fit-profile.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["ema", "swa", "[ema,early_stopping]"])
def test_a_run_with_averaged_weights_goes_on_as_if_it_had_not_stopped(
    osteo: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    words = [*SMALL, "trainer.max_epochs=8", f"callbacks={choice}", "keep=all"]
    assert osteo("train", *words, "output_dir=whole").code == 0
    with monkeypatch.context() as patch:
        interrupt(patch, after=6)
        assert osteo("train", *words, "output_dir=cut").code != 0
    assert Run(tmp_path / "cut").state == "interrupted"
    assert osteo("train", "resume=cut").code == 0
    assert differs(Run(tmp_path / "whole"), Run(tmp_path / "cut")) == []


def test_averaging_begins_where_it_is_told_to() -> None:
    with pytest.raises(ValueError, match=r"start=1.0 must be at least 0 and less than 1"):
        StochasticWeightAveraging(1.0)
    averaging = StochasticWeightAveraging(0.5)
    averaging._first, averaging._steps = 2, 5
    assert [step for step in range(25) if averaging.should_update(step_idx=step)] == [14, 19, 24]
    assert not averaging.should_update(epoch_idx=4)


def test_the_mean_of_weights_is_their_mean(knees: Path) -> None:
    seed_everything(0, verbose=False)
    module = Classifier("test_resnet", {"lr": 3e-3, "schedule": "constant"}, image_size=64)
    seen: list[torch.Tensor] = []

    class Watch(StochasticWeightAveraging):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if trainer.is_last_batch:
                seen.append(pl_module.network.backbone.fc.weight.detach().clone())

    trainer = Trainer(max_epochs=4, callbacks=[Watch(0.5)], **QUIET)
    trainer.fit(module, KneeDataModule(knees, image_size=64, batch_size=8))
    assert torch.allclose(module.network.backbone.fc.weight, (seen[2] + seen[3]) / 2, atol=1e-6)


def test_a_frozen_backbone_does_not_move_and_its_classifier_does(knees: Path) -> None:
    from lightning.pytorch.callbacks import BackboneFinetuning

    module = Classifier("test_resnet", {"lr": 3e-3, "schedule": "constant", "weight_decay": 0.0}, image_size=64)
    before = {name: value.clone() for name, value in module.network.named_parameters()}
    freeze = BackboneFinetuning(unfreeze_backbone_at_epoch=99, train_bn=False)
    Trainer(max_epochs=1, callbacks=[freeze], **QUIET).fit(module, KneeDataModule(knees, image_size=64, batch_size=8))
    moved = {name for name, value in module.network.named_parameters() if not torch.equal(value, before[name])}
    assert {"backbone.fc.weight", "backbone.fc.bias"} <= moved
    kernels = {name for name, value in before.items() if value.ndim > 1}
    assert moved & kernels == {"backbone.fc.weight"}  # Lightning's freeze leaves normalisation as it is


def test_a_plateau_lowers_the_rate_and_is_recorded(osteo: Callable, tmp_path: Path) -> None:
    done = osteo(
        "train", *SMALL, "trainer.max_epochs=4", "optimizer.schedule=plateau", "optimizer.lr=1e-12",
        "optimizer.schedule_args={patience: 0, factor: 0.5, threshold: 0.5}", "output_dir=run",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert Run(tmp_path / "run").read_table("history.csv")["lr"].tolist() == pytest.approx(
        [1e-12, 1e-12, 0.5e-12, 0.25e-12]
    )
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["optimizer"]["schedule_args"] == {"patience": 0, "factor": 0.5, "threshold": 0.5}
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "done"
