-- release: gives a lease back without a value, and tells whoever waits for it
-- keys: value lease
-- args: token loaded
-- returns: 1, or 0 when the lease is held no more
-- ttl: none is written
local holder, awaited = string.match(redis.call('GET', KEYS[2]) or '', '^(%S+) .* ([01])$')
if holder ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[2])
if awaited == '1' then
  redis.pcall('PUBLISH', ARGV[2], KEYS[1])
end
return 1
