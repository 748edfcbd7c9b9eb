-- revoke_user: leaves tombstones in place of all sessions of one user that are stored here, and raises the user's epoch
-- keys: index epoch
-- args: prefix ttl_ms keep at_least above
-- returns: the epoch, then the parts of those that were live here; `keep` is the part of one that stays, or empty;
--   with `above` as 1 the epoch becomes greater than every one known here, for when the database can't say it
-- ttl: tombstones as long as their entries would have lived, or ttl_ms; epoch by ttl_ms, or what it had if longer
local prefix, keep, at_least = ARGV[1], ARGV[3], tonumber(ARGV[4])
local stored = tonumber(redis.call('GET', KEYS[2]) or '-1')
local highest = math.max(stored, at_least)
local ended = {}
for _, part in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if part ~= keep then
    local entry = prefix .. part
    local state, facts = unpack(redis.call('HMGET', entry, 'state', 'facts'))
    if state == 'a' then
      ended[#ended + 1] = part
      highest = math.max(highest, cjson.decode(facts).epoch)
    end
    if state ~= 'r' then
      local left = redis.call('PTTL', entry)
      redis.call('DEL', entry)
      redis.call('HSET', entry, 'state', 'r')
      redis.call('PEXPIRE', entry, left > 0 and left or ARGV[2])
    end
    redis.call('ZREM', KEYS[1], part)
  end
end
if ARGV[5] == '1' then
  at_least = highest + 1
end
if at_least > stored then
  stored = at_least
  redis.call('SET', KEYS[2], string.format('%.0f', stored), 'KEEPTTL')
end
if stored >= 0 and redis.call('PTTL', KEYS[2]) < tonumber(ARGV[2]) then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
return { string.format('%.0f', stored), unpack(ended) }
