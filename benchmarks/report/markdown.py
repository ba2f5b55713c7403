"""A report as Markdown, and on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from reverie.benchmarks.report.document import Block, Document, Figure, Listing, Table, Text

WIDE = 8
"""Columns of the widest table that a terminal shows; files hold all."""


def as_markdown(document: Document) -> str:
    """The report as GitHub's Markdown; pictures are files beside it."""
    parts = [f"# {document.title}"]
    for section in document.sections:
        parts += [f"## {section.title}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def show(document: Document, console: Console) -> None:
    """The report without its pictures."""
    console.rule(escape(document.title))
    for section in document.sections:
        if all(isinstance(block, Figure) for block in section.blocks):
            continue
        console.print(f"\n[bold]{escape(section.title)}[/]")
        for block in section.blocks:
            if isinstance(block, Table) and len(block.columns) > WIDE:
                size = f"{len(block.rows)} rows, {len(block.columns)} columns, in report.md"
                console.print(f"{block.caption} ({size})", markup=False, highlight=False)
            elif isinstance(block, Table):
                console.print(_grid(block))
            elif not isinstance(block, Figure):
                points = block.points if isinstance(block, Listing) else [block.words]
                mark = "- " if isinstance(block, Listing) else ""
                for point in points:
                    console.print(mark + point, markup=False, highlight=False)


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return block.words
    if isinstance(block, Listing):
        return "\n".join(f"- {point}" for point in block.points)
    if isinstance(block, Figure):
        return f"![{block.caption}]({block.name.replace('+', '%2B')}.png)"
    lines = [_line(block.columns), _line(["---"] * len(block.columns)), *map(_line, block.rows)]
    return "\n".join([*lines, *(["", block.caption] if block.caption else [])])


def _line(cells: object) -> str:
    assert isinstance(cells, list | tuple), cells
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _grid(table: Table) -> Grid:
    grid = Grid(caption=escape(table.caption) or None, caption_justify="left")
    for name in table.columns:
        grid.add_column(escape(name), overflow="fold")
    for row in table.rows:
        grid.add_row(*map(escape, row))
    return grid
