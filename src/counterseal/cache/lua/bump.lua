-- bump: gives a kind or a tag a new generation, so that nothing written before counts any more
-- keys: generation
-- args: fresh ttl_s changed
-- returns: 1
-- ttl: generation by ttl_s
local stored = redis.pcall('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
if type(stored) == 'table' and stored.err then
  -- A full server takes no write, but does from a script that has made room. Without a generation nothing counts.
  redis.call('DEL', KEYS[1])
  redis.pcall('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end

-- A process that heard of it too early would take a former value in again, so the two are one.
redis.pcall('PUBLISH', ARGV[3], KEYS[1])
return 1
