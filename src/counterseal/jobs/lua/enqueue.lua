-- enqueue: accepts jobs, each at most once by its id, its deduplication id and its unique key
-- keys: queue
-- args: prefix now_ms jobs...
-- returns: for each job an empty text, or the part of the job that was there already
-- ttl: records none, an accepted job waits as long as it takes; dedup and unique keys a minute
--   after their windows; tags by tag_ms
-- Each job is five arguments: part, type, priority, args, and extra: '' or a JSON object in one line, which is kept. Of
-- it this reads `due`, `given` (the part may be taken), `flow`, `dedup`, `unique`, `tags`, `tag_ms`.
local prefix, now = ARGV[1], tonumber(ARGV[2])
local ENDED = '^' .. string.rep('[^\n]*\n', 7) .. '%d+ %d+ %d+ %d+ (%d+) %d+ (%d+)\n' -- when, and how long it is kept

local function whole(number)
  return string.format('%.0f', number)
end

local now_text = whole(now)
local judged = false
-- The clock of the queue, which never goes back.
local function clock()
  if not judged then
    judged = true
    local stored = redis.call('HGET', KEYS[1], 'time')
    if stored and tonumber(stored) > now then
      now = tonumber(stored)
    end
  end
  return now
end

local function is_ahead(ms)
  return ms > clock()
end

-- Who holds a deduplication id or a unique key, '<part> <until>'; nil when its time has passed. What a former release
-- wrote has no time: it is held as long as its key is there.
local function held(key)
  local part, till = string.match(redis.call('GET', key) or '', '^(%S+) ?(%d*)$')
  return part and (till == '' or is_ahead(tonumber(till))) and part or nil
end

local function hold(key, part, ms)
  redis.call('SET', key, part .. ' ' .. whole(clock() + ms), 'PX', whole(ms + 60000))
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

local records, lanes, states, delayed, counts, answers, added, made = {}, {}, {}, {}, {}, {}, {}, {}
for i = 3, #ARGV, 5 do
  local part, type, priority, extra = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 4]
  local taken, due, flow, unique, field = '', nil, '', '', 'queued'
  if extra ~= '' then
    local options = cjson.decode(extra)
    taken = made[part] or holder(part, options)
    if taken == '' then
      if options.due and is_ahead(options.due) then
        due, field = whole(options.due), 'scheduled'
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
        redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now - options.tag_ms))
        redis.call('ZADD', key, now_text, part)
        redis.call('PEXPIRE', key, whole(options.tag_ms), 'NX')
        redis.call('PEXPIRE', key, whole(options.tag_ms), 'GT')
      end
      if options.flow then
        flow = options.flow[1]
        if not due then -- else it brings its limits when it is
          local key = prefix .. ':flow:' .. flow
          redis.call('HSET', key, 'parallelism', options.flow[2], 'rate', options.flow[3], 'period_ms', options.flow[4])
          redis.call('PERSIST', key)
        end
      end
      made[part] = part
    end
  end
  answers[#answers + 1] = taken
  if taken == '' then
    added[#added + 1] = part
    records[#records + 1] = prefix .. ':job:' .. part
    records[#records + 1] = 'p' .. type .. '\n' .. priority .. '\n' .. flow .. '\n' .. unique .. '\n' .. now_text
      .. '\n' .. extra .. '\n' .. ARGV[i + 3]
    if due then
      delayed[#delayed + 1] = due
      delayed[#delayed + 1] = part
      states[#states + 1] = part
      states[#states + 1] = 'scheduled ' .. (fences[part] or '0') .. ' 0 0 ' .. due
    else
      if fences[part] then
        states[#states + 1] = part
        states[#states + 1] = 'queued ' .. fences[part] .. ' 0 0 ' .. now_text
      end
      local name = priority .. flow
      local lane = lanes[name]
      if not lane then
        lane = { priority, flow, {} }
        lanes[name] = lane
      end
      lane[3][#lane[3] + 1] = part
    end
    local of = counts[type]
    if not of then
      of = { queued = 0, scheduled = 0 }
      counts[type] = of
    end
    of[field] = of[field] + 1
  end
end

if #added == 0 then
  return answers
end
redis.call('MSET', unpack(records)) -- before anybody can see the jobs
for i = 2, #records, 2 do
  if #records[i] > 65536 then -- leased one by one, for an answer has its limit
    redis.call('HSET', KEYS[1], 'large', 1)
    break
  end
end
local woken = false
if #states > 0 then
  redis.call('HSET', prefix .. ':state', unpack(states))
end
if #delayed > 0 then
  redis.call('ZADD', prefix .. ':delayed', unpack(delayed))
  woken = true -- somebody has to wake up in time
end
-- A lane is a list of jobs of one priority and one flow; a ring holds the lanes that may be served, in turn. The lane
-- without a flow is in its ring while it has jobs; one with a flow when `in<priority>` of the flow says so.
-- What a flow says is not so when the key that it speaks of was lost: somebody deleted it, or the server evicted it.
local lost = {}
for _, lane in pairs(lanes) do
  local priority, flow = lane[1], lane[2]
  if flow ~= '' and lost[priority] == nil then
    lost[priority] = redis.call('EXISTS', prefix .. ':ring:' .. priority) == 0
  end
end
for _, lane in pairs(lanes) do
  local priority, flow, parts = lane[1], lane[2], lane[3]
  if flow == '' then
    if redis.call('RPUSH', prefix .. ':ready:' .. priority, unpack(parts)) == #parts then
      redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
      woken = true
    end
  else
    redis.call('RPUSH', prefix .. ':lane:' .. priority .. ':' .. flow, unpack(parts))
    local key = prefix .. ':flow:' .. flow
    local member, stalled = unpack(redis.call('HMGET', key, 'in' .. priority, 'stalled'))
    if stalled and not redis.call('ZSCORE', prefix .. ':flowdue', flow) then
      redis.call('HDEL', key, 'stalled')
      stalled = false
    end
    if (not member or lost[priority]) and not stalled then
      redis.call('HSET', key, 'in' .. priority, 1)
      redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
      woken = true
    end
  end
end
-- Neither broken statistics nor a silent channel may cost a job: a worker finds it by itself, a little later.
for type, of in pairs(counts) do
  for field, number in pairs(of) do
    if number > 0 and redis.pcall('HINCRBY', prefix .. ':stats:' .. type, field, number) == number then
      redis.pcall('SADD', prefix .. ':types', type) -- it may be the first one
    end
  end
end
redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'enqueued', table.concat(added, ' '))
if woken then
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end
return answers
