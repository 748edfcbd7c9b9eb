-- enqueue_one: accepts a job that asks for nothing, and is known to be new
-- keys: queue record lane ring stats events
-- args: prefix part type now_ms text
-- returns: 1
-- ttl: none: an accepted job waits as long as it takes
-- It is the shortest way, for one job without options; `enqueue` does the same for any. `text` is the record. A worker
-- that waits with nothing to do gets the job at once and need not ask for it, when no other job is in any lane.
-- Numbers are given to commands as texts, because to write a number costs as much as a fifth of a command.
local call, prefix, part, type, text = redis.call, ARGV[1], ARGV[2], ARGV[3], ARGV[5]

call('SET', KEYS[2], text) -- before anybody can see the job
if #text > 65536 then -- leased one by one, for an answer has its limit
  call('HSET', KEYS[1], 'large', '1')
end
local first = call('RPUSH', KEYS[3], part) == 1
local queued = redis.pcall('HINCRBY', KEYS[5], 'queued', '1')
redis.pcall('XADD', KEYS[6], 'MAXLEN', '~', '2000', '*', 'enqueued', part)
if queued == 1 then
  redis.pcall('SADD', prefix .. ':types', type) -- it may be the first one
end
if not first then
  return 1
end

local idle, now = nil, tonumber(ARGV[4])
if call('EXISTS', prefix .. ':idle') == 1
  and call('EXISTS', prefix .. ':ring:0', prefix .. ':ring:1', prefix .. ':ring:2') == 0 then
  local stored, paused, parallelism = unpack(call('HMGET', KEYS[1], 'time', 'paused', 'parallelism'))
  if not paused and not parallelism then
    idle = call('SPOP', prefix .. ':idle')
    now = math.max(now, tonumber(stored or '0'))
  end
end
local worker, lease_ms = string.match(idle or '', '^(%S+) (%d+)$')
local channel = prefix .. ':to:' .. (worker or '')
if not worker or call('PUBSUB', 'NUMSUB', channel)[2] == 0 then -- nobody waits, or it is gone and nobody told
  call('RPUSH', KEYS[4], '')
  redis.pcall('PUBLISH', prefix .. ':wake', '')
  return 1
end

call('LPOP', KEYS[3])
local now_text, until_text = string.format('%.0f', now), string.format('%.0f', now + lease_ms)
local entry = 'running 1 1 0 ' .. now_text
call('HSET', prefix .. ':state', part, entry)
call('ZADD', prefix .. ':running', until_text, part)
call('SET', prefix .. ':held:' .. worker .. '-to', '0 ' .. part .. ' 1', 'PX', lease_ms)
call('PUBLISH', channel, part .. ' ' .. entry .. '\n' .. text)
-- Neither broken statistics nor a full stream may cost a job.
redis.pcall('HINCRBY', KEYS[5], 'queued', '-1')
redis.pcall('HINCRBY', KEYS[5], 'running', '1')
redis.pcall('HINCRBY', KEYS[5], 'leased', '1')
redis.pcall('HINCRBY', prefix .. ':times:' .. type, 'w-1', '1')
redis.pcall('XADD', KEYS[6], 'MAXLEN', '~', '2000', '*', 'started', part .. ' 1')
return 1
