-- reset: forgets what was charged
-- keys: charged...
-- args: channel message
-- returns: how many keys there were
-- ttl: none: nothing is written
local gone = redis.call('UNLINK', unpack(KEYS))

-- A silent channel may not cost a reset: whoever misses the message asks again when it would anyway.
redis.pcall('PUBLISH', ARGV[1], ARGV[2])
return gone
