from collections.abc import Iterator

import pytest

from apt_bench.envs.tabletop import TabletopEnv


@pytest.fixture(scope="module")
def env() -> Iterator[TabletopEnv]:
    env = TabletopEnv()
    yield env
    env.close()
