"""Stages on a Ray cluster: the numbers of this machine, also where a node is killed on the way."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import SMALL_SPEC
from test_crews import numbers

import spo_bench
from spo_bench.api import Watcher
from spo_bench.engine.hire import hire
from spo_bench.errors import InputError
from spo_bench.matrix.load import load_spec

pytest.importorskip("ray", reason="the extra `ray` is not installed")
SPEC = {**SMALL_SPEC, "spo": [False]}


@pytest.fixture
def cluster(monkeypatch):
    """A head that runs nothing and two nodes, each a process of this machine with a core."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(spo_bench.__file__).parents[1]))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


class Killer(Watcher):
    """Kills a node and its workers when the first training has begun."""

    def __init__(self, cluster) -> None:
        self.cluster, self.killed, self.retried_ = cluster, False, []

    def started(self, stage):
        if stage.kind == "train" and not self.killed:
            self.killed = True
            node = next(iter(self.cluster.worker_nodes))
            raylet = node.all_processes["raylet"][0].process.pid
            children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
            for process in (raylet, *map(int, children)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def retried(self, stage, why):
        self.retried_.append(why)


def test_a_matrix_on_ray_has_the_same_numbers_also_where_a_node_is_killed(tmp_path, cluster, capfd):
    """SIGKILL for a raylet and all its workers as soon as trainings begin."""
    local = spo_bench.run(SPEC, tmp_path / "local", store=tmp_path / "store", device="cpu")
    killer = Killer(cluster)

    @contextmanager
    def watch(cells, missing):
        yield killer

    found = spo_bench.run(
        SPEC, tmp_path / "ray", store=tmp_path / "other", engine="ray", ray_address=cluster.address, watch=watch
    )
    assert killer.killed
    assert (found.done, found.failed, found.made) == (local.cells, {}, local.made)
    assert numbers(found.out) == numbers(local.out)
    assert "raylet" not in capfd.readouterr().out
    import ray

    assert not ray.is_initialized(), "it has left the cluster"


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path):
    spec = load_spec(SPEC)
    for address, said in (("127.0.0.1:9", "no Ray cluster at '127.0.0.1:9'"), ("ray://127.0.0.1:9", "not through Ray's client")):
        with pytest.raises(InputError, match=said):
            hire("ray", spec, tmp_path, ray_address=address)
