-- pend: puts down what the database must be told when it is back
-- keys: pending
-- args: most entry
-- returns: the id of the entry, or nothing when too many wait
-- ttl: none: what waits must outlive any outage
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then
  return false
end
return redis.call('XADD', KEYS[1], '*', 'entry', ARGV[2])
