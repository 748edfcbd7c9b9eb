-- prolong: lets the holder of a lease keep it for longer
-- keys: lease
-- args: token now_ms lease_ms ttl_ms
-- returns: 1, or 0 when the lease is held no more
-- ttl: lease by ttl_ms
local holder, under, judged_ms, awaited =
  string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%S+) %d+ (%d+) ([01])$')
if holder ~= ARGV[1] then
  return 0
end
local now = math.max(tonumber(ARGV[2]), tonumber(judged_ms))
local text = string.format('%s %s %.0f %.0f %s', holder, under, now + tonumber(ARGV[3]), now, awaited)
redis.call('SET', KEYS[1], text, 'PX', ARGV[4])
return 1
