"""The two statements that every turn takes: the claim, and the storing of an answer.

Each is one round trip, and whole by itself, so that it needs no transaction around it: a short turn spends more on
talking with PostgreSQL than on anything else. What they mean stands in `store`.
"""

from sqlalchemy import Boolean, DateTime, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB

from turnkeeper_worker.history import DIGEST, heard, seen

#: A waiting turn that is due and first in its chat is claimed, its attempt entered, and its chat read.
#: `before` is the row as it was: the claim empties the time since when it had been due.
CLAIM = text(
    f"""
    WITH this AS (
        UPDATE turns SET
            state = 'running',
            epoch = turns.epoch + 1,
            attempt = turns.attempt + 1,
            worker_id = :worker,
            available_at = NULL,
            started_at = coalesce(turns.started_at, now())
        FROM turns AS before
        WHERE turns.id = :turn AND before.id = turns.id
            AND turns.state IN ('queued', 'retrying') AND turns.available_at <= now()
            AND NOT EXISTS (
                SELECT FROM turns AS earlier
                WHERE earlier.chat_id = turns.chat_id AND earlier.seq < turns.seq AND earlier.finished_at IS NULL
            )
        RETURNING
            turns.*,
            now() - turns.started_at AS elapsed,
            now() - before.available_at AS waited
    ), begun AS (
        INSERT INTO attempts (turn_id, step, number, epoch, worker_id, provider, model)
        SELECT id, step, attempt, epoch, worker_id, provider,
            coalesce(model, CAST(:providers AS jsonb) -> provider ->> 'model')
        FROM this WHERE NOT runs_tools
    ), chat AS (
        SELECT
            chats.instructions,
            chats.anchor,
            CASE WHEN jsonb_typeof(anchor -> 'seq') = 'number' THEN (anchor -> 'seq')::integer ELSE 0 END
                AS after_seq,
            CASE WHEN jsonb_typeof(anchor -> 'position') = 'number' THEN (anchor -> 'position')::integer ELSE 0 END
                AS after_position
        FROM this JOIN chats ON chats.id = this.chat_id
    )
    SELECT
        this.id, chat_id, owner, seq, epoch, step, attempt, spent, healed, runs_tools, this.provider, model,
        options, tools, background, fallbacks, first_choice, checkpoint, usage, metered, trace_context,
        cancel_requested_at IS NOT NULL AS is_cancelled,
        elapsed,
        waited,
        EXISTS (
            SELECT FROM turns AS standing
            WHERE standing.owner = this.owner AND standing.available_at <= now() AND standing.rung_at IS NULL
        ) AS others_stand_back,
        chat.*,
        {heard("this.chat_id", "this.seq", "after_seq, after_position")},
        coalesce(breaks, 0) AS breaks,
        coalesce(rests_until > now(), false) AS is_resting
    FROM this
        CROSS JOIN chat
        LEFT JOIN chain_health ON credential = CAST(:providers AS jsonb) -> this.provider ->> 'seal'
    """  # noqa: S608 - constants
)

#: What a running turn was answered becomes messages, and what they mean for the turn, its attempt and its chat.
#: The chat comes first, for the order of locks; not locked stronger than that, workers that store a message, which
#: refers to the chat, need not wait.
STORE_ANSWER = text(
    f"""
    WITH chat AS (
        SELECT id FROM chats
        WHERE id = :chat_id AND (turn_count = :seq OR NOT :only_unfollowed)
        FOR NO KEY UPDATE
    ), turn AS (
        UPDATE turns SET
            state = CASE WHEN :is_last THEN 'completed' ELSE state END,
            worker_id = CASE WHEN NOT :is_last THEN worker_id END,
            finished_at = CASE WHEN :is_last THEN now() END,
            runs_tools = :runs_tools,
            usage = :total,
            checkpoint = NULL
        FROM chat
        WHERE turns.id = :turn_id AND chat_id = chat.id
            AND state = 'running' AND epoch = :epoch AND step = :step AND attempt = :attempt
            AND NOT turns.runs_tools
        RETURNING turns.id
    ), attempt AS (
        UPDATE attempts SET
            outcome = :outcome,
            chained = :chained,
            resumed = :resumed,
            response_id = :response_id,
            usage = :usage,
            first_event_at = :first_event_at,
            finished_at = now()
        FROM turn
        WHERE turn_id = turn.id AND step = :step AND number = :attempt AND outcome = 'running'
    ), place AS (
        SELECT coalesce(max(position) + 1, 0) AS first FROM messages WHERE turn_id = :turn_id
    ), said AS (
        INSERT INTO messages
            (turn_id, position, chat_id, turn_seq, role, parts, provider, model, credential, response_id)
        SELECT
            turn.id, place.first + number - 1, :chat_id, :seq, message->>'role', message->'parts',
            message->>'provider', message->>'model', :credential, :response_id
        FROM turn, place, jsonb_array_elements(:said) WITH ORDINALITY AS element (message, number)
        RETURNING digest, turn_seq, position
    ), touched AS (
        UPDATE chats SET
            -- Only where there is an anchor is the history fingerprinted.
            anchor = CASE WHEN :anchor IS NOT NULL THEN :anchor || jsonb_build_object(
                'position', place.first + jsonb_array_length(:said) - 1,
                'digest', (
                    SELECT {DIGEST} FROM (
                        SELECT digest, turn_seq, position FROM messages WHERE {seen(":chat_id", ":seq")}
                        UNION ALL
                        SELECT * FROM said
                    ) AS seen
                )
            ) END,
            last_error = NULL,
            updated_at = now()
        FROM turn, place
        WHERE chats.id = :chat_id
        RETURNING turn_count, anchor, place.first AS position
    )
    SELECT turn_count, anchor, position FROM touched
    """  # noqa: S608 - constants
).bindparams(
    bindparam("only_unfollowed", type_=Boolean),
    bindparam("is_last", type_=Boolean),
    bindparam("total", type_=JSONB(none_as_null=True)),
    bindparam("usage", type_=JSONB(none_as_null=True)),
    bindparam("anchor", type_=JSONB(none_as_null=True)),
    bindparam("said", type_=JSONB),
    bindparam("first_event_at", type_=DateTime(timezone=True)),
)
