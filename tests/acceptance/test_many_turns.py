"""Two hundred turns at once on one worker process, and Flower's view of them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from turnkeeper import TurnState
from turnkeeper_ops.services.process import poll

from .conftest import Site

TURNS = 200


def test_two_hundred_turns_at_once_complete_on_one_worker_and_flower_lists_them(site: Site) -> None:
    word = site.script({"type": "answer", "chunk_delay_ms": 300, "text": "word " * 20, "chunk_chars": 10})

    with ThreadPoolExecutor(16) as producers:
        turns = list(producers.map(lambda number: site.enqueue(f"Turn {number} {word}"), range(TURNS)))
        views = list(producers.map(site.finish, turns))

    assert {view.state for view in views} == {TurnState.COMPLETED}
    assert {view.text for view in views} == {"word " * 20}
    assert all(len(view.attempts) == 1 for view in views)
    assert most_at_once(views) > TURNS / 2

    def flower_knows_all() -> bool:
        tasks = site.flower("/api/tasks?limit=1000")
        mine = [tasks.get(str(turn.id)) for turn in turns]
        return all(task and task["state"] == "SUCCESS" and task["runtime"] > 0 for task in mine)

    assert poll(flower_knows_all, within=timedelta(seconds=20))


def most_at_once(views: list) -> int:
    """Return how many turns were running at the busiest moment."""
    changes = sorted([(view.started_at, 1) for view in views] + [(view.finished_at, -1) for view in views])
    running = busiest = 0
    for _, change in changes:
        running += change
        busiest = max(busiest, running)
    return busiest
