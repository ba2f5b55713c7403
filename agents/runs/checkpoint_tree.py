"""Nested run state as a JSON structure plus named tensors, exactly, and without pickle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    torch.complex64,
)
"""What safetensors can hold."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read or applied; the message names what and where."""


def flatten(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """JSON structure and CPU tensors of `state`; tensors that are tied are stored once.

    Accepts dicts (any scalar keys), lists, tuples, tensors, numeric NumPy arrays and scalars,
    str, int, float (also non-finite), bool and None. Anything else is a CheckpointError.
    """
    encoder = _Encoder()
    return encoder.encode(state, ""), encoder.tensors


def unflatten(structure: Any, tensors: dict[str, Tensor]) -> Any:
    """Strict inverse of `flatten`; ties come back as one object."""
    decoder = _Decoder(tensors)
    try:
        state = decoder.decode(structure)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"checkpoint structure is malformed: {error!r}") from error
    unused = sorted(set(tensors) - decoder.used)
    if unused:
        raise CheckpointError(f"checkpoint holds tensors that its structure never names: {unused}")
    return state


def diff(expected: Any, found: Any) -> list[str]:
    """One line per missing, unknown or differently shaped entry of two nested states."""
    want, have = dict(_leaves(expected, "")), dict(_leaves(found, ""))
    lines = [f"missing: {path} ({want[path]})" for path in want if path not in have]
    lines += [f"unknown: {path} ({have[path]})" for path in have if path not in want]
    lines += [
        f"differs: {path}: expected {want[path]}, found {have[path]}"
        for path in want
        if path in have and want[path] != have[path]
    ]
    return lines


def check_compatible(expected: Any, found: Any, *, what: str, limit: int = 12) -> None:
    """Raise CheckpointError with the `diff`, before anything is loaded."""
    lines = diff(expected, found)
    if lines:
        shown = lines[:limit] + ([f"and {len(lines) - limit} more"] if len(lines) > limit else [])
        raise CheckpointError(
            f"the checkpoint does not fit {what}:\n  "
            + "\n  ".join(shown)
            + "\nuse the agent, size and settings that wrote it, or start a new run directory"
        )


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif isinstance(value, Tensor | np.ndarray):
        yield path, f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    else:
        yield path, "value"


class _Encoder:
    """Walks a state once; remembers which storages it has met."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[Any, str] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any, path: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"$float": repr(value)}
        if isinstance(value, dict):
            return self._dict(value, path)
        if type(value) is list:
            return [self.encode(item, f"{path}/{index}") for index, item in enumerate(value)]
        if type(value) in (tuple, torch.Size):
            return {"$tuple": [self.encode(item, f"{path}/{i}") for i, item in enumerate(value)]}
        if isinstance(value, Tensor):
            return {"$tensor": self._tensor(value, path)}
        if isinstance(value, np.ndarray):
            return {"$array": self._array(value, path)}
        if isinstance(value, np.generic):
            # a passing array: its address must not be taken for a tie
            return {"$scalar": self._store(self._from_numpy(np.asarray(value), path), path, None)}
        raise CheckpointError(
            f"cannot store {type(value).__name__} at '{path}': expected tensors, NumPy arrays, "
            "dicts, lists, tuples or plain values; convert it in state_dict()"
        )

    def _dict(self, value: dict[Any, Any], path: str) -> Any:
        for key in value:
            if type(key) not in (str, int, bool, float, type(None)):
                raise CheckpointError(f"cannot store key {key!r} at '{path}': use a plain scalar")
        items = [(key, self.encode(item, f"{path}/{key}")) for key, item in value.items()]
        if all(type(key) is str and not key.startswith("$") for key in value):
            return dict(items)
        return {"$items": [[self.encode(key, path), item] for key, item in items]}

    def _array(self, value: np.ndarray[Any, Any], path: str) -> str:
        tie = ("array", value.ctypes.data, value.dtype.str, value.shape, value.strides)
        return self._store(self._from_numpy(value, path), path, tie if value.size else None)

    def _from_numpy(self, value: np.ndarray[Any, Any], path: str) -> Tensor:
        whole = value if value.flags.c_contiguous and value.flags.writeable else value.copy("C")
        try:
            return torch.from_numpy(whole)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"cannot store array at '{path}': {error}") from error

    def _tensor(self, value: Tensor, path: str) -> str:
        if value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f"cannot store {value.layout} {value.device} tensor at '{path}'")
        shape, stride = tuple(value.shape), value.stride()
        tie = ("tensor", value.device, value.data_ptr(), value.dtype, shape, stride)
        return self._store(value.detach(), path, tie if value.numel() else None)

    def _store(self, tensor: Tensor, path: str, tie: Any) -> str:
        """Name under which the content of `tensor` is stored; known already if it is a tie."""
        if tie is not None and tie in self._names:
            return self._names[tie]
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"cannot store {tensor.dtype} at '{path}': no such file type")
        name = path.lstrip("/") or "value"
        while name in self.tensors:  # a key may itself contain the separator
            name += "'"
        plain = tensor.resolve_conj().resolve_neg().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in self._storages:
            plain = plain.clone()  # safetensors refuses tensors that share memory
        self._storages.add(plain.untyped_storage().data_ptr())
        self.tensors[name] = plain
        if tie is not None:
            self._names[tie] = name
        return name


class _Decoder:
    """Rebuilds a state; every malformed node raises."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.used: set[str] = set()
        self._tensors = tensors
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}

    def decode(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            ((tag, content),) = node.items()
            if tag.startswith("$"):
                return self._tagged(tag, content)
        return {key: self.decode(item) for key, item in node.items()}

    def _tagged(self, tag: str, content: Any) -> Any:
        if tag == "$tensor":
            self.used.add(content)
            return self._tensors[content]
        if tag == "$array":
            return self._array(content)
        if tag == "$scalar":
            return self._array(content)[()]
        if tag == "$tuple":
            return tuple(self.decode(item) for item in content)
        if tag == "$items":
            return {self.decode(key): self.decode(item) for key, item in content}
        if tag == "$float":
            return float(content)
        raise CheckpointError(f"unknown tag {tag!r} in the checkpoint structure")

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        self.used.add(name)
        return self._arrays.setdefault(name, self._tensors[name].numpy())
