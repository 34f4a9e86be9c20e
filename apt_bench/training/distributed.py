"""Several processes or GPUs train as one, by Ray Train. Every process runs the same recipe on its part of
each batch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from apt_bench.core.errors import UserError
from apt_bench.training.config import Recipe
from apt_bench.training.progress import Report
from apt_bench.training.stages import Session, run_recipe
from apt_bench.training.trainer import World


def run_distributed(
    recipe: Recipe, session: Session, workers: int, gpu: bool, address: str | None = None
) -> Path:
    """`run_recipe` in `workers` processes of a local Ray, or of the cluster at `address` (OUT and the cache
    must then be on a disk that all of its machines share)."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address=address, ignore_reinit_error=True, log_to_driver=True, include_dashboard=False)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"recipe": recipe, "out": session.out.resolve(), "cache": session.cache.resolve()},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(name="ray", storage_path=str(session.out.resolve())),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps what a worker raised
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise
    return session.out / "policy"


def _work(config: dict) -> None:
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    world = World(context.get_world_rank(), context.get_world_size())
    session = Session(
        out=config["out"],
        cache=config["cache"],
        report=Report(Console(width=1000) if world.rank == 0 else None),
        world=world,
        device=str(ray.train.torch.get_device()),
    )
    run_recipe(config["recipe"], session)
