"""The perception tier's geometry and segmenters."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from apt_bench.core.config import load_object
from apt_bench.core.errors import ServerLost, UserError
from apt_bench.envs.base import AGENTVIEW, DEPTH, WRIST, Env, Observation
from apt_bench.policies.code_as_policies import perception
from apt_bench.policies.code_as_policies.motion import ApiError
from apt_bench.policies.code_as_policies.perception import (
    HttpSegmenter,
    OracleSegmenter,
    View,
    find_segmenter,
    oriented_box,
    points_of,
    top_down_grasp,
    view,
)
from apt_bench.suites import load_suite

CAMERAS = (AGENTVIEW, WRIST, AGENTVIEW + DEPTH, WRIST + DEPTH)
HOME = Rotation.from_euler("x", np.pi)


@pytest.fixture(
    scope="module",
    params=["rigid_pick_place", pytest.param("libero_pro", marks=pytest.mark.sim)],
)
def seen(request: pytest.FixtureRequest) -> Iterator[Observation]:
    suite = load_suite(request.param)
    env: Env = load_object(suite.env)()
    yield env.reset(suite.select(cells=None, episodes=1)[0], CAMERAS, privileged=True)
    env.close()


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("camera", [AGENTVIEW, WRIST])
def test_pictures_are_not_mirrored_and_show_what_the_oracle_names(seen: Observation, camera: str) -> None:
    """Names, labels, depth, intrinsics and the camera's pose come from different places, and must fit together."""
    assert seen.scene is not None
    picture = view(seen, camera)
    assert picture.K[0, 0] > 0
    oracle, checked = OracleSegmenter(), 0
    for name, thing in seen.scene.objects.items():
        kind = name.rstrip("_0123456789")
        if not thing.movable or sum(other.startswith(kind) for other in seen.scene.objects) > 1:
            continue
        for mask, score in oracle.segment(picture, kind.replace("_", " "), seen, camera):
            assert score == 1
            if mask.sum() < 150:
                continue
            centre = np.median(points_of(picture, mask), axis=0)
            assert np.linalg.norm(centre[:2] - seen.scene.data.xpos[thing.body][:2]) < 0.06, name
            checked += 1
    assert checked >= (3 if camera == AGENTVIEW else 1)


def test_the_picture_is_the_observations_image(seen: Observation) -> None:
    picture = view(seen, AGENTVIEW)
    image = seen.images[AGENTVIEW]
    mirrored = seen.cameras[AGENTVIEW].K[0, 0] < 0
    assert picture.mirrored == mirrored
    np.testing.assert_array_equal(picture.rgb, image[:, ::-1] if mirrored else image)
    depth = seen.depths[AGENTVIEW]
    np.testing.assert_array_equal(picture.depth, depth[:, ::-1] if mirrored else depth)


def test_without_depth_the_message_names_the_cameras() -> None:
    blank = Observation({AGENTVIEW: np.zeros((4, 4, 3), np.uint8)}, np.zeros(8, np.float32), "")
    with pytest.raises(UserError, match="agentview_depth"):
        view(blank, AGENTVIEW)


def test_the_oracle_finds_nothing_for_other_words(seen: Observation) -> None:
    oracle, picture = OracleSegmenter(), view(seen, AGENTVIEW)
    assert oracle.segment(picture, "the", seen, AGENTVIEW) == []
    assert oracle.segment(picture, "zzz", seen, AGENTVIEW) == []


@pytest.mark.sim
def test_of_two_bowls_the_oracle_finds_both() -> None:
    suite = load_suite("libero_pro")
    env: Env = load_object(suite.env)()
    try:
        seen = env.reset(suite.select(["spatial_task"], ["0"], 1)[0], CAMERAS, privileged=True)
        found = OracleSegmenter().segment(view(seen, AGENTVIEW), "the black bowl", seen, AGENTVIEW)
    finally:
        env.close()
    assert len(found) == 2
    assert found[0][1] == found[1][1]


# --- points, boxes, grasps ----------------------------------------------------------------------------------------


def block(size: tuple[float, float, float], centre: tuple[float, float, float], yaw: float) -> np.ndarray:
    """Points on the top and the sides of a block."""
    rng = np.random.default_rng(0)
    unit = rng.uniform(-0.5, 0.5, (3000, 3))
    unit[:1000, 2], unit[1000:2000, 0], unit[2000:, 1] = 0.5, 0.5, -0.5
    return np.asarray(Rotation.from_euler("z", yaw, degrees=True).apply(unit * size) + centre)


@pytest.mark.parametrize("yaw", [0, 25, -50, 80])
def test_a_box_is_found_in_spite_of_outliers(yaw: float) -> None:
    points = np.concatenate([block((0.12, 0.05, 0.08), (0.1, -0.2, 0.94), yaw), [[0.5, 0.5, 2.0]]])
    box = oriented_box(points)
    np.testing.assert_allclose(box.size, [0.12, 0.05, 0.08], atol=0.008)
    np.testing.assert_allclose(box.centre, [0.1, -0.2, 0.94], atol=0.008)
    turned = (np.rad2deg(box.yaw) - yaw + 90) % 180 - 90
    assert abs(turned) < 4


@pytest.mark.parametrize("yaw", [0, 25, -50, 80])
def test_a_grasp_is_across_the_narrow_side_and_points_down(yaw: float) -> None:
    position, rotation = top_down_grasp(block((0.12, 0.05, 0.08), (0.1, -0.2, 0.94), yaw), HOME)
    hand = rotation.as_matrix()
    np.testing.assert_allclose(hand[:, 2], [0, 0, -1], atol=1e-9)
    narrow = Rotation.from_euler("z", yaw + 90, degrees=True).as_matrix()[:, 0]
    assert abs(hand[:, 1] @ narrow) > np.cos(np.deg2rad(4))
    np.testing.assert_allclose(position, [0.1, -0.2, 0.95], atol=0.008)


def test_a_flat_object_is_grasped_above_the_table() -> None:
    position, _ = top_down_grasp(block((0.09, 0.05, 0.02), (0, 0, 0.91), 0), HOME)
    assert position[2] == pytest.approx(0.91, abs=0.002)


def test_a_bowl_is_grasped_at_its_rim() -> None:
    rng = np.random.default_rng(0)
    angle, height = rng.uniform(0, 2 * np.pi, 4000), rng.uniform(0, 1, 4000)
    radius = 0.03 + 0.04 * height
    bowl = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.9 + 0.05 * height], 1)
    bowl += [0.1, 0.2, 0]
    position, rotation = top_down_grasp(bowl, HOME)
    assert np.linalg.norm(position[:2] - [0.1, 0.2]) == pytest.approx(0.068, abs=0.006)
    radial = np.array([*(position[:2] - [0.1, 0.2]), 0.0])
    assert abs(rotation.as_matrix()[:, 1] @ radial) / np.linalg.norm(radial) > 0.98
    assert 0.91 <= position[2] < 0.95


def test_a_wide_object_without_a_rim_is_an_error() -> None:
    line = np.stack([np.linspace(-0.2, 0.2, 50), np.zeros(50), np.full(50, 0.9)], 1)
    wide = np.concatenate([line, line[:, [1, 0, 2]] + [0, 0, -0.05]])
    with pytest.raises(ApiError, match=r"28 cm wide, and no rim.*opens 7 cm"):
        top_down_grasp(wide, HOME)


# --- the HTTP segmenter -------------------------------------------------------------------------------------------

Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


@pytest.fixture
def server() -> Iterator[Callable[[Answer], str]]:
    """Starts servers that answer /segment with a function's result; gives their addresses."""
    started = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                assert self.path == "/segment"
                assert "Authorization" not in self.headers
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, reply = answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *given: Any) -> None:
                pass

        found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        started.append(found)
        return f"http://127.0.0.1:{found.server_port}"

    yield start
    for one in started:
        one.shutdown()
        one.server_close()


def png(array: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def picture_of(body: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body["image"]))))


def reply(masks: list[Any], scores: list[Any]) -> tuple[int, bytes]:
    return 200, json.dumps({"masks": masks, "scores": scores}).encode()


IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PICTURE = View(IMAGE, np.ones((20, 30), np.float32), np.eye(3), np.eye(4), False)
NOTHING = Observation({}, np.zeros(8, np.float32), "")


def test_a_server_gets_image_and_text_without_a_key(
    server: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_BENCH_API_KEY", "secret of the language model")
    asked = []

    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        asked.append(body)
        found = picture_of(body)
        return reply(
            [png(np.uint8(255 * (found[..., 0] > 100))), png(np.zeros(found.shape[:2], np.uint8))], [0.4, 0.9]
        )

    segmenter = find_segmenter(server(answer))
    assert isinstance(segmenter, HttpSegmenter)
    assert not segmenter.privileged
    best, second = segmenter.segment(PICTURE, "red mug", NOTHING, AGENTVIEW)
    assert asked[-1]["text"] == "red mug"
    np.testing.assert_array_equal(picture_of(asked[-1]), IMAGE)
    assert (best[1], second[1]) == (0.9, 0.4)
    assert not best[0].any()
    np.testing.assert_array_equal(second[0], IMAGE[..., 0] > 100)


BAD = {
    "no JSON": b"<html>",
    "no masks": b"{}",
    "lengths": json.dumps({"masks": [], "scores": [1.0]}).encode(),
    "no PNG": json.dumps({"masks": [base64.b64encode(b"abc").decode()], "scores": [1.0]}).encode(),
    "no base64": json.dumps({"masks": ["%%%"], "scores": [1.0]}).encode(),
    "another size": json.dumps({"masks": [png(np.zeros((3, 3), np.uint8))], "scores": [1.0]}).encode(),
    "a score of NaN": b'{"masks": [""], "scores": [NaN]}',
    "a deep list": b'{"masks": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", list(BAD.values()), ids=list(BAD))
def test_another_answer_is_an_error_before_the_first_episode(
    server: Callable[[Answer], str], body: bytes
) -> None:
    with pytest.raises(UserError, match="does not answer as a segmenter"):
        find_segmenter(server(lambda request: (200, body)))


def test_many_masks_are_cut(server: Callable[[Answer], str]) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, bytes]:
        mask = png(np.zeros(picture_of(body).shape[:2], np.uint8))
        return reply([mask] * 100, list(np.linspace(0, 1, 100)))

    found = find_segmenter(server(answer)).segment(PICTURE, "x", NOTHING, AGENTVIEW)
    assert len(found) == perception.MOST_MASKS
    assert found[0][1] == 1


def test_an_overloaded_server_is_lost_and_a_wrong_path_is_an_error(server: Callable[[Answer], str]) -> None:
    with pytest.raises(ServerLost, match="503"):
        find_segmenter(server(lambda body: (503, b"")))
    with pytest.raises(UserError, match="/segment"):
        find_segmenter(server(lambda body: (404, b"")))


def test_nobody_there_and_no_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ServerLost, match="no server answers"):
        find_segmenter(f"http://127.0.0.1:{port}")
    with pytest.raises(UserError, match="uses http or https"):
        find_segmenter("ws://host:1")
