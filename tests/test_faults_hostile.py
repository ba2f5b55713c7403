"""Fault 8: checkpoints made to run code, to write elsewhere or to fill the memory."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_doubles import falls_back, forge, two_checkpoints

from reverie.agents.runs import checkpoint
from reverie.agents.runs.checkpoint import CheckpointError


class Payload:
    """Runs a command when unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.sentinel}'",)


def zip_with_escape() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("../../sentinel", "escaped")
    return data.getvalue()


def torch_file(payload: Any) -> bytes:
    data = io.BytesIO()
    torch.save(payload, data)
    return data.getvalue()


def safetensors_header(header: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header


def test_fault_08_malicious_checkpoints_are_refused_and_nothing_runs(tmp_path: Path) -> None:
    run_dir, sentinel = tmp_path / "run", tmp_path / "sentinel"
    newest = two_checkpoints(run_dir)
    huge = b'{"t":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    overlap = b'{"t":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'
    attacks: list[dict[str, bytes]] = [
        {"tensors.safetensors": pickle.dumps(Payload(sentinel))},
        {"tensors.safetensors": torch_file(Payload(sentinel))},
        {"tensors.safetensors": zip_with_escape()},
        {"tensors.safetensors": safetensors_header(huge)},
        {"tensors.safetensors": safetensors_header(overlap)},
        {"tensors.safetensors": safetensors_header(b"{}", length=2**63)},
        {"state.json": pickle.dumps(Payload(sentinel))},
        {"state.json": b'{"a":' * 50_000 + b"1" + b"}" * 50_000},
        {"state.json": b"[" * 900 + b"]" * 900},
        {"state.json": b'{"a": {"$tensor": "none"}}'},
        {"state.json": b'{"a": {"$tensor": ["x"]}}'},
        {"state.json": b'{"a": {"$call": "os.system"}}'},
        {"state.json": b'{"a": {"$items": 3}}'},
        {"state.json": b'{"a": {"$float": "' + b"9" * 10_000 + b'x"}}'},
        {"state.json": b'{"a": ' + b"9" * 10_000 + b"}"},
        {"state.json": b"[]"},
    ]
    original = {file.name: file.read_bytes() for file in newest.iterdir()}
    for attack in attacks:
        forge(newest, attack)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(newest)
        assert "checksum" not in str(caught.value), "the content itself must be refused"
        found = checkpoint.load_latest(run_dir)
        assert found is not None and found[0] == 1
        for name, content in original.items():
            (newest / name).write_bytes(content)
    assert not sentinel.exists() and not (run_dir / "sentinel").exists()


def test_fault_08_a_huge_json_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    os.truncate(newest / "manifest.json", 2**40)  # sparse
    falls_back(tmp_path, "manifest.json", "at most")


ESCAPE = {"../../sentinel": {"sha256": "0" * 64, "bytes": 2}}


@pytest.mark.parametrize(
    "change",
    [{"step": "2"}, {"meta": []}, {"files": {}}, {"files": None}, {"files": ESCAPE}],
    ids=repr,
)
def test_fault_08_wrong_types_and_foreign_names_in_a_manifest(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    newest = two_checkpoints(tmp_path)
    forge(newest, {}, **change)
    falls_back(tmp_path, "manifest.json")
