"""Builds Lightning's Trainer for a run, and collects what a trained network predicts."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from lightning.pytorch import Trainer

    from osteo.data.datamodule import KneeDataModule
    from osteo.training.module import Classifier


def predict(trainer: "Trainer", module: "Classifier", datamodule: "KneeDataModule") -> "pd.DataFrame":
    """Validation and test predictions, one row a picture, from all processes."""
    import torch

    batches: Any = trainer.predict(module, datamodule=datamodule)
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, batches)
        batches = [batch for share in shares for batch in share]
    rows, order = torch.cat([batch.rows for batch in batches]).sort()
    logits = torch.cat([batch.logits for batch in batches])[order]
    table = datamodule.table.loc[rows.numpy(), ["image_id", "source", "group", "split", "label"]].reset_index(drop=True)
    table = table.assign(logit=logits.numpy(), probability=logits.double().sigmoid().numpy())
    return table.sort_values("split", ascending=False, kind="stable", ignore_index=True)  # val before test
