"""What `osteo pretrain` can be told, which is less than a training."""

from osteo.command_settings import OF_LABELS, PretrainConfig
from osteo.config import Config
from osteo.errors import UserError
from osteo.files import check_against
from osteo.task import LAST_EPOCH
from osteo.training.ranks import started


def check_settings(config: PretrainConfig) -> None:
    """Refuses what asks for labels or for the network that learns from them, and what does not go together.

    Raises:
        UserError: one line that names the key.
    """
    if config.augment.name != "online" and (config.method != "masked" or config.augment.name != "none"):
        raise UserError(f"method={config.method} draws new views of a picture every time: set augment=online")
    usual = Config()
    for key in OF_LABELS:
        group, _, name = key.rpartition(".")
        given, default = (getattr(getattr(c, group) if group else c, name) for c in (config, usual))
        if given != default:
            raise UserError(f"{key} goes with osteo train, which has labels, not with osteo pretrain; leave it out")
    if config.trainer.devices != 1 or started() > 1:
        raise UserError(f"trainer.devices={config.trainer.devices}: osteo pretrain uses one device; set it to 1")
    followed = {"trainer.monitor": config.trainer.monitor} | {
        f"callbacks.{name}.monitor": part["monitor"]
        for name, part in config.callbacks.items() if isinstance(part, dict) and "monitor" in part
    }  # fmt: skip
    for key, value in followed.items():
        if value not in (LAST_EPOCH, "train/loss"):
            raise UserError(f"{key}={value} needs labels, which osteo pretrain does not use; leave it out")
    if config.trainer.accumulate_grad_batches > 1:
        raise UserError(
            "trainer.accumulate_grad_batches does not make a larger batch of views to compare; raise data.batch_size"
        )
    if config.data.batch_size < 2:
        raise UserError(
            "data.batch_size=1 leaves nothing to compare a picture with; use 2 or more, with at least two pictures"
        )
    if config.method == "masked" and config.patch > config.data.image_size // 2:
        raise UserError(f"patch={config.patch} is more than half of data.image_size={config.data.image_size}")
    check_against(config.against)
