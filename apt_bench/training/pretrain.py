"""Pretraining of the mini VLM on pictures and sentences (`pairs.py`), without actions.

Six losses: next words of captions and answers; where in each picture of a look a noun phrase points, read at its last
token as one of many places (as in Kosmos-2, arXiv 2306.14824) and as a point (as in Molmo, arXiv 2409.17146); which
thing a visual token shows (as in GLIP, arXiv 2112.03857); how far from the token that thing's centre is (as in
CenterNet, arXiv 1904.07850: a token is 16 pixels wide, a grasp needs more); and the attention of a noun to its thing,
in one head per view, which shortens the time to grounding by far. Places, attention and centres are asked for from the
second layer on. Several sentences share one pass over their look.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_bench.core.errors import UserError
from apt_bench.core.signals import stop_on_signals
from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS
from apt_bench.models.config import sketch
from apt_bench.models.mini_vlm import PAD_ID, MiniVLM, MiniVLMConfig, mini_mask
from apt_bench.training.cache import default_cache
from apt_bench.training.config import PretrainConfig
from apt_bench.training.muon import Muon
from apt_bench.training.pairs import (
    CAMERAS,
    LOOKS,
    Pictures,
    Sentence,
    Speaker,
    Thing,
    open_pictures,
    vocabulary,
)
from apt_bench.training.pretrain_saving import STATE, restore_state, save_pretrained, save_state
from apt_bench.training.progress import Metrics, Report
from apt_bench.training.trainer import TrainConfig

BINS = 32
"""Rows and columns of locations."""
SPREAD = 0.03
"""Standard deviation of a target location, as a fraction of the picture."""
NEAR = 0.05
"""An answer within this fraction of the picture's width is right."""
NAMES = (*ITEMS, *CONTAINERS)


class Heads(nn.Module):
    """What pretraining needs beside the VLM, and policies do not."""

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.where = nn.Linear(width, views * BINS * BINS)
        self.point = nn.Linear(width, views * 2)
        self.what = nn.Linear(width, width)
        self.offset = nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))


@dataclass(frozen=True)
class PairBatch:
    """Looks and their sentences as tensors. Lists of indices: nouns (n, 3) = look, token, thing."""

    images: Tensor  # (B, V, 3, H, W) in -1 ... 1
    cover: Tensor  # (B, MOST, V, cells)
    names: Tensor  # (B, MOST), index into NAMES, -1 where there is none
    centre: Tensor  # (B, MOST, V, 2), NaN where it is not seen
    ids: Tensor  # (B, L)
    index: Tensor  # (B, L), place in the sentence
    sentence: Tensor  # (B, L), 0 = padding
    predicted: Tensor  # (B, L) bool: tokens to be predicted from the one before
    nouns: Tensor


def pair_batch(
    pictures: Pictures, chosen: np.ndarray, speaker: Speaker, sentences: int, rng: np.random.Generator
) -> PairBatch:
    """Sentences about these looks, each picture in another light."""
    said = [[speaker.say(pictures.things[n], rng) for _ in range(sentences)] for n in chosen]
    batch = collate(pictures, chosen, said)
    n, views = batch.images.shape[:2]
    light, tint = rng.uniform(0.8, 1.2, (n, views, 1, 1, 1)), rng.uniform(0.93, 1.07, (n, views, 3, 1, 1))
    relit = (batch.images + 1) * torch.from_numpy(light * tint).float() - 1
    return dataclasses.replace(batch, images=relit.clamp(-1, 1))


def collate(pictures: Pictures, chosen: np.ndarray, said: list[list[Sentence]]) -> PairBatch:
    """`said[i]` belongs to look `chosen[i]`."""
    length = max(sum(len(s.ids) for s in sentences) for sentences in said)
    shape = (len(chosen), length)
    ids, index, number = np.full(shape, PAD_ID), np.zeros(shape, int), np.zeros(shape, int)
    predicted, nouns = np.zeros(shape, bool), []
    for i, sentences in enumerate(said):
        start = 0
        for k, s in enumerate(sentences, start=1):
            stop = start + len(s.ids)
            ids[i, start:stop], index[i, start:stop], number[i, start:stop] = s.ids, np.arange(len(s.ids)), k
            predicted[i, start + s.answer : stop] = True
            nouns += [(i, start + place, thing) for place, thing in s.nouns]
            start = stop
    most, views = pictures.cover.shape[1:3]
    names, centre = np.full((len(chosen), most), -1), np.full((len(chosen), most, views, 2), np.nan)
    for i, n in enumerate(chosen):
        for k, thing in enumerate(pictures.things[n]):
            names[i, k] = NAMES.index(thing.name)
            centre[i, k] = [place or (np.nan, np.nan) for place in thing.places]
    order = np.sort(chosen)  # memory maps like ascending reads
    back = np.searchsorted(order, chosen)
    images = torch.from_numpy(pictures.images[order][back]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    cover = torch.from_numpy(pictures.cover[order][back].astype(np.float32)).flatten(3)
    tensors = (
        names,
        centre.astype(np.float32),
        ids,
        index,
        number,
        predicted,
        np.array(nouns).reshape(-1, 3),
    )
    return PairBatch(images, cover, *(torch.from_numpy(t) for t in tensors))


def pair_losses(vlm: MiniVLM, heads: Heads, batch: PairBatch) -> dict[str, Tensor]:
    """The six losses, means over what they are about."""
    states, maps = _run(vlm, batch)
    views, cells = batch.cover.shape[2:]
    visual_tokens = views * cells
    text, visual = states[-1][:, visual_tokens:], states[-1][:, :visual_tokens]
    b, t = batch.predicted.nonzero(as_tuple=True)
    words = F.cross_entropy(text[b, t - 1] @ vlm.word_embed.weight.T, batch.ids[b, t])
    i, token, thing = batch.nouns.unbind(1)
    nouns = torch.stack([h[i, visual_tokens + token] for h in states])
    place = batch.centre[i, thing]  # (n, V, 2)
    seen = place.isfinite().all(-1)
    spots = heads.where(nouns).unflatten(-1, (views, -1))[:, seen]
    where = F.cross_entropy(spots.flatten(0, 1), _location(place[seen]).repeat(len(states), 1))
    points = heads.point(nouns).unflatten(-1, (views, 2))[:, seen]
    point = (points - (place[seen] - 0.5) / NEAR).abs().mean()
    cover = batch.cover[i, thing]
    cover = (cover / cover.sum(-1, keepdim=True).clamp(min=1e-6))[seen]
    looked = -(cover * torch.stack([m[i, token][seen] for m in maps])).sum(-1).mean()
    share, best = batch.cover.max(1)
    share, best = share.flatten(1), best.flatten(1)  # (B, V * cells)
    shown = share > 0.4
    touched = share > 0.15
    whose = batch.centre.repeat_interleave(cells, 2)  # (B, MOST, V * cells, 2)
    centre = whose.gather(1, best[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
    apart = torch.stack([heads.offset(h[:, :visual_tokens][touched]) for h in states])
    offset = (apart - (centre - cell_centres(vlm).repeat(views, 1))[touched] / NEAR).abs().mean()
    vectors = F.normalize(heads.what(visual[shown]), dim=-1) @ F.normalize(name_vectors(vlm), dim=-1).T
    what = F.cross_entropy(heads.scale.exp() * vectors, batch.names.gather(1, best)[shown])
    return {
        "words": words,
        "where": where,
        "point": point,
        "looked": looked,
        "what": what,
        "offset": offset,
        "total": words + where + point + looked + what + offset,
    }


def _run(vlm: MiniVLM, batch: PairBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Of each layer but the first: its states under the final norm, (B, V * cells + L, width), and the log of how text
    attends to the cells: to those of view v in head v, as a share of what that head gives to all cells, (B, L, V,
    cells)."""
    n, views = batch.images.shape[:2]
    whose = torch.arange(views)
    seen = vlm.embed_images(batch.images.flatten(0, 1), whose.repeat(n)).unflatten(0, (n, views))
    cells = seen.shape[2]
    x = torch.cat([seen.flatten(1, 2), vlm.embed_text(batch.ids, batch.index)], 1)
    view = torch.cat([whose.repeat_interleave(cells).expand(n, -1), torch.full_like(batch.sentence, -1)], 1)
    none = batch.sentence.new_zeros(n, views * cells)
    outputs, kv, queries = vlm.decode(x, mini_mask(view, torch.cat([none, batch.sentence], 1)))
    maps = []
    for (keys, _), q in zip(kv[1:], queries[1:], strict=True):
        k, q = keys[:, : views * cells, :views].transpose(1, 2), q[:, views * cells :, :views].transpose(1, 2)
        score = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).log_softmax(-1).unflatten(-1, (views, cells))
        maps.append(torch.stack([score[:, v, :, v] for v in range(views)], 2))
    return [vlm.norm(h) for h in outputs[1:]], maps


def cell_centres(vlm: MiniVLM) -> Tensor:
    """Of the visual tokens, as fractions of the picture's width and height: (cells, 2)."""
    rows, cols = vlm.grid
    v, u = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([(u.flatten() + 0.5) / cols, (v.flatten() + 0.5) / rows], -1)


def name_vectors(vlm: MiniVLM) -> Tensor:
    """A vector for each thing of the catalogue: the mean embedding of its first name's words. (names, width)."""
    phrases = [Thing(name, ()).phrases[0] for name in NAMES]
    return torch.stack([vlm.word_embed(torch.tensor(vlm.tokenizer(p))).mean(0) for p in phrases])


def _location(centre: Tensor) -> Tensor:
    """(n, 2) -> soft labels (n, BINS * BINS), row-major."""
    grid = (torch.arange(BINS) + 0.5) / BINS
    u, v = ((-0.5 * ((grid - c[:, None]) / SPREAD) ** 2).softmax(1) for c in centre.unbind(1))
    return (v[:, :, None] * u[:, None, :]).flatten(1)


@torch.no_grad()
def grounding(
    vlm: MiniVLM, heads: Heads, pictures: Pictures, chosen: np.ndarray, form: str, layer: int = -1
) -> dict[str, float | None]:
    """Share of places found within NEAR of the picture's width when a thing stands in `form` (a sentence with one
    {}), each picture counted: of seen and unseen items, and of containers, None where there are none. Read behind VLM
    layer `layer`, not 0."""
    speaker, found = Speaker(vlm.tokenizer), {"seen": [], "unseen": [], "containers": []}  # type: ignore[var-annotated]
    before, _, behind = form.partition("{}")
    for n in chosen:
        things = pictures.things[n]
        if not things:
            continue
        said = [speaker.compose(before, (t.phrases[0], k), behind) for k, t in enumerate(things)]
        batch = collate(pictures, np.array([n]), [said])
        states, _ = _run(vlm, batch)
        views, cells = batch.cover.shape[2:]
        tokens = batch.nouns[:, 1] + views * cells
        best = heads.where(states[layer][0, tokens]).unflatten(-1, (views, -1)).argmax(-1)
        guess = torch.stack([best % BINS, best // BINS], -1).add(0.5).div(BINS)
        for thing, spots in zip(things, guess.tolist(), strict=True):
            group = ITEMS[thing.name].split if thing.name in ITEMS else "containers"
            for spot, place in zip(spots, thing.places, strict=True):
                if place:
                    found[group].append(np.hypot(*np.subtract(spot, place)) < NEAR)
    return {k: round(float(np.mean(v)), 4) if v else None for k, v in found.items()}


def pretrain(
    vlm: MiniVLM, config: PretrainConfig, out: Path, report: Report, cache: Path | None = None, seed: int = 0
) -> Path:
    """Train `vlm` (its vocabulary must be `vocabulary()`) in place and write it to `out`; returns `out`.

    `mini.json` there says how well it grounds nouns, in a question and in the robot's sentence form, which it
    never saw.
    """
    if vlm.config.words != vocabulary():
        raise UserError(
            "The mini VLM to pretrain has another vocabulary than the pictures' sentences. Use new_mini()."
        )
    check_sizes(vlm.config)
    with report.ticking("rendering pictures") as tick:
        pictures = open_pictures(vlm.config, config.scenes, cache or default_cache(), tick, 0, report.say)
    out.mkdir(parents=True, exist_ok=True)
    vlm.set_mode("full")
    vlm.train()
    heads = Heads(vlm.config.width, pictures.cover.shape[2])
    speaker, rule = Speaker(vlm.tokenizer), config.train
    first_held = LOOKS * (config.scenes - config.held_out)
    held = np.arange(first_held, LOOKS * config.scenes)
    trained = nn.ModuleDict({"vlm": vlm, "heads": heads})
    optims = optimizers(vlm, heads, rule)
    settings = json.dumps([dataclasses.asdict(vlm.config), dataclasses.asdict(config), seed])
    start = restore_state(out / STATE, trained, optims, settings)
    if start:
        report.say(f"mini VLM: going on after step {start}")
    metrics = Metrics(out, start, report.say)
    stop, number = False, start
    with report.bar("mini VLM", rule.steps, start) as bar, stop_on_signals() as stopped:
        for step in range(start, rule.steps):
            for optim in optims:
                for group in optim.param_groups:
                    group["lr"] = rule.lr * rule.rate(step)
            rng = np.random.default_rng((seed, step))
            chosen = rng.choice(first_held, rule.batch, replace=False)
            losses = pair_losses(vlm, heads, pair_batch(pictures, chosen, speaker, config.sentences, rng))
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
                    "question": grounding(vlm, heads, pictures, held, "where is the {} ?"),
                    "robot_sentence": grounding(vlm, heads, pictures, held, "move the {} to the plate ."),
                }
                report.say(
                    f"  step {number}: found {about['question']}, in the robot's sentence {about['robot_sentence']}"
                )
                save_pretrained(out, vlm, heads, about)
            if (number % rule.save_every == 0 or final or stop) and not (final and not stop):
                save_state(out / STATE, trained, optims, settings, number)
            if stop:
                break
        stop = stop or stopped()
    metrics.close()
    if stop:
        report.say(f"mini VLM: interrupted. Step {number} is saved in {out}; the same command goes on there.")
        raise KeyboardInterrupt
    (out / STATE).unlink(missing_ok=True)
    return out


def check_sizes(config: MiniVLMConfig) -> None:
    """Raises UserError where a mini VLM of these sizes cannot be pretrained: one head must look at each picture of a
    look, from the second layer on."""
    if config.heads < len(CAMERAS) or config.layers < 2 or config.views < len(CAMERAS):
        raise UserError(
            f"Pretraining needs a mini VLM of at least {len(CAMERAS)} heads, {len(CAMERAS)} views and 2 layers; this "
            f"one has {config.heads}, {config.views} and {config.layers} (vlm.mini in the configuration)."
        )


def optimizers(vlm: MiniVLM, heads: Heads, rule: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the decoder, which learns with fewer steps; AdamW for all else."""
    matrices = [p for p in vlm.layers.parameters() if p.ndim == 2]
    inside = set(matrices)
    rest = [p for p in (*vlm.parameters(), *heads.parameters()) if p not in inside]
    return [
        Muon(matrices, rule.lr, rule.weight_decay),
        torch.optim.AdamW(rest, lr=rule.lr, weight_decay=rule.weight_decay),
    ]


def new_mini(sizes: MiniVLMConfig) -> MiniVLM:
    """A fresh mini VLM that knows the sentences' words."""
    config = dataclasses.replace(sizes, words=vocabulary())
    sketch(lambda: MiniVLM(config), "The mini VLM")
    torch.manual_seed(0)
    return MiniVLM(config)
