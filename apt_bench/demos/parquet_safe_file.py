"""Safe reading of Parquet files: columns are checked for type and size, and every error names the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.demos.limits import FREE, MAX_BYTES, MAX_DEMOS, RATIO

FAILURES = (
    OSError,
    pa.ArrowException,
    ValueError,
    TypeError,
    KeyError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
)
MAX_ROWS = 50_000_000
"""Most rows that are searched for one episode; lerobot's files of 100 MB have about a million."""

BATCH, IMAGE_BATCH = 16_384, 64
"""Rows in memory at a time; rows with images are large."""


@contextmanager
def _guard(path: Path) -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise UserError(
            f"{path} is damaged: {one_line(error, 300).rstrip('.')}. If it was downloaded or copied, do that again."
        ) from None


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise UserError(f"No file {path}. The dataset is incomplete: copy or download it again.")
    with _guard(path):
        return pq.ParquetFile(path, memory_map=False)


def _check_size(
    path: Path, file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str], most: int
) -> None:
    roots = set(columns)
    rows = size = 0
    for i in groups:
        group = file.metadata.row_group(i)
        rows += group.num_rows
        for j in range(group.num_columns):
            column = group.column(j)
            if column.path_in_schema in roots or column.path_in_schema.rsplit(".", 2)[0] in roots:
                size += column.total_uncompressed_size
    if rows > most:
        raise UserError(f"{path} is declared with {rows:,} rows; at most {most:,} are read.")
    if size > MAX_BYTES or size > max(FREE, RATIO * path.stat().st_size):
        raise UserError(f"{path} is declared with {size:,} bytes; it has {path.stat().st_size:,}.")


def read_table(path: Path, columns: Sequence[str] | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """Columns of a table of at most `MAX_DEMOS` rows (None = all). Raises UserError if they cannot be read."""
    file = _open(path)
    with _guard(path), file:
        there = file.schema_arrow.names
        chosen = there if columns is None else [*columns, *(n for n in optional if n in there)]
        _check_columns(path, there, chosen)
        _check_size(path, file, range(file.num_row_groups), chosen, MAX_DEMOS)
        return file.read(columns=chosen, use_threads=False)


def episode_rows(
    path: Path, episode: int, steps: int, columns: Sequence[str], optional: Sequence[str]
) -> pa.Table:
    """The rows of one episode, in order; there must be `steps`. Raises UserError if they cannot be read."""
    file = _open(path)
    kept: list[pa.RecordBatch] = []
    found = 0
    with _guard(path), file:
        there = file.schema_arrow.names
        chosen = ["episode_index", *columns, *(n for n in optional if n in there)]
        _check_columns(path, there, chosen)
        if not pa.types.is_integer(file.schema_arrow.field("episode_index").type):
            raise UserError(f"{path}: column 'episode_index' must hold whole numbers.")
        groups = [i for i in range(file.num_row_groups) if _may_hold(file, i, episode)]
        _check_size(path, file, groups, chosen, MAX_ROWS)
        large = any(pa.types.is_nested(t) and not _is_list(t) for t in file.schema_arrow.types)
        size = IMAGE_BATCH if large else BATCH
        for batch in file.iter_batches(size, row_groups=groups, columns=chosen, use_threads=False):
            rows = batch.filter(pc.equal(batch.column("episode_index"), episode))
            found += len(rows)
            if found > steps:
                break
            if len(rows):
                kept.append(rows)
        if found != steps:
            many = f"more than {steps}" if found > steps else str(found)
            raise UserError(
                f"{path} has {many} rows of episode {episode}, which has length {steps} in meta/episodes. If it was "
                "downloaded or copied, do that again."
            )
        return pa.Table.from_batches(kept)


def _check_columns(path: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if list(there).count(name) != 1:
            few = one_line(", ".join(there[:8]), 300)
            raise UserError(f"{path} must have one column '{name}', and has {there.count(name)} ({few}).")


def _may_hold(file: pq.ParquetFile, group: int, episode: int) -> bool:
    chunk = file.metadata.row_group(group)
    for j in range(chunk.num_columns):
        column = chunk.column(j)
        if column.path_in_schema == "episode_index":
            known = column.statistics
            if known is None or not known.has_min_max or not isinstance(known.min, int):
                return True
            return bool(known.min <= episode <= known.max)
    return True


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def matrix(table: pa.Table, name: str, width: int, path: Path) -> np.ndarray:
    """A column of finite numbers as (rows, width). Raises UserError for any other content."""
    with _guard(path):
        column = table[name].combine_chunks()
        flat = column
        if _is_list(column.type):
            flat = column.flatten()
            lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        else:
            lengths = [1]
        number = pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type)
        if not number or lengths != [width] or column.null_count or flat.null_count:
            raise UserError(
                f"{path}: column '{name}' holds {column.type}; each row must have {width} numbers."
            )
        values = np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(-1, width)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise UserError(f"{path}: column '{name}' holds NaN or infinity, first in row {row} of the episode.")
    return values
