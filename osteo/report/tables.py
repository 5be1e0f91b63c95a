"""Tables on a terminal, in Markdown and in LaTeX."""

import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from osteo.errors import printable, printable_lines
from osteo.files import write_text

PIPED = 80
"""Columns of a file or a pipe, as of a terminal that nobody has widened."""
HEADING = 12
"""Columns that a heading may have though no cell is so wide."""
GAP = 2
"""Columns between two of a table."""


class Terminal(Console):
    """Prints names as they are: nothing in them is markup, or moves the cursor."""

    def render_str(self, text: str, **options: Any) -> Text:
        """What Rich makes of every text that it prints, also in the cells of a table."""
        return super().render_str(printable_lines(text), **options)

    def table(self, frame: pd.DataFrame, *, title: str | None = None, keys: int = 1) -> None:
        """Prints a data frame as wide as the terminal: columns that do not fit follow in a second block, and so on.

        Numbers stand to the right, missing values are a dash, and AUROC comes before all other columns. No cell is
        shortened: only a text that is wider than its column, such as a long name, goes on in the next line.

        Args:
            frame: the rows.
            title: above the first block.
            keys: columns that say what a row is, which every block begins with.
        """
        names = list(frame)
        first = [name for name in names[keys:] if str(name).startswith("AUROC")]
        columns = [_Column.of(frame[name]) for name in [*names[:keys], *first]]
        columns += [_Column.of(frame[name]) for name in names[keys:] if name not in first]
        widest = max(self.width * 3 // 8 // max(keys, 1), 8)
        leading = [column._replace(width=min(column.width, widest)) for column in columns[:keys]]
        room = self.width - sum(column.width + GAP for column in leading)
        if title:
            self.say(title, style="bold")
        for block in _blocks(columns[keys:], room):
            self.print(_grid([*leading, *block]))
            self.print()

    def say(self, *lines: str, bullet: str = "", style: str = "") -> None:
        """Prints sentences, which a terminal breaks between words; in a file or a pipe each stands on one line."""
        for line in lines:
            if not bullet or not self.is_terminal:
                self.print(f"{bullet}{line}", soft_wrap=not self.is_terminal, style=style)
                continue
            grid = Table.grid()
            grid.add_row(bullet, line)
            self.print(grid)

    def name(self, *lines: str) -> None:
        """Prints paths and commands, which are never broken, so that they can be copied."""
        for line in lines:
            self.print(line, soft_wrap=True)


def terminal() -> Terminal:
    """The terminal in its own width; a file or a pipe in `PIPED` columns."""
    return Terminal(width=None if sys.stdout.isatty() else PIPED, highlight=False, markup=False, emoji=False)


class _Column(NamedTuple):
    name: str
    cells: list[str]
    is_number: bool
    width: int

    @staticmethod
    def of(values: "pd.Series[Any]") -> "_Column":
        """As wide as its widest cell; a long heading may be broken between its words."""
        name, cells = str(values.name), [cell(value) for value in values]
        width = max([*map(cell_len, cells), *map(cell_len, name.split()), min(cell_len(name), HEADING)])
        is_number = pd.api.types.is_numeric_dtype(values) or all(isinstance(value, Decimal) for value in values)
        return _Column(name, cells, is_number, width)


def _blocks(columns: Sequence[_Column], room: int) -> list[list[_Column]]:
    """Columns in their order, as many in each block as there is room for: one at least."""
    blocks: list[list[_Column]] = [[]]
    left = room
    for column in columns:
        fitting = column._replace(width=max(1, min(column.width, room)))
        if blocks[-1] and fitting.width > left:
            blocks.append([])
            left = room
        blocks[-1].append(fitting)
        left -= fitting.width + GAP
    return blocks


def _grid(columns: Sequence[_Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for column in columns:
        justify: JustifyMethod = "right" if column.is_number else "left"
        table.add_column(column.name, justify=justify, width=column.width, overflow="fold")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def cell(value: object) -> str:
    """A float to three digits, a missing value as a dash, anything else as it is, where it can be printed."""
    if pd.isna(value):  # type: ignore[call-overload]
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else printable(value)


def without_zeros(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of counts without the columns that hold zeros alone."""
    return frame.loc[:, (frame != 0).any()].rename(columns={"class_name": "class"})


def as_markdown(frame: pd.DataFrame) -> str:
    """A data frame as a Markdown table."""
    lines = [[str(name) for name in frame], ["---"] * len(frame.columns)]
    lines += [[cell(value).replace("|", "\\|") for value in row] for row in frame.itertuples(index=False, name=None)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
    """Writes NAME.md and NAME.tex of every table, and returns their paths."""
    written = []
    for name, table in tables.items():
        for ending, text in ((".md", as_markdown(table)), (".tex", as_latex(table))):
            written.append(folder / f"{name}{ending}")
            write_text(written[-1], text)
    return written


def as_latex(frame: pd.DataFrame) -> str:
    """A data frame as a LaTeX table with rules of the booktabs package."""
    return frame.map(cell).to_latex(index=False, escape=True)
