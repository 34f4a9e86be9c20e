"""Every field of a LeRobotDataset's metadata and every column is checked; the message names the file and the field."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from apt_bench.core.errors import UserError
from apt_bench.demos.dataset import open_demos
from apt_bench.demos.lerobot_writer import LeRobotWriter
from tests.demos.samples import sample

T = 4
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
WRIST = "observation.images.wrist"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "set"
    writer = LeRobotWriter(root)
    for i in range(2):
        writer.add(sample(i, steps=T, size=16))
    writer.close()
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info, ensure_ascii=False), "utf-8")


def replaced(root: Path, name: str, column: str, value: pa.Array | None) -> None:
    table = pq.read_table(root / name)
    at = table.column_names.index(column)
    pq.write_table(
        table.drop_columns([column]) if value is None else table.set_column(at, column, value), root / name
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("codebase_version", 3),
        ("codebase_version", None),
        ("codebase_version", "v3\nx"),
        ("fps", 0),
        ("fps", -20),
        ("fps", True),
        ("fps", "twenty"),
        ("fps", None),
        ("fps", 29.97),
        ("fps", 10**9),
        ("total_episodes", -1),
        ("total_episodes", "2"),
        ("total_episodes", 3),
        ("total_frames", "many"),
        ("total_frames", 1.5),
        ("chunks_size", []),
        ("features", None),
        ("features", []),
        ("features/action", None),
        ("features/action", "float32"),
        ("features/action/dtype", None),
        ("features/action/dtype", "string"),
        ("features/action/shape", 7),
        ("features/action/shape", [7, 1]),
        ("features/action/shape", [960_000]),
        ("features/action/shape", ["7"]),
        ("features/observation.state/shape", [7]),
        ("features/joints/shape", [0]),
        ("features/camera.wrist.K/shape", [8]),
        ("features/camera.wrist.pose", None),
        (f"features/{WRIST}/shape", [16, 16]),
        (f"features/{WRIST}/shape", [16, 16, 4]),
        (f"features/{WRIST}/shape", [-16, 16, 3]),
        (f"features/{WRIST}/shape", "16x16"),
        (f"features/{WRIST}/names", ["height"]),
        (f"features/{WRIST}/names", [1, 2, 3]),
        ("data_path", None),
        ("data_path", 3),
        ("video_path", ""),
    ],
)
def test_a_field_of_info_that_cannot_be_meant_is_named(root: Path, path: str, value: Any) -> None:
    def change(info: dict[str, Any]) -> None:
        *above, last = path.split("/")
        for key in above:
            info = info[key]
        info.pop(last) if value is None and above else info.__setitem__(last, value)

    edit(root, change)
    with pytest.raises(UserError) as error:
        list(open_demos(root))
    text = str(error.value)
    assert str(root) in text
    assert "Copy it again" not in text
    assert path.split("/")[1 if "/" in path else 0].split(".")[0] in text or path == "video_path"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": 1, "a": 2}', '{"fps": NaN}', "\x00", "[" * 10_000]
)
def test_info_that_is_no_object_of_json_is_named(root: Path, text: str) -> None:
    (root / "meta/info.json").write_text(text)
    with pytest.raises(UserError, match=r"info\.json"):
        open_demos(root)


def test_names_and_sentences_in_any_script_do_not_need_a_locale(root: Path) -> None:
    import subprocess
    import sys

    edit(root, lambda i: i.update(robot_type="パンダ"))
    code = "import sys; from apt_bench.demos.dataset import open_demos; print(len(open_demos(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "2\n", done.stderr


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("episode_index", pa.array([0, 0])),
        ("episode_index", pa.array([0, -1])),
        ("episode_index", pa.array([0, None])),
        ("episode_index", pa.array(["0", "1"])),
        ("length", pa.array([T, 0])),
        ("length", pa.array([T, T + 1])),
        ("length", pa.array([T, 10**9])),
        ("length", pa.array([4.0, 4.0])),
        ("length", None),
        ("tasks", pa.array(["a", "b"])),
        ("tasks", pa.array([["a"], []])),
        ("tasks", pa.array([[1], [2]])),
        ("data/chunk_index", pa.array([0, -1])),
        ("data/file_index", pa.array([0, 7])),
        (f"videos/{WRIST}/file_index", pa.array([0, 10**7])),
        (f"videos/{WRIST}/from_timestamp", pa.array([0.0, float("nan")])),
        (f"videos/{WRIST}/from_timestamp", pa.array([0.0, -1.0])),
        (f"videos/{WRIST}/from_timestamp", pa.array([0.0, 1e300])),
        (f"videos/{WRIST}/from_timestamp", pa.array([0.0, 50.0])),
        ("apt", pa.array(["{}", "{}"])),
        ("apt", pa.array(["[", "["])),
        ("apt", pa.array([1, 2])),
    ],
)
def test_a_cell_of_the_episodes_table_that_cannot_be_meant_is_named(
    root: Path, column: str, value: pa.Array | None
) -> None:
    replaced(root, EPISODES, column, value)
    with pytest.raises(UserError, match=r"meta/episodes/|data/chunk|videos/"):
        list(open_demos(root))


def test_an_instruction_that_is_empty_is_named(root: Path) -> None:
    replaced(root, EPISODES, "apt", None)
    replaced(root, EPISODES, "tasks", pa.array([["a"], [" "]]))
    with pytest.raises(UserError, match=r"file-000\.parquet: row 1: an instruction has 1 characters"):
        open_demos(root)


def lists(width: int, rows: int = 2 * T, kind: str = "float32", value: float = 0.0) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.full(rows * width, value, kind)), width)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("action", None),
        ("action", lists(6)),
        ("action", lists(7, value=np.nan)),
        ("action", pa.array(np.zeros(2 * T))),
        ("action", pa.array(["x"] * 2 * T)),
        ("action", pa.array([[0.0] * (6 if i % 2 else 8) for i in range(2 * T)])),
        ("action", pa.array([None] * 2 * T, pa.list_(pa.float32()))),
        ("action", pa.array([[None] * 7] * 2 * T, pa.list_(pa.float32()))),
        ("observation.state", lists(8, kind="float64", value=1e300)),
        ("observation.state", lists(8, value=np.inf)),
        ("joints", lists(6)),
        ("camera.wrist.K", lists(9)),
        ("camera.wrist.pose", lists(16)),
        ("frame_index", pa.array([0] * 2 * T)),
        ("frame_index", pa.array([*range(T - 1, -1, -1)] * 2)),
        ("episode_index", pa.array([0] * 2 * T)),
        ("episode_index", pa.array([0.0] * 2 * T)),
        ("episode_index", None),
    ],
)
def test_a_column_that_cannot_be_meant_is_named(root: Path, column: str, value: pa.Array | None) -> None:
    replaced(root, DATA, column, value)
    with pytest.raises(UserError, match=r"data/chunk-000/file-000\.parquet"):
        list(open_demos(root))


def test_v21_is_told_the_converter_that_exists(root: Path) -> None:
    edit(root, lambda i: i.update(codebase_version="v2.1"))
    with pytest.raises(
        UserError, match=r"python -m lerobot\.scripts\.convert_dataset_v21_to_v30 --repo-id"
    ) as error:
        open_demos(root)
    assert "lerobot.datasets.v30.convert_dataset_v21_to_v30" in str(error.value)


def test_stored_images_must_have_the_declared_size(root: Path) -> None:
    import io

    from PIL import Image

    def png(side: int) -> dict[str, Any]:
        stream = io.BytesIO()
        Image.fromarray(np.full((side, side, 3), 9, np.uint8)).save(stream, "PNG")
        return {"bytes": stream.getvalue(), "path": None}

    edit(root, lambda i: i["features"][WRIST].update(dtype="image"))
    table = pq.read_table(root / DATA)
    for cells, message in (
        ([png(16)] * 2 * T, None),
        ([png(20)] * 2 * T, "has 20x20 pixels; info.json declares 16x16"),
        ([{"bytes": b"GIF89a", "path": None}] * 2 * T, "is not a complete image"),
        ([{"bytes": png(16)["bytes"][:60], "path": None}] * 2 * T, "is not a complete image"),
        ([{"bytes": None, "path": "/etc/passwd"}] * 2 * T, "must hold the bytes of PNG or JPEG"),
    ):
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(table.append_column(WRIST, pa.array(cells, kind)), root / DATA)
        if message is None:
            assert (open_demos(root, cameras=["wrist"])[1].images["wrist"] == 9).all()
            continue
        with pytest.raises(UserError, match=message):
            open_demos(root, cameras=["wrist"])[1]


# --- It cannot make its reader leave it


def test_the_episodes_table_cannot_lie_behind_a_link_out_of_the_dataset(root: Path, tmp_path: Path):
    (table,) = (root / "meta/episodes").glob("*/*.parquet")
    elsewhere = tmp_path / "elsewhere.parquet"
    table.rename(elsewhere)
    table.symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a link out of the dataset"):
        open_demos(root)


@pytest.mark.parametrize(
    "template",
    [
        "../../x",
        "/etc/passwd",
        "data/../../other/{file_index:03d}.parquet",
        "data/{file_index:0999999999d}.parquet",
        "data/{file_index:>99999999}",
        "data/{file_index.__class__}",
        "data/{0}",
        "data/{}",
        "data/{secret}",
        "data/{{file_index}}",
        "data/\x00",
        "~/x/../../..",
        "http://example.org/x.parquet",
        "link/file-000.parquet",
        "{chunk_index!r}",
        "x" * 100_000,
    ],
)
@pytest.mark.parametrize("field", ["data_path", "video_path"])
def test_a_path_cannot_leave_the_data_set(root: Path, field: str, template: str) -> None:
    (root / "link").symlink_to(root.parent)
    edit(root, lambda i: i.update({field: template}))
    with pytest.raises(UserError, match=str(root)):
        list(open_demos(root))


def test_an_escape_in_a_cameras_name_stays_inside(root: Path) -> None:
    key = "observation.images.../../../../x"
    edit(root, lambda i: i["features"].update({key: i["features"][WRIST]}))
    table = pq.read_table(root / EPISODES)
    for name in ("chunk_index", "file_index", "from_timestamp"):
        table = table.append_column(f"videos/{key}/{name}", table[f"videos/{WRIST}/{name}"])
    pq.write_table(table, root / EPISODES)
    with pytest.raises(UserError, match="outside the dataset"):
        open_demos(root)[0]


def test_the_hubs_cache_of_links_is_read(whole: Path, tmp_path: Path) -> None:
    """huggingface_hub keeps contents in `blobs` beside the snapshots, which link to them."""
    home = tmp_path / "datasets--a--b"
    snapshot = home / "snapshots/0123abc"
    (home / "blobs").mkdir(parents=True)
    for n, file in enumerate(f for f in whole.rglob("*") if f.is_file()):
        shutil.copy(file, home / f"blobs/{n}")
        link = snapshot / file.relative_to(whole)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(home / f"blobs/{n}")
    assert len(list(open_demos(snapshot))) == 2


def test_a_video_that_is_a_play_list_names_no_other_file(root: Path) -> None:
    """ffmpeg would take it for one by its content."""
    shutil.copy(root / f"videos/{WRIST}/chunk-000/file-000.mp4", root / f"videos/{WRIST}/chunk-000/other.mp4")
    other = root / "videos/observation.images.agentview/chunk-000/file-000.mp4"
    path = root / f"videos/{WRIST}/chunk-000/file-000.mp4"
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{other}'\n",
        "ffconcat version 1.0\nfile other.mp4\n",
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=rf"{WRIST}/chunk-000/file-000\.mp4 is damaged"):
            open_demos(root, cameras=["wrist"])[0]


def test_a_count_that_info_leaves_out_is_no_error(root: Path) -> None:
    edit(root, lambda i: i.update(total_episodes=None))
    assert len(open_demos(root)) == 2
