-- lease: hands queued jobs to a worker, after those that are due and those whose worker did not come back
-- keys: queue
-- args: prefix now_ms lease_ms room worker call most_lost lost_error keep_dead_ms idle
-- returns: a list of leased jobs, the milliseconds until something is due (-1 when nothing is), the number of
--   records that were gone, and when the last of the parked jobs was parked (0: there is none). After 4 MB of records,
--   or some thousand places that are passed over, it stops, and what is left is due at once. A job is part, state
--   entry, record; the token in the entry fences its result.
-- ttl: held by lease_ms; records that fail here a second after keep_dead_ms; a flow that rests by its period; recent 30
--   days; rates 2 days
local prefix, now, lease_ms, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local worker, call, most_lost, lost_error, keep_dead_ms = ARGV[5], ARGV[6], tonumber(ARGV[7]), ARGV[8], ARGV[9]
local idle = tonumber(ARGV[10]) -- free slots; -1 when nothing may be sent to it
local queue, running, delayed, states = KEYS[1], prefix .. ':running', prefix .. ':delayed', prefix .. ':state'
local flow_due, left = prefix .. ':flowdue', prefix .. ':left'
local AT_ONCE, MOST_PASSED, MOST_BYTES = 200, 2000, 4 * 1024 * 1024
local HEAD = '^p([^\n]*)\n([012])\n([^\n]*)\n([^\n]*)\n(%d+)\n[^\n]*\n' -- type, priority, flow, unique, queued_ms
local ENTRY = '^(%a+) (%d+) (%d+) (%d+) (%d+)(.*)$' -- state, token, attempt, lost, milliseconds, flow and error

local function whole(number)
  return string.format('%.0f', number)
end

local time, paused, parallelism, retrying, large = unpack(
  redis.call('HMGET', queue, 'time', 'paused', 'parallelism', 'retrying', 'large'))
if time and tonumber(time) > now then
  now = tonumber(time)
end
local now_text = whole(now)
redis.call('HSET', queue, 'time', now_text)
local last_call = string.match(redis.call('GET', prefix .. ':held:' .. worker) or '', '^%d+')
if last_call and tonumber(last_call) >= tonumber(call) then -- its worker has called again, and takes this one for lost
  return { {}, 0, 0, 0 }
end
parallelism, retrying = tonumber(parallelism or '0'), tonumber(retrying or '0')
local strict = parallelism == 1 -- one at a time, in order: who is to run again keeps its place

local counts = {}
local function count(type, field, number)
  local of = counts[type]
  if not of then
    of = {}
    counts[type] = of
  end
  of[field] = (of[field] or 0) + number
end

local function join_ring(priority, flow)
  local key = prefix .. ':flow:' .. flow
  local member, stalled = unpack(redis.call('HMGET', key, 'in' .. priority, 'stalled'))
  if not member and not stalled then
    redis.call('HSET', key, 'in' .. priority, 1)
    redis.call('PERSIST', key)
    redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
  end
end

-- The limits of a flow, as a job of it brings them: they are forgotten while it rests.
local function limit_flow(flow, record, always)
  local key = prefix .. ':flow:' .. flow
  if flow ~= '' and (always or redis.call('HEXISTS', key, 'period_ms') == 0) then
    local limits = cjson.decode(string.match(record, string.rep('[^\n]*\n', 5) .. '([^\n]*)')).flow
    redis.call('HSET', key, 'parallelism', limits[2], 'rate', limits[3], 'period_ms', limits[4])
  end
end

local woken = false
local function push(how, priority, flow, part)
  if flow == '' then
    if redis.call(how, prefix .. ':ready:' .. priority, part) == 1 then
      redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
    end
  else
    redis.call(how, prefix .. ':lane:' .. priority .. ':' .. flow, part)
    join_ring(priority, flow)
  end
  woken = true
end

-- A flow that may begin jobs again takes its place in the rings.
local function unstall(flow)
  redis.call('HDEL', prefix .. ':flow:' .. flow, 'stalled')
  redis.call('ZREM', flow_due, flow)
  for priority = 0, 2 do
    if redis.call('EXISTS', prefix .. ':lane:' .. priority .. ':' .. flow) == 1 then
      join_ring(priority, flow)
    end
  end
end

-- Let a flow be forgotten when it has nothing that waits or runs.
local function rest_flow(flow)
  local key = prefix .. ':flow:' .. flow
  local stalled, in0, in1, in2, period, runs =
    unpack(redis.call('HMGET', key, 'stalled', 'in0', 'in1', 'in2', 'period_ms', 'running'))
  if not (stalled or in0 or in1 or in2) and tonumber(runs or '0') <= 0 then
    redis.call('PEXPIRE', key, whole(tonumber(period or '0') + 60000))
  end
end

-- One of a flow's jobs runs no more.
local function leave_flow(flow)
  local key = prefix .. ':flow:' .. flow
  if redis.call('HINCRBY', key, 'running', -1) < 0 then -- its hash was lost
    redis.call('HSET', key, 'running', 0)
  end
  if redis.call('HGET', key, 'stalled') == 'full' then
    unstall(flow)
  end
  rest_flow(flow)
end

local gone, gone_queued = 0, 0
local unknown = now_text .. ' 0 0 0' -- of an entry that somebody has deleted; no worker has that token
-- What is stored of a job that has not ended: record, type, priority, flow, unique; nil when it is gone or broken.
local function read(part)
  local record = redis.call('MGET', prefix .. ':job:' .. part)[1]
  local type, priority, flow, unique = string.match(record or '', HEAD)
  if not type then
    redis.call('HDEL', states, part)
    redis.call('HDEL', prefix .. ':cancel', part)
    gone = gone + 1
  end
  return record, type, priority, flow, unique
end

-- those that are due, in the order in which they became due
local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now_text, 'LIMIT', 0, AT_ONCE)
local front = {}
for _, part in ipairs(due) do
  redis.call('ZREM', delayed, part)
  local state, token, attempt, lost, _, error =
    string.match(redis.call('HGET', states, part) or 'scheduled ' .. unknown, ENTRY)
  local record, type, priority, flow = read(part)
  if state == 'retrying' then
    retrying = redis.call('HINCRBY', queue, 'retrying', -1)
  end
  if type then
    redis.call('HSET', states, part, 'queued ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. now_text .. error)
    limit_flow(flow, record, state == 'scheduled')
    if strict and state == 'retrying' then
      front[#front + 1] = { priority, flow, part }
    else
      push('RPUSH', priority, flow, part)
    end
    count(type, state, -1)
    count(type, 'queued', 1)
  end
end
for i = #front, 1, -1 do -- the first one goes to the front last
  push('LPUSH', unpack(front[i]))
end

-- flows whose period is over
for _, flow in ipairs(redis.call('ZRANGEBYSCORE', flow_due, '-inf', now_text, 'LIMIT', 0, AT_ONCE)) do
  unstall(flow)
  rest_flow(flow)
  woken = true
end

-- Flows that wait for the end of one of their jobs while no job runs: it was lost.
if redis.call('EXISTS', running) == 0 then
  for _, flow in ipairs(redis.call('ZRANGEBYSCORE', flow_due, '+inf', '+inf', 'LIMIT', 0, AT_ONCE)) do
    redis.call('HSET', prefix .. ':flow:' .. flow, 'running', 0)
    unstall(flow)
    rest_flow(flow)
    woken = true
  end
end

-- those whose worker did not come back
local ended, recent = {}, {}
local function end_lost(part, record, entry, type, unique, outcome, why)
  local key = prefix .. ':job:' .. part
  local code = outcome == 'failed' and 'f' or 'x'
  redis.call('SET', key, code .. string.sub(record, 2) .. '\n' .. entry .. ' ' .. now_text
    .. ' 0 ' .. keep_dead_ms .. '\n' .. why, 'PX', whole(keep_dead_ms + 1000))
  redis.call('HDEL', states, part)
  redis.call('HDEL', prefix .. ':cancel', part)
  redis.call('PEXPIRE', prefix .. ':logs:' .. part, keep_dead_ms)
  redis.call('SREM', prefix .. ':logged', part)
  if outcome == 'failed' then
    redis.call('ZREMRANGEBYSCORE', prefix .. ':dead', '-inf', whole(now - keep_dead_ms))
    redis.call('ZADD', prefix .. ':dead', now_text, part)
  end
  recent[#recent + 1] = part
  if unique ~= '' and string.match(redis.call('GET', prefix .. ':unique:' .. unique) or '', '^%S+') == part then
    redis.call('DEL', prefix .. ':unique:' .. unique)
  end
  count(type, outcome, 1)
  if outcome == 'failed' then
    count(type, 'failures', 1)
  end
  local hour = prefix .. ':rate:' .. math.floor(now / 3600000)
  redis.pcall('HINCRBY', hour, math.floor(now / 60000) % 60 .. ':' .. type .. ':' .. outcome, 1)
  redis.pcall('PEXPIRE', hour, 172800000, 'NX')
  ended[#ended + 1] = part .. ' ' .. outcome
end

for _, part in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', now_text, 'LIMIT', 0, AT_ONCE)) do
  redis.call('ZREM', running, part)
  local state, token, attempt, lost, ms, error =
    string.match(redis.call('HGET', states, part) or 'running ' .. unknown, ENTRY)
  local record, type, priority, flow, unique = read(part)
  local gone_flow = not type and state == 'running' and string.match(error, '^ ([^ \n]+)')
  if gone_flow then -- it held a slot, though its record is gone
    leave_flow(gone_flow)
  end
  if type and state == 'running' then
    local cancel = redis.call('HGET', prefix .. ':cancel', part)
    lost = tonumber(lost) + 1
    count(type, 'running', -1)
    count(type, 'lost', 1)
    if flow ~= '' then
      leave_flow(flow)
    end
    local entry = token .. ' ' .. attempt .. ' ' .. lost .. ' '
    if cancel then
      end_lost(part, record, entry .. ms, type, unique, 'cancelled', cancel)
    elseif lost >= most_lost then
      end_lost(part, record, entry .. ms, type, unique, 'failed', lost_error)
    else
      redis.call('HSET', states, part, 'queued ' .. entry .. now_text .. error)
      limit_flow(flow, record, false)
      push('LPUSH', priority, flow, part)
      count(type, 'queued', 1)
    end
  end
end

if parallelism > 0 then
  room = math.min(room, parallelism - redis.call('ZCARD', running))
  if strict and retrying > 0 then
    room = 0
  end
end
if paused then
  room = 0
end

-- How many jobs of a flow may begin now. When there are none it is out of the rings until it may go on.
local function capacity(flow)
  local key = prefix .. ':flow:' .. flow
  local fields = redis.call('HMGET', key, 'parallelism', 'rate', 'period_ms', 'running', 'start_ms', 'used')
  local most, rate, period = tonumber(fields[1] or '0'), tonumber(fields[2] or '0'), tonumber(fields[3] or '0')
  local free = room
  if most > 0 then
    free = math.min(free, most - tonumber(fields[4] or '0'))
    if free <= 0 then
      redis.call('HSET', key, 'stalled', 'full')
      redis.call('ZADD', flow_due, '+inf', flow) -- until one of its jobs ends
      return 0
    end
  end
  if rate > 0 then
    local start, used = tonumber(fields[5] or '0'), tonumber(fields[6] or '0')
    if now >= start + period then
      start, used = now, 0
      redis.call('HSET', key, 'start_ms', now_text, 'used', 0)
    end
    if used >= rate then
      redis.call('HSET', key, 'stalled', 'rate')
      redis.call('ZADD', flow_due, whole(start + period), flow)
      return 0
    end
    free = math.min(free, rate - used)
  end
  return free
end

local leased, leases, entries, held, mine = {}, {}, {}, {}, {}
local bytes, passed, more = 0, 0, false
local until_text, fresh = whole(now + lease_ms), 'running 1 1 0 ' .. now_text
-- A place in a lane has no record. Where its job has got elsewhere, that is found there.
local function lose(part, entry)
  if not entry or string.sub(entry, 1, 6) == 'queued' then
    redis.call('HDEL', states, part)
    gone_queued = gone_queued + 1
  end
end

-- Lease those of these jobs that are still queued; how many they were. It is run for every job: it makes few strings.
local function take(parts, flow)
  local first = flow == '' and fresh or fresh .. ' ' .. flow -- it says whose slot is free again should the record go
  local names = {}
  for i = 1, #parts do
    names[i] = prefix .. ':job:' .. parts[i]
  end
  local records, stored = redis.call('MGET', unpack(names)), redis.call('HMGET', states, unpack(parts))
  local before = #leased
  local of_type, of, of_queued, bucket
  for i = 1, #parts do
    local part, record, entry = parts[i], records[i], first
    if not record then
      if redis.call('SREM', left, part) == 0 then -- else it was cancelled, and is kept no more
        lose(part, stored[i])
      end
    elseif string.byte(record) == 112 and not mine[part] then -- p: no end is written
      local type, _, _, _, queued = string.match(record, HEAD)
      local token = 1
      if stored[i] then
        local state, attempt, lost, error
        state, token, attempt, lost, queued, error = string.match(stored[i], ENTRY)
        token = token + 1
        if flow ~= '' then
          error = ' ' .. flow .. (string.match(error, '\n.*$') or '')
        end
        entry = state == 'queued'
          and 'running ' .. token .. ' ' .. (attempt + 1) .. ' ' .. lost .. ' ' .. now_text .. error
      end
      if not type then
        lose(part, stored[i])
      elseif entry then
        local n = #leased + 1
        leased[n] = { part, entry, record }
        mine[part] = true
        bytes = bytes + #record
        leases[2 * n - 1], leases[2 * n] = until_text, part
        entries[2 * n - 1], entries[2 * n] = part, entry
        held[2 * n - 1], held[2 * n] = part, token
        if type ~= of_type then
          counts[type] = counts[type] or {}
          of_type, of = type, counts[type]
        end
        if queued ~= of_queued then
          of_queued = queued
          local waited = now - queued
          bucket = waited < 1 and 'w-1' or 'w' .. math.ceil(math.log(waited) / 0.020000667)
        end
        of.leased = (of.leased or 0) + 1
        of[bucket] = (of[bucket] or 0) + 1
      else
        redis.call('SREM', left, part)
      end
    else
      redis.call('SREM', left, part)
    end
  end
  passed = passed + #parts
  return #leased - before
end

for priority = 0, 2 do
  local ring = prefix .. ':ring:' .. priority
  while room > 0 do
    local flow = redis.call('LPOP', ring)
    if not flow then
      break
    end
    -- One job of each lane in turn; a lane that is alone may have all the room.
    local most = redis.call('EXISTS', ring) == 1 and 1 or room
    local lane = prefix .. ':ready:' .. priority
    if flow ~= '' then
      lane = prefix .. ':lane:' .. priority .. ':' .. flow
      most = math.min(most, capacity(flow))
    end
    local stays = false
    if most > 0 then
      -- Where there are large jobs they are looked at one by one.
      local parts = redis.call('LPOP', lane, large and 1 or math.min(most, AT_ONCE))
      local taken = parts and take(parts, flow) or 0
      room = room - taken
      if bytes > MOST_BYTES or passed - #leased > MOST_PASSED then
        room, more = 0, true
      end
      stays = redis.call('EXISTS', lane) == 1
      if flow ~= '' and taken > 0 then
        redis.call('HINCRBY', prefix .. ':flow:' .. flow, 'running', taken)
        redis.call('HINCRBY', prefix .. ':flow:' .. flow, 'used', taken)
      end
    end
    if stays then
      redis.call('RPUSH', ring, flow)
    elseif flow ~= '' then
      redis.call('HDEL', prefix .. ':flow:' .. flow, 'in' .. priority)
      rest_flow(flow)
    end
  end
end

-- Rings that have nothing to serve while a lane has jobs were lost: somebody deleted them, or the server evicted them.
if room > 0 and redis.call('EXISTS', prefix .. ':ready:0', prefix .. ':ready:1', prefix .. ':ready:2') > 0 then
  for priority = 0, 2 do
    if redis.call('EXISTS', prefix .. ':ready:' .. priority) == 1 then
      redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
      more = true
    end
  end
end

if #leases > 0 then
  for i = 1, #leases, 1000 do
    redis.call('ZADD', running, unpack(leases, i, math.min(i + 999, #leases)))
    redis.call('HSET', states, unpack(entries, i, math.min(i + 999, #leases)))
  end
  -- Should this answer get lost, its worker gives back what it does not know of.
  redis.call('SET', prefix .. ':held:' .. worker, call .. ' ' .. table.concat(held, ' '), 'PX', lease_ms)
end
-- Neither broken statistics nor a silent channel may cost a job.
for type, of in pairs(counts) do
  if of.leased then
    of.queued, of.running = (of.queued or 0) - of.leased, (of.running or 0) + of.leased
  end
  for field, number in pairs(of) do
    local name = string.match(field, '^w%-?%d') and ':times:' or ':stats:'
    redis.pcall('HINCRBY', prefix .. name .. type, field, number)
  end
end
gone = gone + gone_queued
if gone > 0 then -- the counters of their types are too high until somebody counts again
  redis.pcall('HINCRBY', queue, 'gone', gone)
  redis.pcall('HINCRBY', queue, 'uncounted', gone)
  redis.pcall('HINCRBY', queue, 'uncounted_queued', gone_queued)
end
if #ended > 0 then
  local told = table.concat(ended, ' ')
  redis.pcall('LPUSH', prefix .. ':recent', unpack(recent))
  redis.pcall('LTRIM', prefix .. ':recent', 0, 9999)
  redis.pcall('PEXPIRE', prefix .. ':recent', 2592000000)
  redis.pcall('PUBLISH', prefix .. ':ended', told)
  redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', told)
end
if #held > 0 then
  redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'started', table.concat(held, ' '))
end
if idle >= 0 then -- a job that comes alone may be sent to it, as long as it has a free slot
  redis.call(idle > #leased and 'SADD' or 'SREM', prefix .. ':idle', worker .. ' ' .. whole(lease_ms))
end
if woken and room <= 0 then -- what this worker has no room for is for another
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end

if large and redis.call('HLEN', states) == 0
  and redis.call('EXISTS', prefix .. ':ring:0', prefix .. ':ring:1', prefix .. ':ring:2', flow_due) == 0 then
  redis.call('HDEL', queue, 'large') -- no job is left that is
end

local next_ms = more and 0 or -1
for _, key in ipairs({ delayed, running, flow_due }) do
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
  if first and first ~= 'inf' then
    local wait = math.max(0, tonumber(first) - now)
    next_ms = next_ms < 0 and wait or math.min(next_ms, wait)
  end
end
local parked = redis.call('ZRANGE', prefix .. ':parked', -1, -1, 'WITHSCORES')[2] or '0'
return { leased, next_ms, gone, tonumber(parked) }
