"""Tables on a terminal, in Markdown and in LaTeX."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from osteo.errors import printable, printable_lines
from osteo.files import write_text


class Terminal(Console):
    """Prints names as they are: nothing in them is markup, or moves the cursor."""

    def render_str(self, text: str, **options: Any) -> Text:
        """What Rich makes of every text that it prints, also in the cells of a table."""
        return super().render_str(printable_lines(text), **options)


def terminal() -> Terminal:
    """The terminal in its own width; a file or a pipe in one that holds every table of ours."""
    return Terminal(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False, emoji=False)


def as_table(frame: pd.DataFrame, *, title: str | None = None) -> Table:
    """A data frame as a terminal table: numbers to the right, missing values as a dash."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in frame:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if numeric else "left")
    for row in frame.itertuples(index=False, name=None):
        table.add_row(*map(cell, row))
    return table


def cell(value: object) -> str:
    """A number to three digits, a missing value as a dash, anything else as it is, where it can be printed."""
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
