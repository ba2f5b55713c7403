"""Grids on Ray: a cluster of two nodes on this machine, one of which is lost; drivers that die."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid_doubles import (
    COMMAND,
    alive,
    counting,
    ends,
    expected,
    finishes,
    make_grid,
    results,
    running,
    start_driver,
    until,
)

from reverie.agents.configs import ConfigError
from reverie.benchmarks.grid.cells import Grid
from reverie.benchmarks.grid.driver import Driver
from reverie.benchmarks.grid.ray_cluster import RayExecutor
from reverie.benchmarks.grid.table import GridTable

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    # Ray leaves sockets and processes to the interpreter, and speaks of its own future
    pytest.mark.filterwarnings("ignore"),
]

HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
"""How soon a silent node counts as dead; Ray's own choice takes tens of seconds."""


class TwoNodes:
    """A cluster of one core and one (logical) GPU on each of two nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 * 2**20}
        head = {**node, "include_dashboard": False, "_system_config": HEALTH}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._second = self._cluster.add_node(**node)
        self._cluster.wait_for_nodes()
        self.address: str = self._cluster.address

    def lose_one(self) -> None:
        self._cluster.remove_node(self._second, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoNodes]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = TwoNodes()
    yield cluster
    cluster.close()


def drive(grid: Grid, address: str, **options: Any) -> int:
    executor = RayExecutor(grid, address=address, gpus_per_run=0.5, command=COMMAND, **options)
    return Driver(grid, executor, retries=1, table=GridTable(grid)).run(grid.cells)


@pytest.mark.timeout(300)
def test_fault_23_every_cell_ends_though_driver_and_node_are_lost(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    cells = [counting(seed, "steps=60", "pause=0.1") for seed in range(4)]
    cells.append(counting(4, "kill=7"))
    grid = make_grid(tmp_path, cells)
    driver = start_driver(grid, nodes.address)
    pids = until(lambda: len(found := running(grid)) == 2 and found)
    driver.kill()
    driver.communicate()
    until(lambda: not any(alive(pid) for pid in pids.values()))
    assert [grid.standing(cell) for cell in cells[:2]] == ["interrupted"] * 2

    def lose_one() -> None:
        until(lambda: len(running(grid)) == 2)
        nodes.lose_one()

    loss = threading.Thread(target=lose_one)
    loss.start()
    code = drive(grid, nodes.address)
    loss.join()
    assert code == 0
    assert results(grid) == expected(grid, 60) | {cells[4].id: {"step": 20, "mean": 8.3}}
    assert all(finishes(grid, cell) == 1 for cell in cells)
    attempts = [grid.state(cell)["attempts"] for cell in cells]
    assert min(attempts[0], attempts[1]) >= 2 and attempts[4] >= 2 and sum(attempts) >= 9, attempts


def test_a_driver_on_ray_that_is_asked_to_stop_waits_for_the_saves(
    nodes: TwoNodes, tmp_path: Path
) -> None:
    grid = make_grid(tmp_path, [counting(seed, "steps=900", "pause=0.1") for seed in range(3)])
    driver = start_driver(grid, nodes.address)
    until(lambda: len(running(grid)) == 2)
    driver.terminate()
    code, output = ends(driver, 60)
    assert code == 143, output
    assert [grid.standing(cell) for cell in grid.cells] == ["interrupted", "interrupted", "waiting"]
    assert all(grid.reached(cell) > 0 for cell in grid.cells[:2])
    with pytest.raises(ConfigError, match="the cluster's 2 GPUs, found 3"):
        RayExecutor(grid, address=nodes.address, gpus_per_run=3)


def test_no_ray_and_no_cluster_are_one_error_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = make_grid(tmp_path, [counting(0)])
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="--ray: expected a Ray cluster at 'auto', found none"):
        RayExecutor(grid, address="auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'reverie\[cluster\]'"):
        RayExecutor(grid, address="auto")
