-- live_set: writes a field of a hash of which processes keep copies, and tells them
-- keys: hash
-- args: field value version channel most
-- returns: the version before this one, empty when there was none; 0 when the hash is full and nothing was written
-- ttl: none; it is configuration, which stays until somebody changes it
local hash, field, version = KEYS[1], ARGV[1], ARGV[3]

-- The version is a field too, the one without a name.
local before = redis.call('HGET', hash, '')
local entries = redis.call('HLEN', hash) - (before and 1 or 0)
if entries >= tonumber(ARGV[5]) and redis.call('HEXISTS', hash, field) == 0 then
  return 0
end
-- Who may not publish still writes: others read the version every few seconds.
redis.pcall('PUBLISH', ARGV[4], version)
redis.call('HSET', hash, field, ARGV[2], '', version)
return before or ''
