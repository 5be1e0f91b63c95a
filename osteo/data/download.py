"""Fetches the two archives: with progress, going on where an earlier try stopped, and checked."""

import http.client
import logging
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from osteo.errors import UserError

log = logging.getLogger(__name__)

KAGGLE = "stevepython/osteoporosis-knee-xray-dataset"
MENDELEY = "https://data.mendeley.com/public-api/zip/fxjm8fb6mw/download/2"  # doi 10.17632/fxjm8fb6mw.2, 2021
SECONDS = 30  # without an answer, a server is out of reach


def kaggle() -> Path:
    """The folder of the Kaggle archive, which kagglehub fetches once, resumes and checks by MD5.

    Raises:
        UserError: kagglehub is not installed, or the archive cannot be had.
    """
    try:
        import kagglehub
    except ImportError as error:
        raise UserError(
            "data.download=true needs the package kagglehub: pip install 'osteo[download]'; or download"
            f" {KAGGLE} from Kaggle and set data.kaggle=FILE"
        ) from error
    try:
        return Path(kagglehub.dataset_download(KAGGLE))
    except Exception as error:  # kagglehub raises its errors, and those of requests and of the Kaggle client
        raise UserError(
            f"the Kaggle archive could not be fetched ({type(error).__name__}); try again to go on where it stopped,"
            f" or download {KAGGLE} yourself and set data.kaggle=FILE"
        ) from error


def mendeley(folder: Path) -> Path:
    """The Mendeley archive as a zip in the folder, fetched where it is missing or damaged.

    Nothing is published to check the file by, but a zip holds a checksum of each file in it: all are compared.

    Raises:
        UserError: the archive cannot be had, or what came is broken.
    """
    target = folder / "mendeley-fxjm8fb6mw-2.zip"
    if target.exists():
        if not (broken := _broken(target)):
            return target
        log.warning("the Mendeley archive in the cache is damaged (%s); fetching it again", broken)
        target.unlink()
    part = target.with_suffix(".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    is_resumed = part.exists()
    try:
        _fetch(MENDELEY, part)
        if is_resumed and _broken(part):  # what an earlier try left was damaged
            part.unlink()
            _fetch(MENDELEY, part)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"the Mendeley archive could not be fetched ({type(error).__name__}); try again to go on where it stopped,"
            " or download doi.org/10.17632/fxjm8fb6mw.2 yourself and set data.mendeley=FILE"
        ) from error
    if broken := _broken(part):
        part.unlink()
        raise UserError(f"the Mendeley archive arrived damaged ({broken}) and was removed; try again")
    part.replace(target)
    return target


def _fetch(url: str, part: Path) -> None:
    """Downloads to a file that may hold the beginning already."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is here
        raise
    with answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT
        start = start if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc="Mendeley archive", disable=None)
        with bar, part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(2**18):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.stat().st_size < total:
        raise ConnectionError("the connection ended early")


def _broken(path: Path) -> str:
    """Why a zip cannot be used, or empty."""
    try:
        with zipfile.ZipFile(path) as archive:
            first = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError):
        return "not a zip file"
    return f"checksum of {first}" if first else ""
