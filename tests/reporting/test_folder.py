"""A report removes the files of an earlier report and no others, and exists completely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import add, record, write_run

from apt_bench.analysis.run import Run, load_run
from apt_bench.core.errors import UserError
from apt_bench.reporting import report
from apt_bench.reporting.output_folder import MANIFEST, PAGE, WORK, replaced
from apt_bench.reporting.videos import gather, poster
from apt_bench.runs.records import RunStore


def tree(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def fill(out: Path, **files: str) -> None:
    with replaced(out) as new:
        for name, text in files.items():
            path = new / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return load_run(write_run(tmp_path / "run", lambda c, t, i: True, {}))


@pytest.mark.parametrize(
    "name", ["figures/mine.png", "tables/mine.csv", "videos/mine.mp4", "report.html", "notes.txt", "a/b"]
)
def test_a_folder_that_is_no_report_is_refused_and_stays(tmp_path: Path, run: Run, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("mine")
    before = tree(out)
    with pytest.raises(UserError, match=f"out is not empty and holds no report .*{name.split('/')[0]}"):
        report.write_report([run], out)
    assert tree(out) == before
    assert not (out / WORK).exists()


def test_a_new_report_replaces_the_old_one_and_leaves_other_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, **{"tables__a.csv": "1", "tables__b.csv": "1", "videos__v.mp4": "1", PAGE: "1"})
    mine = {"notes.txt": b"mine", "tables/mine.csv": b"mine", "videos/deep/mine.txt": b"mine"}
    for name, content in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(content)
    fill(out, **{"tables__a.csv": "2", "figures__c.png": "2", PAGE: "2"})
    found = tree(out)
    assert json.loads(found.pop(MANIFEST))["files"] == ["figures/c.png", PAGE, "tables/a.csv"]
    assert found == {"tables/a.csv": b"2", "figures/c.png": b"2", PAGE: b"2", **mine}
    fill(out, **{PAGE: "3"})
    assert tree(out).keys() == {MANIFEST, PAGE, *mine}


def test_a_file_of_someone_else_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    fill(out, **{"tables__a.csv": "1", PAGE: "1"})
    (out / "tables" / "b.csv").write_text("mine")
    before = tree(out)
    with pytest.raises(UserError, match=r"b\.csv does not belong to an earlier report"):
        fill(out, **{"tables__b.csv": "2", PAGE: "2"})
    assert tree(out) == before


def test_a_link_in_place_of_a_folder_is_not_followed(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "a.csv").write_text("mine")
    fill(out, **{PAGE: "1"})
    (out / "tables").symlink_to(other)
    with pytest.raises(UserError, match="tables does not belong to an earlier report"):
        fill(out, **{"tables__a.csv": "2", PAGE: "2"})
    assert tree(other) == {"a.csv": b"mine"}


def test_a_report_of_a_version_without_a_manifest_is_replaced_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / PAGE).write_text('<head><meta name="generator" content="apt-bench 0.1.0">')
    (out / "tables" / "a.csv").write_text("old")
    (out / "tables" / "b.csv").write_text("old or mine")
    fill(out, **{"tables__a.csv": "2", PAGE: "2"})
    assert {k: v for k, v in tree(out).items() if k != MANIFEST} == {
        PAGE: b"2", "tables/a.csv": b"2", "tables/b.csv": b"old or mine",
    }  # fmt: skip


def test_a_report_that_fails_half_way_leaves_the_earlier_one(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.Report, "figure", lambda *_: None)  # seconds each, and not what this is about
    out = tmp_path / "out"
    report.write_report([run], out)
    before = tree(out)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "render", full)
    with pytest.raises(UserError, match=f"Cannot write the report to {out}: No space left on device"):
        report.write_report([run], out)
    assert tree(out) == before
    with pytest.raises(UserError, match="No space left"):
        report.write_report([run], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(report, "render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_report([run], out)
    assert tree(out) == before


def test_a_swap_that_fails_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    old = {"tables__a.csv": "1", "figures__a.png": "1", "videos__v.mp4": "1", PAGE: "1"}
    fill(out, **old)
    (out / "tables" / "mine.csv").write_text("mine")
    before = tree(out)
    rename = Path.rename
    for number in range(1, 11):
        left = number

        def failing(source: Path, target: Path) -> Path:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(5, "Input/output error")
            return rename(source, target)

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(UserError, match="Input/output error"):
            fill(out, **dict.fromkeys(old, "2"))
        monkeypatch.undo()
        assert tree(out) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from apt_bench.reporting.output_folder import replaced
left, rename = int(sys.argv[2]), Path.rename
def killing(source, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(source, target)
Path.rename = killing
with replaced(Path(sys.argv[1])) as new:
    for name in ("tables", "figures"):
        (new / name).mkdir()
        (new / name / "a").write_text("2")
    (new / "report.html").write_text("2")
"""


@pytest.mark.parametrize("number", [1, 3, 4, 6, 8])
def test_after_a_kill_the_next_report_is_whole_and_nothing_of_others_is_lost(
    tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    fill(out, **{"tables__a": "1", "tables__old": "1", "videos__v": "1", PAGE: "1"})
    (out / "tables" / "mine").write_text("mine")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out), str(number)], check=False)
    assert killed.returncode == -signal.SIGKILL
    fill(out, **{"tables__a": "3", "figures__b": "3", PAGE: "3"})
    found = tree(out)
    del found[MANIFEST]
    assert found == {"tables/a": b"3", "figures/b": b"3", PAGE: b"3", "tables/mine": b"mine"}


def test_two_reports_at_a_time_into_one_folder_are_refused(tmp_path: Path) -> None:
    with replaced(tmp_path / "out") as new:
        (new / PAGE).write_text("1")
        with (
            pytest.raises(UserError, match="Another apt-bench report is writing"),
            replaced(tmp_path / "out"),
        ):
            pass
    assert (tmp_path / "out" / PAGE).read_text() == "1"


def test_a_manifest_names_no_file_to_delete_elsewhere(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "x").write_text("mine")
    fill(out, **{"tables__a": "1", PAGE: "1"})
    (out / MANIFEST).write_text(json.dumps({"files": ["../x", str(tmp_path / "x"), "tables/a", PAGE, 3]}))
    fill(out, **{PAGE: "2"})
    assert (tmp_path / "x").read_text() == "mine"
    for damaged in ("", "[]", '{"files": 3}'):
        (out / MANIFEST).write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            fill(out, **{PAGE: "3"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(UserError, match="Cannot write"):
        fill(tmp_path / "shut", **{PAGE: "1"})


def test_only_videos_of_the_run_itself_are_copied(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(b"secret")
    deep = path / "videos" / "cell"
    deep.mkdir(parents=True)
    (deep / "good.mp4").write_bytes(b"good")
    (path / "videos" / "list.m3u8").write_text("#EXTM3U\nfile:///etc/passwd\n")
    (path / "videos" / "link.mp4").symlink_to(secret)
    (path / "videos" / "folder.mp4").mkdir()
    os.mkfifo(path / "videos" / "pipe.mp4")
    (path / "other.mp4").write_bytes(b"other")
    (path / "videos" / "sparse.mp4").touch()
    os.truncate(path / "videos" / "sparse.mp4", 2**40)
    names = [
        "videos/cell/good.mp4", "../../etc/passwd", "/etc/passwd", str(secret), "../secret.mp4", "other.mp4",
        "videos/../other.mp4", "videos/../../secret.mp4", "videos/link.mp4", "videos/list.m3u8", "run.json",
        "videos/folder.mp4", "videos/pipe.mp4", "videos/none.mp4", "videos", "", "videos/\0.mp4", "videos/" + "x" * 300,
        "videos/sparse.mp4", "protocol.json", "videos//cell/good.mp4/..", "http://127.0.0.1/x.mp4",
    ]  # fmt: skip
    add(path, *(record("goal_pos", "t", i, True, video=name) for i, name in enumerate(names)))
    assert [v["href"] for v in gather([load_run(path)], tmp_path)] == ["videos/01_good.mp4"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "videos").iterdir()} == {"01_good.mp4": b"good"}


def test_videos_behind_a_link_that_leaves_the_run_are_not_copied(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", lambda c, t, i: True, {})
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "a.mp4").write_bytes(b"secret")
    (path / "videos").symlink_to(tmp_path / "private")
    add(path, record("goal_pos", "t", 0, True, video="videos/a.mp4"))
    assert gather([load_run(path)], tmp_path) == []
    assert not (tmp_path / "videos").exists()


def test_a_poster_is_of_the_video_and_follows_no_playlist(tmp_path: Path) -> None:
    playlist = tmp_path / "a.mp4"
    playlist.write_text("ffconcat version 1.0\nfile b.mp4\n")
    import imageio_ffmpeg

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    red = ["-f", "lavfi", "-i", "color=c=red:s=64x64:d=0.5"]
    subprocess.run([ffmpeg, "-v", "error", *red, str(tmp_path / "b.mp4")], check=True)
    assert poster(tmp_path / "b.mp4").startswith("data:image/jpeg")
    assert poster(playlist) == ""


def test_a_run_that_vanishes_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no run"):
        load_run(tmp_path / "gone")
    path = write_run(tmp_path / "run", lambda c, t, i: True, {"goal_pos": 1})
    protocol = RunStore.protocol

    def vanishing(store: RunStore) -> dict[str, object]:
        card = protocol(store)
        shutil.rmtree(path)
        return card

    monkeypatch.setattr(RunStore, "protocol", vanishing)
    with pytest.raises(UserError, match=str(path)):
        load_run(path)


def test_a_pipe_in_the_place_of_an_old_page_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / PAGE)
    with pytest.raises(UserError, match="holds no report"), replaced(tmp_path):
        pass
    assert (tmp_path / PAGE).exists()
