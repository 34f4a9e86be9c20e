"""Codecs of the policy protocols: bytes to dictionaries and back. Nothing here opens a connection.

| module | protocol | transport |
|---|---|---|
| `openpi` | openpi's policy server, and starVLA's | WebSocket, binary frames |
| `vla_eval` | vla-eval's model server | WebSocket, binary frames |
| `groot` | Isaac-GR00T's policy server | ZeroMQ REQ/REP, one message each way |
| `json_numpy` | the REST servers of OpenVLA and OpenVLA-OFT | HTTP POST, JSON |

A decoder never executes or unpickles what it reads. It raises `WireError` for anything that is not a message of its
protocol.
"""
