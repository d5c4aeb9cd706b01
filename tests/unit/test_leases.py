"""What a process may believe of its turns: when it stops one, and when it stops believing."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import pytest

from turnkeeper_worker.leases import Lease, Leases, Stop
from turnkeeper_worker.upkeep import Held

TURN = UUID(int=1)
OTHER = UUID(int=2)


@dataclass
class World:
    """A clock and a database, both moved by hand."""

    now: float = 1000.0
    held: list[Held] = field(default_factory=list)
    is_away: bool = False
    given_back: list[tuple[UUID, int]] = field(default_factory=list)
    lost: list[UUID] = field(default_factory=list)

    async def beat(self) -> list[Held]:
        if self.is_away:
            raise ConnectionError("connection refused")
        return self.held

    async def give_back(self, turn_id: UUID, epoch: int) -> None:
        self.given_back.append((turn_id, epoch))

    def leases(self) -> Leases:
        return Leases(
            ttl=timedelta(seconds=15),
            every=timedelta(seconds=5),
            beat=self.beat,
            give_back=self.give_back,
            lost=self.lost.append,
            clock=lambda: self.now,
        )


def held(turn_id: UUID = TURN, epoch: int = 1, *, is_cancelled: bool = False) -> Held:
    return Held(turn_id=turn_id, epoch=epoch, is_cancelled=is_cancelled)


@contextmanager
def claimed(leases: Leases, turn_id: UUID = TURN, epoch: int = 1) -> Iterator[Lease]:
    """Hold a turn whose claim is committed; its last write is under way, so that no stop strikes the test."""
    with leases.hold(turn_id) as lease:
        assert lease is not None
        lease.claimed(epoch)
        yield lease


class TestStop:
    async def test_a_stop_breaks_off_what_listens(self) -> None:
        lease = Lease(TURN, asyncio.create_task(asyncio.sleep(3600)))
        lease.listen()

        lease.stop(Stop.CANCELLED)

        with pytest.raises(asyncio.CancelledError):
            await lease.task

    async def test_a_stop_that_comes_while_we_are_deaf_strikes_when_we_listen(self) -> None:
        lease = Lease(TURN, asyncio.create_task(asyncio.sleep(3600)))

        lease.stop(Stop.HANDED_BACK)
        assert not lease.task.cancelling()
        lease.listen()

        with pytest.raises(asyncio.CancelledError):
            await lease.task

    async def test_no_stop_strikes_a_last_write(self) -> None:
        lease = Lease(TURN, asyncio.create_task(asyncio.sleep(0)))
        lease.listen()
        lease.settle()

        lease.stop(Stop.LOST)

        await lease.task
        assert lease.stopped is Stop.LOST

    @pytest.mark.parametrize(
        ("stops", "counts"),
        [
            pytest.param([Stop.CANCELLED, Stop.HANDED_BACK], Stop.CANCELLED, id="the first reason counts"),
            pytest.param([Stop.HANDED_BACK, Stop.CANCELLED], Stop.HANDED_BACK, id="whichever it is"),
            pytest.param([Stop.CANCELLED, Stop.LOST], Stop.LOST, id="a lost lease beats all"),
            pytest.param([Stop.LOST, Stop.CANCELLED], Stop.LOST, id="and stays lost"),
        ],
    )
    async def test_of_several_reasons_one_counts(self, stops: list[Stop], counts: Stop) -> None:
        lease = Lease(TURN, asyncio.create_task(asyncio.sleep(3600)))
        lease.listen()

        for why in stops:
            lease.stop(why)

        assert lease.stopped is counts
        assert lease.task.cancelling() == 1
        with suppress(asyncio.CancelledError):
            await lease.task


class TestHold:
    async def test_a_turn_is_run_once_at_a_time(self) -> None:
        leases = World().leases()

        with leases.hold(TURN) as first, leases.hold(TURN) as second, leases.hold(OTHER) as other:
            assert first is not None
            assert second is None
            assert other is not None
            assert len(leases) == 2

        assert len(leases) == 0

    async def test_a_turn_that_crashed_is_let_go(self) -> None:
        leases = World().leases()

        with suppress(RuntimeError), leases.hold(TURN):
            raise RuntimeError

        assert len(leases) == 0

    async def test_a_stop_reaches_the_turn_that_is_meant(self) -> None:
        leases = World().leases()

        with claimed(leases) as one, claimed(leases, OTHER) as other:
            leases.stop(TURN, Stop.CANCELLED)
            leases.stop(UUID(int=9), Stop.CANCELLED)

            assert (one.stopped, other.stopped) == (Stop.CANCELLED, None)

            leases.stop_all(Stop.HANDED_BACK)

            assert (one.stopped, other.stopped) == (Stop.CANCELLED, Stop.HANDED_BACK)


class TestBeat:
    async def test_a_turn_that_the_database_knows_as_ours_goes_on(self) -> None:
        world = World(held=[held()])
        leases = world.leases()

        with claimed(leases) as lease:
            assert await leases.renew()

            assert lease.stopped is None
            assert world.given_back == []

    @pytest.mark.parametrize(
        ("found", "why"),
        [
            pytest.param([], Stop.LOST, id="a turn that is no longer ours is lost"),
            pytest.param([held(epoch=2)], Stop.LOST, id="a turn that another claim holds is lost"),
            pytest.param([held(is_cancelled=True)], Stop.CANCELLED, id="a turn that was cancelled stops"),
        ],
    )
    async def test_the_answer_to_a_beat_stops_turns(self, found: list[Held], why: Stop) -> None:
        leases = World(held=found).leases()

        with claimed(leases) as lease:
            await leases.renew()

            assert lease.stopped is why

    async def test_a_claim_that_is_not_committed_yet_is_not_lost(self) -> None:
        leases = World(held=[]).leases()

        with leases.hold(TURN) as lease:
            await leases.renew()

            assert lease is not None
            assert lease.stopped is None

    async def test_what_nobody_here_runs_is_given_back(self) -> None:
        world = World(held=[held(OTHER, epoch=3)])

        await world.leases().renew()

        assert world.given_back == [(OTHER, 3)]

    async def test_a_turn_that_left_while_the_database_was_asked_is_not_given_back(self) -> None:
        world = World(held=[held()])
        leases = world.leases()
        with ExitStack() as here:
            here.enter_context(claimed(leases))

            async def leave() -> list[Held]:
                here.close()
                return [held()]

            leases._beat = leave
            await leases.renew()
            assert world.given_back == []

        leases._beat = world.beat
        await leases.renew()
        assert world.given_back == [(TURN, 1)]

    async def test_an_old_answer_says_nothing_of_a_newer_claim(self) -> None:
        world = World(held=[])
        leases = world.leases()
        renewed: list[Lease] = []

        async def beat() -> list[Held]:
            # While the question is on its way, the turn ends and is claimed anew.
            first.__exit__(None, None, None)
            renewed.append(stack.__enter__())
            return []

        first, stack = claimed(leases, epoch=1), claimed(leases, epoch=2)
        first.__enter__()
        leases._beat = beat

        await leases.renew()

        assert renewed[0].stopped is None
        stack.__exit__(None, None, None)


class TestDoubt:
    async def test_a_process_is_sure_for_half_the_ttl_after_its_last_renewal(self) -> None:
        world = World()
        leases = world.leases()
        await leases.renew()

        world.now += 7.5
        assert leases.are_sure()
        world.now += 0.1
        assert not leases.are_sure()
        await leases.renew()
        assert leases.are_sure()

    async def test_after_an_outage_of_the_database_the_others_get_the_time_of_a_lease(self) -> None:
        world = World()
        leases = world.leases()
        await leases.renew()
        assert leases.may_judge()

        world.now += 60
        assert not leases.may_judge()
        await leases.renew()
        assert leases.are_sure()
        assert not leases.may_judge()
        world.now += 5
        await leases.renew()
        world.now += 5
        await leases.renew()
        world.now += 5
        assert leases.may_judge()

    async def test_what_was_lost_in_a_long_sleep_is_told_before_the_process_is_sure_again(self) -> None:
        world = World(held=[held()])
        leases = world.leases()
        sure_when_told: list[bool] = []
        leases._lost = lambda _turn_id: sure_when_told.append(leases.are_sure())
        with claimed(leases):
            await leases.renew()

            world.now += 3600
            world.held = [held(epoch=2)]
            await leases.renew()

        assert sure_when_told == [False]
        assert leases.are_sure()

    async def test_a_database_that_is_away_for_a_moment_costs_nothing(self) -> None:
        world = World(held=[held()])
        leases = world.leases()
        with claimed(leases) as lease:
            await leases.renew()

            world.is_away = True
            world.now += 7.4
            assert not await leases.renew()

            assert lease.stopped is None

    async def test_after_half_the_ttl_without_an_answer_every_turn_is_given_up(self) -> None:
        world = World(held=[held(), held(OTHER)])
        leases = world.leases()
        with claimed(leases) as one, claimed(leases, OTHER) as other:
            await leases.renew()

            world.is_away = True
            world.now += 7.5
            await leases.renew()

            assert (one.stopped, other.stopped) == (Stop.LOST, Stop.LOST)

    async def test_a_long_outage_is_told_once_and_not_with_every_beat(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        world = World(held=[held()])
        leases = world.leases()
        with claimed(leases):
            world.is_away = True
            for _ in range(4):
                world.now += 1
                await leases.renew()
            world.now += 4
            for _ in range(4):
                world.now += 0.5
                await leases.renew()

        assert capsys.readouterr().out.count("lease.given_up") == 1

    async def test_time_counts_from_before_the_request_that_succeeded(self) -> None:
        world = World(held=[held()])
        leases = world.leases()

        async def slow_beat() -> list[Held]:
            world.now += 5
            return world.held

        with claimed(leases) as lease:
            leases._beat = slow_beat
            await leases.renew()

            leases._beat = world.beat
            world.is_away = True
            world.now += 2.5
            await leases.renew()

            assert lease.stopped is Stop.LOST

    async def test_a_beat_that_hangs_is_given_no_more_than_the_time_that_is_left(self) -> None:
        world = World()
        leases = world.leases()

        async def hanging_beat() -> list[Held]:
            world.now += 0.05
            await asyncio.sleep(3600)
            raise AssertionError

        with claimed(leases) as lease:
            world.now += 7.45
            leases._beat = hanging_beat

            assert not await leases.renew()

            assert lease.stopped is Stop.LOST

    async def test_an_answer_at_last_restores_trust(self) -> None:
        world = World(held=[], is_away=True)
        leases = world.leases()
        world.now += 60
        await leases.renew()

        world.is_away = False
        assert await leases.renew()
        world.held = [held()]
        with claimed(leases) as lease:
            world.is_away = True
            world.now += 7
            await leases.renew()

            assert lease.stopped is None
