-- enqueue: accepts a job and tells a worker that it is there
-- keys: record ready stats
-- args: id type payload now_ms wake
-- returns: 1, or 0 when there is a job with this id already
-- ttl: none: an accepted job waits as long as it takes
local id, type = ARGV[1], ARGV[2]

if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('HSET', KEYS[1],
  'type', type, 'state', 'queued', 'payload', ARGV[3], 'attempt', 0, 'lost', 0, 'queued_ms', ARGV[4])
redis.call('RPUSH', KEYS[2], id)

-- Neither broken statistics nor a silent channel may cost a job: a worker finds it by itself, a little later.
redis.pcall('HINCRBY', KEYS[3], 'queued', 1)
redis.pcall('PUBLISH', ARGV[5], type)
return 1
