"""Serve a policy to another harness: `apt-bench serve`.

| module | contents |
|---|---|
| `listener` | the WebSocket server: one thread per client, health check, clean stop |
| `session` | the episodes of one client, and the requests to the policy, which are batched |
| `openpi`, `vla_eval` | the protocols: frames to observations, action chunks to frames |
| `observations` | checks of images and states, conversion of poses to actions |
| `episodes` | which episode of a suite a client runs |
| `cameras` | camera calibration, which no protocol has |
"""
