-- revoke: leaves tombstones in place of sessions of one user, also of those that are not stored here
-- keys: index
-- args: prefix ttl_ms parts...
-- returns: how many of them were live here
-- ttl: a tombstone as long as its entry would have lived, or ttl_ms
local ended = 0
for i = 3, #ARGV do
  local entry = ARGV[1] .. ARGV[i]
  local live = redis.call('HGET', entry, 'live')
  if live ~= 'r' then
    local left = redis.call('PTTL', entry)
    redis.call('DEL', entry)
    redis.call('HSET', entry, 'live', 'r')
    redis.call('PEXPIRE', entry, left > 0 and left or ARGV[2])
    ended = ended + (live and 1 or 0)
  end
  redis.call('ZREM', KEYS[1], ARGV[i])
end
return ended
