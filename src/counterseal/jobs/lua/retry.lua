-- retry: makes new jobs of dead letters and takes these off the list; parked jobs go back to their queue themselves
-- keys: queue
-- args: prefix now_ms keep_ms letters...
-- returns: for each letter the part of the job that runs now, or '' when it is no dead letter any more
-- ttl: the unique key that a new job takes a minute after its window; tags by tag_ms; the record of a letter that was
--   retried stays as long as it would have
-- A letter is three arguments: its part, the part of the new job, and the extra of the new job. Whoever calls writes
-- that, for cjson makes an object of an empty list. Of it this reads `flow`, `unique`, `tags`, `tag_ms`. The unique key
-- is taken again when nobody else has it. A letter is there for keep_ms.
local prefix, now, keep_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local states = prefix .. ':state'
local HEAD = '^(.)([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)\n([^\n]*)'

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local now_text = string.format('%.0f', now)

local function push(priority, flow, part)
  if flow == '' then
    if redis.call('RPUSH', prefix .. ':ready:' .. priority, part) == 1 then
      redis.call('RPUSH', prefix .. ':ring:' .. priority, '')
    end
    return
  end
  redis.call('RPUSH', prefix .. ':lane:' .. priority .. ':' .. flow, part)
  local key = prefix .. ':flow:' .. flow
  redis.call('PERSIST', key)
  local member, stalled = unpack(redis.call('HMGET', key, 'in' .. priority, 'stalled'))
  if not member and not stalled then
    redis.call('HSET', key, 'in' .. priority, 1)
    redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
  end
end

-- The limits of a flow are forgotten while it rests.
local function limit_flow(flow, options)
  local key = prefix .. ':flow:' .. flow
  if flow ~= '' and options.flow and redis.call('HEXISTS', key, 'period_ms') == 0 then
    redis.call('HSET', key, 'parallelism', options.flow[2], 'rate', options.flow[3], 'period_ms', options.flow[4])
  end
end

-- Take a unique key, '<part> <until>', when nobody holds it.
local function hold(key, part, ms)
  local till = string.match(redis.call('GET', key) or ' 0', '^%S* ?(%d*)$')
  if till == '' or tonumber(till) > now then
    return false
  end
  redis.call('SET', key, part .. ' ' .. string.format('%.0f', now + ms), 'PX', string.format('%.0f', ms + 60000))
  return true
end

local answers, began = {}, {}
for i = 4, #ARGV, 3 do
  local part, new, again = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('GET', prefix .. ':job:' .. part)
  local code, type, priority, flow, _, _, extra, args = string.match(record or '', HEAD)
  local answer = ''
  local failed = redis.call('ZSCORE', prefix .. ':dead', part)
  if failed then
    redis.call('ZREM', prefix .. ':dead', part)
  end
  if code == 'f' and failed and failed + keep_ms > now then
    local options = again == '' and {} or cjson.decode(again)
    local unique = ''
    if options.unique and hold(prefix .. ':unique:' .. options.unique[1], new, options.unique[2]) then
      unique = options.unique[1]
    end
    for _, tag in ipairs(options.tags or {}) do
      local key, tag_ms = prefix .. ':tag:' .. tag, string.format('%.0f', options.tag_ms)
      redis.call('ZADD', key, now_text, new)
      redis.call('PEXPIRE', key, tag_ms, 'NX')
      redis.call('PEXPIRE', key, tag_ms, 'GT')
    end
    limit_flow(flow, options)
    redis.call('SET', prefix .. ':job:' .. new, 'p' .. type .. '\n' .. priority .. '\n' .. flow .. '\n' .. unique
      .. '\n' .. now_text .. '\n' .. again .. '\n' .. args)
    if #args > 65536 then -- leased one by one, for an answer has its limit
      redis.call('HSET', KEYS[1], 'large', 1)
    end
    push(priority, flow, new)
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'queued', 1)
    answer = new
  elseif not code and redis.call('ZREM', prefix .. ':parked', part) == 1 then -- somebody has deleted it
    redis.call('HINCRBY', KEYS[1], 'uncounted', 0)
  elseif code == 'p' and redis.call('ZREM', prefix .. ':parked', part) == 1 then
    redis.call('ZREM', prefix .. ':parked:' .. type, part)
    local entry = redis.call('HGET', states, part) or 'parked 0 0 0'
    local token, attempt, lost = string.match(entry, '^%a+ (%d+) (%d+) (%d+)')
    redis.call('HSET', states, part, 'queued ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. now_text)
    limit_flow(flow, extra == '' and {} or cjson.decode(extra))
    push(priority, flow, part)
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'retrying', -1)
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'queued', 1)
    answer = part
  end
  if answer ~= '' then
    began[#began + 1] = answer
  end
  answers[#answers + 1] = answer
end
if #began > 0 then
  redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'enqueued', table.concat(began, ' '))
  redis.pcall('PUBLISH', prefix .. ':wake', '')
end
return answers
