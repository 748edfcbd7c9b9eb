-- rotate: replaces the refresh token of a live session, or tells who came late what replaced theirs
-- keys: entry index epoch
-- args: part now_ms presented next successor grace_ms global_epoch
-- returns: what (absent, ended, rotated, grace, mismatch), then live, cur, prev, rotated, successor, facts, step_ups as
--   they are stored now; nothing more of what is absent or ended
-- ttl: none is changed
local entry = KEYS[1]
local part, now, presented = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local live, cur, prev, rotated, facts =
  unpack(redis.call('HMGET', entry, 'live', 'cur', 'prev', 'rotated', 'facts'))
if not live then
  return { 'absent' }
end
if live == 'r' then
  return { 'ended' }
end
local epoch = redis.call('GET', KEYS[3])
if not epoch then
  return { 'absent' }
end
local version, last, checked = string.match(live, '^(%d+) (%d+) (%d+)$')
local readable
readable, facts = pcall(cjson.decode, facts)
if not readable or not version then
  return { 'absent' }
end
last, rotated = tonumber(last), tonumber(rotated)
-- Another process' clock may have been ahead.
now = math.max(now, last, rotated)
if facts.epoch < tonumber(epoch) or facts.global_epoch < tonumber(ARGV[7]) or now >= facts.absolute_ms then
  return { 'ended' }
end
if now >= last + facts.idle_ms then
  return { 'absent' } -- of a use while this server was away the database alone knows
end

local what = 'mismatch'
if presented == cur then
  what = 'rotated'
  now = string.format('%.0f', now)
  version = string.format('%.0f', tonumber(version) + 1)
  redis.call('HSET', entry, 'live', version .. ' ' .. now .. ' ' .. checked, 'cur', ARGV[4], 'prev', cur,
    'rotated', now, 'succ', ARGV[5])
  redis.call('ZADD', KEYS[2], 'XX', now, part)
elseif presented == prev and now - rotated <= tonumber(ARGV[6]) then
  what = 'grace'
end
return { what, unpack(redis.call('HMGET', entry, 'live', 'cur', 'prev', 'rotated', 'succ', 'facts', 'ups')) }
