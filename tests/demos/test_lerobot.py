import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.lerobot_writer import LeRobotWriter
from tests.demos.samples import sample


def write(root: Path, *inits: int, **options: int) -> None:
    writer = LeRobotWriter(root)
    for init in inits:
        writer.add(sample(init, **options))  # type: ignore[arg-type]
    writer.close()


def test_numbers_come_back_exactly_and_images_nearly(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    write(tmp_path, 2)  # a second session appends
    found = open_demos(tmp_path)
    assert len(found) == 3
    for init, read in enumerate(found):
        demo = sample(init)
        assert read.info == demo.info
        np.testing.assert_array_equal(read.state, demo.state)
        np.testing.assert_array_equal(read.actions, demo.actions)
        np.testing.assert_array_equal(read.cameras["wrist"].pose, demo.cameras["wrist"].pose)
        np.testing.assert_array_equal(read.cameras["agentview"].K, demo.cameras["agentview"].K)
        for name, images in demo.images.items():
            error = np.abs(read.images[name].astype(int) - images)
            # the right frames, upright: a square that is one step off would differ by hundreds at its edges
            assert error.mean() < 4
            assert np.abs(error.mean((1, 2, 3)) - error.mean()).max() < 2
    assert open_demos(tmp_path, cameras=[])[0].images == {}


def test_files_follow_the_specification(tmp_path: Path) -> None:
    write(tmp_path, 0, 1)
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"], info["fps"]) == (2, 46, 1, 20)
    assert info["splits"] == {"train": "0:2"}
    episodes = pd.read_parquet(tmp_path / "meta/episodes/chunk-000/file-000.parquet")
    assert episodes["length"].tolist() == [23, 23]
    assert episodes["dataset_from_index"].tolist() == [0, 23]
    assert episodes["tasks"][0].tolist() == ["put the bowl on the plate"]
    video = "videos/observation.images.agentview"
    assert episodes[f"{video}/from_timestamp"].tolist() == pytest.approx([0, 1.15])
    assert episodes[f"{video}/to_timestamp"].tolist() == pytest.approx([1.15, 2.3])
    tasks = pd.read_parquet(tmp_path / "meta/tasks.parquet")
    assert tasks.loc["put the bowl on the plate"].task_index == 0
    data = pd.read_parquet(tmp_path / "data/chunk-000/file-000.parquet")
    assert data["index"].tolist() == list(range(46))
    assert data["frame_index"].tolist() == [*range(23), *range(23)]
    np.testing.assert_allclose(data["timestamp"][24], 0.05)
    assert set(data.columns) == {k for k, f in info["features"].items() if f["dtype"] != "video"}
    for key, feature in info["features"].items():
        if feature["dtype"] == "video":
            path = info["video_path"].format(video_key=key, chunk_index=0, file_index=0)
            assert (tmp_path / path).stat().st_size > 1000
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    both = np.concatenate([sample(0).state, sample(1).state]).astype(float)
    np.testing.assert_allclose(stats["observation.state"]["mean"], both.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["observation.state"]["std"], both.std(0), atol=1e-6)
    assert np.shape(stats["observation.images.wrist"]["mean"]) == (3, 1, 1)


def test_each_row_has_the_sentence_in_force(tmp_path: Path) -> None:
    demo = sample()
    demo = dataclasses.replace(demo, info=dataclasses.replace(demo.info, later=((9, "now close the lid"),)))
    writer = LeRobotWriter(tmp_path)
    for one in (sample(1), demo):
        writer.add(one)
    writer.close()
    data = pd.read_parquet(tmp_path / "data/chunk-000/file-000.parquet")
    assert data["task_index"].tolist() == [0] * 23 + [0] * 9 + [1] * 14
    read = open_demos(tmp_path, cameras=[])[1]
    assert read.instructions == ["put the bowl on the plate"] * 9 + ["now close the lid"] * 14
    assert read.info == demo.info


def test_a_writer_that_dies_leaves_the_data_set_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 0)
    died = LeRobotWriter(tmp_path)
    died.add(sample(1))
    died._finish_files()  # its files lie there, the index does not know them
    assert [d.info for d in open_demos(tmp_path)] == [sample(0).info]
    write(tmp_path, 2)
    assert [d.info for d in open_demos(tmp_path)] == [sample(0).info, sample(2).info]


def test_bad_data_sets_are_named_with_their_mend(tmp_path: Path) -> None:
    write(tmp_path, 0)
    other = LeRobotWriter(tmp_path)
    with pytest.raises(UserError, match="other features"):
        other.add(sample(1, size=32))
    video = tmp_path / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"file-000\.mp4 is damaged"):
        open_demos(tmp_path)[0]
    video.unlink()
    with pytest.raises(UserError, match="incomplete"):
        open_demos(tmp_path)[0]
    info = json.loads((tmp_path / "meta/info.json").read_text())
    (tmp_path / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(UserError, match=r"v2\.1"):
        open_demos(tmp_path)
    info["features"]["action"]["shape"] = [14]
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="must have 7 numbers"):
        open_demos(tmp_path)
    (tmp_path / "meta/info.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        open_demos(tmp_path)
