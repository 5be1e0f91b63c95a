"""Learning: to zero loss where it should, the same with the same seed, and kept so that it can be loaded safely."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from osteo.data.datamodule import KneeDataModule
from osteo.data.manifest import typed
from osteo.data.prepare import Prepared
from osteo.data.store import Store
from osteo.errors import UserError
from osteo.records.record import Run
from osteo.training.augment import Augmentation
from osteo.training.checkpoints import build_module, read_checkpoint
from osteo.training.draws import Mixup
from osteo.training.module import Classifier

OPTIMIZER = {
    "name": "adamw", "lr": 3e-3, "weight_decay": 0.0, "momentum": 0.9, "schedule": "constant", "warmup": 0.25,
}  # fmt: skip


def noise(count: int) -> tuple[pd.DataFrame, Store]:
    """Pictures of noise with labels of chance: only memory can tell them apart."""
    pictures = np.random.default_rng(0).integers(0, 255, (2, count, 64, 64), dtype=np.uint8)
    names = [f"{i:064d}" for i in range(count)]
    rows = [
        {"image_id": f"s/{i}", "sha256": names[i], "label": i % 2, "split": "train", "source": "s", "group": names[i]}
        for i in range(count)
    ]
    return typed(pd.DataFrame(rows)), Store(pictures, {name: i for i, name in enumerate(names)}, {})


def data(count: int, *, batch_size: int, seed: int = 0) -> KneeDataModule:
    table, store = noise(count)
    return KneeDataModule(Prepared(table, store), batch_size=batch_size, seed=seed, augment=Augmentation())


def module() -> Classifier:
    return Classifier({"backbone": "test_resnet", "image_size": 64}, OPTIMIZER)


def trainer(**settings: object) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **(quiet | settings))


@pytest.mark.slow
def test_eight_pictures_are_learned_by_heart() -> None:
    seed_everything(0, verbose=False)
    learner, fitter = module(), trainer(max_epochs=150, limit_val_batches=0)
    fitter.fit(learner, data(8, batch_size=8))
    assert float(fitter.callback_metrics["train/loss"]) < 1e-3
    assert float(fitter.callback_metrics["train/accuracy"]) == 1.0


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(17, 8, 2), (16, 8, 2), (18, 8, 3), (9, 9, 1)])
def test_an_epoch_shows_every_picture_but_a_last_lonely_one(count: int, batch_size: int, steps: int) -> None:
    shown = [item for batch in data(count, batch_size=batch_size).train_dataloader() for item in batch.tolist()]
    assert len(shown) == len(set(shown)) == count - (count % batch_size == 1)
    assert len(data(count, batch_size=batch_size).train_dataloader()) == steps


def test_the_order_follows_the_seed_and_changes_with_the_epoch() -> None:
    loaders = [data(32, batch_size=32, seed=seed).train_dataloader() for seed in (1, 1, 2)]
    first = [next(iter(loader)).tolist() for loader in loaders]
    assert first[0] == first[1] != first[2]
    assert next(iter(loaders[0])).tolist() == first[0]
    loaders[0].batch_sampler.sampler.set_epoch(1)
    assert next(iter(loaders[0])).tolist() != first[0]


def test_a_batch_holds_the_pictures_it_says() -> None:
    module_ = data(10, batch_size=4)
    batch = module_.gather(torch.tensor([3, 0, 9]), "train", augmented=False)
    assert batch.pictures.shape == (3, 1, 64, 64)
    stored = noise(10)[1].pictures[0]
    for place, row in enumerate(batch.rows.tolist()):
        assert torch.equal(batch.pictures[place, 0], torch.from_numpy(stored[row]).float() / 255)
        assert int(batch.labels[place]) == row % 2


def test_variants_multiply_an_epoch_and_reach_the_augmentation() -> None:
    table, store = noise(5)
    seen: list[list[int]] = []

    def augment(pictures: torch.Tensor, twins: torch.Tensor, variant: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        seen.append(variant.tolist())
        return twins

    module_ = KneeDataModule(Prepared(table, store), batch_size=35, seed=0, augment=augment, variants=7)
    items = next(iter(module_.train_dataloader()))
    batch = module_.gather(items, "train", augmented=True)
    assert sorted(zip(batch.rows.tolist(), seen[0], strict=True)) == [(row, v) for row in range(5) for v in range(7)]
    assert torch.equal(batch.pictures[0, 0], torch.from_numpy(store.pictures[1, batch.rows[0]]).float() / 255)


def test_workers_stream_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    table, store = noise(9)

    def augment(pictures: torch.Tensor, twins: torch.Tensor, variant: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
        return pictures + 2 * twins + draw.view(-1, 1, 1, 1)

    settings = {"batch_size": 4, "seed": 0, "augment": augment, "variants": 2, "mix": Mixup(0.4)}
    made = [KneeDataModule(Prepared(table, store), **settings) for _ in range(2)]
    monkeypatch.setattr(made[1], "_streams", lambda: True)
    resident, streamed = (list(module_.train_dataloader()) for module_ in made)
    assert len(resident) == len(streamed) == 5
    for items, (same, pixels) in zip(resident, streamed, strict=True):
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (2, len(items), 64, 64)
        one = made[0].gather(items, "train", augmented=True, epoch=3)
        other = made[1].gather(same, "train", pixels, augmented=True, epoch=3)
        assert one.covariates is other.covariates is None
        assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"data.batch_size=9 is larger than the training split of 8 pictures"):
        data(8, batch_size=9)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    learner = module()
    with torch.no_grad():
        next(learner.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=r"the training loss is not finite in epoch 0; lower optimizer.lr"):
        trainer(max_epochs=3, limit_val_batches=0).fit(learner, data(8, batch_size=8))


def test_gradients_are_clipped_in_mixed_precision_too() -> None:
    optimizer = {"name": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant"}
    learner = Classifier({"backbone": "test_resnet", "image_size": 64}, optimizer)
    before = torch.cat([p.detach().clone().flatten() for p in learner.network.parameters()])
    trainer(max_steps=1, limit_val_batches=0, precision="bf16-mixed", gradient_clip_val=0.01).fit(
        learner, data(8, batch_size=8)
    )
    after = torch.cat([p.detach().flatten() for p in learner.network.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_biases_and_norms_are_not_decayed() -> None:
    learner = Classifier({"backbone": "test_resnet", "image_size": 64}, OPTIMIZER | {"weight_decay": 0.1})
    optimizer = learner.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(learner.network.parameters()))


def run(osteo: Callable, directory: str, *overrides: str) -> Run:
    done = osteo("train", f"output_dir={directory}", "logger.wandb.mode=disabled", *overrides)
    assert done.code == 0, done.err
    return Run(Path(directory))


@pytest.mark.parametrize("fast", [True, False])
def test_one_key_switches_what_is_fast(osteo: Callable, tiny: list[str], fast: bool) -> None:
    words = [word for word in tiny if not word.startswith("trainer.precision")]
    record = run(osteo, "run", *words, f"trainer.fast={str(fast).lower()}", "optimizer.schedule=constant")
    facts = record.read_json("environment.json")
    assert facts["memory_format"] == ("channels_last" if fast else "contiguous_format")
    assert facts["fused_optimizer"] is fast
    assert facts["precision"] in (("bf16-mixed", "32-true") if fast else ("32-true",))
    learner = build_module(read_checkpoint(record.best_checkpoint), record.best_checkpoint)
    assert learner.configure_optimizers().defaults["fused"] is fast
    kernel = next(p for p in learner.network.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last) is fast


def test_the_same_seed_gives_the_same_bits_and_another_does_not(osteo: Callable, tiny: list[str]) -> None:
    tiny = [*tiny, "trainer.max_epochs=2"]
    one, two = run(osteo, "one", *tiny, "seed=5"), run(osteo, "two", *tiny, "seed=5")
    other = run(osteo, "other", *tiny, "seed=6")
    weights = [torch.load(r.best_checkpoint, weights_only=True)["state_dict"] for r in (one, two, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, weights[2][name]) for name, value in weights[0].items())
    for name in ("predictions.csv", "metrics.json", "manifest.csv"):
        assert (one.directory / name).read_bytes() == (two.directory / name).read_bytes()
    curves = [r.read_table("history.csv").drop(columns=["seconds", "pictures_per_second"]) for r in (one, two, other)]
    assert curves[0].equals(curves[1])
    assert not curves[0].equals(curves[2])
    assert one.read_table("manifest.csv").equals(other.read_table("manifest.csv"))  # the split has a seed of its own


def test_a_checkpoint_loads_with_weights_only_and_gives_the_same_logits(osteo: Callable, tiny: list[str]) -> None:
    from osteo.config import DataConfig
    from osteo.data.prepare import prepare

    record = run(osteo, "run", *tiny)
    loaded = Classifier.load_from_checkpoint(record.best_checkpoint, weights_only=True, map_location="cpu").eval()
    root = next(o.split("=")[1] for o in tiny if o.startswith("data.root"))
    manifest, store = prepare(DataConfig(name="folder", root=root, image_size=64))
    predictions = record.read_table("predictions.csv")
    assert set(predictions["split"]) == {"val", "test"}
    rows = [store.rows[manifest.set_index("image_id").loc[i, "sha256"]] for i in predictions["image_id"]]
    pictures = torch.from_numpy(store.pictures[0][rows]).float().unsqueeze(1) / 255
    with torch.no_grad():
        logits = loaded(pictures)
    assert np.allclose(logits.numpy(), predictions["logit"], atol=1e-5)
    assert np.allclose(1 / (1 + np.exp(-predictions["logit"])), predictions["probability"], atol=1e-6)


def test_an_error_that_is_not_the_output_s_is_not_called_so(
    osteo: Callable, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "kept/elsewhere.bin")

    monkeypatch.setattr("osteo.data.prepare.prepare", lost)
    with pytest.raises(FileNotFoundError, match=r"elsewhere\.bin"):
        osteo("train", *tiny, "output_dir=run")
