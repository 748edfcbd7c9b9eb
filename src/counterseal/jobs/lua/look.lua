-- look: claims carried jobs whose messages should have come by now, and forgets those that have ended
-- keys: queue
-- args: prefix now_ms claim_ms look_ms count
-- returns: for each job its part, record, state entry, and the id of its message or ''
-- ttl: none
-- Who claims a job has `claim_ms` to publish its message again; then it may be claimed again.
local prefix, now, claim_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local look_ms, count = tonumber(ARGV[4]), ARGV[5]
local carried, messages = prefix .. ':carried', prefix .. ':messages'

local function whole(number)
  return string.format('%.0f', number)
end

local parts = redis.call('ZRANGEBYSCORE', carried, '-inf', whole(now), 'LIMIT', 0, count)
local paused = #parts > 0 and redis.call('HGET', KEYS[1], 'paused')
local found = {}
for _, part in ipairs(parts) do
  local record = redis.call('GET', prefix .. ':job:' .. part)
  local entry = redis.call('HGET', prefix .. ':state', part)
  if not record or not entry or string.sub(record, 1, 1) ~= 'p' then
    redis.call('ZREM', carried, part)
    redis.call('HDEL', messages, part)
    if entry and not record then -- somebody has deleted it
      redis.call('HINCRBY', KEYS[1], 'uncounted', 0)
    end
  else
    local runs = string.sub(entry, 1, 7) == 'running'
    local lease = runs and tonumber(redis.call('ZSCORE', prefix .. ':running', part) or '0')
    if lease and lease > now then
      redis.call('ZADD', carried, whole(lease + look_ms), part)
    elseif paused then
      redis.call('ZADD', carried, whole(now + claim_ms), part)
    else
      redis.call('ZADD', carried, whole(now + claim_ms), part)
      found[#found + 1] = { part, record, entry, redis.call('HGET', messages, part) or '' }
    end
  end
end
return found
