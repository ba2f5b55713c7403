"""TensorBoard event files, written synchronously so that every error is seen where it happens."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image

LAYOUT: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Score": {
        "training episodes": (r"episode/(score|return)",),
        "evaluation": (r"eval/(score|mean|return).*",),
    },
    "Losses": {"world model": (r"loss/.*",), "behaviour": (r".*(actor|critic|policy).*",)},
    "Returns": {"imagined": (r".*(return|advantage|imag).*",)},
    "Collapse": {"representation": (r".*(std|rank|cosine|entropy|kl|collapse).*",)},
    "Speed": {"rates": (r"speed/.*",)},
}
"""Custom scalars page: category, chart, regular expressions of tags."""


class EventFile:
    """One event file in `run_dir`; raises ImportError without TensorBoard, OSError on a full disk.

    Records of earlier files at `purge_step` or later are hidden by TensorBoard, as after a resume.
    """

    def __init__(self, run_dir: Path, *, purge_step: int | None = None) -> None:
        self._event = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        self._tensor = import_module("tensorboard.compat.proto.tensor_pb2")
        records = import_module("tensorboard.summary.writer.record_writer")
        stamp = f"{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self.path = run_dir / f"events.out.tfevents.{stamp}"
        self._file = open(self.path, "xb", buffering=0)
        self._records = records.RecordWriter(_WholeWrites(self._file))
        try:
            self._write(file_version="brain.Event:2")
            if purge_step is not None:
                start = self._event.SessionLog(status=self._event.SessionLog.START)
                self._write(step=purge_step, session_log=start)
            self._layout(LAYOUT)
        except BaseException:  # a file without its head is of no use, and would be tried again
            self._file.close()
            self.path.unlink(missing_ok=True)
            raise

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point per tag."""
        points = [self._summary.Summary.Value(tag=t, simple_value=v) for t, v in values.items()]
        self._write(step=step, summary=self._summary.Summary(value=points))

    def text(self, step: int, tag: str, content: str) -> None:
        """Add a Markdown text."""
        self._string(step, f"{tag}/text_summary", "text", content.encode())

    def picture(self, step: int, tag: str, encoded: bytes) -> None:
        """Add a PNG, or a GIF, which is played; `SummaryWriter.add_video` would write nothing."""
        width, height = Image.open(io.BytesIO(encoded)).size
        content = self._summary.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encoded
        )
        value = self._summary.Summary.Value(tag=tag, image=content)
        self._write(step=step, summary=self._summary.Summary(value=[value]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _layout(self, layout: Mapping[str, Mapping[str, tuple[str, ...]]]) -> None:
        proto = import_module("tensorboard.plugins.custom_scalar.layout_pb2")
        categories = [
            proto.Category(
                title=title,
                chart=[
                    proto.Chart(title=name, multiline=proto.MultilineChartContent(tag=tags))
                    for name, tags in charts.items()
                ],
            )
            for title, charts in layout.items()
        ]
        content = proto.Layout(category=categories).SerializeToString()
        self._string(0, "custom_scalars__config__", "custom_scalars", content)

    def _string(self, step: int, tag: str, plugin: str, content: bytes) -> None:
        data = self._summary.SummaryMetadata.PluginData(plugin_name=plugin)
        value = self._summary.Summary.Value(
            tag=tag,
            metadata=self._summary.SummaryMetadata(plugin_data=data),
            tensor=self._tensor.TensorProto(dtype="DT_STRING", string_val=[content]),
        )
        self._write(step=step, summary=self._summary.Summary(value=[value]))

    def _write(self, **fields: Any) -> None:
        event = self._event.Event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())


class _WholeWrites:
    """A record is on the disk whole or cut away again: a torn one would hide all that follow."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> None:
        start = self._file.tell()
        try:
            written = self._file.write(content)
        except OSError:
            written = 0
        if written != len(content):
            self._file.truncate(start)
            self._file.seek(start)
            raise OSError(f"{self._file.name}: {written} of {len(content)} bytes; disk full?")
