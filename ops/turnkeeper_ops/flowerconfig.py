"""Flower's configuration, for `celery flower --conf=…`: every global below that names an option sets it.

Flower shows which turns run, where and for how long. It is no place to read prompts, nor to command workers:
cancel a turn with `turnkeeper cancel`.
"""

from typing import Any

# Whoever reaches Flower could otherwise shut the workers down.
read_only = True

# A turn's id is its task id, its label stands in place of the arguments, and its attempts count as retries.
tasks_columns = "uuid,args,state,result,retries,received,started,runtime,worker"

# Seconds. A worker's name holds its process id, so each restart would leave another dead row behind.
purge_offline_workers = 300

_RUN_TURN = "turnkeeper.run_turn"


def format_task(task: Any) -> Any:
    """Show a task without its arguments; only a turn's are a label of ours, with no word of a prompt."""
    if task.name != _RUN_TURN:
        task.args = ""
    task.kwargs = ""
    # The list has no column for what a task failed of.
    task.result = task.result or task.exception
    return task
