"""Protocol cards and policies compared: the protocol's hash, and the settings in which two runs differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

POLICY_OWN = {"cameras": "uses", "execute": "executes"}
"""Entries of a protocol card that are the policy's own choice and may differ between compared runs, with their verb."""

CUSTOM = "custom_instructions"
"""Entry of a protocol card with the hash of the user's own sentences. They change only episodes of the probe `custom`,
so runs that differ in it are compared under the cells' own prompts."""

NOT_COMPARED = ("name", "about", "placement", "num_gpus", "max_batch", "interface")
"""Entries of a `policy` that are for people, or state where the policy runs. They do not make it another policy."""

SHOWN = 6
"""Differing settings that a message lists."""


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of the card's canonical JSON, without an entry `hash`."""
    bare = {k: v for k, v in protocol.items() if k != "hash"}
    text = json.dumps(bare, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def settings_hash(protocol: Mapping[str, Any]) -> str:
    """Hash of the settings that compared runs share: the card without the policies' own choices (`POLICY_OWN`) and
    without the user's own sentences. Runs of one such hash have no `differing_settings`."""
    return protocol_hash({k: v for k, v in protocol.items() if k not in (CUSTOM, *POLICY_OWN)})


def differing_settings(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two protocol cards and may change scores, each as `name: a's / b's`.

    The policies' own choices (`POLICY_OWN`) are left out; `policy_settings` gives them.
    """
    own = ("hash", CUSTOM, *POLICY_OWN)
    cards = [{k: v for k, v in card.items() if k not in own} for card in (a, b)]
    return [f"{name}: {first} / {second}" for name, first, second in _differing(*cards)]


def protocol_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every setting that differs between the protocol card of a run directory and that of a new command."""
    cards = [{k: v for k, v in card.items() if k != "hash"} for card in (old, new)]
    return [f"{name}: {there} there, {now} now" for name, there, now in _differing(*cards)]


def policy_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In what two `policy` entries of run.json describe different policies.

    Class, arguments, weights and the policy's declarations are compared. The name is for people and is not compared,
    nor is an entry that an older version did not write.
    """
    args = [dict(side.get("args") or {}) for side in (old, new)]
    pairs = {f"args.{k}": (args[0].get(k), args[1].get(k)) for k in sorted({*args[0], *args[1]})}
    hashed = old.get("weights_sha256") and new.get("weights_sha256")
    ignored = (*NOT_COMPARED, "args", *(("weights",) if hashed else ()))
    pairs |= {k: (old[k], new[k]) for k in new if k in old and k not in ignored}
    return [f"{k}: {a!r:.80} there, {b!r:.80} now" for k, (a, b) in pairs.items() if a != b]


def policy_settings(a: Mapping[str, Any], b: Mapping[str, Any], name_a: str, name_b: str) -> list[str]:
    """The policies' own settings that differ between two protocol cards: `A executes 10 actions per decision, B 5`."""
    found = []
    for key, verb in POLICY_OWN.items():
        if None not in (a.get(key), b.get(key)) and a[key] != b[key]:
            first = _actions(a[key]) if key == "execute" else _own_setting(a[key])
            found.append(f"{name_a} {verb} {first}, {name_b} {_own_setting(b[key])}")
    return found


def in_short(settings: Sequence[str]) -> str:
    """Differing settings for a message: the first `SHOWN`, and how many more there are."""
    more = f"; and {len(settings) - SHOWN} more" if len(settings) > SHOWN else ""
    return "; ".join(settings[:SHOWN]) + more


def own_settings(protocol: Mapping[str, Any]) -> str:
    """The policy's own settings in words: `8 actions per decision, uses agentview and wrist`."""
    execute, cameras = (protocol.get(k) for k in ("execute", "cameras"))
    parts = [_actions(execute)] if isinstance(execute, int) else []
    return ", ".join(parts + ([f"uses {_own_setting(cameras)}"] if isinstance(cameras, list) else []))


def _actions(execute: Any) -> str:
    return f"{execute} action{'' if execute == 1 else 's'} per decision"


def _own_setting(value: Any) -> str:
    return " and ".join(map(str, value)) or "no camera" if isinstance(value, list) else str(value)


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name and both values, shortened, of each setting that differs."""
    first, second = _flat(a), _flat(b)
    return [
        (name, _shortened(first.get(name)), _shortened(second.get(name)))
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]


def _shortened(value: Any) -> str:
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
