"""Run by the Python of build/interop/openpi: openpi's protocol, written with openpi-client's codec and resizing.

    python openpi_server.py EXPERT.npz REPORT.json

It prints its port.
"""

import sys
from functools import partial

from judge import Judge
from openpi_client import image_tools, msgpack_numpy
from websockets.sync.server import serve

judge = Judge(*sys.argv[1:], 10, partial(image_tools.resize_with_pad, height=224, width=224))


def run(connection):
    connection.send(msgpack_numpy.packb({}))
    for number, frame in enumerate(connection):
        asked = msgpack_numpy.unpackb(frame)
        images = asked["observation/image"], asked["observation/wrist_image"]
        chunk = judge.chunk(judge.step * number, asked["prompt"], *images, asked["observation/state"])
        connection.send(msgpack_numpy.packb({"actions": chunk, "server_timing": {"infer_ms": 1.0}}))


with serve(run, "127.0.0.1", 0, compression=None, max_size=None) as server:
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()
