#!/usr/bin/env python
"""Writes dashboard.json, beside this file: `python infra/monitoring/dashboard.py` (extra `infra`)."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

SOURCE = DataSourceRef(type_val="prometheus", uid="${source}")
RUN = '{run_id=~"$run"}'
NOW = "and on (run_id) ray_graticule_run_start_timestamp_seconds"
"""Only of runs whose driver is there: agents keep the counters of processes that have ended."""

Lines = dict[str, str]
"""Legend → expression."""

ROWS: dict[str, list[tuple[str, str, Lines]]] = {
    "The run": [
        ("Photos with a row", "short", {
            "staged {{run_id}}": f"max by (run_id) (ray_graticule_photos_staged{RUN})",
            "planned {{run_id}}": f"max by (run_id) (ray_graticule_photos_planned{RUN})",
        }),
        ("Photos a second", "short", {
            "read": f"sum(rate(ray_graticule_photos_read_total{RUN}[$__rate_interval]))",
            "to the engine": f"sum(rate(ray_graticule_engine_photos_total{RUN}[$__rate_interval]))",
            "staged": f"sum(rate(ray_graticule_photos_total{RUN}[$__rate_interval]))",
        }),
        ("Failures by code", "short", {
            "{{error_code}}": 'sum by (error_code) (ray_graticule_photos_total{run_id=~"$run", status="failed"})',
        }),
        ("Without any progress for", "s", {
            "{{run_id}}": f"max by (run_id) (ray_graticule_silent_seconds{RUN})",
            "ends at": f"min(ray_graticule_silence_limit_seconds{RUN})",
        }),
    ],
    "Where the time goes": [
        ("Median of a stage", "s", {
            "{{stage}}": "histogram_quantile(0.5, sum by (stage, le) "
            f"(rate(ray_graticule_stage_seconds_bucket{RUN}[$__rate_interval])))",
        }),
        ("99 % are faster than", "s", {
            "{{stage}}": "histogram_quantile(0.99, sum by (stage, le) "
            f"(rate(ray_graticule_stage_seconds_bucket{RUN}[$__rate_interval])))",
        }),
        ("Bytes fetched a second", "Bps", {
            "fetched": f"sum(rate(ray_graticule_fetched_bytes_total{RUN}[$__rate_interval]))",
        }),
        ("Photos that wait", "short", {
            "for {{stage}}": f"sum by (stage) (ray_graticule_photos_waiting{RUN})",
        }),
    ],
    "Engines": [
        ("Idle share of engines", "percentunit", {
            "{{NodeAddress}}": "1 - avg by (NodeAddress) "
            f"(rate(ray_graticule_engine_busy_seconds_total{RUN}[$__rate_interval]) {NOW})",
        }),
        ("How full batches are", "percentunit", {
            "fill": f"sum(rate(ray_graticule_engine_photos_total{RUN}[$__rate_interval]))"
            f" / sum(rate(ray_graticule_engine_slots_total{RUN}[$__rate_interval]))",
        }),
    ],
    "The cluster": [
        ("Nodes", "short", {"alive": "max(ray_cluster_active_nodes)"}),
        ("CPU", "percent", {"{{NodeAddress}}": "max by (NodeAddress) (ray_node_cpu_utilization)"}),
        ("Memory", "bytes", {"{{NodeAddress}}": "max by (NodeAddress) (ray_node_mem_used)"}),
        ("Disk left", "bytes", {"{{NodeAddress}}": "min by (NodeAddress) (ray_node_disk_free)"}),
        ("Age of the lease", "s", {"{{run_id}}": f"max by (run_id) (ray_graticule_lease_age_seconds{RUN})"}),
    ],
}  # fmt: skip
NIGHT: list[tuple[str, str, str]] = [
    ("Exit code", "short", "max by (instance) (graticule_night_exit_code)"),
    ("Last success", "dateTimeFromNow", "1000 * max by (instance) (graticule_night_last_success_timestamp_seconds)"),
    ("Took", "s", "graticule_night_finish_timestamp_seconds - graticule_night_start_timestamp_seconds"),
    ("Located", "short", 'sum by (instance) (graticule_night_photos{status="located"})'),
    ("Failed, skipped", "short", 'sum by (instance, status) (graticule_night_photos{status=~"failed|skipped"})'),
    ("Left, gone", "short", 'label_replace(graticule_night_photos_left, "what", "left", "", "")'
     ' or label_replace(graticule_night_photos_gone, "what", "gone", "", "")'),
]  # fmt: skip


def text() -> str:
    """Return the dashboard as Grafana imports it."""
    made = (
        dashboard.Dashboard("Graticule")
        .uid("graticule")
        .tags(["graticule", "ray"])
        .time("now-3h", "now")
        .refresh("30s")
        .timezone("browser")
        .with_variable(dashboard.DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(SOURCE)
            .query("label_values(ray_graticule_photos_planned, run_id)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
    )
    made = made.with_row(dashboard.Row("Last night"))
    for title, unit, expression in NIGHT:
        panel = stat.Panel().title(title).unit(unit).datasource(SOURCE).span(4).height(4)
        made = made.with_panel(panel.with_target(_query(0, "{{instance}} {{what}} {{status}}", expression)))
    for row, panels in ROWS.items():
        made = made.with_row(dashboard.Row(row))
        for title, unit, lines in panels:
            graph = timeseries.Panel().title(title).unit(unit).min(0).datasource(SOURCE).span(12).height(8)
            for index, (legend, expression) in enumerate(lines.items()):
                graph = graph.with_target(_query(index, legend, expression))
            made = made.with_panel(graph)
    return json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _query(index: int, legend: str, expression: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id("ABCDEF"[index]).expr(expression).legend_format(legend)


if __name__ == "__main__":
    Path(__file__).with_name("dashboard.json").write_text(text(), encoding="utf-8")
