"""Run by the Python of build/interop/openpi: genuine openpi clients, all at once.

    python openpi_clients.py PORT REQUESTS.npz OUT.npz

REQUESTS: images (clients, n, H, W, 3), states (clients, n, 8), prompts (clients,). OUT: chunks (clients, n, rows, 7).
"""

import sys
import threading

import numpy as np
from openpi_client import image_tools
from openpi_client.websocket_client_policy import WebsocketClientPolicy

port, requests, out = sys.argv[1:]
given = np.load(requests)
clients = [WebsocketClientPolicy("127.0.0.1", int(port)) for _ in given["prompts"]]
assert clients[0].get_server_metadata()["policy"]
found = [None] * len(clients)


def run(i):
    chunks = []
    for image, state in zip(given["images"][i], given["states"][i], strict=True):
        image = image_tools.convert_to_uint8(image_tools.resize_with_pad(image, 224, 224))
        request = {
            "observation/image": image,
            "observation/wrist_image": image,
            "observation/state": state,
            "prompt": str(given["prompts"][i]),
        }
        chunks.append(clients[i].infer(request)["actions"])
    found[i] = chunks


threads = [threading.Thread(target=run, args=(i,)) for i in range(len(clients))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
np.savez(out, chunks=np.array(found))
try:
    clients[0].infer({"prompt": "nothing else"})
except RuntimeError as error:
    print("refused:", str(error).splitlines()[-1])
