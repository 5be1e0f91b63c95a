"""What becomes of every file that pydicom ships for its own tests: the size of its picture, or why there is none."""

from collections import Counter
from importlib.metadata import version
from pathlib import Path

from osteo.reading.pictures import Unusable
from osteo.reading.reader import looks_like_picture, read_picture

SHOWN_SIZE = 224  # pixels; of no matter to DICOM
READERS = ("pydicom", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg", "pylibjpeg-rle")


def measure() -> list[dict]:
    """One row per file, preceded by one per kind of outcome."""
    import pydicom

    root = Path(pydicom.__file__).parent / "data"
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    outcomes = {
        path.relative_to(root).as_posix(): outcome(content)
        for path in files
        if looks_like_picture(path.name, content := path.read_bytes())
    }
    kinds = Counter("a picture" if result[0].isdigit() else result for result in outcomes.values())
    readers = ", ".join(f"{name} {version(name)}" for name in READERS)
    rows = [{"file": f"all {len(outcomes)}, {readers}", "outcome": ""}]
    rows += [{"file": f"{number} of them", "outcome": kind} for kind, number in kinds.most_common()]
    return rows + [{"file": name, "outcome": result} for name, result in outcomes.items()]


def outcome(content: bytes) -> str:
    """Height x width in pixels, and the mean grey level, or a reason."""
    try:
        grey = read_picture(content, SHOWN_SIZE)
    except Unusable as error:
        return str(error)
    return f"{grey.shape[0]} x {grey.shape[1]}, mean {grey.mean():.1f}"
