"""One night as a job of a Ray cluster: submitted, followed to its end, stopped with whoever waits for it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from ray.job_submission import JobStatus, JobSubmissionClient

POLL_S = 10.0


def run_night(dashboard: str, submission_id: str, arguments: Sequence[str], poll_s: float = POLL_S) -> None:
    """Run `python -m jobs.nightly` with `arguments` on the cluster and return once it has succeeded.

    Args:
        dashboard: the cluster's dashboard, http://HOST:8265; Ray's token comes from the environment.
        submission_id: the job's name: another one for each try.

    Raises:
        RuntimeError: the job failed or was stopped, with the end of its log.
    """
    client = JobSubmissionClient(dashboard)
    entrypoint = shlex.join(["python", "-m", "jobs.nightly", *arguments])
    client.submit_job(entrypoint=entrypoint, submission_id=submission_id)
    try:
        while not (status := client.get_job_status(submission_id)).is_terminal():
            time.sleep(poll_s)
    except BaseException:  # whatever ends this wait (a timeout, Airflow's stop) ends the job: it stages what is done
        client.stop_job(submission_id)
        raise
    log = client.get_job_logs(submission_id)
    print(log)
    if status != JobStatus.SUCCEEDED:
        raise RuntimeError(f"{submission_id} {status.lower()}:\n{log[-2000:]}")
