"""Reads the configuration that a run has recorded."""

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from osteo.command_settings import PretrainConfig
from osteo.config import Config, WandbConfig
from osteo.records import content
from osteo.records.content import damaged


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of YAML, as plain values.

    Raises:
        DamagedError: it is gone, or none.
    """
    return _parse(path, content.read_text(path))


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        read = OmegaConf.to_container(OmegaConf.create(text))
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise damaged(path, f"is damaged: not YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(read, dict):
        raise damaged(path, "is damaged: not a YAML mapping")
    return {str(key): value for key, value in read.items()}


def read_config(path: Path) -> Config:
    """The configuration that a training, or a pretraining, has recorded; what older versions did not know is default.

    Raises:
        DamagedError: it is gone, or none of ours.
    """
    return deepcopy(_read(path, content.read_text(path)))


@lru_cache(maxsize=1024)  # a report asks for each run's six times, and an answer takes a tenth of a second
def _read(path: Path, text: str) -> Config:
    recorded = _parse(path, text)
    if missing := [key for key in ("data", "model", "trainer", "seed") if key not in recorded]:
        raise damaged(path, f"is damaged: it lacks {missing[0]}")
    schema = OmegaConf.structured(PretrainConfig if "method" in recorded else Config)
    try:
        config = OmegaConf.to_object(OmegaConf.merge(schema, recorded))
    except (OmegaConfBaseException, ValueError) as error:
        raise damaged(path, f"is not a configuration of osteo train ({str(error).splitlines()[0]})") from error
    assert isinstance(config, Config)
    return replace(config, logger={name: _logger(name, node) for name, node in config.logger.items()})


def _logger(name: str, node: Any) -> Any:
    """A logger of a recorded configuration; that of W&B has a schema, and had no `_target_` once."""
    is_ours = name == "wandb" and isinstance(node, dict)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(WandbConfig), node)) if is_ours else node
