"""Limits on what a data file may make a reader load. Declared sizes are checked against them first."""

from __future__ import annotations

MAX_STEPS = 100_000
"""Control steps of one demonstration: 83 minutes at 20 Hz."""

MAX_SIDE = 4096
"""Pixels of an image's side."""

MAX_WIDTH = 4096
"""Numbers in one row of an array: a simulator's state has some hundreds."""

MAX_DEMOS = 1_000_000
"""Demonstrations in one file or dataset."""

MAX_HZ = 10_000
"""Control steps or frames per second."""

MAX_TEXT = 10_000
"""Characters of an instruction."""

MAX_ATTRIBUTE = 16 * 2**20
"""Bytes of one attribute: LIBERO's `model_file` has 0.1 to 1 MB."""

MAX_BYTES = 2 * 2**30
"""Bytes of one array once unpacked: 1,300 steps of 512 x 512 pixels are 1 GiB."""

FREE = 64 * 2**20
"""Arrays up to this many bytes are read whatever their compression ratio."""

RATIO = 200
"""Largest compression ratio of a larger array. Demonstrations compress to 1/2 to 1/40 of their size; with gzip one byte
can expand to a thousand zeros."""

DEFLATE = 1032
"""Largest expansion of one byte of deflate."""
