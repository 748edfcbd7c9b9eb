-- live_remove: removes a field of a hash of which processes keep copies, and tells them
-- keys: hash
-- args: field version channel
-- returns: the version before this one and the version now, empty when nothing is left; 0 when there was no such field
-- ttl: none is written
local hash, version = KEYS[1], ARGV[2]

if redis.call('HEXISTS', hash, ARGV[1]) == 0 then
  return 0
end
local before = redis.call('HGET', hash, '') or ''
-- Who may not publish still writes: others read the version every few seconds.
redis.pcall('PUBLISH', ARGV[3], version)
redis.call('HDEL', hash, ARGV[1])
redis.call('HSET', hash, '', version)
if redis.call('HLEN', hash) == 1 then
  redis.call('DEL', hash)
  version = ''
end
return { before, version }
