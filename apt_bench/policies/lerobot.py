"""The policy `lerobot`: a checkpoint of Hugging Face's lerobot, run in this process by lerobot's own code.

lerobot's saved processors normalise the inputs, tokenise the instruction, and un-normalise the actions. They belong to
the checkpoint: without them, a policy answers numbers of another scale. Source: lerobot 0.6.1, `lerobot_eval.py`,
`envs/configs.py` (names of the inputs), `processor/env_processor.py` (images rotated by 180 degrees, state of 8
numbers).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from apt_bench.core import files
from apt_bench.core.config import Natural, build
from apt_bench.core.errors import UserError
from apt_bench.core.text import one_line
from apt_bench.envs.base import ACTION_DIM, AGENTVIEW, WRIST, Observation
from apt_bench.policies.base import Interface, PolicySpec, Provenance, Resources, Steps, noise_seed
from apt_bench.suites import EpisodeSpec

IMAGES, STATE, ACTION = "observation.images.", "observation.state", "action"
STATE_DIM = 8

CAMERAS = {"image": AGENTVIEW, "image2": WRIST, "wrist_image": WRIST}
"""lerobot's names of LIBERO's images, after `observation.images.` -> our cameras."""

EMPTY = "empty_camera_"
"""Prefix of the images that lerobot's policies pad and mask themselves."""

REFUSED = {
    "xvla": "It predicts absolute poses in the controller's frame, from a state that observations here do not have.",
    "lingbot_va": "It keeps the frames of its whole episode, and apt-bench renders only at decisions.",
    "tdmpc": "It plans from the previous decision, and apt-bench asks for chunks that depend on one observation.",
    "gaussian_actor": "It has no action chunks.",
}
"""Types of policies that cannot work here -> why."""

FILES = ("config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json")
"""Files of a checkpoint. Tensors of the processors are in further files `policy_*.safetensors`."""


class LeRobotPolicy:
    """A policy of lerobot with its own pre- and postprocessor.

    A decision depends on its observation alone: the policy predicts a whole chunk, and apt-bench executes the first
    `execute` actions of it. Noise is seeded by (noise key, control step, seed). Observations are answered one by one,
    because lerobot draws the noise of a whole batch from one seed.

    Args:
        checkpoint: Folder that lerobot saved (`pretrained_model`), or `ORG/REPO` or `ORG/REPO@REVISION` on the hub.
        device: Name of a torch device; None = "cuda" where there is one, otherwise "cpu".
        execute: Execute horizon, lerobot's `n_action_steps`; None = 10 for pi0, pi05 and pi0_fast, as in lerobot's
            evaluation of them, otherwise the checkpoint's.
        images: The checkpoint's image names, without `observation.images.` -> camera, or None for an image that the
            policy shall not get. Needed only for names that are not in `CAMERAS`.
        seed: Seed of the noise.

    Raises:
        UserError: lerobot is not installed, the checkpoint is missing or incomplete, or its policy cannot work here.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        device: str | None = None,
        execute: int | None = None,
        images: Mapping[str, str | None] | None = None,
        seed: int = 0,
    ) -> None:
        self.seed: int = build(Natural, seed, "seed")
        lerobot = _lerobot()
        folder = locate(checkpoint)
        config = lerobot.PreTrainedConfig.from_pretrained(folder)
        _check(checkpoint, config)
        self.device = build(str | None, device, "device") or ("cuda" if torch.cuda.is_available() else "cpu")
        on_gpu = self.device.startswith("cuda")
        config.device = self.device
        horizon = int(getattr(config, "chunk_size", None) or config.n_action_steps)
        steps = build(Steps | None, execute, "execute") or _execute(config)
        if steps > horizon:
            raise UserError(f"execute={steps}; the policy's chunks have {horizon} actions.")
        self.policy = _load(lerobot, folder, config)
        on_device = {"device_processor": {"device": self.device}}
        self.preprocess, self.postprocess = lerobot.make_pre_post_processors(
            config, str(folder), preprocessor_overrides=on_device
        )
        self._prepare = lerobot.prepare_observation_for_inference
        self._cameras = _cameras(checkpoint, config, self.preprocess, images or {})
        self.spec = PolicySpec(
            name="lerobot",
            cameras=tuple(c for c in (AGENTVIEW, WRIST) if c in self._cameras.values()),
            horizon=horizon,
            execute=steps,
            resources=Resources(num_gpus=float(on_gpu), max_batch=1),
            provenance=Provenance(
                weights=checkpoint,
                weights_sha256=self.digest(checkpoint),
                about={"lerobot": {"version": lerobot.version, "type": config.type}},
            ),
            interface=Interface(),
        )
        self._try()

    def _try(self) -> None:
        """Answer a blank observation. What can never work is then an error before the first episode."""
        images = dict.fromkeys(self.spec.cameras, np.zeros((256, 256, 3), np.uint8))
        shape = self._chunk(Observation(images, np.zeros(STATE_DIM, np.float32), "pick up the bowl")).shape
        least, most = self.spec.execute, self.spec.horizon
        if len(shape) != 2 or shape[1] != ACTION_DIM or not least <= shape[0] <= most:
            raise UserError(
                f"The policy answered a chunk of shape {shape} instead of (n, {ACTION_DIM}), n from {least} to {most}."
            )

    @staticmethod
    def digest(checkpoint: str, **others: object) -> str:
        """Hash of the weights, the configuration and the processors, found without loading them."""
        folder = locate(checkpoint)
        names = {*FILES, *(path.name for path in folder.glob("policy_*.safetensors"))}
        try:
            lines = [f"{name} {files.sha256(folder / name)}\n" for name in sorted(names)]
        except OSError as error:
            raise UserError(f"{checkpoint} cannot be read: {files.reason(error)}.") from None
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def reset(self, episodes: Sequence[EpisodeSpec]) -> None:
        """Clear lerobot's queues. They hold nothing that a chunk depends on."""
        self.policy.reset()

    def act(self, observations: Sequence[Observation]) -> list[np.ndarray]:
        """One chunk (horizon, 7) per observation."""
        return [self._chunk(observation) for observation in observations]

    @torch.no_grad()
    def _chunk(self, observation: Observation) -> np.ndarray:
        inputs = {name: np.array(observation.images[camera]) for name, camera in self._cameras.items()}
        inputs[STATE] = np.array(observation.state, dtype=np.float32)
        batch = self._prepare(inputs, torch.device(self.device), observation.instruction)
        with _seeded(noise_seed(observation, self.seed), self.device):
            chunk = self.policy.predict_action_chunk(self.preprocess(batch))
        actions: np.ndarray = self.postprocess(chunk)[0].double().numpy(force=True)
        return actions


def locate(checkpoint: str) -> Path:
    """Find a checkpoint, and download it from the hub if needed.

    Args:
        checkpoint: As for `LeRobotPolicy`.

    Returns:
        Its folder, which has all of `FILES`.

    Raises:
        UserError: There is no such checkpoint, or it is incomplete.
    """
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", checkpoint) or checkpoint.startswith("."):
            raise UserError(
                f"No lerobot checkpoint at '{checkpoint}'. Give a folder with {FILES[0]}, or ORG/REPO@REVISION."
            )
        folder = _download(*checkpoint.partition("@")[::2])
    missing = [name for name in FILES if not (folder / name).is_file()]
    if FILES[0] in missing and (folder / "pretrained_model").is_dir():
        raise UserError(f"{checkpoint} is a training folder: give {checkpoint}/pretrained_model.")
    if missing:
        raise UserError(
            f"{checkpoint} lacks {', '.join(missing)}. Checkpoints from before lerobot 0.4 have no processors: convert "
            "them with `python -m lerobot.processor.migrate_policy_normalization --pretrained-path FOLDER`."
        )
    return folder


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(repository, revision=revision or None))
    except (OSError, HfHubHTTPError, HFValidationError, ValueError) as error:
        at = f" at revision '{revision}'" if revision else ""
        raise UserError(
            f"'{repository}'{at} is no folder here and could not be downloaded from the hub ({type(error).__name__}). "
            "Check the name, or download it on a machine with network access and give the folder."
        ) from error


def _lerobot() -> Any:
    """What is needed of lerobot. Raises UserError where it is not installed."""
    try:
        import lerobot
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from lerobot.policies.utils import prepare_observation_for_inference
    except ImportError as error:
        raise UserError(
            f"lerobot cannot be imported in this environment of Python {sys.version_info[0]}.{sys.version_info[1]} "
            f"({one_line(error, 200)}). It needs Python 3.12 and an environment of its own: "
            "pip install 'apt-bench[lerobot]'."
        ) from error
    return SimpleNamespace(
        version=lerobot.__version__,
        PreTrainedConfig=PreTrainedConfig,
        get_policy_class=get_policy_class,
        make_pre_post_processors=make_pre_post_processors,
        prepare_observation_for_inference=prepare_observation_for_inference,
    )


def _check(checkpoint: str, config: Any) -> None:
    """Raise UserError for a policy that cannot work here."""
    about = f"{checkpoint} is a lerobot policy of type '{config.type}'"
    if config.type in REFUSED:
        raise UserError(f"{about}, which apt-bench cannot run. {REFUSED[config.type]}")
    if config.n_obs_steps != 1:
        raise UserError(
            f"{about} that needs the observations of the last {config.n_obs_steps} control steps. apt-bench renders "
            "only at decisions, so it cannot run this policy."
        )
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise UserError(
            f"{about} with temporal ensembling, which averages the chunks of all control steps. apt-bench executes "
            "chunks, so it cannot run this policy. Set temporal_ensemble_coeff to null in its config.json."
        )
    sizes = {STATE: (config.input_features, STATE_DIM), ACTION: (config.output_features, ACTION_DIM)}
    for name, (features, wanted) in sizes.items():
        shape = tuple(features[name].shape) if name in features else None
        if shape != (wanted,) and not (shape is None and name == STATE):
            raise UserError(
                f"{about} whose {name} has the shape {shape}; LIBERO's is ({wanted},). Was it trained on LIBERO?"
            )


def _execute(config: Any) -> int:
    """The execute horizon where the user gives none."""
    return 10 if config.type in ("pi0", "pi05", "pi0_fast") else int(config.n_action_steps)


def _load(lerobot: Any, folder: Path, config: Any) -> Any:
    """The policy with its weights. lerobot's pi policies only print that they could not load them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        policy = lerobot.get_policy_class(config.type).from_pretrained(folder, config=config, strict=True)
    for line in printed.getvalue().splitlines():
        if "Could not load" in line:
            raise UserError(f"{folder}: lerobot did not load the weights: {one_line(line, 500)}.")
    return policy.to(config.device).eval()


def _cameras(
    checkpoint: str, config: Any, preprocess: Any, given: Mapping[str, str | None]
) -> dict[str, str]:
    """The policy's image inputs -> our cameras, by the names that the preprocessor expects."""
    renamed: dict[str, str] = {}
    for step in getattr(preprocess, "steps", ()):
        renamed |= {new: old for old, new in (getattr(step, "rename_map", None) or {}).items()}
    names = [renamed.get(name, name).removeprefix(IMAGES) for name in config.image_features]
    mapping: dict[str, str | None] = {
        **CAMERAS,
        **build(Mapping[str, str | None], given, "images"),
    }
    unknown = [name for name in names if name not in mapping and not name.startswith(EMPTY)]
    if unknown or set(given) - set(names):
        raise UserError(
            f"The images of {checkpoint} are {', '.join(names)}. Give the camera of each ({AGENTVIEW}, {WRIST}, or "
            f"null for none): --policy-arg 'images={{{unknown[0] if unknown else names[0]}: {AGENTVIEW}}}'."
        )
    found = {IMAGES + name: camera for name in names if (camera := mapping.get(name)) is not None}
    wrong = set(found.values()) - {AGENTVIEW, WRIST}
    if wrong:
        raise UserError(f"images names the camera '{min(wrong)}'; there are {AGENTVIEW} and {WRIST}.")
    if not found:
        raise UserError(f"{checkpoint} gets no image; its images are {', '.join(names) or 'none'}.")
    return found


@contextlib.contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Seed torch's generators, which lerobot draws its noise from, and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield
