"""A report as one HTML file that needs nothing else: no script, no font, no request."""

from __future__ import annotations

import base64
from html import escape

from reverie.benchmarks.report.document import Block, Document, Figure, Listing, Text

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Tells the browser to load nothing, whatever a name in a report may contain."""

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --line: #d5dae1;
  --soft: #f4f6f8; --faint: #5b6675; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --paper: #14181e; --line: #343c47; --soft: #1d232b; --faint: #9aa5b3; }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
nav a { margin-right: 1rem; color: inherit; white-space: nowrap; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; margin: .5rem 0; }
caption { caption-side: bottom; text-align: left; color: var(--faint); padding-top: .3rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { background: var(--soft); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figcaption { color: var(--faint); font-size: .87rem; }
"""


def as_page(document: Document) -> str:
    """The report as HTML, light or dark as the reader has it."""
    links = [
        f'<a href="#s{number}">{escape(section.title)}</a>'
        for number, section in enumerate(document.sections)
    ]
    parts = []
    for number, section in enumerate(document.sections):
        blocks = "\n".join(map(_block, section.blocks))
        parts.append(
            f'<section id="s{number}"><h2>{escape(section.title)}</h2>\n{blocks}</section>'
        )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            f"<title>{escape(document.title)}</title>",
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{escape(document.title)}</h1>",
            f"<nav>{' '.join(links)}</nav>",
            *parts,
            "</body></html>\n",
        ]
    )


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.words)}</p>"
    if isinstance(block, Listing):
        return f"<ul>{''.join(f'<li>{escape(point)}</li>' for point in block.points)}</ul>"
    if isinstance(block, Figure):
        data = base64.b64encode(block.png).decode()
        caption = escape(block.caption)
        return (
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = "".join(f"<th>{escape(name)}</th>" for name in block.columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in block.rows
    )
    caption = f"<caption>{escape(block.caption)}</caption>" if block.caption else ""
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
