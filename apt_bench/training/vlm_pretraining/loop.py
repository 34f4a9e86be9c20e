"""The pretraining loop of the mini VLM, and the test of how well it grounds nouns."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from apt_bench.core.errors import UserError
from apt_bench.core.signals import stop_on_signals
from apt_bench.models.config import on_meta_device
from apt_bench.models.mini_vlm import MiniVLM, MiniVLMConfig
from apt_bench.training.cache import default_cache
from apt_bench.training.config import OBSERVATIONS_PER_SCENE, PretrainConfig, TrainConfig
from apt_bench.training.metrics import Metrics
from apt_bench.training.muon import Muon
from apt_bench.training.progress import Report
from apt_bench.training.vlm_pretraining.losses import (
    BINS,
    NEAR,
    Heads,
    collate,
    pair_batch,
    pair_losses,
    run_vlm,
)
from apt_bench.training.vlm_pretraining.scenes import CAMERAS, SceneImages, open_scene_images
from apt_bench.training.vlm_pretraining.sentences import SentenceMaker, vocabulary
from apt_bench.training.vlm_pretraining.sources import find_source
from apt_bench.training.vlm_pretraining.state import STATE, restore_state, save_pretrained, save_state
from apt_bench.training.vlm_pretraining.weights import SHIPPED, load_mini


@torch.no_grad()
def grounding(
    vlm: MiniVLM,
    heads: Heads,
    scenes: SceneImages,
    chosen: np.ndarray,
    form: str,
    maker: SentenceMaker,
    layer: int = -1,
) -> dict[str, float]:
    """How often the place of a noun is found.

    Args:
        vlm: The mini VLM.
        heads: Its output layers.
        scenes: Observations of scenes.
        chosen: (n,) Numbers of the observations that are used.
        form: A sentence with one {} for the noun phrase.
        maker: Makes sentences of the VLM's tokens.
        layer: VLM layer whose states are read, not 0.

    Returns:
        Share of visible objects, counted per image, whose predicted place is within NEAR of the image's width, by group
        (`SceneSource.group`). A random phrase of each object is asked for.
    """
    rng, found = np.random.default_rng(0), defaultdict(list)
    before, _, behind = form.partition("{}")
    for n in chosen:
        objects = scenes.objects[n]
        if not objects:
            continue
        said = [
            maker.compose(before, (t.phrases[rng.integers(len(t.phrases))], k), behind)
            for k, t in enumerate(objects)
        ]
        batch = collate(scenes, np.array([n]), [said], maker)
        states, _ = run_vlm(vlm, batch)
        views, cells = batch.cover.shape[2:]
        tokens = batch.nouns[:, 1] + views * cells
        best = heads.where(states[layer][0, tokens]).unflatten(-1, (views, -1)).argmax(-1)
        guess = torch.stack([best % BINS, best // BINS], -1).add(0.5).div(BINS)
        for one, spots in zip(objects, guess.tolist(), strict=True):
            for spot, place in zip(spots, one.places, strict=True):
                if place:
                    found[maker.source.group(one.kind)].append(np.hypot(*np.subtract(spot, place)) < NEAR)
    return {k: round(float(np.mean(v)), 4) for k, v in sorted(found.items())}


def pretrain(
    vlm: MiniVLM, config: PretrainConfig, out: Path, report: Report, cache: Path | None = None, seed: int = 0
) -> Path:
    """Pretrain `vlm` in place and write it to `out`, from the saved state in `out` if there is one.

    `mini.json` in `out` records how well nouns are grounded, in a question and in the robot's sentence form, which is
    not in the training data.

    Args:
        vlm: A mini VLM from `new_mini`.
        config: Settings.
        out: Folder of the result.
        report: Receives messages and progress.
        cache: Folder of the cache; None = the default one.
        seed: Seed of batches and sentences.

    Returns:
        `out`.

    Raises:
        UserError: The VLM does not fit, or something cannot be saved.
        KeyboardInterrupt: Pretraining was interrupted.
    """
    source = find_source(config)
    maker = SentenceMaker(vlm.tokenizer, source)
    if set(vocabulary(source)) - set(vlm.config.words):
        raise UserError("The mini VLM lacks words of the pretraining sentences. Make it with new_mini().")
    check_sizes(vlm.config)
    with report.ticking("rendering scenes") as tick:
        scenes = open_scene_images(
            source, vlm.config, config.scenes, cache or default_cache(), tick, 0, report.say
        )
    out.mkdir(parents=True, exist_ok=True)
    vlm.set_mode("full")
    vlm.train()
    heads = Heads(vlm.config.width, scenes.cover.shape[2])
    rule = config.train
    first_held = OBSERVATIONS_PER_SCENE * (config.scenes - config.held_out)
    held = np.arange(first_held, OBSERVATIONS_PER_SCENE * config.scenes)
    trained = nn.ModuleDict({"vlm": vlm, "heads": heads})
    optims = optimizers(vlm, heads, rule)
    newer = {"places": True, "more_containers": False}  # states of older versions do not have these settings
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in newer or v != newer[k]}
    settings = json.dumps([dataclasses.asdict(vlm.config), fields, seed])
    start = restore_state(out / STATE, trained, optims, settings)
    if start:
        report.say(f"mini VLM: resuming after step {start}")
    metrics = Metrics(out, start, report.say)
    stop, number = False, start
    with report.bar("mini VLM", rule.steps, start) as bar, stop_on_signals() as stopped:
        for step in range(start, rule.steps):
            for optim in optims:
                for group in optim.param_groups:
                    group["lr"] = rule.lr * rule.rate(step)
            rng = np.random.default_rng((seed, step))
            chosen = rng.choice(first_held, rule.batch, replace=False)
            batch = pair_batch(scenes, chosen, maker, config.sentences, rng)
            losses = pair_losses(vlm, heads, batch, source.kinds, config.places)
            losses["total"].backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), rule.clip)
            for optim in optims:
                optim.step()
                optim.zero_grad(set_to_none=True)
            number = step + 1
            final, stop = number == rule.steps, stopped()
            bar.to(number, f"loss {losses['total'].item():.2f}")
            if number % rule.log_every == 0 or final or stop:
                metrics.write(number, {"loss" if k == "total" else k: v.item() for k, v in losses.items()})
            if number % rule.save_every == 0 or final:
                about = {
                    "steps": number,
                    "pretraining": json.loads(json.dumps(dataclasses.asdict(config))),
                    "question": grounding(vlm, heads, scenes, held, "where is the {} ?", maker),
                    "robot_sentence": grounding(vlm, heads, scenes, held, source.robot_sentence, maker),
                }
                report.say(
                    f"  step {number}: places found {about['question']}, "
                    f"in the robot's sentence {about['robot_sentence']}"
                )
                save_pretrained(out, vlm, heads, about)
            if (number % rule.save_every == 0 or final or stop) and not (final and not stop):
                save_state(out / STATE, trained, optims, settings, number)
            if stop:
                break
        stop = stop or stopped()
    metrics.close()
    if stop:
        report.say(
            f"mini VLM: interrupted. Step {number} is saved in {out}. Rerun the same command to resume."
        )
        raise KeyboardInterrupt
    (out / STATE).unlink(missing_ok=True)
    return out


def check_sizes(config: MiniVLMConfig) -> None:
    """Check that a mini VLM of these sizes can be pretrained: one attention head per image, from the second layer on.

    Raises:
        UserError: It cannot.
    """
    if config.heads < len(CAMERAS) or config.layers < 2 or config.views < len(CAMERAS):
        raise UserError(
            f"Pretraining needs a mini VLM of at least {len(CAMERAS)} heads, {len(CAMERAS)} views and 2 layers; this "
            f"one has {config.heads}, {config.views} and {config.layers} (vlm.mini in the configuration)."
        )


def optimizers(vlm: MiniVLM, heads: Heads, rule: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder, which then needs fewer steps; AdamW for all other parameters."""
    matrices = [p for p in vlm.layers.parameters() if p.ndim == 2]
    inside = set(matrices)
    rest = [p for p in (*vlm.parameters(), *heads.parameters()) if p not in inside]
    return [
        Muon(matrices, rule.lr, rule.weight_decay),
        torch.optim.AdamW(rest, lr=rule.lr, weight_decay=rule.weight_decay),
    ]


def new_mini(sizes: MiniVLMConfig, pretraining: PretrainConfig) -> MiniVLM:
    """A mini VLM with the vocabulary of the pretraining sentences: new, or with the weights that
    `PretrainConfig.start` names.

    Raises:
        UserError: `start` is no mini VLM, or one of other sizes.
    """
    source = find_source(pretraining)
    start = SHIPPED if pretraining.start == "shipped" else Path(pretraining.start)
    old = load_mini(start) if pretraining.start else None
    words = vocabulary(source, old.config.words if old else ())
    config = dataclasses.replace(sizes, words=words)
    if old and dataclasses.replace(old.config, words=words) != config:
        raise UserError(
            f"pretrain.start: the mini VLM in {pretraining.start} has other sizes than vlm.mini of this configuration."
        )
    on_meta_device(lambda: MiniVLM(config), "The mini VLM")
    torch.manual_seed(0)
    vlm = MiniVLM(config)
    if old:
        weights = vlm.state_dict()
        for name, value in old.state_dict().items():
            weights[name][: len(value)] = value  # the word embedding has more rows
        vlm.load_state_dict(weights)
    return vlm
