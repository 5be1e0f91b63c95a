"""How the probe of all stages grows with its training pictures: 25, 50, 75 and 100 % of each fold's, by group.

It uses the runs of `benchmarks.recipe`: the same pictures, folds and kept features.
"""

import warnings

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Trainer, seed_everything

from benchmarks.recipe import CONFIGURATIONS, PROBE_OF_ALL, runs_of_repeats, train
from osteo.data.prepare import Prepared, prepare
from osteo.evaluation.metrics import evaluate
from osteo.records.record import Run
from osteo.training import fit
from osteo.training.augment import Augmentation
from osteo.training.ranks import quieten

SHARES = (0.25, 0.5, 0.75, 1.0)


def measure() -> list[dict]:
    """One row per share of the training pictures."""
    for repeat in range(CONFIGURATIONS[PROBE_OF_ALL][0]):
        train(PROBE_OF_ALL, repeat)
    quieten()
    warnings.filterwarnings("ignore")
    runs = runs_of_repeats(PROBE_OF_ALL)
    store = prepare(runs[0].read_settings().data).store
    rows = []
    for share in SHARES:
        found = [trained(run, thinned(run.read_manifest(), share, run), store) for run in runs]
        aurocs, counts = zip(*found, strict=True)
        rows.append(
            {
                "share": f"{share:.0%}",
                "training pictures": round(float(np.mean(counts))),
                "runs": len(runs),
                "AUROC, mean over folds": round(float(np.mean(aurocs)), 3),
                "standard error": round(float(np.std(aurocs, ddof=1) / len(aurocs) ** 0.5), 3),
            }
        )
    return rows


def thinned(manifest: pd.DataFrame, share: float, run: Run) -> pd.DataFrame:
    """The manifest with a share of its training groups of each class."""
    training = manifest[manifest["split"] == "train"]
    groups = training.drop_duplicates("group")
    kept = groups.groupby("label").sample(frac=share, random_state=run.read_settings().seed)["group"]
    is_dropped = (manifest["split"] == "train") & ~manifest["group"].isin(kept)
    return manifest.assign(split=manifest["split"].mask(is_dropped, "excluded"))


def trained(run: Run, manifest: pd.DataFrame, store) -> tuple[float, int]:
    """AUROC of the test pictures after a training on these, and the number of training pictures."""
    config = run.read_settings()
    seed_everything(config.seed, verbose=False)
    module = fit.make_module(config)
    datamodule = fit.make_datamodule(config, Prepared(manifest, store), Augmentation(), module)
    fit.begin_at_share(module, config.loss, manifest)
    trainer = Trainer(
        max_epochs=config.trainer.max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(module, datamodule)
    batches = trainer.predict(module, datamodule=datamodule)
    rows, logits, _ = (torch.cat(column).numpy() for column in zip(*batches, strict=True))
    table = datamodule.table.loc[rows].assign(logit=logits)
    test = table[table["split"] == "test"]
    return evaluate(test["logit"], test["label"])["auroc"], int((manifest["split"] == "train").sum())
