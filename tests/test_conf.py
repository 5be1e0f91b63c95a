"""A YAML file stands where we choose values: it repeats no default, and holds more than a name."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from osteo.app.messages import CONF
from osteo.config import Config
from osteo.search.settings import SearchSettings
from osteo.training.instances import find_class

GROUPS = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in ("experiment", "protocol", "debug"))
OVERLAYS = sorted((CONF / "debug").glob("*.yaml"))


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip("."), node


def identity(path: Path) -> str:
    return path.relative_to(CONF).as_posix()


@pytest.mark.parametrize("path", [*GROUPS, *OVERLAYS], ids=identity)
def test_a_file_chooses_something(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = OmegaConf.to_container(OmegaConf.structured(Config))
    content.pop("defaults", None)
    if path.parent.name in ("callbacks", "logger"):
        for part in content.values():
            signature = inspect.signature(find_class(part["_target_"], identity(path))).parameters
            for name, value in part.items():
                if name != "_target_":
                    assert signature[name].default != value, f"{name} is the library's own default"
        return
    prefix = "" if path.parent.name == "debug" else f"{path.parent.name}."
    chosen = {key: value for key, value in leaves(content, prefix) if key.rpartition(".")[2] not in ("name", "debug")}
    assert chosen, "a choice that is a name alone stands in osteo/app/choices.py"
    flat = dict(leaves(defaults))
    repeated = {key: value for key, value in chosen.items() if key in flat and flat[key] == value}
    assert repeated == {}


def test_the_sweeper_s_choices_are_its_schema() -> None:
    assert SearchSettings().n_trials == 20
    assert not (CONF / "hydra" / "sweeper" / "search.yaml").exists()
