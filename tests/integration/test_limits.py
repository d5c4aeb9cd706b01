"""Limits of usage against real PostgreSQL: who is let in, what is counted, and that nobody slips through."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, func, select, update

from turnkeeper import limits, turns
from turnkeeper.erasing import erase_chat
from turnkeeper.errors import ChatError, ErrorKind
from turnkeeper.exceptions import InvalidRequest, UsageLimitExceeded
from turnkeeper.limits import Limit, Usage, next_period
from turnkeeper.requests import Fallback, TurnRequest
from turnkeeper.states import AttemptOutcome, UsagePeriod
from turnkeeper.tables import messages as messages_table
from turnkeeper.tables import turns as turns_table
from turnkeeper.tables import usage_limits, usage_periods
from turnkeeper_worker import store, upkeep
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.failures import Signal
from turnkeeper_worker.planner import Planner
from turnkeeper_worker.pruning import prune
from turnkeeper_worker.store import Claimed, Ended
from turnkeeper_worker.tools import Toolbox

if TYPE_CHECKING:
    from tests.integration.conftest import OpenKeeper, Stage

MONTH = UsagePeriod.MONTH
"""Long enough for no test to see its end, but the one of two turns of the year."""
ERROR = ChatError(kind=ErrorKind.OVERLOADED, message="OpenAI is short of capacity.", provider="openai")
COST = {"input_tokens": 30, "output_tokens": 12, "cached_tokens": 20}
PLANNER = Planner(
    configs={"openai": ProviderConfig(base_url="https://api.openai.com/v1", model="m")}, keys={}, toolbox=Toolbox()
)


def limit(stage: "Stage", owner: str = "ada", period: UsagePeriod = MONTH, **numbers: int) -> None:
    stage.do(limits.set_limit, owner, period, **numbers)


def used(stage: "Stage", owner: str = "ada") -> Usage:
    (one,) = stage.do(limits.usage_of, owner)
    return one


def enqueue(stage: "Stage", words: str = "Hello", **fields: Any) -> UUID:
    return stage.enqueue(words, **({"owner": "ada"} | fields)).id


def ended(outcome: AttemptOutcome = AttemptOutcome.COMPLETED, **more: Any) -> Ended:
    error = None if outcome is AttemptOutcome.COMPLETED else ERROR
    return Ended(outcome=outcome, usage=COST, error=error, **more)


class TestAdmission:
    def test_turns_are_taken_up_to_the_limit_and_then_refused_with_the_facts(self, stage: "Stage") -> None:
        limit(stage, max_turns=2)
        for _ in range(2):
            enqueue(stage)
        before = stage.dump()

        with pytest.raises(UsageLimitExceeded) as caught:
            enqueue(stage)

        refused = caught.value
        assert (refused.spent, refused.limit, refused.what, refused.period) == (2, 2, "turns", "month")
        assert refused.resets_at > datetime.now(UTC)
        assert (refused.resets_at.day, refused.resets_at.hour) == (1, 0)
        assert stage.dump() == before

    def test_tokens_that_are_used_up_keep_further_turns_out(self, stage: "Stage") -> None:
        limit(stage, max_tokens=42)
        turn = stage.claim(enqueue(stage))
        enqueue(stage)
        stage.do(store.retry, turn, ended(AttemptOutcome.RETRIED, delay=timedelta(0)), is_rung=False)

        with pytest.raises(UsageLimitExceeded, match="42 of 42 tokens of this month are used; try after"):
            enqueue(stage)

    @pytest.mark.parametrize("numbers", [{"max_turns": 0}, {"max_tokens": 0}])
    def test_nothing_is_a_limit_too(self, stage: "Stage", numbers: dict[str, int]) -> None:
        limit(stage, **numbers)

        with pytest.raises(UsageLimitExceeded, match="0 of 0"):
            enqueue(stage)

        assert stage.count(turns_table) == stage.count(usage_periods) == 0

    def test_of_several_limits_each_must_be_kept_and_none_is_counted_by_halves(self, stage: "Stage") -> None:
        limit(stage, period=UsagePeriod.DAY, max_turns=9)
        limit(stage, period=MONTH, max_turns=1)
        enqueue(stage)
        before = stage.dump()

        with pytest.raises(UsageLimitExceeded, match="month"):
            enqueue(stage)

        assert [one.turns for one in stage.do(limits.usage_of, "ada")] == [1, 1]
        assert stage.dump() == before

    def test_who_has_no_limit_of_the_period_has_everybody_s(self, stage: "Stage") -> None:
        limit(stage, "*", max_turns=1)
        limit(stage, "bob", max_turns=2)
        limit(stage, "eve")

        for owner, allowed in {"ada": 1, "bob": 2, "": 1}.items():
            for _ in range(allowed):
                enqueue(stage, owner=owner)
            with pytest.raises(UsageLimitExceeded):
                enqueue(stage, owner=owner)
        for _ in range(3):
            enqueue(stage, owner="eve")

    def test_whoever_retries_by_hand_asks_for_another_turn(self, stage: "Stage") -> None:
        limit(stage, max_turns=1)
        turn = enqueue(stage)
        stage.fail(stage.claim(turn))
        before = stage.dump()

        with pytest.raises(UsageLimitExceeded):
            stage.do(turns.retry, turn)

        assert stage.dump() == before
        limit(stage, max_turns=2)
        assert stage.row(stage.do(turns.retry, turn).id)["metered"]
        assert used(stage).turns == 2

    def test_the_same_request_again_is_no_second_turn(self, stage: "Stage") -> None:
        limit(stage, max_turns=1)

        first, again = (enqueue(stage, idempotency_key="k") for _ in range(2))

        assert (first, used(stage).turns) == (again, 1)

    def test_what_is_rolled_back_was_not_counted(self, stage: "Stage") -> None:
        limit(stage, max_turns=1)
        request = TurnRequest.parse({"text": "Hello", "provider": "openai", "owner": "ada"})
        with stage.engine.connect() as connection:
            turns.enqueue(connection, request)
            with pytest.raises(UsageLimitExceeded):
                turns.enqueue(connection, request)
            connection.rollback()

        enqueue(stage)

        assert used(stage).turns == 1

    def test_a_caller_s_transaction_survives_a_refusal_and_keeps_what_it_had(self, stage: "Stage") -> None:
        limit(stage, max_turns=1)
        request = TurnRequest.parse({"text": "Hello", "provider": "openai", "owner": "ada"})
        with stage.engine.begin() as connection:
            turns.enqueue(connection, request)
            with pytest.raises(UsageLimitExceeded):
                turns.enqueue(connection, request)

        assert (stage.count(turns_table), stage.count(messages_table), used(stage).turns) == (1, 1, 1)

    def test_a_new_period_begins_with_nothing(self, stage: "Stage") -> None:
        limit(stage, period=UsagePeriod.HOUR, max_turns=1)
        enqueue(stage)
        earlier = usage_periods.c.starts_at - timedelta(hours=1)
        stage.do(lambda connection: connection.execute(update(usage_periods).values(starts_at=earlier)))

        enqueue(stage)

        assert used(stage).turns == 1


class TestAtTheSameTime:
    @pytest.mark.parametrize("left", [1, 3])
    def test_nobody_takes_a_turn_that_is_not_left(
        self, stage: "Stage", threads: ThreadPoolExecutor, left: int
    ) -> None:
        limit(stage, max_turns=left)
        start = Barrier(8)

        def one(number: int) -> bool:
            start.wait()
            try:
                enqueue(stage, f"Number {number}")
            except UsageLimitExceeded:
                return False
            return True

        taken = list(threads.map(one, range(8)))

        assert (sum(taken), stage.count(turns_table), used(stage).turns) == (left, left, left)

    def test_the_last_turn_is_the_same_for_all_who_ask_with_the_same_key(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        limit(stage, max_turns=1)
        start = Barrier(8)

        def one(_: int) -> UUID:
            start.wait()
            return enqueue(stage, idempotency_key="k")

        assert len(set(threads.map(one, range(8)))) == 1
        assert used(stage).turns == 1

    def test_whoever_waits_for_the_last_turn_gets_it_when_the_other_rolls_back(
        self, stage: "Stage", threads: ThreadPoolExecutor
    ) -> None:
        limit(stage, max_turns=1)
        request = TurnRequest.parse({"text": "Hello", "provider": "openai", "owner": "ada"})
        with stage.engine.connect() as connection:
            turns.enqueue(connection, request)
            waiting = threads.submit(enqueue, stage)
            stage.wait_until_blocked()
            connection.rollback()

        assert stage.state(waiting.result()) == "queued"

    def test_no_token_is_lost_between_workers(self, stage: "Stage", threads: ThreadPoolExecutor) -> None:
        limit(stage, max_tokens=10_000)
        running = [stage.claim(enqueue(stage)) for _ in range(8)]
        start = Barrier(8)

        def one(turn: Claimed) -> None:
            start.wait()
            stage.do(store.fail, turn, ended(AttemptOutcome.FAILED))

        list(threads.map(one, running))

        assert (used(stage).input_tokens, used(stage).output_tokens) == (8 * 30, 8 * 12)


class TestTokens:
    @pytest.mark.parametrize(
        "end",
        [
            pytest.param(lambda c, turn: store.fail(c, turn, ended(AttemptOutcome.FAILED)), id="failed"),
            pytest.param(
                lambda c, turn: store.cancel(c, turn, ended(AttemptOutcome.CANCELLED), ()), id="cancelled"
            ),
            pytest.param(
                lambda c, turn: store.retry(
                    c, turn, ended(AttemptOutcome.RETRIED, delay=timedelta(0)), is_rung=False
                ),
                id="retried",
            ),
            pytest.param(lambda c, turn: store.heal(c, turn, ended(AttemptOutcome.HEALED)), id="healed"),
            pytest.param(
                lambda c, turn: store.hand_back(c, turn, ended(AttemptOutcome.HANDED_BACK)), id="handed back"
            ),
            pytest.param(
                lambda c, turn: store.fall_back(
                    c, turn, ended(AttemptOutcome.FELL_BACK), PLANNER.choice(turn, Fallback(provider="openai"))
                ),
                id="fallen back",
            ),
        ],
    )
    def test_whatever_became_of_an_attempt_its_tokens_count(self, stage: "Stage", end: Any) -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage))

        stage.do(end, turn)

        assert (used(stage).tokens, used(stage).turns) == (42, 1)

    def test_an_answer_s_tokens_count_and_so_do_those_of_each_step(self, stage: "Stage") -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage))

        turn = stage.do(store.next_step, stage.complete_step(turn))
        stage.do(store.begin, turn)
        stage.complete(turn)

        assert (used(stage).input_tokens, used(stage).output_tokens) == (6, 0)

    def test_what_a_worker_writes_that_lost_the_turn_counts_nothing(self, stage: "Stage") -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage))
        stage.do(store.fail, turn, ended(AttemptOutcome.FAILED))

        with pytest.raises(store.LeaseLost):
            stage.do(store.fail, turn, ended(AttemptOutcome.FAILED))

        assert used(stage).tokens == 42

    def test_a_background_response_that_is_called_off_counts_once(self, stage: "Stage") -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage, background=True))
        stage.keep(turn)
        stage.do(store.cancel, turn, Ended(outcome=AttemptOutcome.CANCELLED), ())
        (abandoned,) = stage.do(upkeep.find_abandoned)

        for _ in range(2):
            stage.do(upkeep.close_abandoned, abandoned, COST)

        assert used(stage).tokens == 42

    @pytest.mark.parametrize("then", ["ends", "is erased"])
    def test_so_does_one_that_was_left_behind(self, stage: "Stage", then: str) -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage, background=True))
        stage.keep(turn)
        choice = PLANNER.choice(turn, Fallback(provider="openai", model="n"))
        left = Ended(outcome=AttemptOutcome.FELL_BACK)
        instead = stage.do(PLANNER.begin, stage.do(store.fall_back, turn, left, choice, goes_on=True)).turn
        if then == "ends":
            stage.do(
                store.fail, instead, Ended(outcome=AttemptOutcome.FAILED, error=ended(AttemptOutcome.FAILED).error)
            )
        else:
            stage.do(erase_chat, turn.chat_id)
        (abandoned,) = stage.do(upkeep.find_abandoned)

        for _ in range(2):
            stage.do(upkeep.close_abandoned, abandoned, COST)

        assert used(stage).tokens == 42

    def test_an_erased_chat_is_not_free(self, stage: "Stage") -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage, background=True))
        stage.keep(turn)
        stage.do(erase_chat, turn.chat_id)
        (abandoned,) = stage.do(upkeep.find_abandoned)

        for _ in range(2):
            stage.do(upkeep.close_abandoned, abandoned, COST)

        assert used(stage).tokens == 42


class TestWithoutLimits:
    def test_nothing_is_counted_and_no_statement_is_spent(self, stage: "Stage") -> None:
        def statements(owner: str) -> tuple[int, int]:
            seen: list[str] = []
            event.listen(stage.engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
            turn = stage.claim(enqueue(stage, owner=owner))
            stage.do(store.fail, turn, ended(AttemptOutcome.FAILED))
            assert seen
            return len(seen), sum("usage_periods" in one for one in seen)

        total, of_limits = statements("nobody")
        assert of_limits == 0
        assert stage.count(usage_periods) == 0

        limit(stage, "somebody", max_turns=9)
        assert statements("nobody") == (total, 0)
        assert statements("somebody") == (total + 2, 2)

    def test_a_limit_that_is_set_later_holds_for_later_turns(self, stage: "Stage") -> None:
        turn = stage.claim(enqueue(stage))
        limit(stage, max_tokens=1000)

        stage.do(store.fail, turn, ended(AttemptOutcome.FAILED))

        assert used(stage).tokens == 0

    def test_one_that_is_removed_counts_no_more(self, stage: "Stage") -> None:
        limit(stage, max_tokens=1000)
        turn = stage.claim(enqueue(stage))
        assert stage.do(limits.remove_limit, "ada", MONTH) is True

        stage.do(store.fail, turn, ended(AttemptOutcome.FAILED))

        assert (stage.do(limits.usage_of, "ada"), stage.do(limits.remove_limit, "ada", MONTH)) == ((), False)


class TestBetweenSteps:
    def second_step(self, stage: "Stage") -> Any:
        turn = stage.claim(enqueue(stage))
        stage.do(limits.count_tokens, "ada", COST)
        following = stage.do(store.next_step, stage.complete_step(turn))
        return stage.do(PLANNER.begin, following)

    def test_a_step_is_not_begun_when_the_tokens_are_used_up(self, stage: "Stage") -> None:
        limit(stage, max_tokens=45)

        obstacle = self.second_step(stage).obstacle

        assert (obstacle.signal, obstacle.provider) == (Signal.OWN_LIMIT, None)
        assert obstacle.why.startswith("45 of 45 tokens of this month are used; try after ")

    def test_while_there_are_tokens_the_turn_goes_on(self, stage: "Stage") -> None:
        limit(stage, max_tokens=46)

        assert self.second_step(stage).obstacle is None

    def test_turns_are_no_matter_between_steps(self, stage: "Stage") -> None:
        limit(stage, max_turns=1)

        assert self.second_step(stage).obstacle is None

    def test_a_turn_that_was_admitted_begins(self, stage: "Stage") -> None:
        limit(stage, max_tokens=42)
        turn = stage.claim(enqueue(stage))
        stage.do(limits.count_tokens, "ada", COST)

        assert stage.do(PLANNER.plan_anew, turn).obstacle is None


class TestClients:
    def test_limits_are_set_listed_and_removed(self, open_keeper: "OpenKeeper") -> None:
        keeper = open_keeper()

        keeper.set_limit("ada", "day", max_turns=1)
        keeper.set_limit("ada", "day", max_tokens=2)
        keeper.set_limit("*", UsagePeriod.HOUR, max_turns=3)

        assert keeper.limits() == (
            Limit(owner="*", period=UsagePeriod.HOUR, max_turns=3),
            Limit(owner="ada", period=UsagePeriod.DAY, max_tokens=2),
        )
        assert [(one.period, one.max_turns, one.max_tokens) for one in keeper.usage("ada")] == [
            ("hour", 3, None),
            ("day", None, 2),
        ]
        assert keeper.remove_limit("ada", "day") is True

    def test_a_refused_turn_is_an_error_that_the_caller_can_act_on(self, open_keeper: "OpenKeeper") -> None:
        keeper = open_keeper()
        keeper.set_limit("ada", "month", max_turns=1)
        keeper.enqueue(None, "Hello", owner="ada")

        with pytest.raises(UsageLimitExceeded) as caught:
            keeper.enqueue(None, "Hello", owner="ada")

        assert (caught.value.spent, caught.value.limit) == (1, 1)
        assert caught.value.resets_at == keeper.usage("ada")[0].resets_at

    @pytest.mark.parametrize(
        ("owner", "period", "numbers", "says"),
        [
            ("ada", "week", {"max_turns": 1}, "'week' is no period; take hour, day, month"),
            ("ada", "day", {"max_turns": -1}, "max_turns is -1"),
            ("ada", "day", {"max_tokens": 2**63}, "max_tokens is"),
            ("a\0", "day", {"max_turns": 1}, "NUL"),
            ("a" * 201, "day", {"max_turns": 1}, "at most 200"),
        ],
    )
    def test_what_is_no_limit_is_refused(
        self, open_keeper: "OpenKeeper", stage: "Stage", owner: str, period: str, numbers: Any, says: str
    ) -> None:
        with pytest.raises(InvalidRequest, match=says):
            open_keeper().set_limit(owner, period, **numbers)

        assert stage.count(usage_limits) == 0


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Kiritimati"])
def test_periods_are_those_of_utc_wherever_the_database_is(stage: "Stage", zone: str) -> None:
    limit(stage, period=UsagePeriod.DAY, max_turns=1)
    with stage.engine.begin() as connection:
        connection.exec_driver_sql(f"SET LOCAL TIME ZONE '{zone}'")
        (one,) = limits.usage_of(connection, "ada")
        today = connection.scalar(select(func.now())).astimezone(UTC).date()

    starts_at = one.starts_at.astimezone(UTC)
    assert (starts_at.date(), starts_at.hour, starts_at.minute) == (today, 0, 0)
    assert one.resets_at - one.starts_at == timedelta(days=1)


@pytest.mark.parametrize(
    ("period", "start", "following"),
    [
        (UsagePeriod.HOUR, datetime(2026, 12, 31, 23, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        (UsagePeriod.DAY, datetime(2028, 2, 28, tzinfo=UTC), datetime(2028, 2, 29, tzinfo=UTC)),
        (UsagePeriod.MONTH, datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)),
        (UsagePeriod.MONTH, datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_the_next_period_begins_where_the_calendar_says(
    period: UsagePeriod, start: datetime, following: datetime
) -> None:
    assert next_period(period, start) == following


def test_old_counters_are_pruned_and_those_of_this_month_are_not(stage: "Stage") -> None:
    limit(stage, max_turns=9)
    enqueue(stage)
    long_ago = {"owner": "ada", "period": "day", "starts_at": datetime(2020, 1, 1, tzinfo=UTC)}
    stage.do(lambda connection: connection.execute(usage_periods.insert().values(long_ago)))

    pruned = stage.do(prune, timedelta(0))

    assert (pruned.usage_periods, used(stage).turns) == (1, 1)


def test_a_submitted_turn_that_is_refused_is_remembered_by_its_reason(stage: "Stage") -> None:
    limit(stage, max_turns=0)
    turn_id = uuid4()

    with pytest.raises(UsageLimitExceeded) as caught:
        stage.enqueue(turn_id=turn_id, owner="ada")
    stage.do(upkeep.reject, turn_id, str(caught.value))

    with stage.engine.connect() as connection:
        assert "0 of 0 turns of this month are used" in str(turns.unknown(connection, turn_id))
