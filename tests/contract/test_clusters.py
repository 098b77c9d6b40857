"""What every executor promises, over those for clusters, each on a small one of the tests' own.

See ``flowlane.testing.executors``.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from flowlane.testing.executors import ExecutorContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flowlane.runtime.ports import Executor


class TestDask(ExecutorContract):
    shared = True

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Iterator[Any]:
        distributed = pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
        with distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50
        ) as cluster:
            yield cluster

    @pytest.fixture
    def make(self, cluster: Any) -> Callable[[], Executor]:
        from flowlane_plugins.executors.dask import DaskExecutor

        return lambda: DaskExecutor(cluster.scheduler_address, slots=2)


class TestRay(ExecutorContract):
    shared = True

    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Iterator[None]:
        ray = pytest.importorskip("ray", reason="ray is not installed: flowlane[ray]")
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(
            address="local",  # and not any cluster that it finds on this machine
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _node_ip_address="127.0.0.1",
        )
        yield
        ray.shutdown()
        signal.signal(signal.SIGTERM, handler)

    @pytest.fixture
    def make(self, cluster: None) -> Callable[[], Executor]:
        from flowlane_plugins.executors.ray import RayExecutor

        return lambda: RayExecutor(slots=2)
