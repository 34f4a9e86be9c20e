"""Answers that a competent model could give, written by hand, for tasks of `libero_pro`.

`python -m tests.policies.cap.hand_written` records them: one cassette per tier in `tests/data/cap`. Record again
after a change of the prompts, of the API's text, or of an answer.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from apt_bench import Run, evaluate
from tests.policies.cap.model_server import ModelServer

FOLDER = Path(__file__).parents[2] / "data" / "cap"
MODEL = "hand-written"
TASKS = {"object_pos": "0", "object_task": "0", "spatial_pos": "0", "spatial_task": "8"}
"""Cell -> index of the task."""
TIERS = {"privileged": "cap-privileged", "oracle-seg": "cap-oracle-seg"}

CARRY = """\
def carry(position, quaternion, bottom, centre, top, goal):
    start, _ = get_gripper_pose()
    goto_pose(position, quaternion, z_approach=0.12)
    close_gripper()
    grip, _ = get_gripper_pose()
    above = max(start[2], top + bottom + 0.05)
    goto_pose([grip[0], grip[1], above], quaternion)
    print("opening after the lift:", round(get_gripper_opening(), 4))
    x, y = goal[0] + grip[0] - centre[0], goal[1] + grip[1] - centre[1]
    goto_pose([x, y, above], quaternion)
    try:
        goto_pose([x, y, top + bottom + 0.03], quaternion)
    except ApiError as error:
        print(error)
    open_gripper()
    goto_pose([x, y, above], quaternion)
"""

POSES = f"""\
{CARRY}
def pick_and_place(item, target):
    position, quaternion = sample_grasp_pose(item)
    centre, size = get_object_pose(item)[0], get_object_size(item)
    goal, goal_size = get_object_pose(target)[0], get_object_size(target)
    bottom = position[2] - (centre[2] - size[2] / 2)
    carry(position, quaternion, bottom, centre, goal[2] + goal_size[2] / 2, goal)
"""

IMAGES = f"""\
{CARRY}
def find(text):
    return [points_of(one["mask"]) for one in segment(text)]

def pick_and_place(item, target):
    position, quaternion = sample_grasp_pose(item)
    box, goal = oriented_box(item), oriented_box(target)
    bottom = position[2] - np.percentile(item[:, 2], 1)
    top = goal["center"][2] + goal["extent"][2] / 2
    carry(position, quaternion, bottom, box["center"], top, goal["center"])
"""

LOOK = {
    "privileged": """\
for name in get_object_names():
    print(name, get_object_pose(name)[0].round(3), get_object_size(name).round(3))
""",
    "oracle-seg": """\
for text in (THINGS):
    for one in segment(text):
        box = oriented_box(points_of(one["mask"]))
        print(text, round(one["score"], 2), box["center"].round(3), box["extent"].round(3))
""",
}

ONTO_PLATE = {
    "privileged": """\
plate = get_object_pose("plate_1")[0]
ramekin = get_object_pose("glazed_rim_porcelain_ramekin_1")[0]
bowls = ["akita_black_bowl_1", "akita_black_bowl_2"]
bowl = min(bowls, key=lambda name: np.linalg.norm((get_object_pose(name)[0] - WHERE)[:2]))
pick_and_place(bowl, "plate_1")
""",
    "oracle-seg": """\
target = find("plate")[0]
plate, ramekin = oriented_box(target)["center"], oriented_box(find("ramekin")[0])["center"]
bowl = min(find("black bowl"), key=lambda p: np.linalg.norm((oriented_box(p)["center"] - WHERE)[:2]))
pick_and_place(bowl, target)
""",
}

INTO_BASKET = {
    "privileged": """pick_and_place("THING_1", "basket_1")\n""",
    "oracle-seg": """pick_and_place(find("THING")[0], find("basket")[0])\n""",
}


def answer(tier: str, messages: list[dict[str, Any]]) -> str:
    """The next answer in a conversation: look around, act, look again, finish."""
    task = messages[1]["content"].splitlines()[0].removeprefix("Task: ")
    things = '"bowl", "plate", "ramekin"'
    if "basket" in task:
        words = task.split(" and place")[0].split()
        thing = " ".join(words[words.index("the") + 1 :])
        things = f'"{thing}", "basket"'
        named = thing.replace(" ", "_") if tier == "privileged" else thing
        act = INTO_BASKET[tier].replace("THING", named)
    else:
        where = "(plate + ramekin) / 2" if "between the plate and the ramekin" in task else "ramekin"
        act = ONTO_PLATE[tier].replace("WHERE", where)
    look = LOOK[tier].replace("THINGS", things)
    blocks = [look, (POSES if tier == "privileged" else IMAGES) + "\n" + act, look]
    written = sum(message["role"] == "assistant" for message in messages)
    return f"```python\n{blocks[written]}```" if written < len(blocks) else "FINISH"


def run(tier: str, cell: str, out: Path, **more: Any) -> Run:
    """Run a tier's policy on the first initial state of a cell's task."""
    options: dict[str, Any] = {"tasks": TASKS[cell], "episodes": 1, "workers": 0, "progress": False}
    return evaluate(TIERS[tier], "libero_pro", cell, out=out, llm_model=MODEL, **options, **more)


def cassette(tier: str) -> Path:
    """The cassette of a tier."""
    return FOLDER / f"{tier}.jsonl"


def main() -> None:
    """Record the cassettes again and print how the episodes ended."""
    FOLDER.mkdir(exist_ok=True)
    for tier in sys.argv[1:] or TIERS:
        cassette(tier).unlink(missing_ok=True)
        with (
            tempfile.TemporaryDirectory() as folder,
            ModelServer(partial(answer, tier), models=[MODEL]) as server,
        ):
            recorded = {"servers": [server.url], "cassette": ["record", str(cassette(tier))]}
            for cell in TASKS:
                done = run(tier, cell, Path(folder) / cell, **recorded)
                print(tier, cell, *done.episodes[["outcome", "steps"]].to_numpy().tolist(), flush=True)


if __name__ == "__main__":
    main()
