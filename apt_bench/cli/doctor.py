"""`apt-bench doctor`: check everything on this machine that a run needs."""

from __future__ import annotations

import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from apt_bench.cli._json import AsJson, print_json, stdout_to_stderr
from apt_bench.cli._options import Cassette, Checkpoint, LlmModel, PolicyArgs, Servers
from apt_bench.core import provenance
from apt_bench.core.config import load_object
from apt_bench.core.errors import UserError, describe_error
from apt_bench.core.machine import cores, free_memory_gb
from apt_bench.core.status import status
from apt_bench.core.text import file_name, literal, one_line, plain_console
from apt_bench.envs import rendering
from apt_bench.envs.base import AGENTVIEW, WRIST
from apt_bench.policies import canaries
from apt_bench.policies.registry import PolicyRef, find_policy, load_baseline
from apt_bench.rollout.cluster import auto_workers, ray_session
from apt_bench.rollout.episode import with_noise_key
from apt_bench.rollout.workers import Result, RolloutWorker, Settings
from apt_bench.suites import Suite, load_suite

DISK_GB = 5.0

DOING = {
    "packages": "Comparing the simulator's files with their hashes",
    "rendering": "Rendering a test image",
    "ray": "Starting Ray",
    "episode": "Running an episode",
    "policy": "Loading the policy and comparing its answers",
}
"""Name of a check -> its status where the check takes long."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor")(doctor_command)


def doctor_command(
    suite: Annotated[str, typer.Option(help="Suite of which one episode is run.")] = "libero_pro",
    policy: Annotated[
        str | None,
        typer.Option(help="Also check whether the answers of this policy depend on its inputs."),
    ] = None,
    policy_arg: PolicyArgs = None,
    checkpoint: Checkpoint = None,
    server: Servers = None,
    llm_model: LlmModel = None,
    cassette: Cassette = None,
    frames: Annotated[
        Path, typer.Option(help="Folder for the images that the policy gets at its first decision.")
    ] = Path("results/doctor"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip Ray and the episode. Takes a few seconds.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine.

    Checks versions, rendering, memory, disk and Ray, and runs one real episode. With --policy it also prints
    what the policy's file says about it, and sends the policy the first observation of the suite, with other images and
    another instruction. Exit code 1: a check failed."""
    chosen = load_suite(suite)
    console = plain_console(sys.stderr if as_json else None)
    checks: dict[str, Callable[[], str]] = {
        "python": lambda: f"{platform.python_version()} on {platform.machine()}, {cores()} cores",
        "packages": lambda: _packages(chosen),
        "rendering": _rendering,
        "memory": _memory,
        "disk": _disk,
    }
    if not quick:
        checks |= {"ray": lambda: _ray(), "episode": lambda: _episode(chosen)}
    if policy is not None:
        llm = {"model": llm_model, "cassette": cassette}
        ref = find_policy(policy, policy_arg or (), checkpoint, server or (), llm)
        if ref.conventions:
            facts = "".join(f"\n  {name}: {text}" for name, text in ref.conventions.items())
            checks["baseline"] = lambda: ref.about + facts
        checks["policy"] = lambda: _policy(chosen, ref, frames / file_name(policy))
    found = []
    with stdout_to_stderr(as_json):
        for name, check in checks.items():
            try:
                with status(DOING.get(name, f"Checking {name}")):
                    ok, text = True, check()
            except Exception as error:  # the other checks still run
                ok = False
                text = str(error) if isinstance(error, UserError) else one_line(describe_error(error))
            found.append({"name": name, "ok": ok, "message": text})
            line = f"{'ok   ' if ok else 'FAIL '} {name}: {text}"
            console.print(literal(line, "green" if ok else "red"), soft_wrap=True)
    code = int(not all(c["ok"] for c in found))
    if as_json:
        print_json({"checks": found, "exit_code": code})
    raise typer.Exit(code)


def _packages(suite: Suite) -> str:
    provenance.require(suite.name, suite.simulator, unpinned=False)
    here = provenance.simulator(suite.simulator)
    files = sum(t.files for p in here for t in p.trees)
    names = ", ".join(f"{p.name} {p.version}" for p in here)
    return f"{names}; {files} files have their hashes" if here else "the suite pins none"


def _rendering() -> str:
    """An image rendered in a process of its own: a GL library that crashes or hangs is reported too."""
    backend = rendering.describe()
    kind = "in software; LIBERO's take about 0.1 s" if backend.software else "on the GPU"
    return f"{backend.name}, {backend.renderer}: an image in {1000 * backend.seconds:.1f} ms ({kind})"


def _memory() -> str:
    free = free_memory_gb()
    if free < 4:
        raise UserError(f"{free:.1f} GB are free; one LIBERO worker may need 4.")
    return f"{free:.1f} GB free: --workers auto means {auto_workers(cores(), free)}"


def _disk() -> str:
    free = shutil.disk_usage(".").free / 1e9
    if free < DISK_GB:
        raise UserError(f"{free:.1f} GB are free here; videos and checkpoints need {DISK_GB:.0f}.")
    return f"{free:.0f} GB free here"


def _ray() -> str:
    start = time.perf_counter()
    with ray_session(None, 1, 1):
        import ray

        ray.get(ray.remote(cores).remote())
    return f"started and answered in {time.perf_counter() - start:.1f} s"


def _episode(suite: Suite) -> str:
    """The zero policy for one episode: simulator, assets and outcome, everything but the policy and its images."""
    ref = load_baseline("zero")
    spec = next(iter(suite.select(episodes=1)))
    worker = RolloutWorker([Settings(ref, ref.load().spec, execute=10)])
    start = time.perf_counter()
    try:
        result: Result = worker.run(spec)
    finally:
        worker.close()
    if result.record is None:
        raise UserError(str(result.fatal or result.error))
    record = result.record
    return f"{spec.key.id}: {record.outcome} after {record.steps} steps, {time.perf_counter() - start:.1f} s"


def _policy(suite: Suite, ref: PolicyRef, folder: Path) -> str:
    """The policy's answers to the first observation of the suite, and that observation's images as PNG."""
    from PIL import Image

    policy = ref.load()
    env = load_object(suite.env)()
    try:
        spec = suite.select(episodes=1)[0]
        observation = env.reset(spec, policy.spec.cameras or (AGENTVIEW, WRIST), policy.spec.privileged)
        observation = with_noise_key(observation, spec)
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in observation.images.items():
            Image.fromarray(image).save(folder / f"{file_name(name)}.png")
        if ref.llm:  # its answers cost money; making it has checked the server and the sandbox
            about = policy.spec.provenance.about
            return "; ".join([f"images in {folder}", *(f"{name}: {text}" for name, text in about.items())])
        found = canaries.check_answers(policy, spec, observation)
    finally:
        env.close()
        policy.close()
    lines = [f"'{spec.prompt}', images in {folder}", *canaries.summary(found)]
    if policy.spec.interface:
        lines.append("interface " + ", ".join(f"{k}={v}" for k, v in asdict(policy.spec.interface).items()))
    if found["warnings"]:
        raise UserError("; ".join([*found["warnings"], *lines]))
    return "; ".join(lines)
