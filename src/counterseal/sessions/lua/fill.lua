-- fill: stores what the database says of a session, unless a tombstone or something newer is stored
-- keys: entry index epoch barriers
-- args: part now_ms version user_epoch session_epoch facts last_ms checked_ms cur prev rotated_ms successor step_ups
--   ttl_ms instead_of created_ms ended_ttl_ms prefix ended...
-- returns: state (a: live, r: revoked, e: of a former epoch, b: ended behind a barrier) and, of a live one, live, facts
--   and step_ups as they are stored now; `instead_of` is the version and token that may be replaced, though newer
-- ttl: entry by ttl_ms, or what it had; index and epoch as long as any entry; a tombstone as its entry, or ended_ttl_ms
local entry, index, epoch = KEYS[1], KEYS[2], KEYS[3]
local part, now, version = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local user_epoch, session_epoch = tonumber(ARGV[4]), tonumber(ARGV[5])
local last, checked, ttl = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[14])
local instead_of, created, ended_ttl, prefix = ARGV[15], tonumber(ARGV[16]), ARGV[17], ARGV[18]

local function whole(number)
  return string.format('%.0f', number)
end

local function keep_for(key, ms)
  if redis.call('PTTL', key) < ms then
    redis.call('PEXPIRE', key, whole(ms))
  end
end

for i = 19, #ARGV do
  local other = prefix .. ARGV[i]
  if redis.call('HGET', other, 'live') ~= 'r' then
    local left = redis.call('PTTL', other)
    redis.call('DEL', other)
    redis.call('HSET', other, 'live', 'r')
    redis.call('PEXPIRE', other, left > 0 and left or ended_ttl)
  end
  redis.call('ZREM', index, ARGV[i])
end

local stored_epoch = tonumber(redis.call('GET', epoch) or '-1')
if user_epoch > stored_epoch then
  redis.call('SET', epoch, whole(user_epoch), 'KEEPTTL')
  stored_epoch = user_epoch
end
keep_for(epoch, ttl)

local live, cur, facts = unpack(redis.call('HMGET', entry, 'live', 'cur', 'facts'))
if live == 'r' then
  return { 'r' }
end
-- What was made before one of these was ended while the database was down, whoever had a copy of it.
local barriers = redis.call('HGETALL', KEYS[4])
for i = 1, #barriers, 2 do
  if barriers[i] ~= part and created <= tonumber(barriers[i + 1]) then
    redis.call('DEL', entry)
    redis.call('HSET', entry, 'live', 'r')
    redis.call('PEXPIRE', entry, ARGV[14])
    redis.call('ZREM', index, part)
    return { 'b' }
  end
end
if session_epoch < stored_epoch then
  return { 'e' }
end
local stored, stored_last, stored_checked = string.match(live or '', '^(%d+) (%d+) (%d+)$')
if stored then
  last = math.max(last, tonumber(stored_last))
end
-- Of the same version with another token one was never confirmed, and other facts are not of this release or damaged:
-- the database has the last word.
local is_newer = not stored or version > tonumber(stored)
  or (version == tonumber(stored) and (cur ~= ARGV[9] or facts ~= ARGV[6]))
if is_newer or (instead_of ~= '' and instead_of == stored .. ' ' .. cur) then
  redis.call('DEL', entry)
  redis.call('HSET', entry, 'live', ARGV[3] .. ' ' .. whole(last) .. ' ' .. ARGV[8], 'facts', ARGV[6],
    'cur', ARGV[9], 'prev', ARGV[10], 'rotated', ARGV[11], 'succ', ARGV[12], 'ups', ARGV[13])
  redis.call('PEXPIRE', entry, ARGV[14])
elseif version == tonumber(stored) then
  checked = math.max(checked, tonumber(stored_checked))
  redis.call('HSET', entry, 'live', stored .. ' ' .. whole(last) .. ' ' .. whole(checked), 'ups', ARGV[13])
end
redis.call('ZREMRANGEBYSCORE', index, '-inf', whole(now - tonumber(ended_ttl)))
redis.call('ZADD', index, whole(last), part)
keep_for(index, ttl)
return { 'a', unpack(redis.call('HMGET', entry, 'live', 'facts', 'ups')) }
