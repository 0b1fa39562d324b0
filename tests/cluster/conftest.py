"""A cluster of two nodes on this machine with the demo model, which many tests share."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_cluster import RunningCluster, running_cluster

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: `make cluster-test` installs it"
)


@pytest.fixture(scope="session")
def cluster(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Tests that break it must wait until both nodes serve again."""
    with running_cluster(tmp_path_factory.mktemp("cluster"), demo_store) as running:
        yield running
