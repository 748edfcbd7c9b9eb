-- release: gives a unique key back before its job has ended
-- keys: key queue
-- args: part now_ms
-- returns: 1, or 0 when it belongs to another job, to none, or its time has passed
-- ttl: none
local holder, till = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) ?(%d*)$')
if holder ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
local now = math.max(tonumber(ARGV[2]), tonumber(redis.call('HGET', KEYS[2], 'time') or '0'))
return (till == '' or tonumber(till) > now) and 1 or 0
