"""Imports run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from osteo.task import CLASSES

PACKAGE = Path(__file__).resolve().parents[1] / "osteo"
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def uses(path: Path, *modules: str) -> set[str]:
    return {name for name in imports(path) if any(name == m or name.startswith(f"{m}.") for m in modules)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    if not name.startswith("commands/"):
        assert not uses(path, "hydra", "osteo.commands") - {"osteo.commands"}, "only commands know Hydra"
    if name not in ("tracking.py",):
        assert not uses(path, "wandb"), "only tracking.py knows W&B"
    if name.startswith("data/"):
        assert not uses(
            path,
            "osteo.training.module",
            "osteo.training.network",
            "osteo.evaluation.metrics",
            "osteo.training.augment",
            "osteo.training.tracking",
        )
    if name in ("module.py", "network.py", "metrics.py", "augment.py"):
        assert not uses(path, "osteo.data", "osteo.records.record", "osteo.training.tracking")
    if name == "network.py":
        assert not uses(path, "lightning")


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("sources", ("manifest", "splits", "store", "datamodule", "prepare")),
        ("manifest", ("splits", "store", "datamodule", "prepare")),
        ("splits", ("store", "datamodule", "prepare")),
        ("store", ("splits", "datamodule", "prepare")),
        ("datamodule", ("prepare", "splits")),
    ],
)
def test_data_is_built_from_the_bottom(lower: str, higher: tuple[str, ...]) -> None:
    assert not uses(PACKAGE / "data" / f"{lower}.py", *(f"osteo.data.{name}" for name in higher))


def test_no_file_is_too_long() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_help_and_configuration_need_no_torch() -> None:
    code = (
        "import sys, osteo.cli, osteo.commands.train as t; print(sorted({'torch', 'wandb', 'timm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


DRAW_CLASSES = {"task.py", "config.py", "data/phantom.py"}
"""Files in which the names of classes stand as values: the task's, and the phantoms' that are drawn by class."""


def test_the_names_of_the_classes_stand_in_one_place() -> None:
    named = {
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in CLASSES
    }
    templates = {
        path.name
        for path in (PACKAGE / "report" / "templates").iterdir()
        if any(f'"{name}"' in path.read_text(encoding="utf-8") for name in CLASSES)
    }
    assert named == DRAW_CLASSES
    assert templates == set()
