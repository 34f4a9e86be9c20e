"""Policies behind a server: one module per protocol, which maps observations to requests and replies to action chunks.

| module | protocol | servers |
|---|---|---|
| `openpi` | WebSocket, `wire.openpi` | openpi: pi0, pi0-FAST, pi0.5 |
| `starvla` | WebSocket, `wire.openpi` | starVLA: LangForce and others |
| `vla_eval` | WebSocket, `wire.vla_eval` | vla-eval's model servers: OpenVLA, OpenVLA-OFT, GR00T, X-VLA and others |
| `groot` | ZeroMQ, `wire.groot` | Isaac-GR00T |
| `rest` | HTTP, `wire.json_numpy` | the `deploy.py` of OpenVLA and of OpenVLA-OFT |

`links` holds the connections, `server` what all of these policies share.
"""
