"""A network that learns from pictures without labels."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from osteo.command_settings import PretrainConfig
from osteo.data.datamodule import Batch
from osteo.networks.network import Network
from osteo.pretraining.methods import Method, make_method
from osteo.pretraining.views import HiddenParts, TwoViews
from osteo.training.augment import Augmentation, make_augmentation
from osteo.training.module import Learner
from osteo.training.optim import check_optimizer


class Pretraining(Learner):
    """A network, and the method by which it learns.

    Its checkpoint holds the backbone under the names that a checkpoint of a training has, so that it is a
    `model.weights_file`.

    Args:
        network: that learns; its classifier does not.
        method: by which.
        optimizer: fields of `OptimizerConfig`.
        monitor: what the best epoch is best at.
        fast: channels_last and a fused optimiser.
    """

    def __init__(
        self, network: Network, method: Method, optimizer: Mapping[str, Any], *, monitor: str, fast: bool
    ) -> None:
        super().__init__(network, optimizer, monitor=monitor, fast=fast)
        self.network.classifier().requires_grad_(False)
        self.method = method.to(memory_format=self.memory_format)

    @property
    def trained(self) -> nn.Module:
        """The network and the layers of the method; without what does not learn."""
        return self

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch of `views_of` pictures."""
        shown = batch.pictures.contiguous(memory_format=self.memory_format)
        loss: Tensor = self.method(self.network, shown)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True, batch_size=len(shown))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Lets the method follow the step that was made."""
        steps = int(self.trainer.estimated_stepping_batches)
        self.method.follow(self.network, min(1.0, self.global_step / max(1, steps)))


def make_module(config: PretrainConfig) -> Pretraining:
    """The network of a configuration with what it learns by.

    Raises:
        UserError: one of them cannot be built.
    """
    optimizer = asdict(config.optimizer)
    check_optimizer(optimizer)
    model = config.model
    network = Network(
        model.backbone, image_size=config.data.image_size, pretrained=model.pretrained, weights_file=model.weights_file,
        channels=model.channels, drop_rate=model.drop_rate, stages=model.stages, patches=model.patches,
    )  # fmt: skip
    method = make_method(config, network)
    return Pretraining(network, method, optimizer, monitor=config.trainer.monitor, fast=config.trainer.fast)


def views_of(config: PretrainConfig) -> Augmentation:
    """What a network is shown of each picture: two views, or one view and which of its pixels are hidden.

    Raises:
        UserError: an operation of augment.ops cannot be used.
    """
    view = make_augmentation(config.augment, config.seed, config.data.image_size)
    if config.method == "masked":
        return HiddenParts(view, config.hidden, config.patch, config.seed)
    return TwoViews(view)
