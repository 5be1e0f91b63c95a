"""Progress bars, which a terminal alone has: in a file or a pipe they would be noise."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def followed(items: Iterable[T], total: int, title: str, unit: str = "picture") -> Iterator[T]:
    """The items, one after another, with a bar on a terminal that says how many have come.

    Args:
        items: that take their time.
        total: how many there are.
        title: what is done, before the bar.
        unit: what an item is.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm  # not before it is needed

    with tqdm(total=total, desc=title, unit=unit, leave=False, dynamic_ncols=True) as bar:
        for item in items:
            bar.update()
            yield item
