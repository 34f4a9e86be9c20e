"""Draw where the objects of a LIBERO scene are, for demonstrations and for pictures of a vision-language model.

A layout starts from robosuite's own placement, which LIBERO's BDDL file determines, and moves the movable objects. No
file of initial states is read, and nothing of LIBERO-PRO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from apt_bench.envs.base import Scene
from apt_bench.envs.libero.layout import GAP, TRIES, Area, Layout, NoLayoutError
from apt_bench.envs.mujoco_no_gl import mujoco


def draw_layout(scene: Scene, kind: str, wanted: Mapping[str, Any], rng: np.random.Generator) -> None:
    """Draw a layout of this kind, see `LAYOUTS`.

    Args:
        scene: The scene, just reset. Positions of joints, objects and fixtures are changed; velocities are not.
        kind: Key of `LAYOUTS`.
        wanted: Arguments of the kind.
        rng: Source of every draw.

    Raises:
        RuntimeError: No layout was found.
    """
    before = scene.data.qpos.copy(), scene.model.body_pos.copy()
    for _ in range(TRIES):
        scene.data.qpos[:], scene.model.body_pos[:] = before
        mujoco.mj_kinematics(scene.model, scene.data)
        surface, make = LAYOUTS[kind]
        layout = Layout(scene, surface, rng)
        try:
            make(layout, **wanted)
        except NoLayoutError:
            continue
        mujoco.mj_forward(scene.model, scene.data)
        return
    raise RuntimeError(f"no layout of kind '{kind}' found for {dict(wanted)}")


OBJECTS_AREA: Area = ((-0.25, 0.18), (-0.29, 0.12))
BASKET_AREAS: tuple[Area, Area] = (((-0.06, 0.06), (0.22, 0.29)), ((-0.12, 0.12), (0.18, 0.30)))


def basket(layout: Layout) -> None:
    """Groceries anywhere in front of the robot; the basket near its usual place, or further away from it."""
    name = next(n for n in layout.scene.objects if n.startswith("basket"))
    layout.place(name, BASKET_AREAS[int(layout.rng.random() < 0.3)])
    for other, found in layout.scene.objects.items():
        if found.movable and other != name:
            layout.place(other, OBJECTS_AREA)


TABLE: Area = ((-0.27, 0.18), (-0.14, 0.30))
USUAL = {"plate_1": (0.06, 0.20), "cookies_1": (0.07, 0.03), "glazed_rim_porcelain_ramekin_1": (-0.20, 0.20)}
"""Where LIBERO-Spatial's BDDL files put these, m."""
NEAR_USUAL = 0.06
APART = 0.05
"""Distance in m from its usual place that at least one of them keeps: evaluation starts with all at their places."""
DRAWER_OPEN = -0.156
"""Position in m of an open drawer's joint in LIBERO-Spatial."""
DRAWER_FLOOR = 1.063
"""Height in m of the top drawer's floor."""
DRAWER = "in the top drawer of the wooden cabinet"
BOWLS = ("akita_black_bowl_1", "akita_black_bowl_2")


def bowls(layout: Layout, target: str, other: str) -> None:
    """LIBERO-Spatial: the first bowl, which is the target, in the relation `target`; the second one in the relation
    `other`. Both are keys of `PLACES`. The bowls look the same."""
    if DRAWER in (target, other):
        _open_drawer(layout)
    layout.occupy_fixtures()
    scattered = layout.rng.random() < 0.6
    apart = []
    for name, usual in USUAL.items():
        (x, y), near = usual, NEAR_USUAL
        area = TABLE if scattered else ((x - near, x + near), (y - near, y + near))
        apart.append(float(np.linalg.norm(layout.place(name, area) - usual)))
    if max(apart) < APART:
        raise NoLayoutError("too close to LIBERO-Spatial's own layout")
    for bowl, relation in zip(BOWLS, (target, other), strict=True):
        PLACES[relation](layout, bowl)


def _beside(anchor: str) -> Any:
    def place(layout: Layout, bowl: str) -> None:
        centre = layout.scene.data.xpos[layout.scene.objects[anchor].body][:2]
        reach = layout.radius(bowl)
        for _ in range(TRIES):
            angle = layout.rng.uniform(0, 2 * np.pi)
            distance = layout.radius(anchor) + reach + layout.rng.uniform(0.005, 0.035)
            spot = centre + distance * np.array([np.cos(angle), np.sin(angle)])
            if _inside(spot) and layout.free(spot, reach + 0.002):
                return _stand(layout, bowl, spot)
        raise NoLayoutError(bowl)

    return place


def _between(layout: Layout, bowl: str) -> None:
    """Between plate and ramekin, on the line that joins them."""
    bodies = [layout.scene.objects[n].body for n in ("plate_1", "glazed_rim_porcelain_ramekin_1")]
    plate, ramekin = (layout.scene.data.xpos[b][:2] for b in bodies)
    share, aside = layout.rng.uniform(0.4, 0.65), layout.rng.normal(0, 0.012, 2)
    spot = plate + share * (ramekin - plate) + aside
    if np.linalg.norm(ramekin - plate) > 0.36 or not layout.free(spot, layout.radius(bowl) + 0.002):
        raise NoLayoutError(bowl)
    _stand(layout, bowl, spot)


def _centre(layout: Layout, bowl: str) -> None:
    spot = layout.rng.uniform((-0.11, -0.03), (-0.04, 0.03))
    if not layout.free(spot, layout.radius(bowl) + GAP):
        raise NoLayoutError(bowl)
    _stand(layout, bowl, spot)


def _on(support: str) -> Any:
    def place(layout: Layout, bowl: str) -> None:
        spot = layout.scene.data.xpos[layout.scene.objects[support].body][:2] + layout.rng.normal(0, 0.006, 2)
        layout.put(bowl, spot, layout.top(support))

    return place


def _on_region(region: str, spread: float) -> Any:
    def place(layout: Layout, bowl: str) -> None:
        site = layout.site(region)
        layout.put(bowl, site[:2] + layout.rng.uniform(-spread, spread, 2), site[2] + 0.008)

    return place


def _open_drawer(layout: Layout) -> None:
    model, data = layout.scene.model, layout.scene.data
    cabinet = layout.scene.objects["wooden_cabinet_1"]
    joint = next(j for j in cabinet.joints if "top" in model.joint(j).name)
    data.qpos[model.jnt_qposadr[joint]] = DRAWER_OPEN
    mujoco.mj_kinematics(model, data)


def _in_drawer(layout: Layout, bowl: str) -> None:
    spot = layout.site("wooden_cabinet_1_top_region")[:2] + layout.rng.normal(0, 0.006, 2)
    layout.put(bowl, spot, DRAWER_FLOOR)


def _inside(spot: np.ndarray) -> bool:
    return all(low <= value <= high for value, (low, high) in zip(spot, TABLE, strict=True))


def _stand(layout: Layout, bowl: str, spot: np.ndarray) -> None:
    layout.put(bowl, spot, layout.surface)
    layout.occupy(spot, layout.radius(bowl))


PLACES: dict[str, Any] = {
    "between the plate and the ramekin": _between,
    "next to the ramekin": _beside("glazed_rim_porcelain_ramekin_1"),
    "from table center": _centre,
    "on the cookie box": _on("cookies_1"),
    DRAWER: _in_drawer,
    "on the ramekin": _on("glazed_rim_porcelain_ramekin_1"),
    "next to the cookie box": _beside("cookies_1"),
    "on the stove": _on_region("flat_stove_1_cook_region", 0.02),
    "next to the plate": _beside("plate_1"),
    "on the wooden cabinet": _on_region("wooden_cabinet_1_top_side", 0.02),
}
"""What puts a bowl into a relation, for each relation of `drawn_tasks.RELATIONS`."""

Circle = tuple[tuple[float, float], float]
"""Centre and radius in m."""

GOAL_TABLE: Area = ((-0.27, 0.13), (-0.13, 0.28))
STOVE_FRONT: Circle = ((-0.05, 0.21), 0.09)
"""LIBERO-Goal: where things are pushed to. The region belongs to the table and does not move with the stove."""
DRAWER_FRONT, DRAWER_REACH = np.array([0.055, 0.14]), 0.13
"""LIBERO-Goal: where drawers open to, a circle: its centre from the cabinet's place, and its radius, m."""
FIXTURE_SHIFT = 0.03
"""LIBERO-Goal: largest distance in m along x and y from a fixture's place, which is its own or that of another."""


def kitchen(layout: Layout, clear: Sequence[str] = ()) -> None:
    """LIBERO-Goal: bowl, plate, cream cheese and bottle anywhere on the table; nothing in front of the fixtures in
    `clear`. Every fixture is near its place, but in half of the layouts cabinet and rack are exchanged."""
    places = {name: layout.spot(name) for name in ("wooden_cabinet_1", "wine_rack_1", "flat_stove_1")}
    if layout.rng.random() < 0.5:
        places["wooden_cabinet_1"], places["wine_rack_1"] = places["wine_rack_1"], places["wooden_cabinet_1"]
    for name, place in places.items():
        layout.move_fixture(name, place + layout.rng.uniform(-FIXTURE_SHIFT, FIXTURE_SHIFT, 2))
    if "wooden_cabinet_1" in clear:
        layout.occupy(layout.spot("wooden_cabinet_1") + DRAWER_FRONT, DRAWER_REACH)
    if "flat_stove_1" in clear:
        layout.occupy(*STOVE_FRONT)
    for name, found in sorted(layout.scene.objects.items(), key=lambda one: -layout.radius(one[0])):
        if found.movable:
            layout.place(name, GOAL_TABLE)


LIVING_ROOM, KITCHEN, STUDY = 0.436, 0.9, 0.885
"""LIBERO-Long: heights in m of the surfaces."""
FROM_USUAL = 0.065
"""Distance in m from the middle of every region of LIBERO's BDDL file that at least one object keeps. LIBERO's initial
states are up to 0.035 m from these."""


def scattered(areas: Mapping[str, Area], clear: Sequence[Circle] = ()) -> Callable[..., None]:
    """A kind of layout of LIBERO-Long: each object anywhere in its area, the larger ones first.

    Args:
        areas: Area of each movable object.
        clear: Where only the objects in `first`, an argument of the kind, may be.
    """

    def draw(layout: Layout, first: Sequence[str] = ()) -> None:
        for name, found in layout.scene.objects.items():
            if not found.movable:
                layout.occupy_shape(name)
        places = [layout.place_shape(name, areas[name]) for name in first]
        for centre, radius in clear:
            layout.occupy(centre, radius)
        places += [layout.place_shape(name, areas[name]) for name in areas if name not in first]
        regions = layout.scene.regions
        usual = [layout.site(name)[:2] for name in regions if regions[name].parent.endswith("table")]
        away = np.linalg.norm(np.array(places)[:, None] - np.array(usual)[None], axis=2)
        if away.min(1).max() < FROM_USUAL:
            raise NoLayoutError("too close to LIBERO-Long's own layout")

    return draw


MUGS: Area = ((-0.27, 0.10), (-0.24, 0.24))
two_plates = scattered(
    {
        "plate_1": ((-0.10, 0.10), (-0.33, -0.12)),  # the left one
        "plate_2": ((-0.10, 0.10), (0.12, 0.33)),
        "white_yellow_mug_1": MUGS,
        "porcelain_mug_1": MUGS,
        "red_coffee_mug_1": MUGS,
    }
)
BESIDE_PLATE: tuple[Circle, Circle] = (((0.15, -0.10), 0.07), ((0.15, 0.10), 0.07))
"""The regions left and right of the plate, which do not move with it."""
one_plate = scattered(
    {
        "plate_1": ((0.10, 0.20), (-0.03, 0.03)),
        "porcelain_mug_1": ((-0.27, 0.10), (-0.26, 0.26)),
        "red_coffee_mug_1": ((-0.27, 0.10), (-0.26, 0.26)),
        "chocolate_pudding_1": ((-0.27, 0.10), (-0.26, 0.26)),
    },
    BESIDE_PLATE,
)
KNOB: Circle = ((-0.24, 0.20), 0.12)
pan_and_pot = scattered(
    {"chefmate_8_frypan_1": ((-0.15, 0.08), (-0.32, -0.12)), "moka_pot_1": ((-0.16, 0.12), (-0.28, 0.07))},
    (KNOB,),
)
OPEN_DRAWER: Circle = ((0.0, -0.03), 0.07)
"""Where the hand is that shuts the bottom drawer."""
drawer = scattered(
    {"akita_black_bowl_1": ((-0.26, 0.15), (-0.16, 0.22)), "wine_bottle_1": ((-0.26, 0.15), (-0.16, 0.22))},
    (OPEN_DRAWER,),
)
IN_FRONT_OF_MICROWAVE: Area = ((-0.22, 0.12), (-0.32, -0.02))
"""Not where the door swings."""
microwave = scattered({"white_yellow_mug_1": IN_FRONT_OF_MICROWAVE, "porcelain_mug_1": IN_FRONT_OF_MICROWAVE})
two_pots = scattered(
    {"moka_pot_1": ((-0.15, 0.10), (0.16, 0.30)), "moka_pot_2": ((-0.15, 0.10), (-0.06, 0.10))}  # right, left
)
caddy = scattered(
    {"black_book_1": ((-0.34, -0.04), (-0.05, 0.30)), "white_yellow_mug_1": ((-0.30, -0.02), (-0.28, 0.25))}
)


LAYOUTS: dict[str, tuple[float, Any]] = {
    "basket": (0.0, basket),
    "bowls": (0.9, bowls),
    "kitchen": (0.9, kitchen),
    "living_room_scene1": (LIVING_ROOM, basket),
    "living_room_scene2": (LIVING_ROOM, basket),
    "living_room_scene5": (LIVING_ROOM, two_plates),
    "living_room_scene6": (LIVING_ROOM, one_plate),
    "kitchen_scene3": (KITCHEN, pan_and_pot),
    "kitchen_scene4": (KITCHEN, drawer),
    "kitchen_scene6": (KITCHEN, microwave),
    "kitchen_scene8": (KITCHEN, two_pots),
    "study_scene1": (STUDY, caddy),
}
"""Kinds of layouts: the surface's height in m, and what draws one. The first three are for LIBERO-Object, -Spatial and
-Goal, the others for the scenes of LIBERO-Long."""
