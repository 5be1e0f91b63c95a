"""What can be chosen by name in a group of the configuration, beside the YAML files of conf/.

A YAML file stands where we choose values; a choice that is a name alone stands here.
"""

from collections.abc import Iterable

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from osteo import parts
from osteo.config import WandbConfig
from osteo.task import BINARY, LOSSES, TASKS, direction

CHOICES: dict[str, dict[str, str]] = {
    "augment": {
        "online": "Random changes of every training picture, drawn anew in each epoch, on the device",
        "albumentations": "The same changes by Albumentations on the CPU, for comparison",
        "none": "Training pictures as they are",
    },
    "data": {
        "phantom": "Synthetic radiographs in the numbers of the two archives; nothing to download",
        "folder": "Your own pictures: data.root=FOLDER, with class folders or with data.labels=FILE",
    },
    "logger": {"wandb": "Weights & Biases, online where you are logged in, else as files for `wandb sync`"},
    "loss": {
        "of_task": "The first loss of the task: bce, cross_entropy or huber",
        "bce": "Binary cross-entropy, for two classes",
        "focal": "Focal loss, for two classes of which one is rare or hard",
        "cross_entropy": "Cross-entropy, for three classes",
        "huber": "Huber loss, for T-scores",
        "squared_error": "Mean squared error, for T-scores",
    },
    "optimizer": {"adamw": "AdamW under a one-cycle learning rate"},
}
"""What each name is for, by group; paper, clean, sgd and the like are files, since they choose more than a name."""


OmegaConf.register_new_resolver("direction", direction, replace=True)  # of a metric, for callbacks
# the first of a task's losses; an unknown task is told of later
OmegaConf.register_new_resolver("loss_of", lambda task: LOSSES[TASKS.get(task, BINARY).kind][0], replace=True)
OmegaConf.register_new_resolver("missing", lambda value: value is None, replace=True)  # for a value in place of another


def opened(schema: type) -> DictConfig:
    """A schema whose dictionaries take new keys, such as optimizer.args.betas or callbacks.mine; its fields do not."""
    node = OmegaConf.structured(schema)
    for key in ("callbacks", "logger", "claim", "optimizer.args", "optimizer.schedule_args", "loss.args",
                "model.head_args", "trainer.extra", "data.phantom.kaggle"):  # fmt: skip
        if isinstance(found := OmegaConf.select(node, key), DictConfig):
            OmegaConf.set_struct(found, False)
    assert isinstance(node, DictConfig)
    return node


def register(schema: type) -> None:
    """Makes the schema of a command and all choices known to Hydra, those of loaded plugins too."""
    store = ConfigStore.instance()
    store.store(name="schema", node=opened(schema))
    brought: dict[str, Iterable[str]] = {"loss": parts.losses, "data": parts.sources}
    for group, names in CHOICES.items():
        for name in (*names, *brought.get(group, ())):
            store.store(group=group, name=name, node={"name": name})
    store.store(group="logger", name="wandb", node={"wandb": WandbConfig()})
    store.store(group="loss", name="of_task", node={"name": "${loss_of:${task}}"})
