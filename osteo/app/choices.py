"""What can be chosen by name in a group of the configuration, beside the YAML files of conf/.

A YAML file stands where we choose values; a choice that is a name alone stands here.
"""

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from osteo import parts
from osteo.config import WandbConfig

CHOICES = {
    "augment": ("online", "albumentations", "none"),
    "data": ("phantom", "folder"),
    "loss": ("bce", "focal", "cross_entropy", "huber", "squared_error"),
    "optimizer": ("adamw",),
}
"""Names by group; paper, clean, sgd and the like are files, since they choose more than a name."""


def opened(schema: type) -> DictConfig:
    """A schema whose dictionaries take new keys, such as optimizer.args.betas or callbacks.mine; its fields do not."""
    node = OmegaConf.structured(schema)
    for key in ("callbacks", "logger", "optimizer.args", "optimizer.schedule_args", "loss.args", "model.head_args",
                "trainer.extra", "data.phantom.kaggle"):  # fmt: skip
        if isinstance(found := OmegaConf.select(node, key), DictConfig):
            OmegaConf.set_struct(found, False)
    assert isinstance(node, DictConfig)
    return node


def register(schema: type) -> None:
    """Makes the schema of a command and all choices known to Hydra, those of loaded plugins too."""
    store = ConfigStore.instance()
    store.store(name="schema", node=opened(schema))
    store.store(group="logger", name="wandb", node={"wandb": WandbConfig()})
    by_group = {**CHOICES, "loss": (*CHOICES["loss"], *parts.losses), "data": (*CHOICES["data"], *parts.sources)}
    for group, names in by_group.items():
        for name in names:
            store.store(group=group, name=name, node={"name": name})
    store.store(group="loss", name="of_task", node={"name": "${loss_of:${task}}"})
