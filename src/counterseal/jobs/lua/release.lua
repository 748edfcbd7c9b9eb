-- release: gives a unique key back before its job has ended
-- keys: key
-- args: part
-- returns: 1, or 0 when it belongs to another job, or to none
-- ttl: none
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
