"""Learning without labels: what a network learns by, what it must not see, and what becomes of its weights."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from osteo.command_settings import PretrainConfig
from osteo.commands.pretrain import pretrain
from osteo.config import AugmentConfig, Config, DataConfig, ModelConfig, OptimizerConfig, SplitConfig, TrainerConfig
from osteo.data.duplicates import find_pairs
from osteo.data.manifest import COPY
from osteo.errors import UserError
from osteo.evaluation.outcomes import model_names, without_fold
from osteo.networks import lineage
from osteo.networks.lineage import Seen, check_unseen, describe, first_copies, likeness_to, read_seen
from osteo.networks.network import Network
from osteo.networks.weights import COUNTER
from osteo.pretraining.methods import Byol, Masked, SimClr
from osteo.pretraining.module import make_module
from osteo.pretraining.selection import COPY_OF_HELD_OUT, HELD_OUT, select
from osteo.pretraining.settings import check_settings
from osteo.pretraining.views import HiddenParts, TwoViews
from osteo.records.record import Job, Run
from osteo.training.augment import Augmentation, make_augmentation
from osteo.training.checkpoints import read_checkpoint
from tests.conftest import REAL_DATA

pytest.importorskip("lightly", reason="the extra pretrain is not installed")

ALTERED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "turned": lambda grey: np.rot90(grey),
    "mirrored": lambda grey: grey[:, ::-1],
    "upside down": lambda grey: grey[::-1],
    "smaller": lambda grey: cv2.resize(grey, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA),
    "saved as JPEG": lambda grey: cv2.imdecode(cv2.imencode(".jpg", grey, [1, 40])[1], 0),
    "inverted": lambda grey: 255 - grey,
    "brighter": lambda grey: (255.0 * (grey / 255.0) ** 0.7).astype(np.uint8),
}
"""What is done to a copy."""


def configured(root: Path | str, **settings: Any) -> PretrainConfig:
    """A pretraining of a second."""
    data = DataConfig(name="folder", root=str(root), image_size=64, batch_size=16)
    trainer = TrainerConfig(max_epochs=3, devices=1, monitor="epoch", accelerator="cpu", precision="32-true")
    made = PretrainConfig(data=data, trainer=trainer, model=ModelConfig(backbone="test_resnet"), patch=16, keep="all")
    return replace(made, **settings)


def run(config: PretrainConfig, folder: Path, *, goes_on: bool = False) -> Run:
    """The record that `osteo pretrain` leaves."""
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    assert pretrain(config, Job(folder, None, text, goes_on=goes_on))
    Run(folder).release()
    return Run(folder)


@pytest.fixture(scope="module")
def unlabelled(knees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in folders that stand for no class, one of them twice, and what is no picture."""
    root = tmp_path_factory.mktemp("unlabelled")
    for number, path in enumerate(sorted(knees.rglob("*.*"))[::2]):
        place = root / f"centre{number % 2}" / "2026"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"{number}{path.suffix}")
    shutil.copy(root / "centre0" / "2026" / next((root / "centre0" / "2026").iterdir()).name, root / "again.jpg")
    (root / "notes.txt").write_text("none")
    return root


@pytest.fixture(scope="module")
def pretrained(unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(configured(unlabelled), tmp_path_factory.mktemp("pretrained") / "run")


@pytest.mark.slow
def test_a_run_leaves_a_record_and_a_file_of_weights(
    osteo: Callable, pretrained: Run, tmp_path: Path, unlabelled: Path
) -> None:
    manifest, history = pretrained.read_manifest(), pretrained.read_history()
    assert manifest["split"].value_counts().to_dict() == {"train": 40, "excluded": 1}
    assert manifest.loc[manifest["split"] == "excluded", "reason"].tolist() == [COPY]
    assert history["train/loss"].iloc[-1] < history["train/loss"].iloc[0]
    facts = pretrained.read_environment()
    assert (facts["method"], facts["pictures"], facts["backbone"]) == ("simclr", 40, "test_resnet")
    assert not pretrained.is_training
    shutil.copytree(pretrained.directory, tmp_path / "run")
    shown = osteo("status", "run")
    assert (shown.code, "3 of 3" in shown.out) == (0, True)
    told = osteo("report", "run")
    assert told.code == 2
    assert told.err == "osteo report: run holds no finished run of training; give the directory of a sweep or a run\n"
    told = osteo("predict", "run", f"input={unlabelled}")
    assert told.code == 2
    assert "best.ckpt is a pretraining's, which has no classifier yet: fine-tune it first" in told.err
    told = osteo("rerun", "run")
    assert told.err == "osteo rerun: run=run is a pretraining run, which has no predictions to compare\n"
    assert "is of another command; go on with it: osteo pretrain resume=run" in osteo("train", "resume=run").err
    kept = read_checkpoint(pretrained.best_checkpoint)
    network = Network("test_resnet", image_size=64, weights_file=str(pretrained.directory))
    for name, tensor in network.backbone.state_dict().items():
        if not name.startswith("fc.") and not name.endswith(COUNTER):
            assert torch.equal(tensor, kept["state_dict"][f"network.backbone.{name}"]), name


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(pretrained: Run, unlabelled: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained.directory, tmp_path / "run")
    cut = Run(tmp_path / "run")
    (cut.checkpoints / "previous.ckpt").replace(cut.checkpoints / "last.ckpt")
    (cut.checkpoints / "best.ckpt").unlink()
    for name in ("metrics.json", "environment.json", "history.csv"):
        (cut.directory / name).unlink()
    cut.set_status("interrupted")
    assert cut.verb == "pretrain"
    run(configured(unlabelled), cut.directory, goes_on=True)
    first, second = (read_checkpoint(one.best_checkpoint)["state_dict"] for one in (pretrained, cut))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert pretrained.read_history()["train/loss"].tolist() == cut.read_history()["train/loss"].tolist()


@pytest.mark.parametrize("method", ["byol", "masked"])
def test_other_methods_learn(unlabelled: Path, tmp_path: Path, method: str) -> None:
    losses = run(configured(unlabelled, method=method), tmp_path / "run").read_history()["train/loss"]
    assert losses.iloc[-1] < losses.iloc[0]


def test_simclr_prefers_the_other_view() -> None:
    network = Network("test_resnet", image_size=64)
    method = SimClr(network, temperature=0.5)
    method.projection = torch.nn.Identity()  # type: ignore[assignment]
    features = torch.eye(4)
    network.pooled = lambda views: torch.cat([features, features])  # type: ignore[method-assign]
    # each of 8 views: 1 of 7 others has cosine 1, the other 6 have 0
    expected = -np.log(np.exp(2.0) / (np.exp(2.0) + 6.0))
    assert method(network, torch.zeros(4, 2, 64, 64)).item() == pytest.approx(expected, abs=1e-5)


def test_a_teacher_follows_slowly_and_stops_at_the_end() -> None:
    network = Network("test_resnet", image_size=64)
    method = Byol(network, momentum=0.9)
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    method.follow(network, progress=0.0)
    for old, new in zip(before, method.teacher.parameters(), strict=True):
        assert (new - old).detach().numpy() == pytest.approx(0.1, abs=1e-5)
    after = [p.clone() for p in method.teacher.parameters()]
    method.follow(network, progress=1.0)
    assert all(torch.equal(old, new) for old, new in zip(after, method.teacher.parameters(), strict=True))
    loss = method(network, torch.rand(3, 2, 64, 64))
    loss.backward()
    assert -1.0 <= loss.item() <= 1.0
    assert all(parameter.grad is None for parameter in method.teacher.parameters())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "torchvision/alexnet", "gru/test_resnet"])
def test_masked_reconstruction_counts_hidden_pixels_alone(backbone: str) -> None:
    torch.manual_seed(0)
    network = Network(backbone, image_size=96).eval()
    method = Masked(network)
    hidden = torch.zeros(2, 1, 96, 96)
    hidden[:, :, :32, :32] = 1.0
    pictures = torch.rand(2, 1, 96, 96)
    with torch.no_grad():
        loss = method(network, torch.cat([pictures, hidden], 1))
        elsewhere = pictures + 0.0
        elsewhere[:, :, :32, :32] = torch.rand(2, 1, 32, 32)
        method.decoder.weight.zero_()
        method.decoder.bias.zero_()
        expected = ((pictures - network.mean) / network.std)[:, :, :32, :32].abs().mean()
        assert method(network, torch.cat([pictures, hidden], 1)).item() == pytest.approx(expected.item(), rel=1e-4)
        assert method._map(network, pictures).ndim == 4
    assert loss.item() > 0.0


def test_views_follow_from_seed_picture_and_epoch_alone() -> None:
    config = configured(".")
    view = make_augmentation(config.augment, 0, 32)
    pictures = torch.rand(4, 1, 32, 32)
    variant, draw = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    two = TwoViews(view)(pictures, pictures, variant, draw)
    assert two.shape == (4, 2, 32, 32)
    assert not torch.equal(two[:, 0], two[:, 1])
    alone = TwoViews(view)(pictures[2:3], pictures[2:3], variant[:1], draw[2:3])
    assert torch.equal(alone[0], two[2])
    parts = HiddenParts(Augmentation(), share=0.5, patch=8)(pictures, pictures, variant, draw)
    assert torch.equal(parts[:, :1], pictures)
    assert parts[:, 1].mean((1, 2)).tolist() == [0.5] * 4
    assert not torch.equal(parts[0, 1], parts[1, 1])
    uneven = HiddenParts(Augmentation(), share=0.3, patch=12)(pictures, pictures, variant, draw)
    assert uneven.shape == (4, 2, 32, 32)


@pytest.mark.parametrize("backbone", ["plain_cnn", "fused/test_resnet+test_vit", "stacked/test_resnet", "test_vit"])
def test_weights_go_to_every_kind_of_backbone(tmp_path: Path, backbone: str) -> None:
    config = configured(".", model=ModelConfig(backbone=backbone), method="masked")
    module = make_module(config)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "best.ckpt")
    network = Network(backbone, image_size=64, weights_file=str(tmp_path / "best.ckpt"))
    given, kept = (made.backbone.state_dict() for made in (module.network, network))
    last = {id(p) for p in network.classifier().parameters()}
    names = [name for name, p in network.backbone.named_parameters() if id(p) not in last]
    assert len(names) > 10
    assert all(torch.equal(kept[name], given[name]) for name in names)


def altered(root: Path, folder: Path, how: dict[str, Callable], picture: str) -> None:
    """Copies of a picture, changed in these ways, under names that say nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    grey = cv2.imread(str(root / picture), cv2.IMREAD_GRAYSCALE)
    for number, change in enumerate(how.values()):
        suffix = ".jpg" if change is how.get("saved as JPEG") else ".png"
        cv2.imwrite(str(folder / f"x{number}{suffix}"), np.ascontiguousarray(change(grey)))


def test_no_copy_of_what_validates_or_tests_is_seen(
    knees: Path, unlabelled: Path, tmp_path: Path, run_of_knees: Path
) -> None:
    shutil.copytree(unlabelled, tmp_path / "pool")
    manifest = Run(run_of_knees).read_manifest()
    tested = manifest[manifest["split"] == "test"]["image_id"].iloc[0].removeprefix("folder/")
    validated = manifest[manifest["split"] == "val"]["image_id"].iloc[0].removeprefix("folder/")
    shutil.copy(knees / tested, tmp_path / "pool" / f"same bytes{Path(tested).suffix}")
    altered(knees, tmp_path / "pool" / "of tests", ALTERED, tested)
    altered(knees, tmp_path / "pool" / "of validation", ALTERED, validated)
    config = configured(tmp_path / "pool", against=str(run_of_knees))
    chosen = select(config)
    rows = chosen.prepared.manifest.set_index("image_id")
    planted = [name for name in rows.index if "/of " in name or "same bytes" in name]
    assert len(planted) == 1 + 2 * len(ALTERED)
    assert set(rows.loc[planted, "reason"]) == {COPY_OF_HELD_OUT}
    held = set(manifest.loc[manifest["split"].isin(["val", "test"]), "sha256"])
    used = rows[rows["split"] == "train"]
    assert not held & set(used["sha256"])
    assert set(chosen.seen.sha256) == set(used["sha256"])
    assert len(used) > 20
    assert f"learning from {len(used)} pictures; left out: " in chosen.line
    assert f"compared with {len(held)} pictures of validation and test" in chosen.line


def test_what_a_training_would_refuse_is_not_seen(knees: Path, tmp_path: Path, run_of_knees: Path) -> None:
    manifest = Run(run_of_knees).read_manifest()
    tested = manifest[manifest["split"] == "test"]["image_id"].str.removeprefix("folder/").tolist()
    for name in tested:
        grey = cv2.imread(str(knees / name), cv2.IMREAD_GRAYSCALE)
        (tmp_path / "pool" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str((tmp_path / "pool" / name).with_suffix(".png")), cv2.equalizeHist(grey))
    drawn = [path for path in sorted(knees.rglob("*.*")) if str(path.relative_to(knees)) not in tested]
    others = [
        path
        for path in drawn
        if manifest.set_index("image_id")["split"][f"folder/{path.relative_to(knees)}"] == "train"
    ]
    shutil.copy(others[0], tmp_path / "pool" / others[0].name)
    chosen = select(configured(tmp_path / "pool", against=str(run_of_knees)))
    used = chosen.prepared.manifest
    used = used[used["split"] == "train"]
    thumbnails = {name: stretched(knees / name) for name in tested}
    assert others[0].name in {Path(name).name for name in used["image_id"]}
    assert first_copies(chosen.seen, list(thumbnails), thumbnails) == []


def test_weights_that_were_trained_on_what_is_tested_are_refused(run_of_knees: Path, tmp_path: Path) -> None:
    run = Run(run_of_knees)
    manifest = run.read_manifest()
    assert check_unseen(str(run_of_knees), manifest, lambda _: b"", tmp_path) is None
    swapped = manifest.assign(split=manifest["split"].map({"train": "test", "test": "train"}).fillna(manifest["split"]))
    count, held = (int(manifest["split"].isin(names).sum()) for names in (["train"], ["train", "val"]))
    assert check_unseen(str(run_of_knees / "mine" / "best.ckpt"), swapped, lambda _: b"", tmp_path) is None
    for weights in (run_of_knees, run_of_knees / "checkpoints" / "best.ckpt"):
        with pytest.raises(
            UserError, match=rf"was trained on {count} of the {held} validation and test pictures, folder/"
        ):
            check_unseen(str(weights), swapped, lambda _: b"", tmp_path)


@pytest.fixture(scope="module")
def run_of_knees(knees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training of all knees would leave of its pictures."""
    from osteo.data.prepare import prepare

    config = Config(data=DataConfig(name="folder", root=str(knees), image_size=64))
    record = Run(tmp_path_factory.mktemp("trained") / "run")
    record.start(OmegaConf.to_yaml(OmegaConf.structured(config)))
    record.write_manifest(prepare(config.data).manifest)
    return record.directory


def test_a_split_file_and_a_split_of_the_data_say_the_same(knees: Path, tmp_path: Path) -> None:
    data = DataConfig(name="folder", root=str(knees), image_size=64, split=SplitConfig(fold=1))
    of_split = select(configured(knees, data=data))
    from osteo.data.prepare import prepare

    manifest = prepare(data).manifest
    manifest[["image_id", "split"]].to_csv(tmp_path / "split.csv", index=False)
    of_file = select(configured(knees, against=str(tmp_path / "split.csv")))
    first, second = (one.prepared.manifest.set_index("image_id")["split"] for one in (of_split, of_file))
    assert first.to_dict() == second.to_dict()
    expected = manifest[manifest["split"] == "train"]["image_id"]
    assert set(first.index[first == "train"]) == set(expected)
    assert (of_split.prepared.manifest["reason"] == HELD_OUT).sum() == (manifest["split"] != "train").sum()
    more = pd.DataFrame({"image_id": ["folder/gone.png"], "split": ["test"]})
    pd.concat([manifest[["image_id", "split"]], more]).to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(
        UserError, match=r"names 1 picture to validate or test that the data does not have, folder/gone"
    ):
        select(configured(knees, against=str(tmp_path / "more.csv")))


def test_pictures_of_a_run_that_are_gone_are_one_line(unlabelled: Path, run_of_knees: Path, tmp_path: Path) -> None:
    shutil.copytree(run_of_knees, tmp_path / "run")
    text = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(text.replace("knees", "elsewhere"))
    with pytest.raises(
        UserError, match=r"its pictures cannot be read, so that copies of them could not be found \(data"
    ):
        select(configured(unlabelled, against=str(tmp_path / "run")))


def test_a_training_refuses_weights_that_have_seen_its_test(
    osteo: Callable, pretrained: Run, knees: Path, tiny: list[str], tmp_path: Path
) -> None:
    words = [word for word in tiny if not word.startswith("data.root")]
    words += [f"data.root={knees}", "logger=null", f"model.weights_file={pretrained.directory}"]
    told = osteo("train", *words, "output_dir=refused")
    assert told.code == 2
    assert "was pretrained on" in told.err
    assert "(test) first" in told.err or "(val) first" in told.err
    assert "pretrain without them: osteo pretrain against=" in told.err
    assert "Traceback" not in told.err
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_what_was_seen_is_carried_on(osteo: Callable, knees: Path, tiny: list[str], tmp_path: Path) -> None:
    data = DataConfig(name="folder", root=str(knees), image_size=64, batch_size=16, split=SplitConfig(fold=0))
    first = run(configured(knees, data=data, trainer=replace(configured(knees).trainer, max_epochs=1)), tmp_path / "p")
    words = [*(word for word in tiny if not word.startswith("data.root")), f"data.root={knees}", "logger=null"]
    done = osteo("train", *words, "data.split.fold=0", "model.weights_file=p", "output_dir=tuned")
    assert (done.code, done.err) == (0, "")
    seen, carried = read_seen("p"), read_seen("tuned")
    assert seen is not None
    assert carried is not None
    assert carried.sha256 == seen.sha256
    assert torch.equal(carried.descriptors, seen.descriptors)
    assert read_checkpoint(first.best_checkpoint)["seen"]["method"] == "simclr"
    asked = osteo("evaluate", "tuned", "data=folder", f"data.root={knees}", "split=all", "output_dir=all")
    assert f"was pretrained on {len(seen.sha256)} of these 80 pictures: the result may be too optimistic" in asked.out
    told = osteo("train", *words, "data.split.fold=1", "model.weights_file=tuned", "output_dir=again")
    assert told.code == 2
    assert "model.weights_file=tuned was pretrained on" in told.err
    again = configured(knees, data=replace(data, split=SplitConfig(fold=1)), model=ModelConfig(
        backbone="test_resnet", weights_file="tuned"))  # fmt: skip
    with pytest.raises(UserError, match="that must not be seen, or on copies of them; begin with other weights"):
        select(again)


def seen_of(pictures: list[np.ndarray]) -> Seen:
    names = tuple(str(number) for number in range(len(pictures)))
    return Seen("simclr", names, torch.from_numpy(describe(pictures)))


def stretched(path: Path) -> np.ndarray:
    grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    return np.asarray(cv2.resize(grey, (256, 256), interpolation=cv2.INTER_AREA), np.uint8)


def check_copies(paths: list[Path]) -> None:
    """Every altered copy is found by the descriptor of its original, and no other picture is taken for one."""
    seen, other = ([stretched(path) for path in half] for half in (paths[::2], paths[1::2]))
    for name, change in ALTERED.items():
        changed = [cv2.resize(np.ascontiguousarray(change(grey)), (256, 256)) for grey in seen]
        likeness = likeness_to(describe(seen), changed).diagonal()
        assert float(np.mean(likeness >= lineage.COPY)) == 1.0, f"{name}: {likeness.min():.2f}"
    assert likeness_to(describe(seen), other).max() < lineage.COPY
    thumbnails = {f"o{number}": grey for number, grey in enumerate(other)} | {"copy": np.rot90(seen[3], 2)}
    names = [*thumbnails, "0", "unknown"]
    assert first_copies(seen_of(seen), names, thumbnails) == ["copy", "0"]


def test_altered_copies_are_found_by_their_descriptors(knees: Path) -> None:
    check_copies(sorted(knees.rglob("*.*"))[::2])


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not (REAL_DATA / "kaggle").is_dir(), reason="the original X-rays are not here")
def test_altered_copies_of_radiographs_are_found() -> None:
    paths = sorted((REAL_DATA / "kaggle").rglob("*.*"))[::6]
    copies = {pair.second for pair in find_pairs(np.stack([stretched(path) for path in paths]))}
    check_copies([path for number, path in enumerate(paths) if number not in copies])


def test_what_was_seen_is_read_as_it_was_written() -> None:
    pictures = [np.random.default_rng(n).integers(0, 255, (64, 64)).astype(np.uint8) for n in range(3)]
    seen = seen_of(pictures)
    assert Seen.from_dict(seen.to_dict(), "x").sha256 == seen.sha256
    joined = seen.joined(Seen("byol", ("7",), describe_tensor(pictures[:1])))
    assert (joined.sha256, len(joined.descriptors)) == (("0", "1", "2", "7"), 4)
    for change in ({"version": 2}, {"descriptors": torch.zeros(3, 2)}, {"sha256": None}):
        with pytest.raises(UserError, match=r"model.weights_file=x does not say which pictures it was pretrained on"):
            Seen.from_dict(seen.to_dict() | change, "x")


def describe_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(describe(pictures))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariates": ["age"]}, "covariates goes with osteo train"),
        ({"optimizer": OptimizerConfig(layer_decay=0.5)}, "optimizer.layer_decay goes with osteo train"),
        ({"trainer": TrainerConfig(devices=2)}, "trainer.devices=2: osteo pretrain uses one device"),
        ({"trainer": TrainerConfig(devices=1)}, "trainer.monitor=val/loss needs labels"),
        ({"callbacks": {"stop": {"_target_": "x", "monitor": "val/auroc"}}}, "callbacks.stop.monitor=val/auroc needs"),
        ({"experiment": "paper"}, "experiment goes with osteo train"),
        (
            {"augment": AugmentConfig(name="paper")},
            "method=simclr draws new views of a picture every time: set augment=online",
        ),
        ({"method": "masked", "patch": 48}, "patch=48 is more than half of data.image_size=64"),
        ({"against": "nowhere"}, "against=nowhere: no such file or directory"),
    ],
)
def test_what_makes_no_sense_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_settings(configured(".", **change))


def test_mistakes_on_the_command_line(osteo: Callable, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        select(configured(tmp_path / "empty"))
    for words, message in (
        ([], "data=folder needs data.root=PATH"),
        (["data.root=empty", "method=moco"], "method 'moco' is unknown; choose one of: simclr, byol, masked"),
    ):
        told = osteo("pretrain", *words)
        assert told.code == 2
        assert told.err.count("\n") == 1
        assert message in told.err


def test_a_picture_that_must_not_be_seen_and_cannot_be_read_stops_everything(
    unlabelled: Path, knees: Path, tmp_path: Path
) -> None:
    from osteo.data.prepare import prepare

    shutil.copytree(knees, tmp_path / "knees")
    config = Config(data=DataConfig(name="folder", root=str(tmp_path / "knees"), image_size=64))
    record = Run(tmp_path / "run")
    record.start(OmegaConf.to_yaml(OmegaConf.structured(config)))
    manifest = prepare(config.data).manifest
    record.write_manifest(manifest)
    pool = {path.read_bytes() for path in unlabelled.rglob("*.*")}
    tested = [name.removeprefix("folder/") for name in manifest.loc[manifest["split"] == "test", "image_id"]]
    lost = next(name for name in tested if (tmp_path / "knees" / name).read_bytes() not in pool)
    (tmp_path / "knees" / lost).unlink()
    with pytest.raises(UserError, match=f"1 picture that must not be seen cannot be read, folder/{lost} first"):
        select(configured(unlabelled, against=str(tmp_path / "run")))
    shutil.rmtree(tmp_path / "knees")
    with pytest.raises(UserError, match=r"its pictures cannot be read, .*no such file or folder"):
        select(configured(unlabelled, against=str(tmp_path / "run")))


def test_the_folds_of_a_system_have_weights_of_their_own_and_are_one_system() -> None:
    common = {"model.backbone": "resnet18", "seed": 0}
    runs = [common | {"model.weights_file": f"phase1/{fold}", "data.split.fold": fold} for fold in range(3)]
    assert set(model_names(list(map(without_fold, runs)))) == {"resnet18"}
    other = common | {"model.weights_file": "2/weights.pt", "data.split.fold": 2}
    assert without_fold(other) == other
    assert len(set(model_names(list(map(without_fold, [*runs, other]))))) == 2
