"""Trees of settings laid over frozen dataclasses, and written back as TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Tree = dict[str, Any]
T = TypeVar("T")

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def overlay(default: T, tree: Mapping[str, Any], problems: list[str], path: str = "") -> T:
    """Copy of a dataclass instance with the values of `tree` in place, coerced to their types.

    Whatever does not fit is left at its default and described in `problems`.
    """
    assert dataclasses.is_dataclass(default) and not isinstance(default, type)
    hints = get_type_hints(type(default))
    changes: Tree = {}
    for key, value in tree.items():
        where = f"{path}{key}"
        if key not in hints:
            problems.append(_unknown(where, key, hints, default))
        elif dataclasses.is_dataclass(hints[key]):
            if isinstance(value, Mapping):
                changes[key] = overlay(getattr(default, key), value, problems, f"{where}.")
            else:
                problems.append(f"{where}: expected a section of settings, found {value!r}")
        else:
            try:
                changes[key] = coerce(value, hints[key])
            except ValueError as error:
                problems.append(f"{where}: {error}")
    return dataclasses.replace(default, **changes)


def _unknown(where: str, key: str, hints: Mapping[str, Any], default: Any) -> str:
    leaves = flatten(as_tree(default))
    prefix = where[: len(where) - len(key)]
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(key, hints, n=2, cutoff=0.6)]
    near += [f"{prefix}{leaf}" for leaf in leaves if leaf.rpartition(".")[2] == key]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(hints)}"
    return f"{where}: unknown setting; {hint}"


def coerce(value: Any, hint: Any) -> Any:
    """`value` as the declared type; numbers may come as strings, from any file format.

    Raises:
        ValueError: what was expected and what was found.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _coerce_optional(value, hint)
    if origin is Literal:
        return _coerce_choice(value, get_args(hint))
    if origin is tuple:
        return _coerce_tuple(value, get_args(hint))
    if hint is bool:
        return _coerce_bool(value)
    if hint is int or hint is float:
        return _coerce_number(value, hint)
    assert hint is str, f"no rule for settings of type {hint}"
    if not isinstance(value, str):
        raise ValueError(f"expected text, found {value!r}")
    return value


def _coerce_optional(value: Any, hint: Any) -> Any:
    inner = [arg for arg in get_args(hint) if arg is not type(None)]
    assert len(inner) == 1, f"only optional unions are settings, not {hint}"
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        return None
    return coerce(value, inner[0])


def _coerce_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"expected one of {', '.join(map(str, choices))}, found {value!r}{hint}")


def _coerce_tuple(value: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [part for part in value.replace(",", " ").split() if part.lower() != "none"]
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, found {value!r}")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ValueError(f"expected {len(args)} values, found {len(value)}: {value!r}")
    return tuple(coerce(item, arg) for item, arg in zip(value, args, strict=True))


def _coerce_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError(f"expected true or false, found {value!r}")


def _coerce_number(value: Any, kind: type) -> int | float:
    name = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected {name}, found {value!r}")
    try:
        number = int(value) if isinstance(value, str | int) and kind is int else float(value)
    except (ValueError, OverflowError):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"expected {name}, found {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {value!r}")
    if kind is int and number != int(number):
        raise ValueError(f"expected {name}, found {value!r}")
    return kind(number)  # type: ignore[no-any-return]


def as_tree(settings: Any) -> Tree:
    """Nested dictionary of a dataclass instance; tuples become lists, as in TOML."""
    tree: Tree = {}
    for item in dataclasses.fields(settings):
        value = getattr(settings, item.name)
        if dataclasses.is_dataclass(value):
            tree[item.name] = as_tree(value)
        else:
            tree[item.name] = list(value) if isinstance(value, tuple) else value
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Tree:
    """The same values under dotted names."""
    flat: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def merge(trees: Iterable[Mapping[str, Any]]) -> Tree:
    """One tree of several; where two name the same value the later one wins."""
    merged: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            old = merged.get(key)
            if isinstance(value, Mapping):
                merged[key] = merge([old if isinstance(old, Mapping) else {}, value])
            else:
                merged[key] = value
    return merged


def to_toml(tree: Mapping[str, Any], path: str = "") -> str:
    """TOML text of a tree; None is written as "none", because TOML has no null."""
    plain = [f"{key} = {_literal(v)}" for key, v in tree.items() if not isinstance(v, Mapping)]
    text = "\n".join(plain) + ("\n" if plain else "")
    for key, value in tree.items():
        if isinstance(value, Mapping):
            text += f"\n[{path}{key}]\n" + to_toml(value, f"{path}{key}.")
    return text


def _literal(value: Any) -> str:
    if value is None:
        return '"none"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    assert isinstance(value, list | tuple), f"no TOML form of {value!r}"
    return "[" + ", ".join(_literal(item) for item in value) + "]"
