"""Money in JSON: every field named `*nano_usd*` is a string of digits, not a number.

JavaScript and many others read JSON numbers as floats, which are exact to nine million dollars in
nano-USD and then silently are not. One rule by name, for the API, its OpenAPI document and
`--json`, and no second set of types.
"""

from __future__ import annotations

from typing import Any, Final, cast

import msgspec

_MARK: Final = "nano_usd"


def encode_json(value: object) -> bytes:
    """Structs as JSON, money as strings."""
    return msgspec.json.encode(_money_as_text(msgspec.to_builtins(value)))


def money_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The same rule applied to a JSON schema, in place: integers that are money are strings."""
    properties = cast("dict[str, dict[str, Any]]", schema.get("properties", {}))
    for name, declared in properties.items():
        if _MARK in name:
            _integers_as_text(declared)
    return schema


def _money_as_text(value: object, *, money: bool = False) -> object:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return {k: _money_as_text(v, money=money or _MARK in k) for k, v in items}
    if isinstance(value, (list, tuple)):
        return [_money_as_text(item, money=money) for item in cast("list[object]", value)]
    if money and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def _integers_as_text(schema: dict[str, Any]) -> None:
    if schema.get("type") == "integer":
        schema["type"] = "string"
        schema["pattern"] = "^-?[0-9]+$"
        schema.setdefault("description", "Nano-USD (one billionth of a dollar), as digits.")
    for inner in cast("list[dict[str, Any]]", schema.get("anyOf", [])):
        _integers_as_text(inner)
    if isinstance(schema.get("additionalProperties"), dict):
        _integers_as_text(schema["additionalProperties"])
