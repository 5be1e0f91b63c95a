"""Output directories: nothing that another call has left is overwritten, and results of two calls are never mixed."""

import json
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from osteo.command_settings import AuditConfig, ExplainConfig, PredictConfig, PretrainConfig
from osteo.config import Config
from osteo.errors import UserError
from osteo.files import display_path, sha256_of, write_json
from osteo.records import locks
from osteo.records.sweep import is_run, runs_of, taken


class Results(NamedTuple):
    """What a command leaves in its directory, where that is not a run record."""

    command: str
    names: tuple[str, ...]
    """files and folders; the first is JSON"""
    key: str
    """which that file has"""


PREDICTIONS = Results("predict", ("predictions.json", "predictions.csv", "predictions.html", "overlays"), "pictures")
EXPLANATIONS = Results("explain", ("explain.json", "explain.csv", "index.html", "maps"), "pictures")
AUDIT = Results("audit", ("audit.json", "audit.html"), "exact_duplicate_groups")
OF_CONFIG = {PredictConfig: PREDICTIONS, ExplainConfig: EXPLANATIONS, AuditConfig: AUDIT}
ASIDE = ".results-"
LISTING, LISTED_FOLDERS = ".report.json", ("figures", "tables")
"""What lists the files of a report with their SHA-256, by their names, and the folders in which these lie."""


def claim(directory: Path, config: object) -> None:
    """Holds a directory for the results of a command; `locks.release` lets go of it.

    Args:
        directory: which exists.
        config: of the command: what `OF_CONFIG` names may replace its own earlier results, anything else makes a run
            record and wants a directory without one.

    Raises:
        UserError: it holds a run, a sweep or what the command has not written, it lies within a run or within the
            pictures to be answered, or another process works there.
    """
    place = display_path(directory)
    _check_surroundings(directory, place, config)
    locks.hold(directory)
    results = OF_CONFIG.get(type(config))
    marks = ["status.json"] if results else ["status.json", "config.yaml"]  # the second: of a run without its status
    has_run = any((directory / name).exists() for name in marks)
    if has_run or runs_of(directory) or (directory / "multirun.yaml").exists():
        verb = "pretrain" if isinstance(config, PretrainConfig) else "train"
        raise taken(directory, verb if isinstance(config, Config) else "")
    found = [name for name in (results or PREDICTIONS).names if (directory / name).exists()]
    if found and not (results and _has_written(results, directory)):
        whose = f", which osteo {results.command} has not written" if results else ""
        raise UserError(f"{place} holds {found[0]} already{whose}; choose another output_dir")
    for name in found:
        if results and (strange := _not_listed(results, directory, name)):
            raise UserError(
                f"{place} holds {name}/{strange[0]} already, which osteo {results.command} has not written; choose"
                " another output_dir"
            )


def drop_earlier(directory: Path, written: Collection[Path]) -> None:
    """Removes the files of an earlier report that this one has not written, and lists those that it has.

    Only what the earlier one has listed and nobody has changed since is removed.

    Args:
        directory: of both reports.
        written: files in `LISTED_FOLDERS` of it.
    """
    listing, kept = directory / LISTING, {path.relative_to(directory).as_posix() for path in written}
    try:
        listed = json.loads(listing.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        listed = {}
    for name, sha256 in listed.items() if isinstance(listed, dict) else ():
        path = directory / name
        is_ours = path.parent in [directory / folder for folder in LISTED_FOLDERS] and not path.is_symlink()
        if name not in kept and is_ours and path.is_file() and sha256_of(path) == sha256:
            path.unlink()
    write_json(listing, {name: sha256_of(directory / name) for name in sorted(kept) if (directory / name).is_file()})


def _check_surroundings(directory: Path, place: str, config: object) -> None:
    whole_path = directory.resolve()
    outer = next((path for path in whole_path.parents if is_run(path) and (path / "config.yaml").exists()), None)
    if outer is not None:
        raise UserError(f"{place} lies within the run {outer.name}; choose another output_dir")
    if isinstance(config, PredictConfig | ExplainConfig) and config.input:
        given = Path(config.input).expanduser()
        if given.is_dir() and whole_path.is_relative_to(given.resolve()):
            drawn = OF_CONFIG[type(config)].names[-1]
            raise UserError(
                f"{place} lies within input={display_path(given)}, so that {drawn} would be taken for pictures; choose"
                " another output_dir"
            )


def _has_written(results: Results, directory: Path) -> bool:
    try:
        content = json.loads((directory / results.names[0]).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and results.key in content


def _not_listed(results: Results, directory: Path, name: str) -> list[str]:
    """The files in a folder of results that the first of them does not list under the folder's name."""
    folder = directory / name
    if folder.is_symlink() or not folder.is_dir():
        return []
    listed = json.loads((directory / results.names[0]).read_text(encoding="utf-8")).get(name, [])
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(set(files) - set(map(str, listed if isinstance(listed, list) else [])))


@contextmanager
def replaced(directory: Path, results: Results) -> Iterator[Path]:
    """Yields an empty folder to write results to; at its end they take the place of all earlier ones.

    Whatever fails before leaves the earlier ones as they were.

    Args:
        directory: that was claimed.
        results: its names; what is not among them is dropped.
    """
    for left in directory.glob(f"{ASIDE}*"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=directory) as aside:
        yield Path(aside)
        for name in reversed(results.names):  # the first says whose they are
            made, place = Path(aside) / name, directory / name
            if place.is_symlink():
                place.unlink()
            elif place.is_dir():
                shutil.rmtree(place)
            if made.exists():
                made.replace(place)
            else:
                place.unlink(missing_ok=True)
