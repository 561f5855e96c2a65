"""How a cluster is divided, and what is refused because Ray would wait for it for ever."""

from __future__ import annotations

import pytest

from pipeline.cluster.flow import ClusterSettings, ClusterSize, locator_pool

LAPTOP = ClusterSize(cpus=3, gpus=0, largest_node_cpus=3)
NODES = ClusterSize(cpus=64, gpus=0, largest_node_cpus=16)
GPUS = ClusterSize(cpus=64, gpus=8, largest_node_cpus=16)


@pytest.mark.parametrize(
    ("settings", "size", "pool"),
    [
        (ClusterSettings(), LAPTOP, (1, 0.5, 3)),
        (ClusterSettings(), NODES, (4, 0.5, 16)),
        (ClusterSettings(), GPUS, (8, 0, 8)),
        (ClusterSettings(locators=2), GPUS, (2, 0, 8)),
        (ClusterSettings(locators=8), NODES, (8, 0.25, 8)),
        (ClusterSettings(locators=5), NODES, (5, 0.25, 13)),
        (ClusterSettings(locator_cpus=11), NODES, (4, 11, 11)),
        (ClusterSettings(locators=2, locator_cpus=0.5), LAPTOP, (2, 0.5, 1)),
    ],
)
def test_engines_and_the_cpus_and_threads_of_each(
    settings: ClusterSettings, size: ClusterSize, pool: tuple[int, float, int]
) -> None:
    assert locator_pool(settings, size) == pool


@pytest.mark.parametrize("cpus", [2, 3, 4, 5, 8, 16, 17])
def test_a_lost_nodes_engine_leaves_a_reader_room_on_another(cpus: int) -> None:
    locators, cpus_each, _ = locator_pool(ClusterSettings(), ClusterSize(2 * cpus, 0, cpus))
    assert (locators, 2 * cpus_each + 1 <= cpus) == (2, True)


@pytest.mark.parametrize("settings", [ClusterSettings(locator_cpus=1), ClusterSettings(locators=4, locator_cpus=1)])
def test_an_engine_never_asks_for_exactly_what_a_reading_task_asks_for(settings: ClusterSettings) -> None:
    _, cpus_each, _ = locator_pool(settings, NODES)
    assert 0.9 < cpus_each < 1  # else Ray would fuse the two, which then take turns


@pytest.mark.parametrize(
    ("settings", "size", "flag"),
    [
        (ClusterSettings(readers=65), NODES, "--cluster.readers 65"),
        (ClusterSettings(locators=9), GPUS, "--cluster.locators 9"),
        (ClusterSettings(locator_cpus=2), GPUS, "--cluster.locator-cpus"),
        (ClusterSettings(locator_cpus=16), NODES, "a smaller --cluster.locators or --cluster.locator-cpus"),
        (
            ClusterSettings(),
            ClusterSize(cpus=4, gpus=0, largest_node_cpus=1),
            "fewer --cluster.locators than the 4 nodes",
        ),
        (ClusterSettings(locators=4, locator_cpus=15.5), NODES, "room for an engine of 15.5 CPUs and a reader"),
        (ClusterSettings(), ClusterSize(cpus=0, gpus=0, largest_node_cpus=0), "no CPUs to read photos with"),
    ],
)
def test_what_the_cluster_does_not_have_is_refused(settings: ClusterSettings, size: ClusterSize, flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        locator_pool(settings, size)


def test_nodes_of_one_cpu_do_if_some_are_left_to_readers() -> None:
    assert locator_pool(ClusterSettings(locators=2), ClusterSize(cpus=4, gpus=0, largest_node_cpus=1)) == (2, 0.5, 2)


@pytest.mark.parametrize("wrong", [{"locators": 0}, {"readers": 0}, {"locator_cpus": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="--cluster"):
        ClusterSettings(**wrong)  # type: ignore[arg-type]
