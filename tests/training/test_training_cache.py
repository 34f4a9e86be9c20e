"""Caches are written completely, checked when opened, made again where damaged, and shared by several trainings."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from scripted import demonstration
from test_training_pretrain import SIZES

from apt_bench.core.digests import DIGESTS
from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive
from apt_bench.training.cache import alone, entry
from apt_bench.training.config import OBSERVATIONS_PER_SCENE
from apt_bench.training.progress import Report
from apt_bench.training.recipe import load_recipe
from apt_bench.training.samples.frames import FrameStore, open_frames
from apt_bench.training.session import Session
from apt_bench.training.two_stage import run_recipe, stage_checkpoint
from apt_bench.training.vlm_pretraining.scenes import (
    OBJECTS,
    Rendered,
    RenderedObject,
    open_scene_images,
)
from apt_bench.training.vlm_pretraining.tabletop_scenes import TabletopScenes

STEPS = [np.arange(14), np.arange(0, 14, 2)]


def frames(cache: Path, said: list[str] | None = None, load: Callable = demonstration) -> FrameStore:
    say = (said if said is not None else []).append
    return open_frames(load, STEPS, ("agentview",), (64, 64), "key", cache, None, say)


class OneBowl(TabletopScenes):
    """Renders the same grey images of one bowl, without a simulator, and counts how often."""

    def __init__(self) -> None:
        super().__init__()
        self.rendered: list[range] = []

    def render(self, scenes: range) -> Iterator[Rendered]:
        self.rendered.append(scenes)
        mask = np.zeros((64, 64), bool)
        mask[20:40, 20:40] = True
        for _ in range(OBSERVATIONS_PER_SCENE * len(scenes)):
            image = np.full((64, 64, 3), 90, np.uint8)
            yield Rendered((image, image), (RenderedObject("bowl", ("bowl",), (mask, mask)),))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def damage(kind: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        meta = json.loads((folder / "meta.json").read_text())
        (folder / DIGESTS).unlink()  # as of an older version, so that reading itself must notice
        strange = {
            "empty": "",
            "a list": "[]",
            "no shape": json.dumps({k: v for k, v in meta.items() if k != "shape"}),
            "terabytes": json.dumps({**meta, "shape": [10**12, 1, 64, 64, 3]}),
            "negative": json.dumps({**meta, "native": [-1, 64]}),
            "text": json.dumps({**meta, "native": "64"}),
            "infinite": '{"shape": [1e400], "native": [64, 64], "hash": ""}',
        }
        (folder / "meta.json").write_text(strange[kind])

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda f: flip(f / "images.u8"),
        lambda f: flip(f / "meta.json"),
        lambda f: (f / "images.u8").write_bytes(b"short"),
        lambda f: (f / "images.u8").unlink(),
        lambda f: (f / DIGESTS).write_text("{"),
        *map(damage, ("empty", "a list", "no shape", "terabytes", "negative", "text", "infinite")),
    ],
)
def test_a_damaged_entry_is_made_anew_and_that_is_said(tmp_path: Path, change: Callable) -> None:
    whole = np.array(frames(tmp_path).images)
    (folder,) = (tmp_path / "frames").iterdir()
    change(folder)
    said: list[str] = []
    np.testing.assert_array_equal(frames(tmp_path, said).images, whole)
    assert len(said) == 1
    assert said[0].startswith(f"The cache {folder} is damaged (")
    assert said[0].endswith("It is made again.")
    assert frames(tmp_path, said, load=None) is not None  # type: ignore[arg-type]  # and not a second time


def test_a_whole_entry_of_an_older_version_is_kept(tmp_path: Path) -> None:
    frames(tmp_path)
    (folder,) = (tmp_path / "frames").iterdir()
    (folder / DIGESTS).unlink()
    frames(tmp_path, load=None)  # type: ignore[arg-type]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    frames(tmp_path)
    (folder,) = (tmp_path / "frames").iterdir()
    shutil.rmtree(folder)
    stale = folder.with_name(f"{folder.name}.123.part")
    stale.mkdir()
    (stale / "images.u8").write_bytes(b"half")
    frames(tmp_path)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_an_interrupted_entry_leaves_nothing_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    def interrupted(index: int) -> object:
        if index:
            raise KeyboardInterrupt
        return demonstration(index)

    with pytest.raises(KeyboardInterrupt):
        frames(tmp_path, said, load=interrupted)
    assert not list((tmp_path / "frames").iterdir())
    assert "The partial entry is deleted" in said[0]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    def make(part: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        UserError, match=r"cannot be written: No space left on device. Choose another with --cache"
    ):
        entry(tmp_path / "frames" / "x", make, lambda folder: folder)
    assert not list((tmp_path / "frames").iterdir())


def test_one_makes_an_entry_while_the_other_waits(tmp_path: Path) -> None:
    made, said = [], []

    def make(part: Path) -> None:
        time.sleep(0.3)
        made.append(part)
        (part / "x").write_bytes(b"1")

    def use() -> None:
        found = entry(
            tmp_path / "kind" / "name", make, lambda folder: (folder / "x").read_bytes(), said.append
        )
        assert found == b"1"

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert any("Waiting for another process" in text for text in said)


def test_the_wait_ends_when_the_other_process_does(tmp_path: Path) -> None:
    held = exclusive(tmp_path / "locks" / "demos-a", "apt-bench train")
    held.__enter__()
    threading.Timer(0.3, held.__exit__, (None, None, None)).start()
    with alone(tmp_path / "demos" / "a", lambda _: None) as locked:
        assert locked


def test_two_trainings_share_a_cache_at_once(config: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(config), {"stage1": {"steps": 2}, "stage2": {"steps": 2}})
    runs = [Session(tmp_path / name, tmp_path / "cache", Report(None)) for name in ("a", "b")]
    processes = [get_context("fork").Process(target=run_recipe, args=(recipe, run)) for run in runs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    a, b = (stage_checkpoint(run.out, 2) / "model.safetensors" for run in runs)
    assert a.read_bytes() == b.read_bytes()
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize(
    "stored",
    [
        "[]",
        "{}",
        '[[["nothing", ["it"], [[0.5, 0.5], null]]], []]',
        '[[[["unheard_of"], ["it"], [[0.5, 0.5], null]]], []]',
        '[[["bowl", ["bowl"], [[1e9, 0.5], null]]], []]',
        '[[["bowl", [], [[0.5, 0.5], null]]], []]',
        '[[["bowl", ["bowl"], [[0.5, 0.5]]]], []]',
        "[[3], []]",
        "[[[]], []]",
    ],
)
def test_strange_metadata_of_rendered_scenes_are_made_anew(tmp_path: Path, stored: str) -> None:
    source = OneBowl()
    whole = open_scene_images(source, SIZES, 1, tmp_path)
    (folder,) = (tmp_path / "pictures").iterdir()
    (folder / OBJECTS).write_text(stored)
    (folder / DIGESTS).unlink()
    said: list[str] = []
    again = open_scene_images(source, SIZES, 1, tmp_path, say=said.append)
    assert again.objects == whole.objects
    assert len(source.rendered) == 2
    assert "It is made again" in said[0]
