-- discard: takes dead letters off the list with their records; a parked job is cancelled
-- keys: queue
-- args: prefix now_ms reason keep_ms keep_dead_ms parts...
-- returns: how many there were; a letter whose time has passed was there no more
-- ttl: the record of a parked job a second after keep_ms; recent 30 days; rates 2 days
local prefix, now, reason, keep_ms, keep_dead_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local now_text = string.format('%.0f', now)
local hour, minute = prefix .. ':rate:' .. math.floor(now / 3600000), math.floor(now / 60000) % 60
local done = 0
for i = 6, #ARGV do
  local part = ARGV[i]
  local key = prefix .. ':job:' .. part
  local failed = redis.call('ZSCORE', prefix .. ':dead', part)
  if failed then
    redis.call('ZREM', prefix .. ':dead', part)
    if redis.call('GETRANGE', key, 0, 0) == 'f' then -- another job may have taken the id since
      redis.call('SREM', prefix .. ':logged', part)
      redis.call('DEL', key, prefix .. ':logs:' .. part, prefix .. ':progress:' .. part)
    end
    done = done + (failed + keep_dead_ms > now and 1 or 0)
  elseif redis.call('ZREM', prefix .. ':parked', part) == 1 then
    local record = redis.call('GET', key)
    local type, unique = string.match(record or '', '^.([^\n]*)\n[^\n]*\n[^\n]*\n([^\n]*)\n')
    if type then
      local entry = string.match(redis.call('HGET', prefix .. ':state', part) or '', '^%a+ (%d+ %d+ %d+)') or '0 0 0'
      redis.call('ZREM', prefix .. ':parked:' .. type, part)
      local tail = '\n' .. entry .. ' 0 ' .. now_text .. ' 0 ' .. keep_ms .. '\n' .. reason
      redis.call('SET', key, 'x' .. string.sub(record, 2) .. tail, 'PX', string.format('%.0f', keep_ms + 1000))
      redis.call('HDEL', prefix .. ':state', part)
      redis.call('PEXPIRE', prefix .. ':logs:' .. part, keep_ms)
      redis.call('SREM', prefix .. ':logged', part)
      if unique ~= '' and string.match(redis.call('GET', prefix .. ':unique:' .. unique) or '', '^%S+') == part then
        redis.call('DEL', prefix .. ':unique:' .. unique)
      end
      redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'retrying', -1)
      redis.pcall('HINCRBY', prefix .. ':stats:' .. type, 'cancelled', 1)
      redis.pcall('HINCRBY', hour, minute .. ':' .. type .. ':cancelled', 1)
      redis.pcall('PEXPIRE', hour, 172800000, 'NX')
      redis.pcall('LPUSH', prefix .. ':recent', part)
      redis.pcall('LTRIM', prefix .. ':recent', 0, 9999)
      redis.pcall('PEXPIRE', prefix .. ':recent', 2592000000)
      redis.pcall('PUBLISH', prefix .. ':ended', part .. ' cancelled')
      redis.pcall('XADD', prefix .. ':events', 'MAXLEN', '~', 2000, '*', 'left', part .. ' cancelled')
      done = done + 1
    else -- somebody has deleted it
      redis.call('HINCRBY', KEYS[1], 'uncounted', 0)
    end
  end
end
return done
