"""What a policy server costs per decision on loopback, without its model.

    python benchmarks/wire.py [--decisions 200] [--json]

Each server runs in a process of its own, decodes the request and answers a constant chunk at once. The REST servers
are measured a second time without decoding, because decoding JSON costs more than everything else, and the genuine
servers decode it with another library. The in-process policy answers the same chunk. The time is that of
`Policy.act`: with two images of 224x224 (median and 95th percentile), and of 256x256, which includes the client's
resizing where the protocol wants 224x224. OpenVLA gets one image, which the client preprocesses. In a batch, the time
is that of one request divided by its observations.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from apt_bench.envs.base import AGENTVIEW, WRIST, Observation
from apt_bench.policies.canaries import FRAME
from apt_bench.policies.preprocessing import resize
from apt_bench.policies.remote.groot import FIELDS, GrootPolicy
from apt_bench.policies.remote.openpi import OpenPiPolicy
from apt_bench.policies.remote.rest import OpenVlaOftPolicy, OpenVlaPolicy
from apt_bench.policies.remote.starvla import StarVlaPolicy
from apt_bench.policies.remote.vla_eval import VlaEvalPolicy
from apt_bench.wire import groot, json_numpy, openpi, vla_eval

BATCH = 8
CHUNK = np.linspace(-0.9, 0.9, 70).reshape(10, 7)


def observation(size: int) -> Observation:
    images = {
        name: resize(np.asarray(Image.open(FRAME / f"{name}.jpg")), (size, size))
        for name in (AGENTVIEW, WRIST)
    }
    return Observation(images, np.zeros(8, np.float32), "put the bowl on the plate")


def web_socket(port: Any, greeting: bytes | None, reply: Callable[[bytes], bytes]) -> None:
    from websockets.sync.server import serve

    def run(connection: Any) -> None:
        if greeting is not None:
            connection.send(greeting)
        with contextlib.suppress(Exception):
            for frame in connection:
                connection.send(reply(frame))

    with serve(run, "127.0.0.1", 0, compression=None, max_size=None) as server:
        port.put(server.socket.getsockname()[1])
        server.serve_forever()


def serve_openpi(port: Any) -> None:
    web_socket(
        port,
        openpi.encode({}),
        lambda frame: openpi.encode({"actions": CHUNK, "got": len(openpi.decode(frame))}),
    )


def serve_starvla(port: Any) -> None:
    def reply(frame: bytes) -> bytes:
        examples = openpi.decode(frame)["examples"]
        return openpi.encode({"ok": True, "data": {"actions": np.repeat(CHUNK[None, :8], len(examples), 0)}})

    web_socket(port, openpi.encode({"action_chunk_size": 8}), reply)


def serve_vla_eval(port: Any) -> None:
    def reply(frame: bytes) -> bytes:
        found = vla_eval.decode(frame)
        if found.type == "hello":
            params = {"send_wrist_image": True, "send_state": True}
            payload: dict[str, Any] = {"protocol_version": 1, "observation_params": params}
        else:
            payload = {"actions": CHUNK[0]}
        return vla_eval.encode(
            vla_eval.Message("hello" if found.type == "hello" else "action", payload, found.seq)
        )

    web_socket(port, None, reply)


def serve_groot(port: Any) -> None:
    import zmq

    with zmq.Context() as context, context.socket(zmq.REP) as one:
        port.put(one.bind_to_random_port("tcp://127.0.0.1"))
        while True:
            asked = groot.decode(one.recv())["endpoint"] == "get_action"
            chunk = {name: CHUNK[None, :, i : i + 1] for i, name in enumerate(FIELDS)}
            one.send(groot.encode([chunk, {}] if asked else {}))


def serve_rest(port: Any, rows: int, decode: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as uvicorn

        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            if decode:
                json_numpy.decode(request)
            body = json_numpy.encode(list(CHUNK[:rows]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


PROTOCOLS: dict[str, tuple[Callable[[Any], None], Callable[[str], Any]]] = {
    "openpi": (serve_openpi, OpenPiPolicy),
    "starVLA": (serve_starvla, StarVlaPolicy),
    f"starVLA, batch of {BATCH}": (serve_starvla, partial(StarVlaPolicy, batch=BATCH)),
    "vla-eval": (serve_vla_eval, VlaEvalPolicy),
    "GR00T": (serve_groot, GrootPolicy),
    "OFT (REST), not decoded": (partial(serve_rest, rows=8, decode=False), OpenVlaOftPolicy),
    "OFT (REST)": (partial(serve_rest, rows=8, decode=True), OpenVlaOftPolicy),
    "OpenVLA (REST), not decoded": (partial(serve_rest, rows=1, decode=False), OpenVlaPolicy),
    "OpenVLA (REST)": (partial(serve_rest, rows=1, decode=True), OpenVlaPolicy),
}


def milliseconds(
    act: Callable[[list[Observation]], Any], one: Observation, decisions: int, batch: int = 1
) -> np.ndarray:
    taken = []
    for i in range(decisions + 20):
        start = time.perf_counter()
        act([one] * batch)
        if i >= 20:
            taken.append(1000 * (time.perf_counter() - start) / batch)
    return np.array(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--decisions", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    local = milliseconds(lambda _: [CHUNK.copy()], observation(224), options.decisions)
    found = {"in process": [float(np.median(local)), float(np.quantile(local, 0.95)), 0.0]}
    for name, (serve, client) in PROTOCOLS.items():
        port: Any = multiprocessing.Queue()
        process = multiprocessing.Process(target=serve, args=(port,), daemon=True)
        process.start()
        policy = client(f"127.0.0.1:{port.get(timeout=30)}")
        batch = policy.spec.resources.max_batch if policy.spec.resources.placement == "actor" else 1
        small = milliseconds(policy.act, observation(224), options.decisions, batch)
        large = milliseconds(policy.act, observation(256), options.decisions, batch)
        found[name] = [float(np.median(small)), float(np.quantile(small, 0.95)), float(np.median(large))]
        policy.close()
        process.terminate()
    if options.json:
        print(json.dumps(found))
        return
    table = Table("protocol", "2 images of 224x224, ms", "95th percentile", "2 images of 256x256, ms")
    for name, row in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    main()
