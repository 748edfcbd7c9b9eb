-- begin: leases one job by its part, for the delivery of its message
-- keys: queue
-- args: prefix now_ms part type lease_ms look_ms early_ms most_lost lost_error keep_dead_ms
-- returns: `leased`, the job's part, state entry and record; or `gone`; or `other` when it is of another type; or
--   `ended` and the first letter of its record; or `wait`, why, and for how many milliseconds
-- ttl: a record that ends here, because deliveries of it did not come back, a second after keep_dead_ms; a flow that
--   rests by its period; recent 30 days; rates 2 days
-- What is due within `early_ms` is due: clocks differ.
local prefix, now, part, kind, lease_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local look_ms, early_ms, most_lost = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local lost_error, keep_dead_ms = ARGV[9], ARGV[10]
local queue, key, states, running = KEYS[1], prefix .. ':job:' .. part, prefix .. ':state', prefix .. ':running'

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

local time, paused, parallelism = unpack(redis.call('HMGET', queue, 'time', 'paused', 'parallelism'))
if time and tonumber(time) > now then
  now = tonumber(time)
end
local now_text = whole(now)
redis.call('HSET', queue, 'time', now_text)

local record = redis.call('GET', key)
if not record then
  if redis.call('HEXISTS', states, part) == 1 then -- somebody has deleted it
    redis.call('HINCRBY', queue, 'uncounted', 0)
  end
  redis.call('ZREM', prefix .. ':carried', part)
  redis.call('HDEL', prefix .. ':messages', part)
  return { 'gone' }
end
local code, type, priority, flow, unique, queued, extra =
  string.match(record, '^(.)([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n(%d+)\n([^\n]*)')
if type ~= kind then
  return { 'other' }
end
if code ~= 'p' then
  return { 'ended', code }
end
local entry = redis.call('HGET', states, part) or 'queued 0 0 0 ' .. queued
local state, token, attempt, lost, ms, error = string.match(entry, '^(%a+) (%d+) (%d+) (%d+) (%d+)(.*)$')
local stats = prefix .. ':stats:' .. type

if state == 'running' then
  local left = tonumber(redis.call('ZSCORE', running, part) or '0') - now
  if left > 0 then
    return { 'wait', 'running', left }
  end
  -- Whoever had it did not come back.
  redis.call('ZREM', running, part)
  redis.pcall('HINCRBY', stats, 'running', -1)
  redis.pcall('HINCRBY', stats, 'lost', 1)
  lost = tonumber(lost) + 1
  if flow ~= '' then
    leave_flow(flow)
  end
  local cancel = redis.call('HGET', prefix .. ':cancel', part)
  if cancel or lost >= most_lost then
    local ending, outcome = cancel and 'x' or 'f', cancel and 'cancelled' or 'failed'
    redis.call('SET', key, ending .. string.sub(record, 2) .. '\n' .. token .. ' ' .. attempt .. ' ' .. lost .. ' '
      .. ms .. ' ' .. now_text .. ' 0 ' .. keep_dead_ms .. '\n' .. (cancel or lost_error),
      'PX', whole(keep_dead_ms + 1000))
    redis.call('HDEL', states, part)
    redis.call('HDEL', prefix .. ':cancel', part)
    redis.call('HDEL', prefix .. ':messages', part)
    redis.call('ZREM', prefix .. ':carried', part)
    redis.call('PEXPIRE', prefix .. ':logs:' .. part, keep_dead_ms)
    redis.call('SREM', prefix .. ':logged', part)
    if not cancel then
      redis.call('ZREMRANGEBYSCORE', prefix .. ':dead', '-inf', whole(now - keep_dead_ms))
      redis.call('ZADD', prefix .. ':dead', now_text, part)
      redis.pcall('HINCRBY', stats, 'failures', 1)
    end
    if unique ~= '' and string.match(redis.call('GET', prefix .. ':unique:' .. unique) or '', '^%S+') == part then
      redis.call('DEL', prefix .. ':unique:' .. unique)
    end
    redis.pcall('HINCRBY', stats, outcome, 1)
    local hour = prefix .. ':rate:' .. math.floor(now / 3600000)
    redis.pcall('HINCRBY', hour, math.floor(now / 60000) % 60 .. ':' .. type .. ':' .. outcome, 1)
    redis.pcall('PEXPIRE', hour, 172800000, 'NX')
    redis.pcall('LPUSH', prefix .. ':recent', part)
    redis.pcall('LTRIM', prefix .. ':recent', 0, 9999)
    redis.pcall('PEXPIRE', prefix .. ':recent', 2592000000)
    redis.pcall('PUBLISH', prefix .. ':ended', part .. ' ' .. outcome)
    redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', part .. ' ' .. outcome)
    return { 'ended', ending }
  end
  redis.call('HSET', states, part, 'queued ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. now_text .. error)
  redis.pcall('HINCRBY', stats, 'queued', 1)
  state, ms = 'queued', now_text
end

if paused then
  return { 'wait', 'paused', 60000 }
end
if (state == 'scheduled' or state == 'retrying') and tonumber(ms) > now + early_ms then
  return { 'wait', 'early', tonumber(ms) - now }
end
if parallelism and redis.call('ZCARD', running) >= tonumber(parallelism) then
  return { 'wait', 'full', 1000 }
end

local counted = state
if state == 'parked' then
  redis.call('ZREM', prefix .. ':parked', part)
  redis.call('ZREM', prefix .. ':parked:' .. type, part)
  counted = 'retrying'
elseif state == 'retrying' then
  redis.call('HINCRBY', queue, 'retrying', -1)
end
-- A job that came back by another way may stand among those that are due, or in a lane.
redis.call('ZREM', prefix .. ':delayed', part)
if state == 'queued' then
  local lane = flow == '' and prefix .. ':ready:' .. priority or prefix .. ':lane:' .. priority .. ':' .. flow
  if redis.call('LREM', lane, 0, part) > 0 and flow == '' and redis.call('EXISTS', lane) == 0 then
    redis.call('LREM', prefix .. ':ring:' .. priority, 0, '')
  end
end
token, attempt = token + 1, attempt + 1
if flow ~= '' then
  error = ' ' .. flow .. (string.match(error, '\n.*$') or '')
end
entry = 'running ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. now_text .. error
redis.call('HSET', states, part, entry)
redis.call('ZADD', running, whole(now + lease_ms), part)
redis.call('ZADD', prefix .. ':carried', 'XX', whole(now + look_ms), part)
if flow ~= '' then
  local of = prefix .. ':flow:' .. flow
  if redis.call('HEXISTS', of, 'period_ms') == 0 then -- its limits are forgotten while it rests
    local limits = cjson.decode(extra).flow
    redis.call('HSET', of, 'parallelism', limits[2], 'rate', limits[3], 'period_ms', limits[4])
  end
  redis.call('PERSIST', of)
  redis.call('HINCRBY', of, 'running', 1)
end
local waited = math.max(0, now - tonumber(ms))
redis.pcall('HINCRBY', prefix .. ':times:' .. type,
  waited < 1 and 'w-1' or 'w' .. math.ceil(math.log(waited) / 0.020000667), 1)
redis.pcall('HINCRBY', stats, counted, -1)
redis.pcall('HINCRBY', stats, 'running', 1)
redis.pcall('HINCRBY', stats, 'leased', 1)
redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'started', part .. ' ' .. token)
return { 'leased', part, entry, record }
