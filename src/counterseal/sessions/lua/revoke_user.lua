-- revoke_user: leaves tombstones in place of sessions of one user that are stored here, and raises the user's epoch
-- keys: index epoch barriers
-- args: prefix ttl_ms which keep at_least barrier_ms
-- returns: the epoch, then the parts of those that were live here. `which` is `all`, `former` for those of an epoch
--   below at_least, or `above` for all when the database can't say the epoch: it becomes greater than any known here.
--   `keep` is the part of one that stays, or empty. With `barrier_ms` nothing that was made until then is stored again,
--   but `keep`; without it, it is empty
-- ttl: a tombstone as long as its entry would have lived; epoch and barriers by ttl_ms, or what they had if longer
local prefix, which, keep, at_least = ARGV[1], ARGV[3], ARGV[4], tonumber(ARGV[5])
local stored = tonumber(redis.call('GET', KEYS[2]) or '-1')
local highest = math.max(stored, at_least)
local ended = {}
for _, part in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local entry = prefix .. part
  local live, facts = unpack(redis.call('HMGET', entry, 'live', 'facts'))
  if not live or live == 'r' then
    redis.call('ZREM', KEYS[1], part)
  elseif part ~= keep then
    local readable, read = pcall(cjson.decode, facts)
    local epoch = readable and tonumber(read.epoch) or -1
    highest = math.max(highest, epoch)
    if which ~= 'former' or epoch < at_least then
      local left = redis.call('PTTL', entry)
      redis.call('DEL', entry)
      redis.call('HSET', entry, 'live', 'r')
      redis.call('PEXPIRE', entry, left > 0 and left or ARGV[2])
      redis.call('ZREM', KEYS[1], part)
      ended[#ended + 1] = part
    end
  end
end
if ARGV[6] ~= '' then
  local field = keep ~= '' and keep or '*'
  if tonumber(redis.call('HGET', KEYS[3], field) or '0') < tonumber(ARGV[6]) then
    redis.call('HSET', KEYS[3], field, ARGV[6])
  end
  redis.call('PEXPIRE', KEYS[3], ARGV[2])
end
if which == 'above' then
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
