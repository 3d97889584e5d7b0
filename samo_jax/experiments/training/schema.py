"""Schemas: reading JSON and TOML that anyone may have written, or a crash damaged."""

import json
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

_MOST_BYTES = 2**30
_LARGEST = 2**53
_LONGEST = 200


def read(path: Path) -> Any:
    """The content of a JSON file, or of a .toml file.

    Raises:
        ValueError: in one line, if it is damaged.
        OSError: if it cannot be read.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES} bytes")
    return parse(path.read_bytes(), tomllib.loads if path.suffix == ".toml" else None)


def parse(content: bytes, loads: Any = None) -> Any:
    """The value that JSON says.

    Raises:
        ValueError: in one line, if it is damaged.
    """
    try:
        return (loads or json.loads)(content.decode())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def shown(value: Any) -> str:
    r"""A value in an error: short, and in one line.

    >>> shown("a\nb"), shown({"a": 1}), shown([1]), shown(1.5)
    ("'a\\nb'", 'an object', 'a list', '1.5')
    """
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and abs(value) > _LARGEST:
        return "a huge integer"
    text = repr(value[:_LONGEST] if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:56]}..."


def conform(value: Any, kind: Any, name: str) -> Any:
    """A value of JSON as an instance of a type.

    Texts are short and printable, integers fit into a float. A tuple is a list, a
    `NamedTuple` is a list or an object of its fields.

    Args:
        value: value from `json.loads`.
        kind: Any, float, int, bool, str; a NamedTuple or TypedDict; a dict, Mapping,
            list, Sequence or tuple of these; or one of them `| None`.
        name: name of the value, in errors.

    Raises:
        ValueError: in one line, if it is not one.

    Examples:
        >>> conform({"a": [1, 2.5]}, dict[str, list[float]], "values")
        {'a': [1, 2.5]}
        >>> conform({"a": [1, "2"]}, dict[str, list[float]], "values")
        Traceback (most recent call last):
        ...
        ValueError: values['a'][1] must be a number, got '2'
    """
    container, of = get_origin(kind) or kind, get_args(kind)
    if kind is Any or (value is None and NoneType in of):
        return value
    if container in (Union, UnionType):
        return conform(value, of[0], name)
    if container in _SCALARS:
        wanted, fits = _SCALARS[container]
        _require(fits(value), value, wanted, name)
        return value
    if container in (list, Sequence):
        _require(isinstance(value, list), value, "a list", name)
        return [conform(item, of[0], f"{name}[{i}]") for i, item in enumerate(value)]
    if container is tuple:
        return tuple(_items(value, of, name))
    if isinstance(value, list) and hasattr(kind, "_fields"):
        return kind(*_items(value, tuple(get_type_hints(kind).values()), name))
    _require(isinstance(value, dict), value, "an object", name)
    if container in (dict, Mapping):
        kinds = {conform(key, str, f"a name in {name}"): of[1] for key in value}
        return _fields(value, kinds, (), name)
    defaults, not_required = "_field_defaults", "__optional_keys__"
    optional = getattr(kind, defaults, None) or getattr(kind, not_required, ())
    return kind(**_fields(value, get_type_hints(kind), optional, name))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()


def _is_integer(value: Any) -> bool:
    return type(value) is int and abs(value) <= _LARGEST


_SCALARS = {
    str: ("a short text in one line", _is_text),
    int: ("an integer", _is_integer),
    bool: ("true or false", lambda value: isinstance(value, bool)),
    float: ("a number", lambda value: type(value) is float or _is_integer(value)),
}


def _items(value: Any, kinds: Sequence[Any], name: str) -> list[Any]:
    """The items of a list of known length."""
    fits = isinstance(value, list) and len(value) == len(kinds)
    _require(fits, value, f"a list of {len(kinds)}", name)
    named = enumerate(zip(value, kinds, strict=True))
    return [conform(item, kind, f"{name}[{i}]") for i, (item, kind) in named]


def _fields(
    value: dict[str, Any], kinds: dict[str, Any], optional: Collection[str], name: str
) -> dict[str, Any]:
    """The fields of an object, of known names."""
    for key in kinds:
        if key not in value and key not in optional:
            raise ValueError(f"{name} lacks {key!r}")
    for key in value:
        if key not in kinds:
            raise ValueError(f"{name} must not have {shown(key)}")
    return {
        key: conform(item, kinds[key], f"{name}[{key!r}]")
        for key, item in value.items()
    }


def _require(fits: bool, value: Any, wanted: str, name: str) -> None:
    if not fits:
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
