-- invalidate: puts a tombstone in the place of a value, which refuses the fill of whoever loads now, and ends its lease
-- keys: value lease
-- args: tombstone ttl_ms loaded changed
-- returns: 1 when there was a value, else 0
-- ttl: value by ttl_ms
local tombstone, ttl_ms, loaded, changed = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- a value has a space after its id, a tombstone a line break
local was = redis.call('GETRANGE', KEYS[1], 18, 18) == ' ' and 1 or 0
local stored = redis.pcall('SET', KEYS[1], tombstone, 'PX', ttl_ms)
if type(stored) == 'table' and stored.err then
  -- A full server takes no write, but does from a script that has made room.
  redis.call('DEL', KEYS[1])
  redis.pcall('SET', KEYS[1], tombstone, 'PX', ttl_ms)
end
if changed ~= '' then
  redis.pcall('PUBLISH', changed, KEYS[1])
end

if string.sub(redis.call('GET', KEYS[2]) or '', -1) == '1' then
  redis.pcall('PUBLISH', loaded, KEYS[1])
end
redis.call('DEL', KEYS[2])
return was
