"""Pretraining of the mini VLM on pictures and sentences (`pairs.py`), without actions.

Four losses: next words of captions and answers; where in the picture a noun phrase points, read at its last
token (as in Kosmos-2, arXiv 2306.14824); which thing a visual token shows (as in GLIP, arXiv 2112.03857); and
the attention of a noun to its thing in one head of the last two layers, which shortens the time to grounding
by far. Several sentences share one pass over their picture.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from apt_bench.envs.tabletop.catalog import CONTAINERS, ITEMS
from apt_bench.errors import UserError
from apt_bench.models.mini_vlm import PAD_ID, MiniVLM, MiniVLMConfig, mini_mask
from apt_bench.training.config import PretrainConfig
from apt_bench.training.frames import default_cache
from apt_bench.training.mini import save_mini
from apt_bench.training.pairs import Pictures, Sentence, Speaker, Thing, open_pictures, vocabulary
from apt_bench.training.progress import Metrics, Report

BINS = 32
"""Rows and columns of locations."""
SPREAD = 0.03
"""Standard deviation of a target location, as a fraction of the picture."""
NEAR = 0.05
"""An answer within this fraction of the picture's width is right."""
NAMES = (*ITEMS, *CONTAINERS)


class Heads(nn.Module):
    """What pretraining needs beside the VLM, and policies do not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.where = nn.Linear(width, BINS * BINS)
        self.what = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(2.0))


@dataclass(frozen=True)
class PairBatch:
    """Pictures and their sentences as tensors. Lists of indices: nouns (n, 3) = picture, token, thing."""

    images: Tensor  # (B, 3, H, W) in -1 ... 1
    cover: Tensor  # (B, MOST, cells)
    names: Tensor  # (B, MOST), index into NAMES, -1 where there is none
    centre: Tensor  # (B, MOST, 2)
    ids: Tensor  # (B, L)
    index: Tensor  # (B, L), place in the sentence
    sentence: Tensor  # (B, L), 0 = padding
    predicted: Tensor  # (B, L) bool: tokens to be predicted from the one before
    nouns: Tensor


def pair_batch(
    pictures: Pictures, chosen: np.ndarray, speaker: Speaker, sentences: int, rng: np.random.Generator
) -> PairBatch:
    """Sentences about these pictures."""
    said = [[speaker.say(pictures.things[n], rng) for _ in range(sentences)] for n in chosen]
    return collate(pictures, chosen, said)


def collate(pictures: Pictures, chosen: np.ndarray, said: list[list[Sentence]]) -> PairBatch:
    """`said[i]` belongs to picture `chosen[i]`."""
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
    most = pictures.cover.shape[1]
    names, centre = np.full((len(chosen), most), -1), np.zeros((len(chosen), most, 2))
    for i, n in enumerate(chosen):
        for k, thing in enumerate(pictures.things[n]):
            names[i, k], centre[i, k] = NAMES.index(thing.name), thing.centre
    order = np.sort(chosen)  # memory maps like ascending reads
    back = np.searchsorted(order, chosen)
    images = torch.from_numpy(pictures.images[order][back]).permute(0, 3, 1, 2).float() / 127.5 - 1
    cover = torch.from_numpy(pictures.cover[order][back].astype(np.float32)).flatten(2)
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
    """The four losses, means over what they are about."""
    h, attention = _run(vlm, batch)
    cells = vlm.grid[0] * vlm.grid[1]
    text, visual = h[:, cells:], h[:, :cells]
    b, t = batch.predicted.nonzero(as_tuple=True)
    words = F.cross_entropy(text[b, t - 1] @ vlm.word_embed.weight.T, batch.ids[b, t])
    i, token, thing = batch.nouns.unbind(1)
    where = F.cross_entropy(heads.where(text[i, token]), _location(batch.centre[i, thing]))
    cover = batch.cover[i, thing]
    mass = cover.sum(1, keepdim=True)
    looked = (
        -(cover / mass.clamp(min=1e-6) * attention[i, :, token].clamp(min=1e-6).log())
        .sum(1)[mass[:, 0] > 0]
        .mean()
    )
    share, best = batch.cover.max(1)
    shown = share > 0.4
    vectors = F.normalize(heads.what(visual[shown]), dim=-1) @ F.normalize(name_vectors(vlm), dim=-1).T
    what = F.cross_entropy(heads.scale.exp() * vectors, batch.names.gather(1, best)[shown])
    return {
        "words": words,
        "where": where,
        "looked": looked,
        "what": what,
        "total": words + where + looked + what,
    }


def _run(vlm: MiniVLM, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Final states (B, cells + L, width), and how text attends to the cells in head 0 of the last two layers
    on average, (B, cells, L)."""
    seen = vlm.embed_images(batch.images)
    cells = seen.shape[1]
    x = torch.cat([seen, vlm.embed_text(batch.ids, batch.index)], 1)
    none = batch.sentence.new_zeros(len(x), cells)
    view = torch.cat([none, torch.full_like(batch.sentence, -1)], 1)
    outputs, kv, queries = vlm.decode(x, mini_mask(view, torch.cat([none, batch.sentence], 1)))
    maps = []
    for (keys, _), q in zip(kv[-2:], queries[-2:], strict=True):
        score = q[:, cells:, 0] @ keys[:, :cells, 0].transpose(1, 2) / q.shape[-1] ** 0.5
        maps.append(score.softmax(-1))
    return vlm.norm(outputs[-1]), torch.stack(maps).mean(0).transpose(1, 2)


def name_vectors(vlm: MiniVLM) -> Tensor:
    """A vector for each thing of the catalogue: the mean embedding of its first name's words. (names, width)."""
    phrases = [Thing(name, (0.0, 0.0)).phrases[0] for name in NAMES]
    return torch.stack([vlm.word_embed(torch.tensor(vlm.tokenizer(p))).mean(0) for p in phrases])


def _location(centre: Tensor) -> Tensor:
    """(n, 2) -> soft labels (n, BINS * BINS), row-major."""
    grid = (torch.arange(BINS) + 0.5) / BINS
    u, v = ((-0.5 * ((grid - c[:, None]) / SPREAD) ** 2).softmax(1) for c in centre.unbind(1))
    return (v[:, :, None] * u[:, None, :]).flatten(1)


@torch.no_grad()
def grounding(
    vlm: MiniVLM, heads: Heads, pictures: Pictures, chosen: np.ndarray, form: str
) -> dict[str, float]:
    """Share of things whose place is found within NEAR of the picture's width when they stand in `form` (a
    sentence with one {}): of seen and unseen items, and of containers."""
    speaker, found = Speaker(vlm.tokenizer), {"seen": [], "unseen": [], "containers": []}  # type: ignore[var-annotated]
    before, _, behind = form.partition("{}")
    for n in chosen:
        things = pictures.things[n]
        if not things:
            continue
        said = [speaker.compose(before, (t.phrases[0], k), behind) for k, t in enumerate(things)]
        batch = collate(pictures, np.array([n]), [said])
        h, _ = _run(vlm, batch)
        tokens = batch.nouns[:, 1] + vlm.grid[0] * vlm.grid[1]
        best = heads.where(h[0, tokens]).argmax(1)
        guess = torch.stack([best % BINS, best // BINS], 1).add(0.5).div(BINS)
        for thing, place in zip(things, guess.tolist(), strict=True):
            group = ITEMS[thing.name].split if thing.name in ITEMS else "containers"
            found[group].append(np.hypot(*np.subtract(place, thing.centre)) < NEAR)
    return {k: round(float(np.mean(v)), 4) if v else float("nan") for k, v in found.items()}


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
    with report.ticking("rendering pictures") as tick:
        pictures = open_pictures(vlm.config, config.scenes, cache or default_cache(), tick)
    out.mkdir(parents=True, exist_ok=True)
    vlm.set_mode("full")
    vlm.train()
    heads, speaker, rule = Heads(vlm.config.width), Speaker(vlm.tokenizer), config.train
    held = np.arange(2 * (config.scenes - config.held_out), 2 * config.scenes)
    trained = [*vlm.parameters(), *heads.parameters()]
    optim = torch.optim.AdamW(trained, lr=rule.lr, weight_decay=rule.weight_decay)
    metrics = Metrics(out, 0)
    with report.bar("mini VLM", rule.steps) as bar:
        for step in range(rule.steps):
            for group in optim.param_groups:
                group["lr"] = rule.lr * rule.rate(step)
            rng = np.random.default_rng((seed, step))
            chosen = rng.choice(2 * (config.scenes - config.held_out), rule.batch)
            losses = pair_losses(vlm, heads, pair_batch(pictures, chosen, speaker, config.sentences, rng))
            losses["total"].backward()
            torch.nn.utils.clip_grad_norm_(trained, rule.clip)
            optim.step()
            optim.zero_grad(set_to_none=True)
            number = step + 1
            final = number == rule.steps
            bar.to(number, f"loss {float(losses['total']):.2f}")
            if number % rule.log_every == 0 or final:
                metrics.write(number, {"loss" if k == "total" else k: float(v) for k, v in losses.items()})
            if number % rule.save_every == 0 or final:
                about = {
                    "steps": number,
                    "pretraining": json.loads(json.dumps(dataclasses.asdict(config))),
                    "question": grounding(vlm, heads, pictures, held, "where is the {} ?"),
                    "robot_sentence": grounding(vlm, heads, pictures, held, "move the {} to the plate ."),
                }
                save_mini(out, vlm, about)
                save_file(
                    {k: v.detach().contiguous() for k, v in heads.state_dict().items()},
                    out / "heads.safetensors",
                )
                report.say(
                    f"  step {number}: found {about['question']}, in the robot's sentence {about['robot_sentence']}"
                )
    metrics.close()
    return out


def new_mini(sizes: MiniVLMConfig) -> MiniVLM:
    """A fresh mini VLM that knows the sentences' words."""
    torch.manual_seed(0)
    return MiniVLM(dataclasses.replace(sizes, words=vocabulary()))
