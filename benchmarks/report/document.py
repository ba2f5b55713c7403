"""What a report consists of, whatever it is written as: Markdown, a page, or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """A paragraph of plain words."""

    words: str


@dataclass(frozen=True)
class Listing:
    """Points, one line each."""

    points: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells of plain words; the first row of a column names it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture and what it shows."""

    name: str
    """File name without .png."""
    caption: str
    png: bytes


Block = Text | Listing | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    sections: Sequence[Section]

    def figures(self) -> list[Figure]:
        """All pictures, in their order."""
        return [b for s in self.sections for b in s.blocks if isinstance(b, Figure)]
