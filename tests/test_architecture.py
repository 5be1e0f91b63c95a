"""Imports run one way, between folders as between files, and no file or function is too long."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from osteo.task import CLASSES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "osteo"
FILES = sorted(PACKAGE.rglob("*.py"))
ORDER = (
    "errors", "types", "task", "config", "command_settings", "files", "progress", "graphs", "parts", "checks",
    "libraries", "reading", "data", "records", "search", "networks",
    "evaluation", "training", "pretraining", "inference", "report",
    "audit", "serving", "app", "commands",
)  # fmt: skip
"""Rooms of the house: each may use those that stand before it, and no other."""
DOORS = ("", "cli", "__main__")
"""The package itself and its console script: they open rooms when they are asked to."""


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(path: Path) -> set[str]:
    """Everything that a file imports, anywhere in it; of osteo, the modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found |= (inner & MODULES) | ({node.module} if inner - MODULES else set())
    return found


def uses(path: Path, *modules: str) -> set[str]:
    return {name for name in imports(path) if any(name == m or name.startswith(f"{m}.") for m in modules)}


def identity(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in MODULES} - set(DOORS) == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(module_of(path))
    if room not in DOORS:
        allowed = set(ORDER[: ORDER.index(room) + 1])
        backwards = {name for name in imports(path) if name.startswith("osteo") and room_of(name) not in allowed | {""}}
        assert not backwards, f"{identity(path)} reaches back up"
    if room not in ("app", "commands"):
        assert not uses(path, "hydra"), "only app and commands know Hydra"
    if identity(path) not in ("training/tracking.py", "training/loggers/mode.py", "training/loggers/dashboard.py"):
        assert not uses(path, "wandb", "wandb_workspaces"), "only tracking.py and its parts know W&B"
    if room == "networks":
        assert not uses(path, "lightning"), "a network knows nothing of training"


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> Iterator[list[str]]:
        if node in trail:
            yield [*trail[trail.index(node) :], node]
        elif node not in done:
            for following in sorted(graph.get(node, ())):
                yield from walk(following, [*trail, node])
            done.add(node)

    for node in sorted(graph):
        yield from walk(node, [])


def test_no_file_needs_itself() -> None:
    graph = {module_of(path): imports(path) & MODULES for path in FILES if module_of(path) != "osteo"}
    assert list(circles(graph)) == []


def test_the_order_of_rooms_finds_an_arrow_that_runs_back_up() -> None:
    assert list(circles({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == [["a", "b", "c", "a"]]


def test_no_file_is_too_long() -> None:
    lengths = {identity(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_too_long() -> None:
    found = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > 60:
                    found[f"{identity(path)}: {node.name}"] = length
    assert found == {}


def test_no_room_is_too_full() -> None:
    named = [path for path in FILES if path.stem != "__init__"]
    rooms = {folder: sum(path.parent == folder for path in named) for folder in {path.parent for path in named}}
    assert {identity(folder): count for folder, count in rooms.items() if count > 14} == {}


def test_help_and_configuration_need_no_torch() -> None:
    code = (
        "import sys, osteo, osteo.cli, osteo.commands.train as t;"
        "print(sorted({'torch', 'wandb', 'timm', 'lightning', 'kornia'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


NAME_CLASSES = {"task.py", "config.py", "data/phantom.py", "report/sections/glossary.py"}
"""Files in which the names of classes stand: the task's, the phantoms' that are drawn by class, and the glossary."""


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
    assert named == NAME_CLASSES
    assert templates == set()
