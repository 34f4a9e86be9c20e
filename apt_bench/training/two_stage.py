"""The two stages: a language-blind prior over actions, then the policy that starts from it.

Stage 1 (VA prior): frozen VLM, half the blocks, no language. Stage 2 (VLA): the prior's weights, new blocks that see
language, everything trained together. A one-stage control trains Stage 2's network from scratch on the same samples
(arXiv 2606.12366, method and ablations).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from apt_bench.core.digests import check_digests
from apt_bench.core.errors import UserError
from apt_bench.core.files import PART, write_whole
from apt_bench.core.machine import system_info
from apt_bench.core.status import status
from apt_bench.models import checkpoint, langforce
from apt_bench.models.action_expert import inherit
from apt_bench.models.config import VLMShape
from apt_bench.models.vla import VLA, VLMSpec, build_expert
from apt_bench.models.vlm import VLM
from apt_bench.training import checkpoints
from apt_bench.training.config import TrainConfig
from apt_bench.training.recipe import Recipe
from apt_bench.training.samples.batches import Batches
from apt_bench.training.samples.features import FeatureCache, can_cache, open_features
from apt_bench.training.samples.stream import Samples, open_samples
from apt_bench.training.session import Session, require_folder
from apt_bench.training.trainer import train
from apt_bench.training.vlm_pretraining.weights import load_mini


def run_recipe(recipe: Recipe, session: Session) -> Path:
    """Train a recipe, from the last checkpoint in `session.out` if there is one.

    Args:
        recipe: A complete recipe: data and VLM weights are given (`inputs.complete_recipe`).
        session: Where and how it runs.

    Returns:
        Folder of the finished policy, `OUT/policy`.

    Raises:
        UserError: Data, weights or checkpoints are missing, damaged, or of another recipe; or training failed.
        KeyboardInterrupt: The training was interrupted.
    """
    say = session.report.say
    session.out.mkdir(parents=True, exist_ok=True)
    with status("Loading the VLM"):
        start: VLA | None = None
        if recipe.start:
            check_start(recipe)
            start = checkpoint.load(recipe.start)
        vlm, spec = (start.vlm, start.spec) if start else open_vlm(recipe)
    if spec.queries:
        langforce.check(vlm)
    size = recipe.expert_config(2, vlm.shape)
    first = session.world.rank == 0
    if session.world.rank:
        session.world.barrier()  # the first process fills the caches
    with session.report.ticking("reading demonstrations") as tick:
        samples, held = open_samples(
            recipe.data,
            size.horizon,
            recipe.seed,
            vlm.image_size,
            session.cache,
            tick,
            say if first else lambda _: None,
        )
    if first:
        session.world.barrier()
        write_whole(session.out / "config.yaml", recipe.to_yaml().encode())
    say(f"{recipe.label}: {describe(samples, held)}")
    run = _Run(recipe, session, vlm, spec, samples, held)
    if recipe.prior:
        start = _load_prior(recipe, vlm)
    elif recipe.trains_prior:
        start = run.stage(1, recipe.stage1, None)
    run.stage(2, recipe.joint, start)
    return session.out / "policy"


def open_vlm(recipe: Recipe) -> tuple[VLM, VLMSpec]:
    """The VLM of a recipe, and its description for checkpoints."""
    if recipe.vlm.name != "mini":
        return recipe.vlm.load(), recipe.vlm
    if recipe.vlm_weights:
        vlm = load_mini(recipe.vlm_weights)
        if recipe.vlm.queries:
            vlm.add_queries(recipe.vlm.queries)
        return vlm, dataclasses.replace(recipe.vlm, mini=vlm.config)
    torch.manual_seed(0)
    return recipe.vlm.load(), recipe.vlm


def describe(samples: Samples, held: Samples | None) -> str:
    """A one-line summary of the data."""
    episodes = sum(len(d.episodes) for d in samples.datasets)
    out = sum(len(d.episodes) for d in held.datasets) if held else 0
    return f"{episodes} demonstrations with {samples.rows} decisions, {out} demonstrations held out"


def check_prior(prior: str, recipe: Recipe, shape: VLMShape | None = None) -> None:
    """Check that Stage 2 of a recipe can start from a prior.

    Args:
        prior: Path or name of a Stage-1 checkpoint.
        recipe: The recipe.
        shape: Shape of the recipe's VLM; None = that of the VLM which the prior was trained on.

    Raises:
        UserError: The prior is damaged, or of another stage or architecture.
    """
    folder = checkpoint.locate(prior)
    if folder.is_file():
        return  # a file of the paper's authors: checked when it is loaded
    check_digests(folder)
    found, _ = checkpoint.read_config(folder)
    wanted = recipe.expert_config(1, shape or found.vlm)
    if found != wanted:
        raise UserError(
            f"The prior {prior} is {found.arch}, stage {found.stage}, {found.depth} x {found.width}; this run "
            f"needs {wanted.arch}, stage 1, {wanted.depth} x {wanted.width}. Train a prior with this configuration."
        )


def _load_prior(recipe: Recipe, vlm: VLM) -> VLA:
    check_prior(recipe.prior, recipe, vlm.shape)
    prior = checkpoint.load(recipe.prior, vlm=vlm)
    if prior.expert.config != recipe.expert_config(1, vlm.shape):
        raise UserError(f"The prior {recipe.prior} is of another architecture than this run's Stage 1.")
    return prior


def check_start(recipe: Recipe) -> VLMShape:
    """Check that a recipe can finetune the policy that its `start` names.

    Returns:
        The shape of the policy's VLM.

    Raises:
        UserError: The policy is damaged, or not the network that the recipe describes.
    """
    folder = checkpoint.locate(recipe.start)
    if folder.is_file():
        raise UserError(f"--start {recipe.start} is a file. Give the folder of a policy, or a shipped name.")
    check_digests(folder)
    found, spec = checkpoint.read_config(folder)
    have, want = dataclasses.asdict(found), dataclasses.asdict(recipe.expert_config(2, found.vlm))
    have["vlm"], want["vlm"] = (spec.name, spec.queries), (recipe.vlm.name, recipe.vlm.queries)
    before = checkpoint.provenance(recipe.start).get("recipe", {})
    have["two_stage"], want["two_stage"] = before.get("two_stage", recipe.two_stage), recipe.two_stage
    if other := [f"{k} {have[k]!r} (here {want[k]!r})" for k in have if have[k] != want[k]]:
        raise UserError(
            f"The policy to finetune, {recipe.start}, is another network than this configuration describes: "
            f"{', '.join(other)}. Give the configuration and options that it was trained with."
        )
    if spec.name != "mini" and spec.mode != "frozen" and recipe.vlm_mode != "full":
        raise UserError(
            f"The VLM of {recipe.start} was trained ({spec.mode}), and the checkpoints of a run with --vlm-mode "
            f"{recipe.vlm_mode} would not store it. Give --vlm-mode full."
        )
    return found.vlm


def start_sha256(recipe: Recipe) -> str | None:
    """SHA-256 of the weights that `start` or `prior` names; None where a recipe starts from random weights."""
    given = recipe.start or recipe.prior
    return checkpoint.sha256(given) if given else None


@dataclasses.dataclass(frozen=True)
class _Run:
    recipe: Recipe
    session: Session
    vlm: VLM
    spec: VLMSpec
    samples: Samples
    held: Samples | None

    def stage(self, stage: int, config: TrainConfig, start: VLA | None) -> VLA:
        """Train one stage, with cached features where possible, and return its network.

        Args:
            stage: 1 or 2.
            config: Its training settings.
            start: The prior that Stage 2 extends, or the whole policy that it finetunes; None = random weights.
        """
        recipe, session = self.recipe, self.session
        require_folder(session.out)
        out = session.out / f"stage{stage}"
        spec = dataclasses.replace(self.spec, mode="frozen" if stage == 1 else recipe.vlm_mode)
        torch.manual_seed(2 * recipe.seed + stage - 1)
        expert = build_expert(recipe.expert_config(stage, self.vlm.shape))
        taken: list[str] = []
        if recipe.start and start:
            expert.load_state_dict(start.expert.state_dict())
            taken = sorted(expert.state_dict())
        elif start:
            taken = inherit(start.expert, expert, recipe.inherit, recipe.new_blocks)
        self.vlm.set_mode(spec.mode)
        model = VLA(self.vlm, expert, spec).to(session.device)
        title = "finetuning" if recipe.start else f"stage {stage}" if recipe.two_stage else "one stage"
        session.report.say(
            f"{title}: {sizes(model)}" + (f", {len(taken)} tensors inherited" if start else "")
        )
        size = config.micro or config.batch
        if size % session.world.size:
            raise UserError(
                f"A batch of {size} cannot be shared by {session.world.size} processes. Choose a multiple."
            )

        def batches(samples: Samples, rank: int, world: int, first: int = 0) -> Batches:
            return Batches(samples, model, size, self._cache(model, samples, title), rank, world, first)

        last = train(
            model,
            batches(
                dataclasses.replace(self.samples, label_share=recipe.data.labels.share_in(stage)),
                session.world.rank,
                session.world.size,
                self._first_sample(stage),
            ),
            batches(self.held, 0, 1) if self.held else None,
            config,
            out,
            self._provenance(stage, taken),
            session.report,
            session.world,
            session.device,
            title,
        )
        if session.world.rank == 0 and stage == 2:
            link, fresh = session.out / "policy", session.out / f"policy{PART}"
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(last.relative_to(session.out))
            fresh.replace(link)  # the link exists at any time
        return model

    def _first_sample(self, stage: int) -> int:
        """The stages share no sample: Stage 2 begins after the last sample of Stage 1."""
        before = self.recipe.stage1
        after = stage == 2 and self.recipe.two_stage and not self.recipe.start
        return before.steps * before.batch if after else 0

    def _cache(self, model: VLA, samples: Samples, title: str) -> FeatureCache | None:
        if not self.recipe.cache_features or not can_cache(model, samples.config.augment):
            return None
        world = self.session.world
        if world.rank:
            world.barrier()
        with self.session.report.ticking(f"{title}: VLM features") as tick:
            cache = open_features(
                model,
                samples,
                self.session.cache,
                tick,
                device=self.session.device,
                say=self.session.report.say,
            )
        if world.rank == 0:
            world.barrier()
        return cache

    def _provenance(self, stage: int, taken: list[str]) -> dict[str, Any]:
        native = {d.frames.native for d in self.samples.datasets}
        return {
            **system_info(),
            "stage": stage,
            "recipe": dataclasses.asdict(self.recipe),
            "start_sha256": start_sha256(self.recipe),
            "cameras": list(self.recipe.data.cameras),
            "reference": self.recipe.data.reference,
            "stride": self.recipe.data.stride,
            "image_size": list(native.pop()) if len(native) == 1 else None,
            "data": [
                {
                    "name": d.name,
                    "weight": d.weight,
                    "episodes": len(d.episodes),
                    "fingerprint": d.fingerprint,
                    "images": d.frames.hash,
                }
                for d in self.samples.datasets
            ],
            "inherited": len(taken),
        }


def sizes(model: VLA) -> str:
    """A one-line summary of the numbers of parameters."""
    expert = sum(p.numel() for p in model.expert.parameters())
    vlm = sum(p.numel() for p in model.vlm.parameters())
    tuned = sum(p.numel() for p in model.vlm.parameters() if p.requires_grad)
    return f"expert {expert / 1e6:.2f} M, VLM {vlm / 1e6:.2f} M parameters ({tuned / 1e6:.2f} M of the VLM trained)"


def stage_checkpoint(out: Path, stage: int) -> Path:
    """The last checkpoint of a stage of a run.

    Raises:
        UserError: There is none.
    """
    folder = checkpoints.latest(out / f"stage{stage}")
    if folder is None:
        raise UserError(
            f"{out} has no checkpoint of stage {stage}. Train it first: apt-bench train --out {out}."
        )
    return folder
