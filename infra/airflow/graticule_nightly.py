"""An Airflow 3 DAG that has a Ray cluster do the night's work; put it and submitted_night.py into the DAGs folder.

Airflow's workers need Ray of the cluster's version (`ray[default]`) and, in their environment, GRATICULE_DASHBOARD
(the cluster's dashboard, such as http://ray-head:8265), GRATICULE_PHOTOS, GRATICULE_OUTPUT, and Ray's token:
RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. The cluster needs Graticule installed, as its image has.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

from airflow.sdk import dag, task
from submitted_night import run_night


@dag(
    schedule="30 1 * * *",
    start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    catchup=False,  # a night takes on all that earlier ones left: there is nothing to make good
    max_active_runs=1,
)
def graticule_nightly() -> None:
    """Tag what is new in the archive."""

    @task(retries=2, retry_delay=dt.timedelta(minutes=5), execution_timeout=dt.timedelta(hours=9))
    def night(**context: Any) -> None:
        date = context["dag_run"].run_after.date().isoformat()
        photos, output = os.environ["GRATICULE_PHOTOS"], os.environ["GRATICULE_OUTPUT"]
        run_night(
            os.environ["GRATICULE_DASHBOARD"],
            f"graticule-nightly-{date}-{context['ti'].try_number}",
            ["--photos", photos, "--output", output, "--date", date, "--max-hours", "6"],
        )

    night()


graticule_nightly()
