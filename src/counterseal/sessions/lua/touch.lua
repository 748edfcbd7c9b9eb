-- touch: notes that a live session was used; nothing else of it is changed
-- keys: entry index
-- args: part now_ms
-- returns: 1, or 0 when it is not live here
-- ttl: none is changed
local version, last, checked = string.match(redis.call('HGET', KEYS[1], 'live') or '', '^(%d+) (%d+) (%d+)$')
if not version then
  return 0
end
if tonumber(ARGV[2]) > tonumber(last) then
  redis.call('HSET', KEYS[1], 'live', version .. ' ' .. ARGV[2] .. ' ' .. checked)
  redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1])
end
return 1
