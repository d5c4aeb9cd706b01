-- The gate before one model, for one credential, shared by all workers.
-- Times are milliseconds by this server's clock; a wait is returned in microseconds, for Redis cuts off fractions.
--
-- KEYS[1]  hash, the gate:
--   rest, why         until when nobody calls, and for what kind of failure
--   strikes, struck   throttles in a row that named no wait, and when the last of them came
--   limit, interval   the provider's bucket: how many calls it holds, and how long one more takes to come in
--   real              when it will have filled, after every call that was let through
--   full              the same, with every slot that was given as well
--   depth             how much of the bucket may be used at once, for some providers are stricter than they say
--   guess, ceiling    the bucket is our guess; the pace, in calls per second, that was too fast
--   scale, offset     how the slots that were given have moved since: a slot is now at score * scale + offset
--   pulse, pulsed     answered calls, fading away, and when they were counted
--   credit, credited  calls that an unknown key may make still, and when it last earned or spent one
--   earned, open      answers since it is known; whether it may do as it likes
-- KEYS[2]  hash, the model whoever calls it: rest, why, strikes, struck
-- KEYS[3]  sorted set, the turns that have a slot, by its score
-- KEYS[4]  hash, what the gates are called: the name of KEYS[1] and of KEYS[2] to a label
--
-- ARGV     op, now (empty: by the clock), two labels, calls and answers since the last time, and then
--   ask       turn, the longest wait in place, the longest wait at all, the longest rest
--   heard     the age of the call, whether it was throttled; limit, remaining, reset, error (empty: not told)
--   throttled the age of the call, "key" or "model", how long to rest (0: not told), why
--
-- Returns a verdict ("go", "wait", "ask again", "too far"), the wait, the rest that is left, why, how many calls may be
-- made without asking (-1: any), and the interval.

local PROBES = 4            -- calls of an unknown key before the first answer
local KNOWN_AFTER = 64      -- answers without a throttle after which a key without headers is trusted
local SILENCE = 2000        -- after so long without an answer, one more probe
local SPARE = 0.1           -- of a bucket, never used: calls do not arrive as evenly as they are let through
local FADES_IN = 5000       -- over which the success rate is measured
local FIRST_PACE = 5        -- calls per second where nothing was measured
local SLOWEST, FASTEST = 0.05, 100
local BACKS_OFF_TO, GROWS, CREEPS = 0.9, 0.15, 0.01
local FADES = 0.9998        -- with each answer, what was once told of the pace
local FIRST_REST, LONGEST_REST = 1000, 60000
local NEAR = 10000         -- slots farther away may come nearer, if the pace was only a guess
local KEPT = 600000         -- what is idle for so long is forgotten

local op = ARGV[1]
local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000 + time[2] / 1000
end

local function load(key)
  local found, fields = redis.call('HGETALL', key), {}
  for i = 1, #found, 2 do
    fields[found[i]] = tonumber(found[i + 1]) or found[i + 1]
  end
  return fields
end

local gate, model = load(KEYS[1]), load(KEYS[2])
local changed_gate, changed_model = false, false

local function depth()  -- how many calls may be made at once
  return math.max(1, math.floor(gate.limit * (1 - SPARE) * (gate.depth or 1)))
end

local function saved()  -- what the bucket saves up while nobody calls, as time
  return gate.limit and (depth() - 1) * gate.interval or 0
end

local function exact(number)
  return string.format('%.17g', number)
end

gate.scale, gate.offset = gate.scale or 1, gate.offset or now

local function score_of(moment)
  return exact((moment - gate.offset) / gate.scale)
end

local function reserved()
  return redis.call('ZCOUNT', KEYS[3], '(' .. score_of(now), '+inf')
end

local function put_off(by)  -- whatever has a slot
  if by > 0 and gate.full > now then
    gate.full, gate.offset = gate.full + by, gate.offset + by
  end
end

local function set_interval(interval)  -- and let the slots move up, or fall back, with the pace
  local by = gate.interval and interval / gate.interval or 1
  gate.real = now + (math.max(gate.real or now, now) - now) * by
  gate.full = now + (math.max(gate.full or now, now) - now) * by
  gate.scale, gate.offset = gate.scale * by, now + (gate.offset - now) * by
  gate.interval = interval
end

local function guess(pace)
  gate.guess, gate.limit, gate.open, gate.credit = 1, 1, nil, nil
  set_interval(1000 / math.min(math.max(pace, SLOWEST), FASTEST))
  gate.grown = now
end

local function measured()
  local pulse = (gate.pulse or 0) * math.exp((( gate.pulsed or now) - now) / FADES_IN)
  return pulse * 1000 / FADES_IN
end

-- Calls and answers of which only their worker knew.
local calls, answers = tonumber(ARGV[5]), tonumber(ARGV[6])
if calls > 0 and gate.interval then
  gate.full = math.max(gate.full, now) + calls * gate.interval
  gate.real = math.max(gate.real, now) + calls * gate.interval
  changed_gate = true
end
if answers > 0 then
  gate.pulse = measured() * FADES_IN / 1000 + answers
  gate.pulsed = now
  changed_gate = true
end

local verdict, wait = 'go', 0

if op == 'ask' then
  local turn, in_place, longest, longest_rest = ARGV[7], tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
  local earliest = math.max(now, gate.rest or 0, model.rest or 0)
  if earliest > now and not gate.limit then
    guess(math.max(measured() / 2, FIRST_PACE))
  end
  local score = redis.call('ZSCORE', KEYS[3], turn)
  local slot = score and tonumber(score) * gate.scale + gate.offset
  local soonest = gate.limit and math.max(earliest, gate.real + gate.interval - depth() * gate.interval)
  if slot and math.max(slot, earliest) - now <= in_place and soonest - now > in_place then
    -- Its slot has passed long ago, and what the bucket saved for it is gone.
    slot = nil
  end
  changed_gate = true
  if earliest - now > longest_rest then
    verdict, wait = 'too far', earliest - now
  elseif slot then
    wait = math.max(slot, soonest) - now
  elseif gate.limit then
    slot = math.max(soonest, gate.full + gate.interval - depth() * gate.interval)
    wait = slot - now
    -- Who cannot wait takes nobody's place.
    if wait <= longest then
      gate.full = math.max(gate.full, slot) + gate.interval
    end
  elseif not gate.open then
    gate.credit = gate.credit or PROBES
    if gate.credit < 1 and now - gate.credited > SILENCE then
      gate.credit = 1
    end
    if gate.credit >= 1 then
      gate.credit, gate.credited = gate.credit - 1, now
    else
      verdict, wait = 'ask again', now - gate.credited
    end
  end
  if verdict == 'go' and wait > in_place then
    verdict = wait <= longest and 'wait' or 'too far'
  end
  if verdict == 'wait' then
    redis.call('ZADD', KEYS[3], score_of(slot), turn)
    if gate.guess and wait > NEAR then
      wait = math.max(wait / 2, earliest - now)
    end
  elseif score then
    redis.call('ZREM', KEYS[3], turn)
  end
  if verdict == 'go' and gate.limit then
    gate.real = math.max(gate.real, now + wait) + gate.interval
  end

elseif op == 'heard' then
  local sent, throttled = now - tonumber(ARGV[7]), ARGV[8] == '1'
  local limit, remaining, reset, err = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
  changed_gate = true
  if limit then
    local used = limit - remaining
    -- Too short rather than too long: a part of the last token that is back already is not told.
    local sample = used > 0 and math.max(reset - err, 0) / used or 0
    if gate.guess or not gate.limit then
      gate.guess, gate.ceiling, gate.credit, gate.open = nil, nil, nil, nil
      set_interval(sample > 0 and sample or 60000 / limit)
    else
      -- So the longest of them is the pace; it fades, for the provider may come to allow more.
      set_interval(math.max(sample, gate.interval * FADES))
    end
    gate.limit = limit
    if throttled and remaining > 0 then
      gate.depth = math.max((gate.depth or 1) / 2, 1 / limit)
    elseif gate.depth then
      gate.depth = math.min(1, gate.depth + 0.001)
    end
    -- What the provider has counted, and we have not: somebody else uses the key.
    gate.real = math.max(gate.real, sent + reset - err)
    local more = gate.real - (gate.full - reserved() * gate.interval)
    if more > 1 then
      gate.full, gate.offset = gate.full + more, gate.offset + more
    end
  elseif not throttled then
    if gate.guess then
      local pace, passed = 1000 / gate.interval, math.min(now - (gate.grown or now), 1000)
      local is_near = gate.ceiling and pace > gate.ceiling * BACKS_OFF_TO * 0.99 and pace < gate.ceiling * 1.2
      pace = pace * (1 + (is_near and CREEPS or GROWS) * passed / 1000)
      set_interval(1000 / pace)
      gate.grown = now
      if pace >= FASTEST then
        gate.guess, gate.limit, gate.interval, gate.ceiling, gate.open = nil, nil, nil, nil, 1
      end
    elseif not gate.limit and not gate.open then
      gate.credit, gate.credited = (gate.credit or 0) + 2, now
      gate.earned = (gate.earned or 0) + 1
      if gate.earned >= KNOWN_AFTER then
        gate.open, gate.credit, gate.earned = 1, nil, nil
      end
    end
  end
  if not throttled then
    if gate.strikes and sent > gate.struck then gate.strikes = nil end
    if model.strikes and sent > model.struck then
      model.strikes = nil
      changed_model = true
    end
  end

elseif op == 'throttled' then
  local sent, whose, rest, why = now - tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9]), ARGV[10]
  local one = whose == 'key' and gate or model
  changed_gate, changed_model = true, changed_model or whose == 'model'
  -- Those that were under way when it struck are the same news.
  local is_news = sent >= (one.struck or 0)
  if is_news then
    one.strikes, one.struck = (one.strikes or 0) + 1, now
  end
  if not gate.limit then
    guess(math.max(measured() * BACKS_OFF_TO, FIRST_PACE))
  elseif gate.guess and is_news then
    gate.ceiling = 1000 / gate.interval
    guess(math.min(gate.ceiling * BACKS_OFF_TO, math.max(gate.ceiling / 2, measured())))
  end
  if rest == 0 and (gate.guess or whose == 'model') then
    rest = is_news and math.min(FIRST_REST * 2 ^ (one.strikes - 1), LONGEST_REST) or 0
  end
  if now + rest > (one.rest or 0) then
    local extended = now + rest - math.max(now, gate.rest or 0, model.rest or 0)
    -- What the bucket saves up meanwhile pays for the slots that the rest has passed over.
    put_off(extended - saved())
    one.rest, one.why = now + rest, why
  end
end

local function store(key, fields, label)
  local flat, until_ = {}, now
  for name, value in pairs(fields) do
    flat[#flat + 1] = name
    flat[#flat + 1] = type(value) == 'number' and exact(value) or value
  end
  redis.call('DEL', key)
  if #flat > 0 then
    redis.call('HSET', key, unpack(flat))
    until_ = math.max(now, fields.rest or 0, fields.full or 0) + KEPT
    redis.call('PEXPIREAT', key, math.ceil(until_))
    redis.call('HSET', KEYS[4], key, label)
    redis.call('PEXPIRE', KEYS[4], 86400000 + KEPT)
  end
  return math.ceil(until_)
end

if changed_gate then
  local until_ = store(KEYS[1], gate, ARGV[3])
  redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', score_of(now - 60000 - saved()))
  redis.call('PEXPIREAT', KEYS[3], until_)
end
if changed_model then
  store(KEYS[2], model, ARGV[4])
end

local rest = math.max(gate.rest or 0, model.rest or 0, now) - now
local why = (model.rest or 0) > math.max(gate.rest or 0, now) and model.why or gate.why or 'rate_limit'
local allowance = 0
if rest == 0 and not gate.strikes and not model.strikes then
  if gate.open then
    allowance = -1
  elseif gate.limit and not gate.guess then
    local left = depth() - math.max(0, gate.full - now) / gate.interval
    if left > depth() / 2 then
      allowance = math.floor(left / 10)
    end
  end
end
local function micro(milliseconds)
  return math.ceil(milliseconds * 1000)
end
return {verdict, micro(wait), micro(rest), why, allowance, micro(gate.interval or 0)}
