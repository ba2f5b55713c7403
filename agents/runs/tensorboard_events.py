"""TensorBoard event files, written synchronously so that every error is seen where it happens."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

Setting = bool | int | float | str | None
"""What a column of the HParams page holds; None stays empty."""


class Band(NamedTuple):
    """A chart of one tag with the space between two others shaded."""

    value: str
    lower: str
    upper: str


Layout = Mapping[str, Mapping[str, tuple[str, ...] | Band]]
"""Custom scalars page: category, chart, regular expressions that its tags begin with."""

LAYOUT: Layout = {
    "Returns": {
        "evaluation, worst to best episode": Band("eval/mean", "eval/min", "eval/max"),
        "training episodes": (r"episode/score$",),
        "success": (r"eval/success", r"eval_success/"),
        "other views, tasks": (r"eval_(train|clean|mean)/",),
        "imagined": (r"imagined/(return|reward|value)$",),
    },
    "Losses": {
        "totals": (r"loss/(\w+_)?total$",),
        "parts": (r"loss/(?!(\w+_)?total$)",),
        "held out": (r"held_out/",),
        "gradient norms": (r"norm/",),
        "behaviour": (r"actor/", r"q/", r"replay/weight$"),
    },
    "Health": {
        "alarms": (r"health/alarms$",),
        "spread": (r"health/\w*std",),
        "alike: cosines": (r"health/\w*cosine",),
        "prediction loss over a constant's": (r"health/\w*loss_ratio", r"health/prediction_ratio$"),
        "directions in use": (r"health/\w*rank",),
        "share of the first direction": (r"health/top_share$",),
        "information": (r"health/(kl|information|\w*entropy)$",),
        "use of actions": (r"health/action_shuffle_ratio$", r"spr/distance_"),
        "guards: batch norm, EMA, regulariser": (r"health/(variance_spread|ema_distance|sigreg)$",),
        "foresight of the features": (r"probe/",),
    },
    "Imagination": {
        "open-loop error": (r"inspect/error",),
        "nearest stored frame": (r"inspect/neighbour",),
    },
    "Speed": {
        "rates": (r"speed/",),
        "how far": (r"count/(updates|frames)$", r"replay/rows$"),
        "trouble": (r"count/(?!updates$|frames$)",),
    },
}
"""Everything that a run of any family may draw."""


class EventFile:
    """One event file in `run_dir`; raises ImportError without TensorBoard, OSError on a full disk.

    Records of earlier files at `purge_step` or later are hidden by TensorBoard, as after a resume.
    """

    def __init__(
        self, run_dir: Path, *, purge_step: int | None = None, layout: Layout = LAYOUT
    ) -> None:
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
            self._layout(layout)
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

    def hparams(
        self,
        step: int,
        values: Mapping[str, Setting],
        metrics: Sequence[str],
        *,
        first: Collection[str] = (),
    ) -> None:
        """Add a row to the HParams page: settings in columns, then the last values of tags.

        TensorBoard reads the columns of one run for all: every run names the same ones. It sorts
        them by name behind the `first`.
        """
        api = import_module("tensorboard.plugins.hparams.api_pb2")
        proto = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
        kinds = {bool: api.DATA_TYPE_BOOL, int: api.DATA_TYPE_FLOAT64, float: api.DATA_TYPE_FLOAT64}
        columns = api.Experiment(
            hparam_infos=[
                api.HParamInfo(
                    name=name,
                    type=kinds.get(type(value), api.DATA_TYPE_STRING),
                    differs=name in first,
                )
                for name, value in values.items()
            ],
            metric_infos=[api.MetricInfo(name=api.MetricName(tag=tag)) for tag in metrics],
        )
        begin = proto.SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            match value:
                case None:
                    continue
                case bool():
                    begin.hparams[name].bool_value = value
                case int() | float():
                    begin.hparams[name].number_value = value
                case _:
                    begin.hparams[name].string_value = value
        end = proto.SessionEndInfo(end_time_secs=time.time(), status=api.STATUS_SUCCESS)
        parts = {"experiment": columns, "session_start_info": begin, "session_end_info": end}
        for name, part in parts.items():
            content = proto.HParamsPluginData(**{name: part}).SerializeToString()
            self._string(step, f"_hparams_/{name}", "hparams", b"", about=content)

    def _layout(self, layout: Layout) -> None:
        proto = import_module("tensorboard.plugins.custom_scalar.layout_pb2")

        def chart(title: str, tags: tuple[str, ...] | Band) -> Any:
            if isinstance(tags, Band):
                band = proto.MarginChartContent.Series(**tags._asdict())
                return proto.Chart(title=title, margin=proto.MarginChartContent(series=[band]))
            return proto.Chart(title=title, multiline=proto.MultilineChartContent(tag=tags))

        categories = [
            proto.Category(title=title, chart=[chart(*pair) for pair in charts.items()])
            for title, charts in layout.items()
        ]
        content = proto.Layout(category=categories).SerializeToString()
        self._string(0, "custom_scalars__config__", "custom_scalars", content)

    def _string(
        self, step: int, tag: str, plugin: str, content: bytes, *, about: bytes = b""
    ) -> None:
        data = self._summary.SummaryMetadata.PluginData(plugin_name=plugin, content=about)
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
