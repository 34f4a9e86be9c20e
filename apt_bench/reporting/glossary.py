"""The terms of a report: each is explained once, and linked where the page first uses it."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A term. `pattern`: how it is written on the page, as a regular expression."""

    id: str
    name: str
    text: str
    pattern: str


def _term(id: str, name: str, text: str, pattern: str = "") -> Term:
    return Term(id, name, text, pattern or re.escape(name))


GLOSSARY = (
    _term("episode", "episode", "One attempt at a task, from an initial state to success or to the last allowed step.",
          "[Ee]pisodes?"),
    _term("cell", "cell", "A test condition of a suite with its own tasks. Scores are given per cell.", "[Cc]ells?"),
    _term("so", "SO", "Seen objects: all items, containers and surroundings occur in training."),
    _term("uo", "UO", "Unseen objects: the items to move do not occur in training."),
    _term("uc", "UC", "Unseen container: one container to put things into does not occur in training."),
    _term("uoue", "UOUE", "Unseen objects in unseen surroundings."),
    _term("pos", "Pos", "LIBERO-PRO's position cells: objects are in other places, the instruction stays.",
          "(?:(?:Spatial|Object|Goal|Long) )?Pos"),
    _term("task-cell", "Task cells", "LIBERO-PRO's task cells: the scene is as in training, the instruction names "
          "another goal. A policy that does what it memorised fails there.",
          "(?:Spatial|Object|Goal|Long) Task|Task cells"),
    _term("ki", "KI", "Knowledge insulation: no gradient of the action loss reaches the vision-language model."),
    _term("two-stage", "2-Stage", "The policy is trained in two stages: first without language, then with it "
          "(arXiv 2606.12366). 1-Stage: with language from the beginning."),
    _term("ft-vlm", "Ft VLM", "The weights of the vision-language model are fine-tuned too. Otherwise they stay as "
          "they are."),
    _term("interval", "95% interval", "The range of success rates that agree with the result. Few episodes give a wide "
          "interval.", "95% intervals?"),
    _term("p", "p", "p-value: how likely a difference at least as large is if there is none in truth."),
    _term("p-adjusted", "p adj.", "p-value, adjusted for the number of rows of the table, since one of many rows may "
          "have a small p by chance."),
    _term("pairs", "Pairs", "Episodes with the same task and initial state in both conditions, which are compared with "
          "each other."),
    _term("protocol", "protocol", "Everything that may change a score: suite, seed, step budgets, instructions. "
          "Scores are comparable only under one protocol; the code is its hash.", "[Pp]rotocol"),
    _term("initial-state", "initial state", "Where all objects and the robot are when an episode begins. Init is its "
          "number.", "[Ii]nitial states?|Init"),
    _term("coverage", "coverage", "Finished episodes, as a share of the requested ones. Missing episodes never count "
          "as failures.", "[Cc]overage"),
    _term("probe", "language probe", "The same initial states again under another instruction. Probes never enter the "
          "scores.", "[Ll]anguage probes?"),
    _term("null", "null", "Probe: the instruction is empty."),
    _term("swapped", "swapped", "Probe: the instruction of another task. Success still means the cell's own task."),
    _term("stale", "stale", "Probe or control: the old instruction, from before the task was changed."),
    _term("repeat", "repeat", "The same episode again under the same instruction: what changes by chance."),
    _term("own-prompt", "own prompt", "The instruction that the cell defines for the task.", "[Oo]wn prompts?"),
    _term("control", "control", "The same policy under one other condition: in the unperturbed cell, or with the old "
          "instruction in the same scene (stale). The difference shows what that condition changes.",
          "[Cc]ontrols?(?! steps)"),
    _term("sensitivity", "sensitivity", "Share of episodes in which the first contact, the outcome or the final state "
          "differs from the episode under the cell's own prompt.", "[Ss]ensitivity"),
    _term("floor", "noise floor", "The sensitivity of the repeat: changes that the instruction did not cause.",
          "[Nn]oise floor"),
    _term("contact", "first contact", "The first object that the robot touches. It shows what the policy aims at, also "
          "where it fails.", "[Ff]irst contacts?"),
    _term("horizon", "execute horizon", "How many actions of a predicted chunk are executed before the next decision.",
          "[Ee]xecute horizon"),
    _term("agentview", "agentview", "Camera that stands opposite the robot and sees it and the whole table."),
    _term("wrist", "wrist", "Camera on the robot's hand."),
    _term("oracle", "Oracle", "Scripted expert that reads the simulator's state. It shows that a task can be solved."),
)  # fmt: skip

_TERMS = {t.id: re.compile(rf"(?<![\w-])(?:{t.pattern})(?![\w-])") for t in GLOSSARY}
_SKIPPED = re.compile(
    r"(<svg.*?</svg>|<a\b.*?</a>|<style.*?</style>|<h[1-3].*?</h[1-3]>|<nav.*?</nav>|<[^>]*>)", re.DOTALL
)


def linked(body: str) -> tuple[str, list[Term]]:
    """Link the first use of each term to the glossary.

    Args:
        body: The page's body as HTML, in which `<` and `>` of texts are escaped.

    Returns:
        The body with links, and the terms that it uses.
    """
    parts = _SKIPPED.split(body)
    waiting, used = dict(_TERMS), []
    for at in range(0, len(parts), 2):  # text is between the tags
        for name, pattern in list(waiting.items()) if parts[at].strip() else ():
            if found := pattern.search(_text(parts[at])):
                link = f'<a class="term" href="#term-{name}">{found[0]}</a>'
                parts[at] = parts[at][: found.start()] + link + parts[at][found.end() :]
                used.append(name)
                del waiting[name]
    return "".join(parts), [t for t in GLOSSARY if t.id in used]


def _text(part: str) -> str:
    """A part of the page where links that were made before are blanked, so that places stay the same."""
    return re.sub(r"<a .*?</a>", lambda m: " " * len(m[0]), part)
