-- finish: ends leases: jobs have completed, failed, been cancelled, will run again, or go back to their queue
-- keys: queue
-- args: prefix now_ms results...
-- returns: for each result 1, or 0 when the lease was not this worker's any more, and nothing was changed
-- ttl: a record that has ended, with its logs, a second after `ms`; rates 2 days; recent 30 days; a flow that rests by
--   its period
-- Each result is six arguments: part, token, outcome, ms, run_us, text. `ms` is how long the record is kept, for
-- `retrying` the pause, for `parked` the schema of its argument. `queued` hands a job back, uncounted as an attempt.
local prefix, now = ARGV[1], tonumber(ARGV[2])
local queue, running, states, cancels = KEYS[1], prefix .. ':running', prefix .. ':state', prefix .. ':cancel'
local HEAD = '^(.)([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n' -- code, type, priority, flow, unique
local ENTRY = '^(%a+) (%d+) (%d+) (%d+) (%d+)' -- state, token, attempt, lost, milliseconds
local CANCELLED_MS = 86400000
local CODES = { completed = 'c', failed = 'f', cancelled = 'x' }

local function whole(number)
  return string.format('%.0f', number)
end

local stored, parallelism = unpack(redis.call('HMGET', queue, 'time', 'parallelism'))
if stored and tonumber(stored) > now then
  now = tonumber(stored)
else
  redis.call('HSET', queue, 'time', whole(now))
end
local now_text = whole(now)

local counts = {}
local woken = false
local function join_ring(priority, flow)
  local key = prefix .. ':flow:' .. flow
  local member, stalled = unpack(redis.call('HMGET', key, 'in' .. priority, 'stalled'))
  if not member and not stalled then
    redis.call('HSET', key, 'in' .. priority, 1)
    redis.call('PERSIST', key)
    redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
  end
  woken = true
end

-- A flow with one running job less: it takes its place in the rings when it had to wait for that.
local function leave_flow(flow)
  local key = prefix .. ':flow:' .. flow
  local left = redis.call('HINCRBY', key, 'running', -1)
  if left < 0 then -- its hash was lost
    redis.call('HSET', key, 'running', 0)
  end
  local stalled, in0, in1, in2, period = unpack(redis.call('HMGET', key, 'stalled', 'in0', 'in1', 'in2', 'period_ms'))
  if stalled == 'full' then
    redis.call('HDEL', key, 'stalled')
    redis.call('ZREM', prefix .. ':flowdue', flow)
    for priority = 0, 2 do
      if redis.call('EXISTS', prefix .. ':lane:' .. priority .. ':' .. flow) == 1 then
        join_ring(priority, flow)
      end
    end
    in0, in1, in2 = unpack(redis.call('HMGET', key, 'in0', 'in1', 'in2'))
    stalled = false
  end
  if left <= 0 and not (stalled or in0 or in1 or in2) then
    redis.call('PEXPIRE', key, whole(tonumber(period or '0') + 60000))
  end
end

local parts, names = {}, {}
for i = 3, #ARGV, 6 do
  parts[#parts + 1] = ARGV[i]
  names[#names + 1] = prefix .. ':job:' .. ARGV[i]
end
local records, entries = redis.call('MGET', unpack(names)), redis.call('HMGET', states, unpack(parts))

local answers, removed, cleared, told, changes, recent, seen = {}, {}, {}, {}, {}, {}, {}
local of_type, of, of_ms, later
local gone = 0
for n = 1, #parts do
  local i = n * 6 - 3
  local part, token, outcome, ms, run_us, text = unpack(ARGV, i, i + 5)
  local record = records[n]
  local state, current, attempt, lost, started = string.match(entries[n] or '', ENTRY)
  if state == 'running' and not CODES[outcome] then
    local reason = redis.call('HGET', cancels, part)
    if reason then -- it does not run again: somebody has asked for its end
      outcome, ms, text = 'cancelled', CANCELLED_MS, reason
    end
  end
  if not record and state == 'running' and current == token and not seen[part] then -- somebody has deleted it
    answers[n] = 0
    gone = gone + 1
    seen[part] = true
    removed[#removed + 1] = part
    cleared[#cleared + 1] = part
    local flow = string.match(entries[n], '^%a+ %d+ %d+ %d+ %d+ ([^ \n]+)')
    if flow then
      leave_flow(flow)
    end
  elseif not record or current ~= token or state ~= 'running' or seen[part] then
    -- The same result may come twice, when the first answer got lost.
    local again = record and state == nil and CODES[outcome] == string.sub(record, 1, 1)
      and string.match(record, '\n(%d+) %d+ %d+ %d+ %d+ [%d ]+\n[^\n]*$') == token
      or (state == outcome and current == token)
    answers[n] = again and 1 or 0
  else
    answers[n] = 1
    seen[part] = true
    removed[#removed + 1] = part
    changes[#changes + 1] = part
    changes[#changes + 1] = outcome
    local _, type, priority, flow, unique = string.match(record, HEAD)
    if type ~= of_type then
      counts[type] = counts[type] or {}
      of_type, of = type, counts[type]
    end
    of.running = (of.running or 0) - 1
    if flow ~= '' then
      leave_flow(flow)
    end
    local code = CODES[outcome]
    if code then
      if ms ~= of_ms then
        of_ms, later = ms, whole(ms + 1000)
      end
      redis.call('SET', names[n], code .. string.sub(record, 2) .. '\n' .. token .. ' ' .. attempt .. ' ' .. lost .. ' '
        .. started .. ' ' .. now_text .. ' ' .. run_us .. ' ' .. ms .. '\n' .. text, 'PX', later)
      cleared[#cleared + 1] = part
      if outcome == 'completed' then
        local us = tonumber(run_us)
        local bucket = us < 1 and 'r-1' or 'r' .. math.ceil(math.log(us) / 0.020000667)
        of[bucket] = (of[bucket] or 0) + 1
      elseif outcome == 'failed' then
        redis.call('ZREMRANGEBYSCORE', prefix .. ':dead', '-inf', whole(now - ms))
        redis.call('ZADD', prefix .. ':dead', now_text, part)
        of.failures = (of.failures or 0) + 1
      end
      if unique ~= '' and string.match(redis.call('GET', prefix .. ':unique:' .. unique) or '', '^%S+') == part then
        redis.call('DEL', prefix .. ':unique:' .. unique)
      end
      of[outcome] = (of[outcome] or 0) + 1
      told[#told + 1] = part
      told[#told + 1] = outcome
      recent[#recent + 1] = part
    elseif outcome == 'queued' then
      redis.call('HSET', states, part, 'queued ' .. token .. ' ' .. (attempt - 1) .. ' ' .. lost .. ' ' .. now_text)
      of.queued = (of.queued or 0) + 1
      if flow == '' then
        if redis.call('LPUSH', prefix .. ':ready:' .. priority, part) == 1 then
          redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
        end
      else
        redis.call('LPUSH', prefix .. ':lane:' .. priority .. ':' .. flow, part)
        join_ring(priority, flow)
      end
      woken = true
    elseif outcome == 'retrying' then
      local due = whole(now + tonumber(ms))
      local tail = ' ' .. lost .. ' ' .. due .. '\n' .. text
      redis.call('HSET', states, part, 'retrying ' .. token .. ' ' .. attempt .. tail)
      redis.call('ZADD', prefix .. ':delayed', due, part)
      redis.call('HINCRBY', queue, 'retrying', 1)
      of.retrying = (of.retrying or 0) + 1
      of.failures = (of.failures or 0) + 1
      woken = true -- somebody has to wake up in time
    else -- parked
      local tail = ' ' .. lost .. ' ' .. now_text .. '\n' .. text
      redis.call('HSET', states, part, 'parked ' .. token .. ' ' .. (attempt - 1) .. tail)
      redis.call('ZADD', prefix .. ':parked', now_text, part)
      redis.call('ZADD', prefix .. ':parked:' .. type, ms, part)
      of.retrying = (of.retrying or 0) + 1
    end
  end
end

if #removed > 0 then
  redis.call('ZREM', running, unpack(removed))
end
if #cleared > 0 then
  redis.call('HDEL', states, unpack(cleared))
  if redis.call('EXISTS', cancels) == 1 then
    redis.call('HDEL', cancels, unpack(cleared))
  end
  local with_logs = prefix .. ':logged'
  local logged = redis.call('EXISTS', with_logs) == 1 and redis.call('SMISMEMBER', with_logs, unpack(cleared))
  if logged then
    for n = 1, #cleared do
      if logged[n] == 1 then
        redis.call('PEXPIRE', prefix .. ':logs:' .. cleared[n], redis.call('PTTL', prefix .. ':job:' .. cleared[n]))
        redis.call('SREM', prefix .. ':logged', cleared[n])
      end
    end
  end
end
-- Neither broken statistics nor a silent channel may cost a result.
for type, of_type_now in pairs(counts) do
  for field, number in pairs(of_type_now) do
    local name = string.match(field, '^r%-?%d') and ':times:' or ':stats:'
    redis.pcall('HINCRBY', prefix .. name .. type, field, number)
  end
end
if gone > 0 then -- the counters of their types are too high until somebody counts again
  redis.pcall('HINCRBY', queue, 'gone', gone)
  redis.pcall('HINCRBY', queue, 'uncounted', gone)
end
if #recent > 0 then
  local hour = prefix .. ':rate:' .. math.floor(now / 3600000)
  local minute = math.floor(now / 60000) % 60
  for type, of_ended in pairs(counts) do
    for outcome in pairs(CODES) do
      if of_ended[outcome] then
        redis.pcall('HINCRBY', hour, minute .. ':' .. type .. ':' .. outcome, of_ended[outcome])
      end
    end
  end
  redis.pcall('PEXPIRE', hour, 172800000, 'NX')
  redis.pcall('LPUSH', prefix .. ':recent', unpack(recent))
  redis.pcall('LTRIM', prefix .. ':recent', 0, 9999)
  redis.pcall('PEXPIRE', prefix .. ':recent', 2592000000)
  redis.pcall('PUBLISH', prefix .. ':ended', table.concat(told, ' '))
end
if #changes > 0 then
  redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', table.concat(changes, ' '))
end
-- In a queue of limited parallelism the end of one lets another worker begin the next.
if woken or (parallelism and #removed > 0) then
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end
return answers
