-- carry: accepts jobs whose messages somebody else delivers; they stand in no lane, and no worker takes them
-- keys: queue
-- args: prefix now_ms look_ms jobs...
-- returns: the milliseconds since 1970 at which they were queued, then for each job an empty text, or the part of the
--   job that was there already
-- ttl: records none, an accepted job waits as long as it takes; dedup and unique keys a minute
--   after their windows; tags by tag_ms
-- Each job is five arguments, as those of `enqueue`. After `look_ms` somebody has to see whether its message is there.
local prefix, now, look_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local states = prefix .. ':state'
local ENDED = '^' .. string.rep('[^\n]*\n', 7) .. '%d+ %d+ %d+ %d+ (%d+) %d+ (%d+)\n' -- when, and how long it is kept

local function whole(number)
  return string.format('%.0f', number)
end

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local now_text, look_text = whole(now), whole(now + look_ms)

local function is_ahead(ms)
  return ms > now
end

-- Who holds a deduplication id or a unique key, '<part> <until>'; nil when its time has passed. What a former release
-- wrote has no time: it is held as long as its key is there.
local function held(key)
  local part, till = string.match(redis.call('GET', key) or '', '^(%S+) ?(%d*)$')
  return part and (till == '' or is_ahead(tonumber(till))) and part or nil
end

local function hold(key, part, ms)
  redis.call('SET', key, part .. ' ' .. whole(now + ms), 'PX', whole(ms + 60000))
end

local fences = {} -- the last tokens of jobs that had the ids before
-- Take an id whose job somebody has deleted: nothing of that one may be taken for the new one, or end it.
local function take_over(part)
  local state, token, flow = string.match(redis.call('HGET', prefix .. ':state', part) or '',
    '^(%a+) (%d+) %d+ %d+ %d+ ?([^ \n]*)')
  if not state then
    return
  end
  fences[part] = token
  redis.call('HDEL', prefix .. ':state', part)
  redis.call('HDEL', prefix .. ':cancel', part)
  redis.call('HDEL', prefix .. ':messages', part)
  for _, name in ipairs({ ':running', ':delayed', ':parked', ':carried' }) do
    redis.call('ZREM', prefix .. name, part)
  end
  if state == 'retrying' then
    redis.call('HINCRBY', KEYS[1], 'retrying', -1)
  elseif state == 'running' and flow ~= '' then -- its slot is free: the next lease sees to what waited for it
    if redis.call('HINCRBY', prefix .. ':flow:' .. flow, 'running', -1) < 0 then
      redis.call('HSET', prefix .. ':flow:' .. flow, 'running', 0)
    end
    redis.call('ZADD', prefix .. ':flowdue', 0, flow)
  end
  redis.pcall('HINCRBY', KEYS[1], 'gone', 1)
  redis.pcall('HINCRBY', KEYS[1], 'uncounted', 1)
end

-- Whether a part is taken. One whose job has ended and is kept no more is free, and nothing is left of that job.
local function is_taken(part)
  local key = prefix .. ':job:' .. part
  local code = redis.call('GETRANGE', key, 0, 0)
  if code == 'p' then
    return true
  elseif code == '' then
    take_over(part)
    return false
  end
  local ended, keep = string.match(redis.call('GET', key), ENDED)
  if not keep or is_ahead(ended + keep) then
    return true
  end
  redis.call('DEL', key, prefix .. ':logs:' .. part, prefix .. ':progress:' .. part)
  redis.call('SREM', prefix .. ':logged', part)
  redis.call('ZREM', prefix .. ':dead', part)
  return false
end

-- The part of a job that is there already, for one that asks; '' when it is new.
local function holder(part, options)
  if options.given and is_taken(part) then
    return part
  end
  return options.dedup and held(prefix .. ':dedup:' .. options.dedup[1])
    or options.unique and held(prefix .. ':unique:' .. options.unique[1])
    or ''
end

local answers, added = { now_text }, {}
for i = 4, #ARGV, 5 do
  local part, type, priority, args, extra = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local options = extra == '' and {} or cjson.decode(extra)
  local taken, flow, unique, state, due = holder(part, options), '', '', 'queued', now_text
  answers[#answers + 1] = taken
  if taken == '' then
    if options.due and options.due > now then
      state, due = 'scheduled', whole(options.due)
    end
    if options.dedup then
      hold(prefix .. ':dedup:' .. options.dedup[1], part, options.dedup[2])
    end
    if options.unique then
      unique = options.unique[1]
      hold(prefix .. ':unique:' .. unique, part, options.unique[2])
    end
    for _, tag in ipairs(options.tags or {}) do
      local key = prefix .. ':tag:' .. tag
      redis.call('ZADD', key, now_text, part)
      redis.call('PEXPIRE', key, whole(options.tag_ms), 'NX')
      redis.call('PEXPIRE', key, whole(options.tag_ms), 'GT')
    end
    if options.flow then
      flow = options.flow[1]
      local key = prefix .. ':flow:' .. flow
      redis.call('HSET', key, 'parallelism', options.flow[2], 'rate', options.flow[3], 'period_ms', options.flow[4])
      redis.call('PERSIST', key)
    end
    redis.call('SET', prefix .. ':job:' .. part, 'p' .. type .. '\n' .. priority .. '\n' .. flow .. '\n' .. unique
      .. '\n' .. now_text .. '\n' .. extra .. '\n' .. args)
    redis.call('HSET', states, part, state .. ' ' .. (fences[part] or '0') .. ' 0 0 ' .. due)
    redis.call('ZADD', prefix .. ':carried', look_text, part)
    -- Neither broken statistics nor a full stream may cost a job.
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, state, 1)
    redis.pcall('SADD', prefix .. ':types', type)
    added[#added + 1] = part
  end
end
if #added > 0 then
  redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'enqueued', table.concat(added, ' '))
end
return answers
