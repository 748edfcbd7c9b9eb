-- extend: prolongs the leases that a worker still holds
-- keys: time running
-- args: prefix now_ms lease_ms time_ttl_s leases...
-- returns: the ids of those that it holds no more; leases are an id and its fencing token in turn
-- ttl: time by time_ttl_s
local prefix, now, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

now = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0'))
redis.call('SET', KEYS[1], string.format('%.0f', now), 'EX', ARGV[4])

local lost = {}
for i = 5, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local state, attempt = unpack(redis.call('HMGET', prefix .. ':job:' .. id, 'state', 'attempt'))
  if state == 'running' and attempt == token then
    redis.call('ZADD', KEYS[2], 'XX', string.format('%.0f', now + lease_ms), id)
  else
    lost[#lost + 1] = id
  end
end
return lost
