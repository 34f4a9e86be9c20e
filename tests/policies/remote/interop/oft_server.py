"""Run by the Python of build/interop/openpi: the REST protocol of OpenVLA-OFT, written with the genuine json-numpy.

    python oft_server.py EXPERT.npz REPORT.json

It prints its port. As OFT's `deploy.py`, it answers a list of arrays whose gripper is in [0, 1], 1 = open.
"""

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

import json_numpy
from judge import Judge

judge = Judge(*sys.argv[1:], 8)
number = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global number
        asked = json_numpy.loads(self.rfile.read(int(self.headers["Content-Length"])))
        images = asked["full_image"], asked["wrist_image"]
        if asked["instruction"] == "do nothing":  # the client's first request
            chunk = judge.expert["actions"][:8].copy()
        else:
            chunk = judge.chunk(judge.step * number, asked["instruction"], *images, asked["state"])
            number += 1
        chunk[:, 6] = chunk[:, 6] < 0
        body = json_numpy.dumps(list(chunk)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with HTTPServer(("127.0.0.1", 0), Handler) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
