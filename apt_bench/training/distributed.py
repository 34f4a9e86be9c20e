"""Training with several processes or GPUs through Ray Train. Every process runs the same recipe on its part of each
batch."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from apt_bench.core.errors import UserError
from apt_bench.core.files import try_remove
from apt_bench.core.signals import stop_on_signals
from apt_bench.core.text import plain_console
from apt_bench.rollout.cluster import check_alive, ray_session
from apt_bench.training.progress import Report
from apt_bench.training.recipe import Recipe
from apt_bench.training.session import Session, World
from apt_bench.training.two_stage import run_recipe


def run_distributed(
    recipe: Recipe, session: Session, workers: int, gpu: bool, address: str | None = None
) -> Path:
    """`run_recipe` in several processes.

    Args:
        recipe: A complete recipe.
        session: Where and how it runs. On a cluster, OUT and the cache must be on a disk that all machines share.
        workers: Number of processes.
        gpu: Whether each process gets a GPU.
        address: Address of a Ray cluster; None = a local Ray.

    Returns:
        Folder of the finished policy, `OUT/policy`.

    Raises:
        UserError: As `run_recipe`.
        RayLost: Ray died.
        KeyboardInterrupt: The training was interrupted; all processes save the same step.
    """
    with ray_session(address, workers, workers, logs=True):
        return _fit(recipe, session, workers, gpu)


def _fit(recipe: Recipe, session: Session, workers: int, gpu: bool) -> Path:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "recipe": recipe,
            "out": session.out.resolve(),
            "cache": session.cache.resolve(),
            "home": str(Path.cwd()),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(name="ray", storage_path=str(session.out.resolve())),
    )
    stop = session.out.resolve() / STOP
    try_remove(stop)
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failed.append(error)

    # Outside the main thread Ray Train does not handle Ctrl-C, so the workers can save before they end.
    thread = threading.Thread(target=fit, daemon=True)
    with stop_on_signals() as stopped:
        thread.start()
        while thread.is_alive():
            if stopped() and not stop.exists():
                session.report.say(
                    "Interrupted: the workers save the current step. Interrupt again to force."
                )
                stop.touch()
            check_alive()
            thread.join(0.2)
    if stopped():
        try_remove(stop)
        raise KeyboardInterrupt
    if failed:  # Ray wraps a worker's exception
        cause: BaseException | None = failed[0]
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise failed[0]
    return session.out / "policy"


STOP = ".stop"
"""A file in OUT; workers save and stop when it exists."""


def _work(config: dict) -> None:
    import ray.train
    import ray.train.torch

    if os.path.isdir(config["home"]):  # paths of the recipe may be relative to it
        os.chdir(config["home"])
    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size(), config["out"] / STOP)
    session = Session(
        out=config["out"],
        cache=config["cache"],
        report=Report(plain_console() if world.rank == 0 else None),
        world=world,
        device=str(ray.train.torch.get_device()),
    )
    with suppress(KeyboardInterrupt):  # saved; the driver raises KeyboardInterrupt itself
        run_recipe(config["recipe"], session)
