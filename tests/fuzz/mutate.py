"""Damage done to valid input: bytes flipped and cut, values of a tree exchanged for odd ones, cells of a table.

Every function takes a `random.Random` made from a seed that hypothesis draws: the seed of a failure makes it again."""

from __future__ import annotations

import copy
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

HUGE = "1e400"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, float("nan"), float("inf"),
    2**31, 2**63, -(2**63), 10**30, 960_000,
    "", "x", "0", "1e400", "nan", "²", "../../x", "/etc/passwd", "\x1b[31m", "[/dev/dri/renderD128]", "=1+1", "\ud800",
    "{0.__class__}", "{episode_index:0999999999d}", "a\nb", "\0", "x" * 70_000, "<script>", "$x_$", "os:system",
    [], [[]], [1, "x", None], {}, {"x": {"y": 1}}, [[[[[[[[[[1]]]]]]]]]],
)  # fmt: skip
"""Unusual values."""

WORDS = (
    b"\0", b"\xff", b"\n", b"{", b"]", b'"', b"1e400", b"NaN", b"-1", b"9" * 30, b"\xed\xa0\x80", b"&a [*a]",
    b"!!python/object:os.system",
)  # fmt: skip
"""Bytes that often break readers."""


def bytes_of(rng: random.Random, content: bytes) -> bytes:
    """One to four changes: a bit flipped, a piece cut out, doubled, overwritten, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randint(0, max(0, len(data) - 1))
        length = rng.choice((1, 2, 8, 64, 1000))
        match rng.randint(0, 5):
            case 0 if data:
                data[place] ^= 1 << rng.randint(0, 7)
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = data[place : place + length]
            case 3:
                data[place:place] = rng.choice(WORDS)
            case 4:
                word = rng.choice(WORDS)
                data[place : place + len(word)] = word
            case _:
                del data[place:]
    return bytes(data)


def tree(rng: random.Random, value: Any) -> Any:
    """A copy in which one to three values were exchanged, dropped, doubled or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        try:
            match rng.randint(0, 5):
                case 0:
                    del holder[key]
                case 1 if isinstance(holder, dict):
                    holder[rng.choice(("x", "", "../x", "\ud800", "__class__"))] = rng.choice(ODD)
                case 2 if isinstance(holder, list):
                    holder.append(rng.choice(ODD))
                case 3:
                    holder[key] = copy.deepcopy(value)
                case _:
                    holder[key] = rng.choice(ODD)
        except (KeyError, IndexError):  # an earlier change took it away
            continue
    return value if rng.random() < 0.97 else rng.choice(ODD)


def _places(value: Any, depth: int = 0) -> Any:
    if depth > 8:
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner, depth + 1)


def as_json(value: Any) -> bytes:
    """JSON as a careless writer makes it: NaN, infinities, halves of surrogate pairs, 1e400."""
    return json.dumps(value).replace(f'"{HUGE}"', HUGE).encode()


def json_file(rng: random.Random, path: Path) -> None:
    """Exchange values in a JSON file, or in one line of a file of JSON lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = rng.randrange(len(lines))
    whole = [line.encode() for line in lines]
    whole[number] = as_json(tree(rng, json.loads(lines[number])))
    path.write_bytes(b"\n".join(whole) + b"\n")


def yaml_file(rng: random.Random, path: Path) -> None:
    """Exchange values in a YAML file."""
    changed = tree(rng, yaml.safe_load(path.read_text(encoding="utf-8")))
    try:
        path.write_text(yaml.safe_dump(changed, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    except (yaml.YAMLError, RecursionError):
        path.write_bytes(as_json(changed))  # JSON is YAML


def csv_file(rng: random.Random, path: Path) -> None:
    """Exchange, drop or double cells of a table."""
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    for _ in range(rng.randint(1, 3)):
        row = rng.choice(rows)
        if row:
            place = rng.randrange(len(row))
            match rng.randint(0, 3):
                case 0:
                    del row[place]
                case 1:
                    row.insert(place, row[place])
                case _:
                    row[place] = str(rng.choice(ODD))
    text = rng.choice(("\n", "\r\n")).join(rng.choice((",", ",", ",", ";", "\t")).join(row) for row in rows)
    path.write_bytes(text.encode(rng.choice(("utf-8", "utf-8", "utf-8-sig", "cp1252", "utf-16")), "replace"))


LINKS = (h5py.SoftLink("/data/nowhere"), h5py.SoftLink("/data"), h5py.ExternalLink("/etc/passwd", "/x"))


def hdf5_file(rng: random.Random, path: Path) -> None:
    """Replace, drop or retype data sets and attributes."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(rng.randint(1, 2)):
            with suppress(KeyError, RuntimeError):  # an earlier change took it away, or made a loop of links
                _change(rng, file, rng.choice(names))


def _change(rng: random.Random, file: h5py.File, name: str) -> None:
    place = file[name]
    match rng.randint(0, 4):
        case 0:
            del file[name]
        case 1:
            _set_attribute(place, rng.choice([*place.attrs, "num_samples", "apt"]), rng.choice(ODD))
        case 2:
            _replace(file, name, rng)
        case 3 if isinstance(place, h5py.Dataset) and place.dtype.kind == "f" and place.size:
            array = place[()]
            array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, 1e300, -1))
            place[...] = array
        case _:
            del file[name]
            file[name] = rng.choice(LINKS)


def _set_attribute(owner: Any, name: str, value: Any) -> None:
    try:
        owner.attrs[name] = value
    except (TypeError, ValueError, OSError, OverflowError, UnicodeEncodeError):
        owner.attrs[name] = json.dumps(value)


def _replace(file: h5py.File, name: str, rng: random.Random) -> None:
    old = file[name]
    shape = old.shape if isinstance(old, h5py.Dataset) else (3,)
    del file[name]
    shapes = (shape[:1], (*shape, 2), (0,), (), (1,), shape[::-1], (960_000, 1), (*shape[:1], 10**12))
    wanted = rng.choice(shapes)
    dtype = rng.choice((np.float64, np.uint8, np.int64, np.complex128, "S5", h5py.string_dtype()))
    huge = int(np.prod(wanted or (1,), dtype=object)) > 10**7
    if huge:  # declared, not stored
        file.create_dataset(name, shape=wanted, dtype=np.uint8, chunks=tuple(min(64, n) or 1 for n in wanted))
    else:
        file.create_dataset(name, shape=wanted, dtype=dtype)


def parquet_file(rng: random.Random, path: Path) -> None:
    """Drop, rename, shorten or retype a column."""
    table = pq.read_table(path)
    name = rng.choice(table.column_names)
    place = table.column_names.index(name)
    match rng.randint(0, 4):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.set_column(place, name, pa.nulls(len(table)))
        case 2:
            table = table.set_column(place, name, pa.array(["x"] * len(table)))
        case 3:
            table = table.set_column(place, name, pa.array([rng.choice((-1, 2**62, 10**9))] * len(table)))
        case _:
            table = table.slice(0, rng.randint(0, max(0, len(table) - 1)))
    pq.write_table(table, path)


ARRAYS = (
    np.array("x"),
    np.array("{}"),
    np.array(["1e400"]),
    np.array([np.nan] * 7)[None],
    np.zeros(0),
    np.zeros((3, 3)),
    np.zeros((2, 7), complex),
)


def npz_file(rng: random.Random, path: Path) -> None:
    """Exchange the arrays of an .npz."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    name = rng.choice(list(arrays))
    arrays[name] = rng.choice(ARRAYS)
    if rng.random() < 0.2:
        del arrays[name]
    with open(path, "wb") as file:
        np.savez(file, **arrays)


BY_SUFFIX = {
    ".json": json_file, ".jsonl": json_file, ".yaml": yaml_file, ".csv": csv_file, ".hdf5": hdf5_file,
    ".parquet": parquet_file, ".npz": npz_file,
}  # fmt: skip


def file(rng: random.Random, path: Path) -> None:
    """Damage one file: by what it means where its kind is known, else, and in a third of all cases, by its bytes."""
    by_meaning = BY_SUFFIX.get(path.suffix)
    if by_meaning is None or rng.random() < 0.34:
        path.write_bytes(bytes_of(rng, path.read_bytes()))
    else:
        by_meaning(rng, path)
