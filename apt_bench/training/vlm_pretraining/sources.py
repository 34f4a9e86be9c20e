"""The sources of pretraining scenes, by name."""

from __future__ import annotations

from apt_bench.training.config import PretrainConfig
from apt_bench.training.vlm_pretraining.libero_scenes import LiberoScenes
from apt_bench.training.vlm_pretraining.scenes import SceneSource
from apt_bench.training.vlm_pretraining.tabletop_scenes import TabletopScenes


def find_source(config: PretrainConfig) -> SceneSource:
    """The source that the settings name.

    Raises:
        UserError: A cell does not exist.
    """
    return LiberoScenes(config.cells) if config.source == "libero" else TabletopScenes(config.more_containers)
