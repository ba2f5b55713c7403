"""Latents for TensorBoard's projector: vectors, what is known of them, and small pictures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reverie.agents.runs.files import write_atomic

CONFIG = "projector_config.pbtxt"
"""Where TensorBoard looks for it: beside the event files."""

FOLDER = "projector"

DIRECTIONS = 128
"""Of more dimensions the projector would look at a random sample."""

SHEET = 8192
"""Pixels of a side, at most, of the picture that holds all small pictures."""


class Points(NamedTuple):
    """Latents to be shown as a cloud."""

    vectors: NDArray[np.float32]
    """[N, F]."""
    sprites: NDArray[np.uint8] | None
    """[N, h, w, 3]; None: dots."""
    labels: Mapping[str, Sequence[Any]]
    """Columns of N values, to colour and name points by."""


def write_projector(run_dir: Path, name: str, points: Points) -> None:
    """Write the points of `name` in place of earlier ones; raises OSError.

    Vectors are turned, about their mean, to the directions of their largest variance, of which
    the first 128 are kept.
    """
    count = len(points.vectors)
    assert count > 0 and all(len(column) == count for column in points.labels.values())
    folder = run_dir / FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    rows = principal(points.vectors)
    lines = ("\t".join(f"{value:.5g}" for value in row) for row in rows.tolist())
    write_atomic(folder / "vectors.tsv", ("\n".join(lines) + "\n").encode())
    if points.labels:
        write_atomic(folder / "labels.tsv", _table(points.labels).encode())
    size = None
    if points.sprites is not None:
        assert points.sprites.shape[0] == count, (points.sprites.shape, count)
        size, picture = sprite_sheet(points.sprites)
        write_atomic(folder / "sprites.png", picture)
    _announce(run_dir, name, rows.shape, size, labelled=bool(points.labels))


def principal(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors about their mean in the coordinates of their principal directions."""
    centred = np.asarray(vectors, np.float64) - vectors.mean(0, dtype=np.float64)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    found: NDArray[np.float32] = (left * scale)[:, :DIRECTIONS].astype(np.float32)
    return found


def sprite_sheet(sprites: NDArray[np.uint8]) -> tuple[tuple[int, int], bytes]:
    """Size (height, width) of a small picture, and the PNG of all, row by row in a square grid."""
    columns = math.ceil(math.sqrt(len(sprites)))
    step = math.ceil(max(sprites.shape[1:3]) * columns / SHEET)
    small = sprites[:, ::step, ::step]
    count, height, width = small.shape[:3]
    sheet = np.full((columns * columns, height, width, 3), 255, np.uint8)
    sheet[:count] = small
    grid = sheet.reshape(columns, columns, height, width, 3).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(grid.reshape(columns * height, columns * width, 3)).save(file, "PNG")
    return (height, width), file.getvalue()


def _table(labels: Mapping[str, Sequence[Any]]) -> str:
    """A line for every point; a single column must go without a head."""
    rows = ["\t".join(map(_word, row)) for row in zip(*labels.values(), strict=True)]
    head = ["\t".join(map(_word, labels))] if len(labels) > 1 else []
    return "\n".join([*head, *rows]) + "\n"


def _word(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text.replace("\t", " ").replace("\n", " ")


def _announce(
    run_dir: Path,
    name: str,
    shape: tuple[int, ...],
    sprite: tuple[int, int] | None,
    *,
    labelled: bool,
) -> None:
    """Name the files in the projector's settings, beside those of other names."""
    place = f"{FOLDER}/{name}"
    lines = [
        f"  tensor_name: {json.dumps(name)}",
        f"  tensor_path: {json.dumps(f'{place}/vectors.tsv')}",
        *(f"  tensor_shape: {size}" for size in shape),
    ]
    if labelled:
        lines.append(f"  metadata_path: {json.dumps(f'{place}/labels.tsv')}")
    if sprite is not None:
        height, width = sprite
        path = json.dumps(f"{place}/sprites.png")
        sizes = f"single_image_dim: {width} single_image_dim: {height}"
        lines.append(f"  sprite {{ image_path: {path} {sizes} }}")
    own = "\n".join(["embeddings {", *lines, "}"]) + "\n"
    file = run_dir / CONFIG
    known = file.read_text().split("embeddings {\n")[1:] if file.exists() else []
    others = [f"embeddings {{\n{entry}" for entry in known if lines[0] not in entry.splitlines()]
    write_atomic(file, "".join([*others, own]).encode())
