"""What is Ray's, and what watches over a run: the flow of data, supervision, metrics and logs."""

import os as _os

# Ray reads it as it is imported, which only this room's modules do. It would start a task that was killed for want of
# memory again and again, for ever: the run would neither end nor get any further.
_os.environ.setdefault("RAY_task_oom_retries", "8")
