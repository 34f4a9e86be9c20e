"""Language probes: the same initial states under other sentences.

A policy that follows the instruction must change what it does when the instruction changes its meaning, and must not
when only its wording does. Each probe rewrites the prompt of an episode and nothing else; scene, goal and seed stay,
so results pair with the default prompt's, episode by episode.

`null`         no words at all. A policy that succeeds all the same does not need the instruction.
`swapped`      the instruction of another task of the cell, in the same scene where there is one. Success here means
               that the policy did what the scene suggests and not what it was told.
`stale`        the sentence of the file's name where the cell's own differs: what the unperturbed task asked.
`paraphrase`   the same meaning in other words (verbs and connectives exchanged, nouns kept).
`punctuation`  a capital letter at the start and a full stop at the end.
`repeat`       the same sentence once more. What changes all the same is noise that the policy draws elsewhere than from
               `Observation.noise_key`: the floor against which the others are read. Every episode that is probed is
               repeated once, so that the floor is as precise as what is read against it, and pairs with it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from apt_bench.core.errors import UserError, did_you_mean
from apt_bench.suites import EpisodeSpec

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
"""Key of `EpisodeSpec.prompts` that holds the sentence that a coached cell sends second; a probe changes both."""


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
    """The next task of the cell with another sentence, its own last; one in the same scene if there is any."""
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

PROBES: dict[str, Callable[[EpisodeSpec, Sequence[EpisodeSpec]], EpisodeSpec | None]] = {
    "null": _null,
    "swapped": _swapped,
    "stale": _stale,
    "paraphrase": _paraphrase,
    "punctuation": _punctuation,
    REPEAT: _repeat,
}


def check_names(probes: Sequence[str]) -> None:
    """Raises UserError for a probe that is not there."""
    for name in probes:
        if name not in PROBES:
            raise UserError(f"No language probe '{name}'. {did_you_mean(name, PROBES)}")


def expand(
    specs: Sequence[EpisodeSpec], probes: Sequence[str], cell_specs: Sequence[EpisodeSpec]
) -> list[EpisodeSpec]:
    """The episodes themselves, then each of them under each probe that changes its sentence, then those again under
    their own sentence (`repeat`), whether that was asked for or not.

    cell_specs: at least one episode of every task of the cells involved, from which `swapped` takes its sentences.
    What is named twice is one.
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
                out.append(_under(name, probed))
    changed = {dataclasses.replace(s.key, prompt="default") for s in out[len(specs) :]}
    out += [_under(REPEAT, s) for s in specs if REPEAT in probes or s.key in changed]
    return out


def _under(name: str, spec: EpisodeSpec) -> EpisodeSpec:
    key = dataclasses.replace(spec.key, prompt=name)
    return dataclasses.replace(spec, key=key, prompt_source=f"probe:{name}")
