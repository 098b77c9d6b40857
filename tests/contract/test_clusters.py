"""What every executor promises, over those for clusters, each on a small one of the tests' own.

See ``flowlane.testing.executors``.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from flowlane import Engine, Workflow, task
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


@pytest.mark.skipif(sys.version_info >= (3, 11, 9), reason="this Python cannot be stopped by it")
@pytest.mark.timeout(120)
def test_a_dask_cluster_of_our_own_is_not_profiled_where_that_could_stop_it() -> None:
    """Red when workers or the scheduler, which is in this process, look at all threads again and again."""
    pytest.importorskip("distributed", reason="distributed is not installed: flowlane[dask]")
    setting, config = "distributed.worker.profile.enabled", importlib.import_module("dask.config")
    workflow = Workflow("w")
    asked = workflow.add(task.cpu(config.get).bind(setting))  # a function that workers have, wherever they are started
    before, others = config.get(setting), set(threading.enumerate())
    options = {"dask": {"cluster": {"n_workers": 1, "silence_logs": 50}}}
    with Engine(routes={"cpu": "dask"}, options=options) as engine:
        assert engine.start(workflow.returns(asked)).result(timeout=100).value is False
        assert "Profile" not in {thread.name for thread in set(threading.enumerate()) - others}
    assert config.get(setting) is before


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
