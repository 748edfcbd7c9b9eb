-- copy: COPY within the database, for a connection that may not run COPY because that can name another one
-- keys: source destination
-- args: replace
-- returns: 1, or 0 when there is no source, or a destination that may not be replaced
-- ttl: destination by that of source
local value = redis.call('DUMP', KEYS[1])
if not value or (ARGV[1] == '0' and redis.call('EXISTS', KEYS[2]) == 1) then
  return 0
end
local expires = math.max(redis.call('PEXPIRETIME', KEYS[1]), 0)
redis.call('RESTORE', KEYS[2], string.format('%.0f', expires), value, 'ABSTTL', 'REPLACE')
return 1
