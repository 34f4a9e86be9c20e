"""What a data file may make us read, at most. Files are believed neither about sizes nor about numbers."""

from __future__ import annotations

MAX_STEPS = 100_000
"""Control steps of one demonstration: 83 minutes at 20 Hz."""

MAX_SIDE = 4096
"""Pixels of an image's side."""

MAX_WIDTH = 4096
"""Numbers in one row of an array: a simulator's state has some hundreds."""

MAX_DEMOS = 1_000_000
"""Demonstrations in one file or data set."""

MAX_HZ = 10_000
"""Control steps or frames in a second."""

MAX_TEXT = 10_000
"""Characters of an instruction."""

MAX_ATTRIBUTE = 16 * 2**20
"""Bytes of one attribute: LIBERO's `model_file` has 0.1 to 1 MB."""

MAX_BYTES = 2 * 2**30
"""Bytes of one array once unpacked: 1,300 steps of 512 x 512 pixels are 1 GiB."""

FREE = 64 * 2**20
"""An array of so many bytes is read whatever it was packed to."""

RATIO = 200
"""A larger array may be so many times the bytes that the file holds of it. Demonstrations pack to 1/2 to 1/40, while
gzip makes a thousand zeros of one byte."""

DEFLATE = 1032
"""Bytes that one byte of deflate can become, at most."""
