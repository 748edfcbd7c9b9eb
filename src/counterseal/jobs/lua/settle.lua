-- settle: gives back a carried job that has not ended: it runs again with a later delivery
-- keys: queue
-- args: prefix now_ms part token outcome ms error look_ms
-- returns: 1, or 0 when the lease was not the caller's any more, and nothing was changed
-- ttl: a flow that rests by its period
-- `ms` is the pause of `retrying`, and the schema of the arguments of `parked`; `queued` hands the job back, uncounted
-- as an attempt. Somebody looks after its message `look_ms` after it is due.
local prefix, now, part, token, outcome = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5]
local ms, error, look_ms = tonumber(ARGV[6]), ARGV[7], tonumber(ARGV[8])
local states = prefix .. ':state'

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local function whole(number)
  return string.format('%.0f', number)
end

-- A flow with one running job less, as in `finish`.
local function leave_flow(flow)
  local of = prefix .. ':flow:' .. flow
  local left = redis.call('HINCRBY', of, 'running', -1)
  if left < 0 then -- its hash was lost
    redis.call('HSET', of, 'running', 0)
  end
  local stalled, in0, in1, in2, period = unpack(redis.call('HMGET', of, 'stalled', 'in0', 'in1', 'in2', 'period_ms'))
  if stalled == 'full' then
    redis.call('HDEL', of, 'stalled')
    redis.call('ZREM', prefix .. ':flowdue', flow)
    for priority = 0, 2 do
      local member = ({ in0, in1, in2 })[priority + 1]
      if not member and redis.call('EXISTS', prefix .. ':lane:' .. priority .. ':' .. flow) == 1 then
        redis.call('HSET', of, 'in' .. priority, 1)
        redis.call('PERSIST', of)
        redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
      end
    end
    in0, in1, in2 = unpack(redis.call('HMGET', of, 'in0', 'in1', 'in2'))
    stalled = false
    redis.pcall('PUBLISH', prefix .. ':wake', '')
  end
  if left <= 0 and not (stalled or in0 or in1 or in2) then
    redis.call('PEXPIRE', of, whole(tonumber(period or '0') + 60000))
  end
end

local record = redis.call('GET', prefix .. ':job:' .. part)
local state, current, attempt, lost = string.match(redis.call('HGET', states, part) or '', '^(%a+) (%d+) (%d+) (%d+)')
if not record and current == token then -- somebody has deleted it
  redis.call('HINCRBY', KEYS[1], 'uncounted', 0)
end
if not record or current ~= token then
  return 0
end
if state ~= 'running' then
  return state == outcome and 1 or 0 -- it may come twice, when the first answer got lost
end
local type, flow = string.match(record, '^.([^\n]*)\n[^\n]*\n([^\n]*)\n')
local stats, due, counted = prefix .. ':stats:' .. type, now, outcome
if outcome == 'retrying' then
  due = now + ms
  redis.call('HINCRBY', KEYS[1], 'retrying', 1)
  redis.pcall('HINCRBY', stats, 'failures', 1)
else
  attempt = attempt - 1
  if outcome == 'parked' then
    counted = 'retrying'
    redis.call('ZADD', prefix .. ':parked', whole(now), part)
    redis.call('ZADD', prefix .. ':parked:' .. type, ms, part)
  end
end
redis.call('HSET', states, part, outcome .. ' ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. whole(due)
  .. (error ~= '' and '\n' .. error or ''))
redis.call('ZREM', prefix .. ':running', part)
redis.call('ZADD', prefix .. ':carried', whole(due + look_ms), part)
if flow ~= '' then
  leave_flow(flow)
end
redis.pcall('HINCRBY', stats, 'running', -1)
redis.pcall('HINCRBY', stats, counted, 1)
redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', part .. ' ' .. outcome)
return 1
