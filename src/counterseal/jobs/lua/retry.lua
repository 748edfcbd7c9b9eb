-- retry: makes new jobs of dead letters and takes these off the list; parked jobs go back to their queue themselves
-- keys: queue
-- args: prefix now_ms keep_ms letters...
-- returns: for each letter the part of the job that runs now, or '' when it is no dead letter any more
-- ttl: the record of a letter that was retried by keep_ms; the unique key that a new job takes by its window; tags by
--   tag_ms
-- A letter is three arguments: its part, the part of the new job, and the extra of the new job. Whoever calls writes
-- that, for cjson makes an object of an empty list. Of it this reads `flow`, `unique`, `tags`, `tag_ms`. The unique key
-- is taken again when nobody else has it.
local prefix, now, keep_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
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

local answers, began = {}, {}
for i = 4, #ARGV, 3 do
  local part, new, again = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local record = redis.call('GET', prefix .. ':job:' .. part)
  local code, type, priority, flow, _, _, extra, args = string.match(record or '', HEAD)
  local answer = ''
  if code == 'f' and redis.call('ZREM', prefix .. ':dead', part) == 1 then
    local options = again == '' and {} or cjson.decode(again)
    local unique = ''
    if options.unique and redis.call('SET', prefix .. ':unique:' .. options.unique[1], new, 'NX',
      'PX', string.format('%.0f', options.unique[2])) then
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
    redis.call('PEXPIRE', prefix .. ':job:' .. part, keep_ms)
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'queued', 1)
    answer = new
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
