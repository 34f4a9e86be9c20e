"""Language probes: the same initial states with other sentences.

A policy that follows the instruction changes its behaviour when the meaning of the instruction changes, and keeps it
when only the wording changes. A probe rewrites the prompt of an episode and nothing else. Scene, goal and seed stay the
same, so each result pairs with that of the default prompt.

`null`         an empty prompt. A policy that succeeds with it does not need the instruction.
`swapped`      the instruction of another task of the cell, in the same scene where possible. A success means that the
               policy did what the scene suggests, not what it was instructed to do.
`stale`        the sentence of the file's name, where the cell's own differs: the instruction of the unperturbed task.
`paraphrase`   the same meaning in other words: verbs and connectives are replaced, nouns are kept.
`punctuation`  a capital letter at the start and a full stop at the end.
`custom`       the user's own sentences (`--instruction`, `--instructions`; `custom_instructions`).
`repeat`       the same sentence again. Differences come from noise that the policy does not draw from
               `Observation.noise_key`. They are the noise floor of the other probes. Every probed episode is repeated
               once, so that the floor is as precise as the probes and pairs with them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.suites import EpisodeKey, EpisodeSpec

SYNONYMS = (
    (r"\bpick(?: up)?\b", "grab"),
    (r"\bput\b", "set"),
    (r"\bplace\b", "set down"),
    (r"\bmove\b", "bring"),
    (r"\bopen\b", "pull open"),
    (r"\bclose\b", "shut"),
    (r"\bturn on\b", "switch on"),
    (r"\bturn off\b", "switch off"),
    (r"\bpush\b", "shove"),
    (r"\bon top of\b", "onto the top of"),
    (r"\band\b", "and then"),
)

SWAPPED_TASK = "swapped_task"
"""Key of `EpisodeSpec.prompts` that names the task whose instruction was sent."""

SECOND = "second"
"""Key of `EpisodeSpec.prompts` for the second sentence of a coached cell. A probe changes both sentences."""


def _reworded(spec: EpisodeSpec, change: Callable[[str], str]) -> EpisodeSpec | None:
    prompts = dict(spec.prompts)
    if SECOND in prompts:
        prompts[SECOND] = change(prompts[SECOND])
    changed = dataclasses.replace(spec, prompt=change(spec.prompt), prompts=prompts)
    return None if (changed.prompt, prompts) == (spec.prompt, dict(spec.prompts)) else changed


def _null(spec: EpisodeSpec, others: Sequence[EpisodeSpec]) -> EpisodeSpec | None:
    return _reworded(spec, lambda text: "")


def _punctuation(spec: EpisodeSpec, others: Sequence[EpisodeSpec]) -> EpisodeSpec | None:
    return _reworded(spec, lambda text: text[:1].upper() + text[1:].rstrip(". ") + ".")


def _stale(spec: EpisodeSpec, others: Sequence[EpisodeSpec]) -> EpisodeSpec | None:
    old = spec.prompts.get("file", spec.prompt)
    return None if old == spec.prompt else dataclasses.replace(spec, prompt=old)


def _paraphrase(spec: EpisodeSpec, others: Sequence[EpisodeSpec]) -> EpisodeSpec | None:
    return _reworded(spec, _in_other_words)


def _in_other_words(text: str) -> str:
    for pattern, word in SYNONYMS:
        text = re.sub(pattern, word, text, flags=re.IGNORECASE)
    return text


def _swapped(spec: EpisodeSpec, others: Sequence[EpisodeSpec]) -> EpisodeSpec | None:
    """Use the sentence of the next task of the cell that has another one, in the same scene if there is any."""
    candidates = [o for o in others if o.prompt != spec.prompt]
    candidates = [o for o in candidates if o.group == spec.group] or candidates
    if not candidates:
        return None
    names = [o.key.task for o in others]
    mine = names.index(spec.key.task)
    chosen = min(candidates, key=lambda o: (names.index(o.key.task) - mine - 1) % len(names))
    prompts = {**spec.prompts, SWAPPED_TASK: chosen.key.task}
    if SECOND in prompts:
        prompts[SECOND] = chosen.prompts.get(SECOND, chosen.prompt)
    return dataclasses.replace(spec, prompt=chosen.prompt, prompts=prompts)


def _repeat(spec: EpisodeSpec, others: Sequence[EpisodeSpec]) -> EpisodeSpec | None:
    return spec


REPEAT = "repeat"

CUSTOM = "custom"
"""Name of the probe whose sentences the user gives. It is no name for `--probe`."""

PROBES: dict[str, Callable[[EpisodeSpec, Sequence[EpisodeSpec]], EpisodeSpec | None]] = {
    "null": _null,
    "swapped": _swapped,
    "stale": _stale,
    "paraphrase": _paraphrase,
    "punctuation": _punctuation,
    REPEAT: _repeat,
}
"""Name -> function of an episode and one episode of each task of its cell. It returns the probed episode, or None where
the probe would not change the sentence."""


def check_names(probes: Sequence[str]) -> None:
    """Raise UserError for an unknown probe."""
    for name in probes:
        if name not in PROBES:
            raise UserError(f"No language probe '{name}'. {did_you_mean(name, PROBES)}")


def expand(
    specs: Sequence[EpisodeSpec],
    probes: Sequence[str],
    cell_specs: Sequence[EpisodeSpec],
    custom: Mapping[EpisodeKey, str] = MappingProxyType({}),
) -> list[EpisodeSpec]:
    """Add the probed episodes to episodes.

    Args:
        specs: The episodes. Duplicates are removed.
        probes: Names of probes.
        cell_specs: At least one episode of every task of the cells of `specs`; `swapped` takes its sentences from them.
        custom: Sentences of the probe `custom`, by episode.

    Returns:
        The episodes; then, probe by probe, those whose sentence the probe changes; then each probed episode again with
        its own sentence (`repeat`). With `repeat` in `probes`, every episode is repeated.

    Raises:
        UserError: A probe is unknown.
    """
    check_names(probes)
    specs = list({s.key: s for s in specs}.values())
    by_cell: dict[str, dict[str, EpisodeSpec]] = {}
    for other in cell_specs:
        by_cell.setdefault(other.key.cell, {}).setdefault(other.key.task, other)
    out = list(specs)
    for name in dict.fromkeys(probes):
        if name == REPEAT:
            continue
        for spec in specs:
            probed = PROBES[name](spec, list(by_cell[spec.key.cell].values()))
            if probed is not None:
                out.append(_as_probe(name, probed))
    for spec in specs:
        sentence = custom.get(spec.key)
        if sentence and (probed := _reworded(spec, lambda _, new=sentence: new)):  # type: ignore[misc]
            out.append(_as_probe(CUSTOM, probed))
    changed = {dataclasses.replace(s.key, prompt="default") for s in out[len(specs) :]}
    out += [_as_probe(REPEAT, s) for s in specs if REPEAT in probes or s.key in changed]
    return out


def _as_probe(name: str, spec: EpisodeSpec) -> EpisodeSpec:
    key = dataclasses.replace(spec.key, prompt=name)
    return dataclasses.replace(spec, key=key, prompt_source=f"probe:{name}")
