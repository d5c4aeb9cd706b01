"""How the stream of an attempt is timed."""

from turnkeeper_worker.observer import Watch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def heard(*waits: float, then_stopped_after: float = 0) -> Watch:
    """Return a watch that heard something after each wait."""
    clock = Clock()
    watch = Watch(clock=clock)
    for wait in waits:
        clock.now += wait
        watch.heard()
    clock.now += then_stopped_after
    watch.stop()
    return watch


def test_the_first_event_is_timed_from_the_call() -> None:
    assert heard(2.5, 1).first_event == 2.5


def test_silence_is_the_longest_pause_after_the_first_event() -> None:
    assert heard(30, 1, 4, 2).silence == 4


def test_the_silence_in_which_a_stream_ends_counts_most_of_all() -> None:
    assert heard(1, 1, then_stopped_after=600).silence == 600


def test_a_provider_that_said_nothing_at_all_has_neither() -> None:
    watch = heard(then_stopped_after=60)

    assert (watch.first_event, watch.silence) == (None, 0)
