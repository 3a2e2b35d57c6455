"""Damage to files: bits, lengths, pieces, and edits of what stands in their headers."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trials.draw import Draw

#: What a value of a JSON or TOML text is replaced by.
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**30, -(2**63), 2**62, 1e308, float("nan"), float("inf"), "", "x", "edm", "\0", "x" * 10_000,
    [], [1], [[1]], [None], {}, {"a": 1}, "ddpm:levels=10000000000", "../x", ["x"] * 1000, [2**62, 2**62], "F64", "é\ud800",
)  # fmt: skip
_ODD_NUMBERS = (float("nan"), float("inf"), -1.0, 0.0, 1e308, -1e308, 1e-320, 5.0)
_LENGTH = 8
_TOML_VALUE = re.compile(rb"(?<== ).+$", re.MULTILINE)


def damage(content: bytes, name: str, draw: Draw) -> tuple[bytes, str]:
    """The content of a file with one to three damages, and what they are."""
    done = []
    for _ in range(draw.integer(1, 3)):
        change = draw.pick(_changes(name))
        content = change(content, draw)
        done.append(change.__name__)
    return content, ", ".join(done)


def _changes(name: str) -> tuple[Callable[[bytes, Draw], bytes], ...]:
    own: tuple[Callable[[bytes, Draw], bytes], ...] = ()
    if name.endswith(".safetensors"):
        # Headers are small beside the tensors: most of what can be said wrong stands there.
        own = (edit_header, edit_header, edit_description, edit_description, edit_description, edit_numbers, edit_numbers)
    elif name.endswith(".json"):
        own = (edit_json, edit_json, edit_json)
    elif name.endswith(".toml"):
        own = (edit_toml, edit_toml, edit_toml)
    elif name.endswith((".npy", ".npz")):
        own = (edit_array_header, edit_array_header, edit_numbers)
    elif name.endswith(".sqlite"):
        own = (edit_rows, edit_rows, edit_rows)
    return (*own, flip, truncate, splice, repeat, insert, blank)


def flip(content: bytes, draw: Draw) -> bytes:
    made = bytearray(content)
    for _ in range(draw.integer(1, 8)):
        if made:
            made[draw.integer(0, len(made) - 1)] ^= 1 << draw.integer(0, 7)
    return bytes(made)


def truncate(content: bytes, draw: Draw) -> bytes:
    return content[: _place(content, draw)]


def splice(content: bytes, draw: Draw) -> bytes:
    """A piece written over another place."""
    start, to, length = _place(content, draw), _place(content, draw), draw.integer(1, 200)
    piece = content[start : start + length]
    return content[:to] + piece + content[to + len(piece) :]


def repeat(content: bytes, draw: Draw) -> bytes:
    start = _place(content, draw)
    return content[:start] + content[start : start + draw.integer(1, 200)] + content[start:]


def insert(content: bytes, draw: Draw) -> bytes:
    start = _place(content, draw)
    return content[:start] + draw.rng.bytes(draw.integer(1, 40)) + content[start:]


def blank(content: bytes, draw: Draw) -> bytes:
    start, length = _place(content, draw), draw.integer(1, 200)
    piece = len(content[start : start + length])
    return content[:start] + draw.pick((b"\0", b"\xff", b" ")) * piece + content[start + piece :]


def edit_numbers(content: bytes, draw: Draw) -> bytes:
    """A number among the tensors is another one."""
    start = _place(content, draw) // 8 * 8
    return content[:start] + struct.pack("<d", draw.pick(_ODD_NUMBERS)) + content[start + 8 :]


def edit_header(content: bytes, draw: Draw) -> bytes:
    """A value of a safetensors header is another one."""
    known, rest = _header(content)
    return content if known is None else _with_header(edited(known, draw), rest)


def edit_description(content: bytes, draw: Draw) -> bytes:
    """A value of diffode's own description in a safetensors header is another one."""
    known, rest = _header(content)
    try:
        description = json.loads(known["__metadata__"]["diffode"])
    except (TypeError, KeyError, ValueError, RecursionError):
        return edit_header(content, draw)
    known["__metadata__"]["diffode"] = _json(edited(description, draw), draw)
    return _with_header(known, rest)


def edit_json(content: bytes, draw: Draw) -> bytes:
    try:
        return _json(edited(json.loads(content), draw), draw).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return flip(content, draw)


def edit_toml(content: bytes, draw: Draw) -> bytes:
    """A value of a TOML text is another one, or a line is there twice or gone."""
    found = list(_TOML_VALUE.finditer(content))
    if not found or draw.chance(0.2):
        lines = content.splitlines(keepends=True)
        place = draw.integer(0, max(len(lines) - 1, 0))
        return b"".join(lines[:place] + lines[place : place + 1] * draw.pick((0, 2)) + lines[place + 1 :])
    match = draw.pick(found)
    value = draw.pick((*ODD_VALUES, "*", ["*"], ["edm", "vp"], [-1], [10**9], [0.5], 1e-30, "nan"))
    text = json.dumps(value).replace("null", "''").replace("NaN", "nan").replace("Infinity", "inf")
    return content[: match.start()] + text.encode("utf-8", "surrogatepass") + content[match.end() :]


def edit_array_header(content: bytes, draw: Draw) -> bytes:
    """A word of the header of an array is another one."""
    old = draw.pick((b"<f8", b"False", b"(20, 2)", b"'shape'", b"descr", b"(3,)", b"\x93NUMPY\x01"))
    new = draw.pick(
        (b"<f4", b">f8", b"|O8", b"<i8", b"<c16", b"|S8", b"True ", b"(2, 20)", b"(9**9,)", b"(-1, 2)", b"()", b"x")
    )
    return content.replace(old, new.ljust(len(old)) if draw.chance(0.5) else new)


def edit_rows(content: bytes, draw: Draw) -> bytes:
    """A value of a database is another one, or a table is gone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.sqlite"
        file.write_bytes(content)
        try:
            database = sqlite3.connect(file)
            try:
                tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
                table = draw.pick(tables)
                column = draw.pick([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
                value = draw.pick((None, -1, 0, 1e308, float("inf"), "x", "nan", b"\0\xff", "[" * 2000, 2**62, "{}", "9" * 400))
                command = draw.pick((
                    f"UPDATE {table} SET {column} = :value", f"UPDATE {table} SET {column} = :value WHERE rowid = 1",
                    f"DROP TABLE {table}", f"DELETE FROM {table}", f"ALTER TABLE {table} RENAME COLUMN {column} TO other",
                    "PRAGMA user_version = 7", "CREATE TABLE other (x)",
                ))  # fmt: skip
                database.execute(command, {"value": value} if ":value" in command else {})
                database.commit()
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                database.close()
        except (sqlite3.Error, IndexError, ValueError):
            return flip(content, draw)
        return file.read_bytes()


def edited(value: Any, draw: Draw) -> Any:
    """A JSON value with one place in it changed: another value, a key that is gone, new, or renamed."""
    if isinstance(value, dict) and value and not draw.chance(0.1):
        key = draw.pick(sorted(value))
        if draw.chance(0.12):
            return {other: kept for other, kept in value.items() if other != key}
        if draw.chance(0.12):
            return {**value, draw.pick(("unknown", "", "é", key + "_2")): draw.pick(ODD_VALUES)}
        return {**value, key: edited(value[key], draw)}
    if isinstance(value, list) and value and draw.chance(0.7):
        place = draw.integer(0, len(value) - 1)
        return [*value[:place], edited(value[place], draw), *value[place + 1 :]]
    return draw.pick(ODD_VALUES)


def _place(content: bytes, draw: Draw) -> int:
    # The beginning, where headers lie, is hit more often.
    return draw.integer(0, len(content))


def _json(value: Any, draw: Draw) -> str:
    text = json.dumps(value)
    if draw.chance(0.03):
        return draw.pick(("[" * 100_000, '{"a":' * 100_000, text[:-1], text + text, "", "9" * 5000))
    return text


def _header(content: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(content[:_LENGTH], "little")
    try:
        return json.loads(content[_LENGTH : _LENGTH + length]), content[_LENGTH + length :]
    except (ValueError, RecursionError, OverflowError, MemoryError):
        return None, content


def _with_header(header: Any, rest: bytes) -> bytes:
    made = json.dumps(header).encode()
    return len(made).to_bytes(_LENGTH, "little") + made + rest
