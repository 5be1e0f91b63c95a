"""Tables on a terminal."""

import sys

import pandas as pd
from rich.console import Console
from rich.table import Table


def terminal() -> Console:
    """The terminal in its own width; a file or a pipe in one that holds every table of ours."""
    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def as_table(frame: pd.DataFrame, *, title: str | None = None) -> Table:
    """A data frame as a terminal table: numbers to the right, missing values as a dash."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in frame:
        numeric = pd.api.types.is_numeric_dtype(frame[name])
        table.add_column(str(name), justify="right" if numeric else "left")
    for row in frame.itertuples(index=False, name=None):
        table.add_row(
            *("-" if pd.isna(cell) else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row)
        )
    return table
