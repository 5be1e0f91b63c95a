"""A table as a user has it: CSV or Excel, in whichever encoding and with whichever separator it was saved."""

import codecs
import csv
import io
import re
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd

from osteo.errors import UserError

SEPARATORS = ",;\t"
LARGEST_TABLE = 256 * 2**20  # bytes, of a file and of what a workbook unpacks to
MOST_ROWS, MOST_ROWS_OF_A_WORKBOOK = 2_000_000, 100_000  # openpyxl reads some 10 000 a second


def read_table(path: Path, option: str) -> pd.DataFrame:
    """Reads a user's table.

    Args:
        path: of a CSV file (UTF-8, UTF-16 or Windows-1252; comma, semicolon or tab) or an .xlsx workbook, whose first
            sheet is taken.
        option: that named it, for errors.

    Returns:
        Text, one column per heading, without blanks around it; missing where a cell is empty. Rows are indexed by
        their number in the file, the heading being 1; empty ones and columns without a heading are left out.

    Raises:
        UserError: no such file, or it holds no table.
    """
    if not path.is_file():
        raise UserError(f"{option}: no such file")
    if path.stat().st_size > LARGEST_TABLE:
        raise UserError(f"{option} is larger than {LARGEST_TABLE // 2**20} MiB")
    try:
        return _framed(next(read_sheets(path.read_bytes()), iter(())))
    except ValueError as error:
        raise UserError(f"{option} {error}") from error


def read_sheets(content: bytes) -> Iterator[Iterator[list[str]]]:
    """The rows of a CSV file, or of each sheet of a workbook, as text.

    Raises:
        ValueError: this is neither, or its rows cannot be read; says why, after the name of the file.
    """
    if content.startswith(b"PK\x03\x04"):
        yield from _sheets_of_workbook(content)
    elif content.startswith(b"\xd0\xcf\x11\xe0"):
        raise ValueError("is a workbook of an old Excel; save it as .xlsx or CSV")
    else:
        yield _rows_of_csv(decode_text(content))


def decode_text(content: bytes) -> str:
    """Text in UTF-8 or UTF-16, with or without a byte-order mark; what is neither is taken for Windows-1252.

    Raises:
        ValueError: this is no text.
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
        raise ValueError("is no text")
    return text


def _rows_of_csv(text: str) -> Iterator[list[str]]:
    head, _, rest = text.partition("\n")
    if named := re.fullmatch(r"sep=(.)\s*", head):  # Excel's own first line
        separator, text = named[1], rest
    else:
        unquoted = re.sub(r'"[^"]*"', "", head)
        separator = max(SEPARATORS, key=unquoted.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        yield from _bounded(rows, MOST_ROWS)
    except csv.Error as error:
        raise ValueError(f"cannot be read at line {rows.line_num} ({error})") from error


def _sheets_of_workbook(content: bytes) -> Iterator[Iterator[list[str]]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(part.file_size for part in archive.infolist()) > LARGEST_TABLE:
                raise ValueError(f"unpacks to more than {LARGEST_TABLE // 2**20} MiB")
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    except ValueError:
        raise
    except Exception as error:  # what a damaged workbook makes of zipfile and openpyxl: KeyError, BadZipFile, ...
        raise ValueError("is no workbook that can be read") from error
    for sheet in book.worksheets:
        yield _rows_of_sheet(sheet)


def _rows_of_sheet(sheet: Any) -> Iterator[list[str]]:
    try:
        rows = ([_as_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True))
        yield from _bounded(rows, MOST_ROWS_OF_A_WORKBOOK)
    except ValueError:
        raise
    except Exception as error:  # such as a ParseError
        raise ValueError("is a damaged workbook") from error


def _bounded(rows: Iterator[list[str]], most: int) -> Iterator[list[str]]:
    yield from islice(rows, most)
    if next(rows, None) is not None:
        raise ValueError(f"has more than {most} rows")


def _as_text(cell: object) -> str:
    """A cell as one would type it: Excel keeps 1 as 1.0, and a tick as a truth value."""
    if isinstance(cell, bool) or (isinstance(cell, float) and cell.is_integer()):
        return str(int(cell))
    return "" if cell is None else str(cell)


def _framed(rows: Iterator[list[str]]) -> pd.DataFrame:
    headings: list[str] = []
    numbers, cells = [], []
    for number, row in enumerate(rows, 1):
        stripped = [cell.strip() for cell in row]
        if not any(stripped):
            continue
        if not headings:
            headings = stripped
            continue
        if any(stripped[len(headings) :]):
            raise ValueError(f"has more cells in row {number} than headings")
        numbers.append(number)
        cells.append([cell or None for cell in stripped[: len(headings)]] + [None] * (len(headings) - len(stripped)))
    if not headings:
        raise ValueError("is empty")
    if repeated := sorted({heading for heading in headings if heading and headings.count(heading) > 1}):
        raise ValueError(f"has two columns named {repeated[0]}")
    table = pd.DataFrame(cells, index=numbers, columns=headings, dtype="string")
    return table.loc[:, [bool(heading) for heading in headings]]
