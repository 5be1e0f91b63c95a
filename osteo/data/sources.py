"""Names every picture of an archive as it was downloaded, by its class folders."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pandas as pd

from osteo.data.archives import Archive, Entry, open_archive
from osteo.data.clinical import IMAGE, PATIENT, SHEETS, VALUES, ClinicalFile, find_sheet, mismatches
from osteo.errors import UserError, counted, printable, unknown
from osteo.reading.labels import Label, LabelFile, check_patients, patient_in, warn_of
from osteo.reading.pictures import Unusable
from osteo.reading.reader import looks_like_picture
from osteo.task import CLASSES, T_SCORE
from osteo.types import ReadFile

log = logging.getLogger(__name__)

MOST_FOLDERS = 5  # that a warning names
HEAD = 132  # bytes of a file that show whether it is DICOM


@dataclass(frozen=True)
class Picture:
    """One picture file as a source found it."""

    image_id: str
    """source/relative path, unique"""
    source: str
    name: str
    """name inside its archive"""
    path: str
    """where it lies, as the user wrote it, or the image_id where osteo itself has put it; a zip counts as a folder"""
    class_name: str
    patient: str = ""
    """pseudonym within the source, or empty where nothing is known"""
    refused: str = ""
    """why the file must not be opened, or empty"""
    split: str = ""
    """train, val or test where the source states it, or empty"""
    t_score: float | None = field(repr=False, default=None)
    """of its patient where the source states it beside a clinical sheet"""


@dataclass
class Source:
    """A data set: its pictures, what else lay there, and how to read one."""

    pictures: list[Picture]
    strays: list[str] = field(default_factory=list)
    """files that are no picture of a known class"""
    read: ReadFile = field(repr=False, default=lambda _: b"")
    """gives the bytes of a picture by its name"""
    stamp: str = ""
    """changes when the content of a picture does; empty where that is not known, so that all are read each time"""
    clinical: pd.DataFrame | None = field(repr=False, default=None)
    """what a clinical sheet says, by patient, or by image_id where its index is named so; see osteo.data.clinical"""


def class_of(name: str, classes: Mapping[str, str] | None = None) -> str | None:
    """The class named by the nearest folder above a file, in any case and depth, or None.

    Args:
        name: inside its archive.
        classes: what folders of other names stand for, by name in lower case; those named as a class need no mention.
    """
    known = {class_name: class_name for class_name in CLASSES} | dict(classes or {})
    for part in reversed(PurePosixPath(name).parts[:-1]):
        if found := known.get(part.strip().casefold()):
            return found
    return None


def is_hidden(name: str) -> bool:
    """Whether a file is none of the user's: hidden, in a hidden folder, or what macOS adds to a zip."""
    return any(part.startswith((".", "__MACOSX")) and part != ".." for part in PurePosixPath(name).parts)


def is_picture(archive: Archive, entry: Entry) -> bool:
    """Whether a file is meant to be read, by its suffix or else by its first bytes; see `looks_like_picture`.

    So is what cannot be opened: nobody knows, and it is named with its reason.
    """
    if is_hidden(entry.name):
        return False
    if entry.is_folder or looks_like_picture(entry.name, b""):
        return True
    try:
        return not entry.refused and looks_like_picture(entry.name, archive.read(entry.name, HEAD))
    except (OSError, Unusable):
        return True


def read_source(
    source: str,
    root: str,
    key: str,
    *,
    shown: str | None = None,
    patient_of: Callable[[str], str] = lambda _: "",
    classes: Mapping[str, str] | None = None,
    labels: LabelFile | None = None,
    covariates: Collection[str] = (),
) -> Source:
    """Finds the pictures of an archive by its class folders, or by a table of labels.

    Args:
        source: name of the source, the first part of every image_id.
        root: folder or zip.
        key: option that named it, for errors.
        shown: stands for the root in `Picture.path`; None for the root as it is written.
        patient_of: gives the patient from a name inside the archive, where no table does.
        classes: as `class_of` takes them.
        labels: a table that says what each picture shows, in place of class folders.
        covariates: that a clinical sheet in the archive must have.

    Raises:
        UserError: the archive cannot be opened, the table does not fit it, or the sheet lacks a covariate.
    """
    archive, written = open_archive(root, key), printable(root.rstrip("/"))
    found, entries, unnamed = Source([], read=archive.read), [], []
    for entry in archive.entries():
        if found.clinical is None and PurePosixPath(entry.name).suffix.lower() in SHEETS and not entry.refused:
            found.clinical = find_sheet(archive, entry.name, covariates)
        if labels is None and class_of(entry.name, classes) is None:
            found.strays.append(entry.name)
            if looks_like_picture(entry.name, b"") and not is_hidden(entry.name):
                unnamed.append(entry.name)
        elif is_picture(archive, entry):
            entries.append(entry)
        else:
            found.strays.append(entry.name)
    if labels is None:
        _warn_of_folders(unnamed, [entry.name for entry in entries], classes or {})
        stated = {entry.name: Label(class_of(entry.name, classes) or "") for entry in entries}
    else:
        stated = _match(entries, labels, classes, (source, root))
    found.strays += [entry.name for entry in entries if entry.name not in stated]
    entries = [entry for entry in entries if entry.name in stated]
    for name, refused in ((entry.name, entry.refused) for entry in entries):
        class_name, patient, split, t_score = stated[name]
        picture = Picture(
            image_id=f"{source}/{name}", source=source, name=name, path=f"{shown or written}/{name}",
            class_name=class_name, patient=patient or patient_of(name), refused=refused, split=split, t_score=t_score,
        )  # fmt: skip
        found.pictures.append(picture)
    found.stamp = "\n".join(f"{written}/{entry.name}:{entry.stamp}" for entry in entries)
    return found


def _match(
    entries: list[Entry], labels: LabelFile, classes: Mapping[str, str] | None, prefixes: tuple[str, str]
) -> dict[str, Label]:
    """What the table says of each picture that it names, by name; warns of what does not fit."""
    for entry in entries:
        if entry.is_folder:
            log.warning("set aside %s: %s", entry.name, entry.refused)
    stated = labels.match([entry.name for entry in entries if not entry.is_folder], prefixes)
    other = [name for name, label in stated.items() if class_of(name, classes) not in (None, label.class_name)]
    warn_of(other, f"{labels.option} disagrees with the class of the folder for {{}}: the file counts")
    return stated


def _warn_of_folders(unnamed: list[str], named: list[str], classes: Mapping[str, str]) -> None:
    """Names the folders of pictures that stand for no class, and what is mapped though no such folder is there."""
    folders = Counter(PurePosixPath(name).parent.as_posix() for name in unnamed)
    if folders:
        listed = ", ".join(f"{folder} ({count})" for folder, count in sorted(folders.items())[:MOST_FOLDERS])
        more = ", ..." if len(folders) > MOST_FOLDERS else ""
        log.warning(
            "%s left out, in folders that name no class: %s%s; map them with data.classes=[FOLDER:CLASS]",
            counted(len(unnamed), "picture"), listed, more,
        )  # fmt: skip
    present = {part.strip().casefold() for name in named for part in PurePosixPath(name).parts[:-1]}
    if absent := sorted(classes.keys() - present):
        log.warning("data.classes names folders that hold no picture: %s", ", ".join(absent))


def read_mendeley(root: str, shown: str | None = None, *, covariates: Collection[str] = ()) -> Source:
    """The Mendeley archive (doi 10.17632/fxjm8fb6mw.2): one picture per patient, whose id is the file's stem.

    Args:
        root: folder or zip.
        shown: as `read_source` takes it.
        covariates: as `read_source` takes them.
    """
    patient_of = lambda name: PurePosixPath(name).stem.upper()  # noqa: E731
    return read_source("mendeley", root, "data.mendeley", shown=shown, patient_of=patient_of, covariates=covariates)


def read_kaggle(root: str, shown: str | None = None) -> Source:
    """The Kaggle archive stevepython/osteoporosis-knee-xray-dataset: nothing is known of its patients.

    Args:
        root: folder or zip.
        shown: as `read_source` takes it.
    """
    return read_source("kaggle", root, "data.kaggle", shown=shown)


def read_folder(
    root: str,
    classes: Mapping[str, str] | None = None,
    *,
    labels: LabelFile | None = None,
    patient: str | None = None,
    covariates: Collection[str] = (),
) -> Source:
    """Any folder or zip, with class folders or a table of labels.

    Args:
        root: folder or zip.
        classes: as `class_of` takes them.
        labels: as `read_source` takes them.
        patient: a column of the labels, which have found it already, or a pattern as `patient_in` takes it.
        covariates: as `read_source` takes them.

    Raises:
        UserError: it cannot be opened, the labels do not fit it, or no picture has a patient though one is asked for.
    """
    column = labels.patient_column if labels else ""
    patient_of = patient_in(patient) if patient and not column else lambda _: ""
    found = read_source(
        "folder", root, "data.root", patient_of=patient_of, classes=classes, labels=labels, covariates=covariates
    )
    if patient or column:
        option = f"data.patient={patient}" if patient else f"column '{column}'"
        check_patients({picture.name: picture.patient for picture in found.pictures}, option)
    return found


def read_unlabelled(root: str) -> Source:
    """All pictures of a folder or zip, whatever their folders are called; of none is anything else known.

    Raises:
        UserError: it cannot be opened, or holds no picture.
    """
    archive, written = open_archive(root, "data.root"), printable(root.rstrip("/"))
    found, stamps = Source([], read=archive.read), []
    for entry in archive.entries():
        if not is_picture(archive, entry):
            found.strays.append(entry.name)
            continue
        found.pictures.append(
            Picture(f"folder/{entry.name}", "folder", entry.name, f"{written}/{entry.name}", "", refused=entry.refused)
        )
        stamps.append(f"{written}/{entry.name}:{entry.stamp}")
    if not found.pictures:
        raise UserError(f"data.root={root} holds no pictures ({counted(len(found.strays), 'other file')})")
    found.stamp = "\n".join(stamps)
    return found


def attach_sheet(sources: Mapping[str, Source], sheet: ClinicalFile) -> None:
    """Gives each source what a clinical sheet says of its pictures; one that it says nothing of keeps its own.

    Raises:
        UserError: it says nothing of any of them, or what cannot be.
    """
    used: set[int] = set()
    for name, source in sources.items():
        patients = {picture.name: picture.patient for picture in source.pictures}
        folder = next((picture.path.removesuffix(picture.name) for picture in source.pictures), "")
        keys = sheet.keys(patients, name, folder)
        if len(keys):
            source.clinical = sheet.table(keys)
            used |= set(keys.index)
    if not used:
        raise sheet.unmatched({p.name: p.patient for source in sources.values() for p in source.pictures})
    if spare := len(sheet.cells) - len(used):
        log.warning("%s has %s without a picture", sheet.option, counted(spare, "row"))


def clinical_rows(manifest: pd.DataFrame, sources: Mapping[str, Source]) -> pd.DataFrame:
    """What clinical sheets say of each picture: one row per row of the manifest, indexed by image_id.

    Returns:
        The columns of `osteo.data.clinical.VALUES`, and `row`; all of them missing where no sheet has the picture.
    """
    columns = [*VALUES, "row"]
    found = []
    for name, source in sources.items():
        if source.clinical is not None:
            rows = manifest[manifest["source"] == name]
            keys = rows[IMAGE if source.clinical.index.name == IMAGE else PATIENT]
            found.append(source.clinical.reindex(keys, columns=columns).set_axis(rows["image_id"]))
    known = pd.concat(found) if found else pd.DataFrame(columns=columns)
    return known.reindex(manifest["image_id"])


def t_scores(manifest: pd.DataFrame, sources: Mapping[str, Source]) -> dict[str, float]:
    """The T-score of a picture's patient by image_id, where a clinical sheet or a table of labels has it."""
    of_sheets = clinical_rows(manifest, sources)[T_SCORE].dropna()
    stated = {p.image_id: p.t_score for source in sources.values() for p in source.pictures if p.t_score is not None}
    return {str(image_id): float(t) for image_id, t in of_sheets.items()} | stated


def check_t_scores(sources: Mapping[str, Source]) -> None:
    """Refuses T-scores of labels that a clinical sheet contradicts; the picture is named, and no T-score.

    Raises:
        UserError: one line for the first of them.
    """
    stated = [picture for source in sources.values() for picture in source.pictures if picture.t_score is not None]
    keys = pd.DataFrame({key: [getattr(picture, key) for picture in stated] for key in (IMAGE, "source", PATIENT)})
    for picture, of_sheet in zip(stated, clinical_rows(keys, sources)[T_SCORE], strict=True):
        if pd.notna(of_sheet) and of_sheet != picture.t_score:
            raise UserError(
                f"the T-score of {picture.name} in data.labels is not that of its patient in the clinical sheet;"
                " correct or remove one of them"
            )


def clinical_table(sources: Mapping[str, Source]) -> pd.DataFrame | None:
    """The clinical sheets of all sources, indexed by patient, without those whom two name; None where there is none."""
    sheets = [source.clinical for source in sources.values() if source.clinical is not None]
    by_patient = [sheet for sheet in sheets if sheet.index.name != IMAGE]
    if not by_patient:
        return None
    joined = pd.concat(by_patient)
    return joined[~joined.index.duplicated(keep=False)]


def sheet_mismatches(sources: Mapping[str, Source]) -> list[str]:
    """One line for each kind of mismatch between a source and its clinical sheet; see `mismatches`."""
    lines = []
    for name, source in sources.items():
        if source.clinical is None or source.clinical.index.name == IMAGE:
            continue
        kinds = (
            ("picture", "without a row in the clinical sheet"), ("row", "without a picture"),
            ("row", "against the cut-offs"),
        )  # fmt: skip
        found = mismatches(source.clinical, {picture.patient for picture in source.pictures})
        lines += [
            f"{name}: {counted(len(p), noun)} {what}: {', '.join(p[:10])}"
            for (noun, what), p in zip(kinds, found, strict=True)
            if p
        ]
    return lines


def check_sources(found: object, key: str) -> dict[str, Source]:
    """The sources that a plugin's function has returned, as the rest of osteo relies on them.

    Args:
        found: what it has returned.
        key: option that named it, for errors.

    Raises:
        UserError: it is no mapping of names to sources, or a picture does not fit its source or has an unknown class.
    """
    if not isinstance(found, Mapping) or not found or not all(isinstance(source, Source) for source in found.values()):
        raise UserError(f"{key} returned {type(found).__name__}, not a mapping of names to osteo.data.sources.Source")
    for name, source in found.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise UserError(f"{key} returned a source named {name!r}; a name is text without a slash")
        for picture in source.pictures:
            if picture.source != name or picture.image_id != f"{name}/{picture.name}":
                raise UserError(
                    f"{key}: picture {picture.name} of source {name} needs the image_id {name}/{picture.name} and that"
                    f" source, not {picture.image_id} and {picture.source}"
                )
            if picture.class_name not in CLASSES:
                raise unknown(f"{key}: class of {picture.image_id}", picture.class_name, CLASSES)
        if repeated := [i for i, count in Counter(p.image_id for p in source.pictures).items() if count > 1]:
            raise UserError(f"{key} returned {repeated[0]} twice")
    return dict(found)
