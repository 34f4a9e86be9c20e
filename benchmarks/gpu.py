"""Measure on one machine everything that a GPU changes, in at most 9 minutes.

    python benchmarks/gpu.py --out results/gpu/NAME
    python benchmarks/gpu.py --out FOLDER --tiny                      # small shapes, also on a CPU
    python benchmarks/gpu.py --out FOLDER --wheels WHEELS             # first install apt-bench from a folder of wheels

The parts: the machine and its matrix products; rendering, with the images of two processes compared; rollouts per
minute with 1 to 16 workers; sampling and training at the shape of Qwen3-VL-2B, with random weights. Each part runs in a
process of its own with a time limit. A part that fails, takes too long or lacks a GPU is named in the table.
`gpu.json` and `gpu.md` in FOLDER are written again after each part, so an interrupted run keeps what it measured. This
process imports only the standard library; `gpu_parts.py` has the parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 540.0
"""Time limit of the whole script."""

WORKERS = (1, 2, 4, 8, 16)
POLICIES = ("zero", "apt_mini")
MODES = ("frozen", "lora", "full")


@dataclasses.dataclass(frozen=True)
class Part:
    """One process: its name, its time limit in seconds, and whether it needs a GPU unless shapes are tiny."""

    name: str
    seconds: float
    gpu: bool = False


PARTS = (
    Part("machine", 30),
    Part("rendering", 40),
    Part("rendering again", 30),
    *(Part(f"sampling {kind}", s, gpu=True) for kind, s in (("eager", 40), ("bf16", 30), ("compiled", 70))),
    Part("training stage1", 30, gpu=True),
    *(Part(f"training {mode}", 40, gpu=True) for mode in MODES),
    *(Part(f"rollouts {policy} {n}", 25) for policy in POLICIES for n in WORKERS),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="small shapes: tests the script itself")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time limit of the whole script")
    parser.add_argument("--only", default="", help="run only parts whose name begins with this text")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install into FOLDER/venv first")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        sys.path.insert(0, str(ROOT))
        from benchmarks.gpu_parts import run_part

        run_part(args.part, args.out, args.tiny)
        return
    end = time.monotonic() + args.seconds
    args.out.mkdir(parents=True, exist_ok=True)
    python = install(args.wheels, args.out, end) if args.wheels else sys.executable
    report: dict[str, Any] = {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "tiny": args.tiny,
        "parts": {},
    }
    for part in PARTS:
        if part.name.startswith(args.only):
            report["parts"][part.name] = measure(part, python, args, report, end)
            write(report, args.out)
            print(f"{part.name}: {report['parts'][part.name]['status']}", flush=True)
    print(f"\n{(args.out / 'gpu.md').read_text()}")


def install(wheels: Path, out: Path, end: float) -> str:
    """Make a virtual environment with apt-bench from a folder of wheels. Returns its Python."""
    python = str(out / "venv/bin/python")
    options = ["--no-index", "--find-links", str(wheels)]
    for command in (
        [sys.executable, "-m", "venv", str(out / "venv")],
        [python, "-m", "pip", "install", "-q", *options, "apt-bench"],
    ):
        subprocess.run(command, check=True, timeout=max(1, end - time.monotonic()))
    return python


def measure(
    part: Part, python: str, args: argparse.Namespace, report: dict[str, Any], end: float
) -> dict[str, Any]:
    """Run one part in its own process group, and end the group when its time is over."""
    machine = {row["what"]: row["value"] for row in report["parts"].get("machine", {}).get("rows", ())}
    if part.gpu and not args.tiny and not machine.get("GPUs", 0):
        return {"status": "skipped: no GPU", "rows": []}
    words = part.name.split()
    if words[0] == "rollouts" and int(words[2]) > machine.get("CPU cores", os.cpu_count()):
        return {"status": "skipped: fewer cores than workers", "rows": []}
    limit = min(part.seconds * (4 if args.tiny else 1), end - time.monotonic() - 5)
    if limit < 5:
        return {"status": "skipped: no time left", "rows": []}
    folder = args.out / "parts"
    folder.mkdir(exist_ok=True)
    rows, log = (folder / f"{part.name.replace(' ', '-')}.{end}" for end in ("jsonl", "log"))
    rows.unlink(missing_ok=True)
    command = [python, __file__, "--part", part.name, "--out", str(rows), *(["--tiny"] if args.tiny else [])]
    began = time.monotonic()
    with open(log, "wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=os.environ
            | {"APT_BENCH_GPU_SECONDS": str(limit - 3)}
            | ({"OMP_NUM_THREADS": "1"} if args.tiny else {}),
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        except KeyboardInterrupt:
            end_group(process)
            raise
        end_group(process)
    status = "measured" if code == 0 else "took too long" if code is None else f"failed: {last_line(log)}"
    found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    return {"status": status, "seconds": round(time.monotonic() - began, 1), "rows": found}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the part's processes: by SIGTERM, then by SIGKILL. A rollout starts some of its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)


def last_line(log: Path) -> str:
    """The last line that a part printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "without a message"


def write(report: dict[str, Any], out: Path) -> None:
    """Write both files."""
    parts = report["parts"]
    if {"rendering", "rendering again"} <= parts.keys():
        one, two = (
            {row["what"]: row["images"] for row in parts[n]["rows"]} for n in ("rendering", "rendering again")
        )
        shared = one.keys() & two.keys()
        report["images equal in two processes"] = [
            f"{sum(one[k] == two[k] for k in shared)} of {len(shared)}"
        ]
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = ["| part | what | value | unit |", "|---|---|---:|---|"]
    for name, part in parts.items():
        lines += [f"| {name} | {row['what']} | {row['value']} | {row['unit']} |" for row in part["rows"]]
        if part["status"] != "measured":
            lines.append(f"| {name} | {part['status'].replace('|', '/')} | | |")
    for text in report.get("images equal in two processes", ()):
        lines.append(f"| rendering | scenes whose images are equal in two processes | {text} | |")
    (out / "gpu.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
