"""What a run was computed with: versions and the machine's kind, without its name or its user's."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

LIBRARIES = ("torch", "timm", "lightning", "kornia", "torchmetrics", "numpy", "opencv-python-headless", "wandb")


def environment() -> dict[str, Any]:
    """Versions of what computes, and the machine's kind."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = ""
    return {
        "osteo": version("osteo"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "libraries": versions,
    }


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Versions and machine that are not what they were: name, before, now."""
    pairs = [(name, before.get(name), now[name]) for name in ("osteo", "python", "system", "machine")]
    pairs += [(name, before["libraries"].get(name), version) for name, version in now["libraries"].items()]
    return [(name, str(first), str(second)) for name, first, second in pairs if first != second]
