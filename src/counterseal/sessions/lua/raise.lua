-- raise: makes an epoch at least as great as what is given
-- keys: epoch
-- args: at_least ttl_ms
-- returns: the epoch
-- ttl: epoch by ttl_ms
local stored = tonumber(redis.call('GET', KEYS[1]) or '-1')
stored = math.max(stored, tonumber(ARGV[1]))
redis.call('SET', KEYS[1], string.format('%.0f', stored), 'PX', ARGV[2])
return stored
