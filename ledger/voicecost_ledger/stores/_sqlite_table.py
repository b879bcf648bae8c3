"""Maps the rows of the rules to tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


class Table:
    """Maps a row struct to its table: one column per field, nested fields as JSON text."""

    def __init__(
        self, row_type: type[msgspec.Struct], name: str, key: Sequence[str], **derived: str
    ) -> None:
        fields = msgspec.structs.fields(row_type)
        self.row_type = row_type
        self.fields = [field.encode_name for field in fields]
        self._key_at = [self.fields.index(column) for column in key]
        columns = [*self.fields, *derived]
        self.derived = derived
        updates = ", ".join(f"{c} = excluded.{c}" for c in columns if c not in key)
        self.select = f"SELECT {', '.join(self.fields)} FROM {name}"
        self.upsert = (
            f"INSERT INTO {name} ({', '.join(columns)}) "
            f"VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {updates}"
        )
        # Which fields are nested is read off the types once.
        self.nested = {
            field.encode_name
            for field in fields
            if any(
                word in str(field.type)
                for word in ("dict", "list", "LegAttributes", "MeterOpen", "Checkpoint")
            )
        }
        self.booleans = {field.encode_name for field in fields if field.type is bool}

    def values(self, row: msgspec.Struct) -> list[Any]:
        values: list[Any] = []
        for name in self.fields:
            value = getattr(row, name)
            if name in self.nested:
                value = msgspec.json.encode(value).decode()
            elif isinstance(value, bool):
                value = int(value)
            elif isinstance(value, str):
                value = str(value)  # a StrEnum is a str, but apsw wants the exact type
            values.append(value)
        for path in self.derived.values():
            value = row
            for attribute in path.split("."):
                value = getattr(value, attribute)
            values.append(str(value) if isinstance(value, str) else value)
        return values

    def identity(self, values: Sequence[Any]) -> tuple[str, Any]:
        """Of a row as it is selected: its type, and its key."""
        key = [values[at] for at in self._key_at]
        return self.row_type.__name__, tuple(key) if len(key) > 1 else key[0]

    def row(self, values: Sequence[Any]) -> Any:
        raw: dict[str, Any] = {}
        for name, value in zip(self.fields, values, strict=True):
            if name in self.nested:
                raw[name] = msgspec.json.decode(value)
            elif name in self.booleans:
                raw[name] = bool(value)
            else:
                raw[name] = value
        return msgspec.convert(raw, self.row_type)
