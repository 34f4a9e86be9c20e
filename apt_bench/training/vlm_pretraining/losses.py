"""The six losses of pretraining the mini VLM.

- words: next words of captions and answers.
- where, point: the place of a noun phrase in each image, read at its last token, as one of many cells (as in Kosmos-2,
  arXiv 2306.14824) and as a point (as in Molmo, arXiv 2409.17146).
- what: the object that a visual token shows (as in GLIP, arXiv 2112.03857).
- offset: the distance from a visual token to its object's centre (as in CenterNet, arXiv 1904.07850). A token is 16
  pixels wide; grasping needs a finer place.
- looked: the attention of a noun to its object, in one head per view. It shortens the time to grounding considerably.

Places, attention and centres are predicted from the second layer on. Several sentences share one pass over their
observation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apt_bench.models.mini_vlm import PAD_ID, MiniVLM, mini_mask
from apt_bench.training.vlm_pretraining.scenes import SceneImages
from apt_bench.training.vlm_pretraining.sentences import Sentence, SentenceMaker

BINS = 32
"""Rows and columns of the grid of cells that places are classified into."""


SPREAD = 0.03
"""Standard deviation of a target place, as a fraction of the image."""


NEAR = 0.05
"""A predicted place within this fraction of the image's width counts as correct."""


class Heads(nn.Module):
    """Output layers that only pretraining uses."""

    def __init__(self, width: int, views: int) -> None:
        super().__init__()
        self.where = nn.Linear(width, views * BINS * BINS)
        self.point = nn.Linear(width, views * 2)
        self.what = nn.Linear(width, width)
        self.offset = nn.Linear(width, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))


@dataclass(frozen=True)
class PairBatch:
    """Observations and their sentences as tensors."""

    images: Tensor  # (B, V, 3, H, W) in -1 ... 1
    cover: Tensor  # (B, MOST, V, cells)
    kinds: Tensor  # (B, MOST), index into `SceneSource.kinds`, -1 = no object
    centre: Tensor  # (B, MOST, V, 2), NaN where the object is not visible
    ids: Tensor  # (B, L)
    index: Tensor  # (B, L), position in the sentence
    sentence: Tensor  # (B, L), number of the sentence, 0 = padding
    predicted: Tensor  # (B, L) bool, tokens to be predicted from the token before
    nouns: Tensor  # (n, 3): observation, token, object


def pair_batch(
    scenes: SceneImages, chosen: np.ndarray, maker: SentenceMaker, sentences: int, rng: np.random.Generator
) -> PairBatch:
    """Random sentences about the observations `chosen`, with random brightness and tint of each image."""
    said = [[maker.sentence(scenes.objects[n], rng) for _ in range(sentences)] for n in chosen]
    batch = collate(scenes, chosen, said, maker)
    n, views = batch.images.shape[:2]
    light, tint = rng.uniform(0.8, 1.2, (n, views, 1, 1, 1)), rng.uniform(0.93, 1.07, (n, views, 3, 1, 1))
    relit = (batch.images + 1) * torch.from_numpy(light * tint).float() - 1
    return dataclasses.replace(batch, images=relit.clamp(-1, 1))


def collate(
    scenes: SceneImages, chosen: np.ndarray, said: list[list[Sentence]], maker: SentenceMaker
) -> PairBatch:
    """Tensors of the observations `chosen` and their sentences, `said[i]` about `chosen[i]`."""
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
            nouns += [(i, start + position, which) for position, which in s.nouns]
            start = stop
    most, views = scenes.cover.shape[1:3]
    kinds, centre = np.full((len(chosen), most), -1), np.full((len(chosen), most, views, 2), np.nan)
    number_of = {kind: k for k, kind in enumerate(maker.source.kinds)}
    for i, n in enumerate(chosen):
        for k, one in enumerate(scenes.objects[n]):
            kinds[i, k] = number_of[one.kind]
            centre[i, k] = [place or (np.nan, np.nan) for place in one.places]
    order = np.sort(chosen)  # memory maps are read fastest in ascending order
    back = np.searchsorted(order, chosen)
    images = torch.from_numpy(scenes.images[order][back]).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    cover = torch.from_numpy(scenes.cover[order][back].astype(np.float32)).flatten(3)
    tensors = (
        kinds,
        centre.astype(np.float32),
        ids,
        index,
        number,
        predicted,
        np.array(nouns).reshape(-1, 3),
    )
    return PairBatch(images, cover, *(torch.from_numpy(t) for t in tensors))


def pair_losses(
    vlm: MiniVLM, heads: Heads, batch: PairBatch, kinds: Mapping[str, str], places: bool = True
) -> dict[str, Tensor]:
    """The six losses by name, each a mean, and the sum `total` of those that are trained.

    Args:
        vlm: The mini VLM.
        heads: Its output layers.
        batch: Observations and their sentences.
        kinds: See `SceneSource`.
        places: See `PretrainConfig`. False = `total` is the sum of `words` and `what` only.
    """
    states, maps = run_vlm(vlm, batch)
    views, cells = batch.cover.shape[2:]
    visual_tokens = views * cells
    text, visual = states[-1][:, visual_tokens:], states[-1][:, :visual_tokens]
    b, t = batch.predicted.nonzero(as_tuple=True)
    words = F.cross_entropy(text[b, t - 1] @ vlm.word_embed.weight.T, batch.ids[b, t])
    i, token, which = batch.nouns.unbind(1)
    nouns = torch.stack([h[i, visual_tokens + token] for h in states])
    place = batch.centre[i, which]  # (n, V, 2)
    seen = place.isfinite().all(-1)
    spots = heads.where(nouns).unflatten(-1, (views, -1))[:, seen]
    where = F.cross_entropy(spots.flatten(0, 1), _location(place[seen]).repeat(len(states), 1))
    points = heads.point(nouns).unflatten(-1, (views, 2))[:, seen]
    point = (points - (place[seen] - 0.5) / NEAR).abs().mean()
    cover = batch.cover[i, which]
    cover = (cover / cover.sum(-1, keepdim=True).clamp(min=1e-6))[seen]
    attention = -(cover * torch.stack([m[i, token][seen] for m in maps])).sum(-1).mean()
    share, best = batch.cover.max(1)
    share, best = share.flatten(1), best.flatten(1)  # (B, V * cells)
    shown = share > 0.4
    touched = share > 0.15
    whose = batch.centre.repeat_interleave(cells, 2)  # (B, MOST, V * cells, 2)
    centre = whose.gather(1, best[:, None, :, None].expand(-1, 1, -1, 2))[:, 0]
    apart = torch.stack([heads.offset(h[:, :visual_tokens][touched]) for h in states])
    offset = (apart - (centre - cell_centres(vlm).repeat(views, 1))[touched] / NEAR).abs().mean()
    vectors = F.normalize(heads.what(visual[shown]), dim=-1) @ F.normalize(name_vectors(vlm, kinds), dim=-1).T
    what = F.cross_entropy(heads.scale.exp() * vectors, batch.kinds.gather(1, best)[shown])
    return {
        "words": words,
        "where": where,
        "point": point,
        "looked": attention,
        "what": what,
        "offset": offset,
        "total": words + where + point + attention + what + offset if places else words + what,
    }


def run_vlm(vlm: MiniVLM, batch: PairBatch) -> tuple[list[Tensor], list[Tensor]]:
    """Run the VLM on a batch.

    Returns:
        For each layer but the first: its states after the final norm, (B, V * cells + L, width); and the log attention
        of text tokens to the cells of view v in head v, as a share of the head's attention to all cells, (B, L, V,
        cells).
    """
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
    """Centres of the visual tokens, as fractions of the image's width and height: (cells, 2)."""
    rows, cols = vlm.grid
    v, u = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    return torch.stack([(u.flatten() + 0.5) / cols, (v.flatten() + 0.5) / rows], -1)


def name_vectors(vlm: MiniVLM, kinds: Mapping[str, str]) -> Tensor:
    """One vector per kind of object, the mean word embedding of its name: (kinds, width)."""
    return torch.stack([vlm.word_embed(torch.tensor(vlm.tokenizer(p))).mean(0) for p in kinds.values()])


def _location(centre: Tensor) -> Tensor:
    """Centres (n, 2) -> soft labels (n, BINS * BINS), row-major."""
    grid = (torch.arange(BINS) + 0.5) / BINS
    u, v = ((-0.5 * ((grid - c[:, None]) / SPREAD) ** 2).softmax(1) for c in centre.unbind(1))
    return (v[:, :, None] * u[:, None, :]).flatten(1)
