"""Fingerprints of the suites' first scenes (`validation.fingerprint`), by suite and cell. They are the same on every
machine. To change a scene on purpose, raise the suite's version and write the new values here. `apt-bench validate`
prints them.
"""

from __future__ import annotations

FINGERPRINTS: dict[str, dict[str, str]] = {
    "rigid_pick_place": {
        "so": "5acd52fd061a",
        "uo": "d11513c57b33",
        "uc": "2237aa42a632",
        "uoue": "bac56ade2e4d",
        "ue": "56cb4abbc933",
        "uouc": "83ef82697ddc",
        "uoucue": "45a33ee48f87",
        "so_ur5e": "5acd52fd061a",
        "train": "e713c229f317",
        "train_redundant": "ea3c4fbe5f21",
        "train_ambiguous": "8b111813557e",
    },
    "clutter_pick_place": {
        "so": "8fea9b76e6f3",
        "uc": "80d3afba8614",
        "uo": "bb7c0e2d4aba",
        "uoue": "13ba68eea44b",
        "train": "f15f721aafff",
    },
    "composite": {
        "coaching_seen": "b9dbae29b96c",
        "coaching_unseen": "4aa63e090820",
        "chaining": "4ff0a6a1b22b",
        "train_store": "da0f8cdadaed",
        "train_plate": "06d4d6bc7f25",
    },
}
