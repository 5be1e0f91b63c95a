"""A table as a user has it: CSV or Excel, in whichever encoding and with whichever separator it was saved."""

import codecs
import csv
import io
import re
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from osteo.errors import UserError
from osteo.files import unquoted
from osteo.reading.pictures import Unusable

SEPARATORS = ",;\t"
LARGEST_TABLE = 64 * 2**20  # bytes
MOST_ROWS = 1_000_000  # of a CSV file
PARTS = (".xml", ".rels")
"""Suffixes of what openpyxl reads of a workbook; pictures in it are left alone."""
MOST_TEXT = 8 * 2**20
"""Bytes of a workbook's text once it is unpacked, 0.3 MB for 240 patients; openpyxl may need 150 times that."""
MOST_ROWS_OF_A_SHEET, MOST_CELLS = 50_000, (2**20, 256)
"""Rows that are not empty; and the rows, as many as Excel has, and columns that are looked at."""
MOST_SECONDS = 20.0
WORKBOOK, NO_WORKBOOK = b"PK\x03\x04", "not a workbook, or damaged"
"""How a workbook, which is a zip, begins, and what is said of one that cannot be read."""
NO_HEADING, NUMBERS_ABOVE = re.compile(r"[\W\d_]*\d[\W\d_]*"), "row 1 holds numbers, where headings are needed"
"""A cell with digits and no letter, and what is said then: nothing of the row, which may be a patient's."""
TOO_LARGE = "larger than a sheet with one row per patient can be; save it as CSV"


def read_users_table(path: Path, option: str) -> pd.DataFrame:
    """Reads a user's table.

    Args:
        path: of a CSV file (UTF-8, UTF-16 or Windows-1252; comma, semicolon or tab) or an .xlsx workbook, whose first
            sheet is taken.
        option: that named it, for errors.

    Returns:
        Text, one column per heading, without blanks around it; missing where a cell is empty. Rows are indexed by
        their number, the headings being row 1; empty ones and columns without a heading are left out.

    Raises:
        UserError: no such file, or it holds no table.
    """
    if not path.is_file():
        raise UserError(f"{option}: no such file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_TABLE + 1)
        return _framed(next(read_sheets(content), iter(())))
    except Unusable as error:
        raise UserError(f"{option} cannot be used: {error}") from error


def read_sheets(content: bytes) -> Iterator[Iterator[list[str]]]:
    """The rows that are not empty of a CSV file, or of each sheet of a workbook, as text; read as they are asked for.

    Raises:
        Unusable: this is neither, or it is damaged or too large.
    """
    if len(content) > LARGEST_TABLE:
        raise Unusable(f"larger than {LARGEST_TABLE // 2**20} MiB")
    if content.startswith(WORKBOOK):
        yield from _sheets_of_workbook(content)
    elif content.startswith(b"\xd0\xcf\x11\xe0"):
        raise Unusable("a workbook of an old Excel; save it as .xlsx or CSV")
    else:
        yield _rows_of_csv(decode_text(content))


def decode_text(content: bytes) -> str:
    """Text in UTF-8 or UTF-16, with or without a byte-order mark; what is neither is taken for Windows-1252.

    Raises:
        Unusable: this is no text.
    """
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content.startswith(b"\0") else "utf-16-le"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    if "\0" in text:
        raise Unusable("not a table, or in an encoding other than UTF-8, UTF-16 and Windows-1252")
    return text


def _rows_of_csv(text: str) -> Iterator[list[str]]:
    head, _, rest = text.lstrip().partition("\n")
    if named := re.fullmatch(r"sep=(.)\s*", head):  # Excel's own first line
        separator, text = named[1], rest
    else:
        unquoted = re.sub(r'"[^"]*"', "", head)
        separator = max(SEPARATORS, key=unquoted.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    count = 0
    try:
        for row in rows:
            if any(cell.strip() for cell in row):
                count += 1
                if count > MOST_ROWS:
                    raise Unusable(f"more than {MOST_ROWS} rows")
                yield row
    except csv.Error as error:
        raise Unusable(f"damaged at line {rows.line_num} ({error})") from error


def _sheets_of_workbook(content: bytes) -> Iterator[Iterator[list[str]]]:
    import openpyxl

    end = time.monotonic() + MOST_SECONDS
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            if sum(part.file_size for part in parts.infolist() if part.filename.endswith(PARTS)) > MOST_TEXT:
                raise Unusable(TOO_LARGE)
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        for sheet in book.worksheets:
            yield _rows_of_sheet(sheet, end)
    except (Unusable, GeneratorExit):
        raise
    except Exception as error:
        raise Unusable(NO_WORKBOOK) from error


def _rows_of_sheet(sheet: Any, end: float) -> Iterator[list[str]]:
    """The rows of a worksheet.

    Args:
        sheet: of openpyxl, which pads rows to the size that the file claims to have, unless limited.
        end: when to give up, as `time.monotonic` counts.
    """
    count = 0
    rows = sheet.iter_rows(min_row=1, max_row=MOST_CELLS[0], min_col=1, max_col=MOST_CELLS[1], values_only=True)
    try:
        for row in rows:
            if time.monotonic() > end or count > MOST_ROWS_OF_A_SHEET:
                raise Unusable(TOO_LARGE)
            if filled := len(row) - row.count(None):
                count += 1
                yield _as_texts(row, filled)
    except (Unusable, GeneratorExit):
        raise
    except Exception as error:
        raise Unusable(NO_WORKBOOK) from error


def _as_texts(row: tuple[object, ...], filled: int) -> list[str]:
    """The cells of a row up to the last of those that are filled; most of the padded width is empty."""
    texts: list[str] = []
    for cell in row:
        texts.append(_as_text(cell))
        filled -= cell is not None
        if not filled:
            break
    return texts


def _as_text(cell: object) -> str:
    """A cell as one would type it: Excel keeps 1 as 1.0, and a tick as a truth value."""
    if isinstance(cell, bool) or (isinstance(cell, float) and cell.is_integer()):
        return str(int(cell))
    return "" if cell is None else str(cell)


def _framed(rows: Iterator[list[str]]) -> pd.DataFrame:
    headings = [cell.strip() for cell in next(rows, [])]
    if not headings:
        raise Unusable("empty")
    if repeated := sorted({heading for heading in headings if heading and headings.count(heading) > 1}):
        is_heading = not any(map(NO_HEADING.fullmatch, headings))
        raise Unusable(f"two columns named {repeated[0]}" if is_heading else NUMBERS_ABOVE)
    width = len(headings)
    cells = []
    for number, row in enumerate(rows, 2):
        stripped = [unquoted(cell.strip()) or None for cell in row]
        if any(stripped[width:]):
            raise Unusable(f"more cells in row {number} than headings")
        cells.append(stripped[:width] + [None] * (width - len(stripped)))
    table = pd.DataFrame(cells, index=range(2, 2 + len(cells)), columns=headings, dtype="string")
    return table.loc[:, [bool(heading) for heading in headings]]
