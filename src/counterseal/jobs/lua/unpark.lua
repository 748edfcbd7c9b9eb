-- unpark: puts parked jobs back to their queue, before all others, for a worker that can run them
-- keys: queue
-- args: prefix now_ms count known...
-- returns: the parts that went back; `count` says at most how many
-- ttl: none
-- `known` are pairs: a type, and the latest schema of its argument that this worker reads. It leases in the same round
-- trip, so their lanes come first in the rings. Nobody is woken: a worker of another release would park them again.
local prefix, now, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local states = prefix .. ':state'
local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local now_text = string.format('%.0f', now)

local function put_back(part, record)
  local priority, flow, extra = string.match(record, '^.[^\n]*\n([^\n]*)\n([^\n]*)\n[^\n]*\n[^\n]*\n([^\n]*)\n')
  if flow == '' then
    if redis.call('LPUSH', prefix .. ':ready:' .. priority, part) == 1 then
      redis.call('LPUSH', prefix .. ':ring:' .. priority, '')
    end
    return
  end
  redis.call('LPUSH', prefix .. ':lane:' .. priority .. ':' .. flow, part)
  local key = prefix .. ':flow:' .. flow
  if redis.call('HEXISTS', key, 'period_ms') == 0 then -- its limits are forgotten while it rests
    local limits = cjson.decode(extra).flow
    redis.call('HSET', key, 'parallelism', limits[2], 'rate', limits[3], 'period_ms', limits[4])
  end
  local member, stalled = unpack(redis.call('HMGET', key, 'in' .. priority, 'stalled'))
  if not member and not stalled then
    redis.call('HSET', key, 'in' .. priority, 1)
    redis.call('PERSIST', key)
    redis.call('LPUSH', prefix .. ':ring:' .. priority, flow)
  end
end

local all = {}
for i = 4, #ARGV, 2 do
  local type, schema = ARGV[i], ARGV[i + 1]
  local of = prefix .. ':parked:' .. type
  local parts = redis.call('ZRANGEBYSCORE', of, '-inf', schema, 'LIMIT', 0, count - #all)
  local back = 0
  for n = #parts, 1, -1 do -- the first one goes to the front last
    local part = parts[n]
    redis.call('ZREM', of, part)
    redis.call('ZREM', prefix .. ':parked', part)
    local record = redis.call('GET', prefix .. ':job:' .. part)
    local state, token, attempt, lost = string.match(redis.call('HGET', states, part) or '', '^(%a+) (%d+) (%d+) (%d+)')
    if record and state == 'parked' then
      redis.call('HSET', states, part, 'queued ' .. token .. ' ' .. attempt .. ' ' .. lost .. ' ' .. now_text)
      put_back(part, record)
      back = back + 1
      all[#all + 1] = part
    elseif state == 'parked' then -- somebody has deleted its record
      redis.call('HINCRBY', KEYS[1], 'uncounted', 0)
    end
  end
  if back > 0 then
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'retrying', -back)
    redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'queued', back)
  end
  if #all >= count then
    break
  end
end
return all
