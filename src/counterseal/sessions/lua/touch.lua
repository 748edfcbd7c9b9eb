-- touch: notes that a live session was used; nothing else of it is written
-- keys: entry index
-- args: part now_ms
-- returns: 1, or 0 when it is not live here
-- ttl: none is changed
if redis.call('HGET', KEYS[1], 'state') ~= 'a' then
  return 0
end
if tonumber(ARGV[2]) > tonumber(redis.call('HGET', KEYS[1], 'last')) then
  redis.call('HSET', KEYS[1], 'last', ARGV[2])
  redis.call('ZADD', KEYS[2], 'XX', ARGV[2], ARGV[1])
end
return 1
