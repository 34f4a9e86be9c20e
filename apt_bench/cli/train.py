"""`apt-bench train`: train a policy on demonstrations, in one stage or two."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apt_bench.cli._options import RayAddress, TrackName
from apt_bench.core.config import Range, checked, parse_yaml
from apt_bench.core.errors import UserError
from apt_bench.core.files import exclusive, reason
from apt_bench.core.status import status
from apt_bench.core.text import file_name, plain_console
from apt_bench.core.tracking import find_tracker, tracking

if TYPE_CHECKING:
    from apt_bench.training.recipe import Recipe
    from apt_bench.training.session import Session


Processes = Annotated[int, Range(least=1, most=10_000)]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("train")(train_command)


def train_command(
    config: Annotated[str, typer.Option(help="Name of a shipped configuration, or a YAML file.")] = "mini",
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Demonstrations: a file, a folder or a hub id. PATH=2 samples it twice as often. May be repeated."
        ),
    ] = None,
    recipe_name: Annotated[
        str | None,
        typer.Option("--recipe", help="plain, or langforce (GR00T-style expert, one stage)."),
    ] = None,
    arch: Annotated[str | None, typer.Option(help="apt, pi or groot.")] = None,
    two_stage: Annotated[
        bool | None,
        typer.Option(
            "--two-stage/--no-two-stage", help="Train a language-blind prior first, or everything at once."
        ),
    ] = None,
    ki: Annotated[
        bool, typer.Option("--ki", help="Block action gradients into the VLM (it is then frozen).")
    ] = False,
    vlm_mode: Annotated[str | None, typer.Option(help="The VLM in Stage 2: frozen, lora or full.")] = None,
    inherit: Annotated[
        str | None,
        typer.Option(help="What Stage 2 takes from Stage 1: all, or blocks (as the released code)."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Steps of a one-stage run: joint = as Stage 2, total = as both stages."),
    ] = None,
    prior: Annotated[Path | None, typer.Option(help="Start from this Stage-1 checkpoint.")] = None,
    start: Annotated[
        str | None, typer.Option(help="Finetune this trained policy: a folder, a shipped name, or a hub id.")
    ] = None,
    vlm: Annotated[
        str | None,
        typer.Option(help="Hub id or folder of a VLM, or a mini VLM: a folder, or a policy with one."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of each stage.")] = None,
    stage1_steps: Annotated[int | None, typer.Option(help="Steps of Stage 1, if they differ.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, samples and noise.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, e.g. stage2.lr=1e-4. May be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: results/training/...")] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for prepared images and features.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    workers: Annotated[
        int,
        typer.Option(
            callback=checked(Processes, "--workers"),
            help="Processes (GPUs) that train together, with Ray Train.",
        ),
    ] = 1,
    ray_address: RayAddress = None,
    pretrain: Annotated[
        Path | None, typer.Option(help="Pretrain a mini VLM into this folder; train no policy.")
    ] = None,
    track: TrackName = "none",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the configuration and stop.")] = False,
) -> None:
    """Train a policy on demonstrations. Rerun the same command to resume."""
    with status("Reading the configuration"):
        from apt_bench.training.recipe import load_recipe, recipe_parts

    if find_tracker(track) and (workers > 1 or ray_address):
        raise UserError(
            "--track works with one process only. Remove --track, or --workers and --ray-address."
        )
    over: dict[str, Any] = {}
    given: set[str] = set()
    for text in settings or []:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text}: there is no value. Give key=value, for example stage2.lr=1e-4.")
        if key in given:
            raise UserError(f"--set {key} is given twice.")
        given.add(key)
        _put(over, key, parse_yaml(value, f"--set {key}"))
    flags = {
        "recipe": recipe_name, "arch": arch, "two_stage": two_stage, "ki": ki or None, "vlm_mode": vlm_mode,
        "inherit": inherit, "budget": budget, "prior": str(prior) if prior else None, "start": start,
        "seed": seed,
        "train.batch": batch, "stage1.steps": steps if stage1_steps is None else stage1_steps, "stage2.steps": steps,
        **_data(data), **_vlm(vlm),
    }  # fmt: skip
    for key, value in flags.items():
        if value is None:
            continue
        if key in given:
            how = "Write the weights as --data PATH=WEIGHT." if key == "data.weights" else "Give one of them."
            raise UserError(f"--set {key} and an option of apt-bench train both set {key}. {how}")
        _put(over, key, value)
    try:
        recipes = {name: load_recipe(name, over) for name in recipe_parts(config)}
    except UserError as error:
        if not settings:
            raise
        raise UserError(f"{error} --set replaces settings of the file: check it, too.") from None
    if dry_run:
        for recipe in recipes.values():
            plain_console().print(recipe.to_yaml())
        return
    if len(recipes) > 1:
        _say_parts(
            config,
            recipes,
            {"--data": data, "--prior": prior, "--start": start, "--vlm": vlm, "--pretrain": pretrain},
        )
    for name, recipe in recipes.items():
        folder = out or Path("results/training") / _name(config, recipe)
        folder = folder / name if len(recipes) > 1 else folder
        session = _session(folder, cache, device, bool(ray_address))
        _run(recipe, session, pretrain, workers, ray_address, track)


def _say_parts(config: str, recipes: dict[str, Recipe], given: dict[str, Any]) -> None:
    """Say which recipes a configuration of several parts runs. Raises UserError for options that fit one part only."""
    from apt_bench.training.time_estimate import estimate

    if options := [option for option, value in given.items() if value]:
        raise UserError(
            f"--config {config} trains {len(recipes)} policies, and {', '.join(options)} fits one. Give --config "
            f"{' or '.join(recipes)}."
        )
    hours = sum(seconds for recipe in recipes.values() for _, seconds in estimate(recipe).values()) / 3600
    console = plain_console()
    console.print(f"{config} trains {len(recipes)} policies, in about {hours:.1f} hours on an idle machine:")
    for name, recipe in recipes.items():
        console.print(f"  {name}: {recipe.about}")


def _run(
    recipe: Recipe, session: Session, pretrain: Path | None, workers: int, ray_address: str | None, track: str
) -> None:
    """Train, or only pretrain a mini VLM. Raises UserError where a file cannot be written or read."""
    folder = session.out
    try:
        if pretrain:
            _pretrain(recipe, session, pretrain)
        else:
            with exclusive(folder, "apt-bench train"):
                _train(recipe, session, workers, ray_address, track)
    except OSError as error:
        if not isinstance(error, ConnectionError | TimeoutError) and error.errno is not None:
            at = f" ({error.filename})" if error.filename else ""
            raise UserError(
                f"Training in {folder} stopped: {reason(error)}{at}. Saved files are intact. Rerun the same command to "
                "resume."
            ) from error
        raise


def _pretrain(recipe: Recipe, session: Session, folder: Path) -> None:
    from apt_bench.training.preflight import check_writable
    from apt_bench.training.vlm_pretraining.loop import new_mini
    from apt_bench.training.vlm_pretraining.loop import pretrain as pretrain_mini
    from apt_bench.training.vlm_pretraining.weights import made_by

    with exclusive(folder, "apt-bench train --pretrain"):
        check_writable(folder, "--pretrain")
        check_writable(session.cache, "--cache")
        if made_by(folder, recipe.vlm.mini, recipe.pretrain):
            session.report.say("The folder already holds this pretrained mini VLM.")
        else:
            vlm = new_mini(recipe.vlm.mini, recipe.pretrain)
            pretrain_mini(vlm, recipe.pretrain, folder, session.report, session.cache)
    session.report.say(f"Mini VLM: {folder}\nNext: apt-bench train --vlm {shlex.quote(str(folder))}")


def _train(recipe: Recipe, session: Session, workers: int, ray_address: str | None, track: str) -> None:
    console, folder = plain_console(), session.out
    with status("Checking settings and data"):
        from apt_bench.training.distributed import run_distributed
        from apt_bench.training.final_evaluation import evaluate_policy
        from apt_bench.training.inputs import complete_recipe
        from apt_bench.training.preflight import check
        from apt_bench.training.session import require_folder
        from apt_bench.training.two_stage import run_recipe

        require_folder(folder)  # it was created when it was locked
        check(recipe, session, workers)
    recipe = complete_recipe(recipe, session, console)
    require_folder(folder)
    if workers > 1 or ray_address:
        policy = run_distributed(recipe, session, workers, session.device != "cpu", ray_address)
    else:
        with tracking(track, folder, dataclasses.asdict(recipe)) as tracker:
            session.report.tracker = tracker
            require_folder(folder)
            policy = run_recipe(recipe, session)
    evaluate_policy(recipe, policy, folder, console)
    console.print(f"Policy: {policy}", soft_wrap=True)
    console.print(
        f"Next: apt-bench run --suite SUITE --policy apt {shlex.quote(str(policy))}", soft_wrap=True
    )


def _session(out: Path, cache: Path | None, device: str, elsewhere: bool) -> Session:
    """elsewhere: training runs on other machines, whose device cannot be checked here."""
    with status("Loading torch"):
        import torch

        from apt_bench.training.cache import default_cache
        from apt_bench.training.preflight import check_device
        from apt_bench.training.progress import Report
        from apt_bench.training.session import Session

    if not elsewhere or device == "auto":
        device = check_device(device)
    if device == "cpu":
        torch.set_num_threads(1)  # measured on two cores: more threads of one small network are slower
    return Session(out, cache or default_cache(), Report(plain_console()), device=device)


def _put(into: dict[str, Any], key: str, value: Any) -> None:
    *folders, name = key.split(".")
    for folder in folders:
        into = into.setdefault(folder, {})
        if not isinstance(into, dict):
            raise UserError(f"--set {key}: '{folder}' was already set to {into!r}.")
    into[name] = value


def _data(data: list[str] | None) -> dict[str, Any]:
    """Settings of --data, each `PATH` or `PATH=WEIGHT`."""
    if not data:
        return {}
    paths, weights = [], []
    for text in data:
        path, equals, weight = text.rpartition("=")
        try:
            weights.append(float(weight) if equals else 1.0)
        except ValueError:
            raise UserError(f"--data {text}: the text after '=' must be a number, the weight.") from None
        paths.append(path if equals else text)
    return {"data.data": paths, "data.weights": weights}


def _vlm(vlm: str | None) -> dict[str, Any]:
    """Settings of --vlm: a mini VLM or a policy that contains one, anything else is a Hugging Face model."""
    if vlm is None:
        return {}
    from apt_bench.training.vlm_pretraining.weights import has_mini

    if has_mini(vlm):
        return {"vlm.name": "mini", "vlm_weights": vlm}
    return {"vlm.name": vlm, "vlm_weights": ""}


def _name(config: str, recipe: Recipe) -> str:
    stages = "two-stage" if recipe.two_stage else f"one-stage-{recipe.budget}"
    vlm = "ki" if recipe.ki else recipe.vlm_mode
    name = "langforce" if recipe.recipe == "langforce" else recipe.arch
    return file_name(f"{Path(config).stem}-{name}-{stages}-{vlm}-seed{recipe.seed}")
