-- recount: counts the jobs of a queue that have not ended, by type and state, after records were found gone
-- keys: queue
-- args: prefix most
-- returns: how many records were gone, or -1 when there are more than `most` places to look at, and nothing was changed
-- ttl: a flow that rests by its period
-- The type of a job whose record is gone is known nowhere: counting the others is what makes the counters right.
local prefix, most = ARGV[1], tonumber(ARGV[2])
local queue, states, running, delayed = KEYS[1], prefix .. ':state', prefix .. ':running', prefix .. ':delayed'
local left, flow_due = prefix .. ':left', prefix .. ':flowdue'

local places = redis.call('HLEN', states) + redis.call('ZCARD', running) + redis.call('ZCARD', delayed)
  + redis.call('ZCARD', flow_due)
for priority = 0, 2 do
  places = places + redis.call('LLEN', prefix .. ':ring:' .. priority)
end
if places > most then
  return -1
end
local lanes, known = {}, {}
local function add_lane(priority, flow)
  local key = flow == '' and prefix .. ':ready:' .. priority or prefix .. ':lane:' .. priority .. ':' .. flow
  lanes[#lanes + 1] = { key, priority, flow }
  places = places + redis.call('LLEN', key)
end
for priority = 0, 2 do
  add_lane(priority, '')
end
local function add_flows(flows)
  for _, flow in ipairs(flows) do
    if flow ~= '' and not known[flow] then
      known[flow] = true
      for priority = 0, 2 do
        add_lane(priority, flow)
      end
    end
  end
end
add_flows(redis.call('ZRANGE', flow_due, 0, -1))
for priority = 0, 2 do
  add_flows(redis.call('LRANGE', prefix .. ':ring:' .. priority, 0, -1))
end
if places > most then
  return -1
end

-- A flow with one running job less, as in `finish`.
local function leave_flow(flow)
  local of = prefix .. ':flow:' .. flow
  if redis.call('HINCRBY', of, 'running', -1) < 0 then -- its hash was lost
    redis.call('HSET', of, 'running', 0)
  end
  local stalled, in0, in1, in2, period, runs =
    unpack(redis.call('HMGET', of, 'stalled', 'in0', 'in1', 'in2', 'period_ms', 'running'))
  local waits = stalled or in0 or in1 or in2
  if stalled == 'full' then
    redis.call('HDEL', of, 'stalled')
    redis.call('ZREM', flow_due, flow)
    waits = in0 or in1 or in2
    for priority = 0, 2 do
      local member = ({ in0, in1, in2 })[priority + 1]
      if not member and redis.call('EXISTS', prefix .. ':lane:' .. priority .. ':' .. flow) == 1 then
        redis.call('HSET', of, 'in' .. priority, 1)
        redis.call('RPUSH', prefix .. ':ring:' .. priority, flow)
        waits = true
      end
    end
    redis.pcall('PUBLISH', prefix .. ':wake', '')
  end
  if not waits and tonumber(runs) <= 0 then
    redis.call('PEXPIRE', of, string.format('%.0f', tonumber(period or '0') + 60000))
  end
end

local types, counts, verdicts, gone = redis.call('SMEMBERS', prefix .. ':types'), {}, {}, 0
for _, type in ipairs(types) do
  counts[type] = { scheduled = 0, queued = 0, running = 0, retrying = 0 }
end
-- Count a job once; whether it is `here`, has `ended`, or is `gone`.
local function look(part, state)
  if not verdicts[part] then
    local code, type = string.match(redis.call('GETRANGE', prefix .. ':job:' .. part, 0, 127), '^(.)([^\n]*)\n')
    verdicts[part] = not code and 'gone' or code == 'p' and 'here' or 'ended'
    if code == 'p' then
      counts[type] = counts[type] or { scheduled = 0, queued = 0, running = 0, retrying = 0 }
      counts[type][state] = (counts[type][state] or 0) + 1
    elseif not code and redis.call('SREM', left, part) == 0 then
      gone = gone + 1
    end
  end
  return verdicts[part]
end

local entries = redis.call('HGETALL', states)
local freed, dropped, parked, retrying = {}, {}, {}, 0
for i = 1, #entries, 2 do
  local part, entry = entries[i], entries[i + 1]
  local state, flow = string.match(entry, '^(%a+) %d+ %d+ %d+ %d+ ?([^ \n]*)')
  if state and look(part, state == 'parked' and 'retrying' or state) == 'gone' then
    dropped[#dropped + 1] = part
    if state == 'parked' then
      parked[#parked + 1] = part
    elseif state == 'retrying' then
      retrying = retrying + 1
    elseif state == 'running' and flow ~= '' then
      freed[#freed + 1] = flow
    end
  end
end
local function drop(command, key, parts)
  for i = 1, #parts, 1000 do
    redis.call(command, key, unpack(parts, i, math.min(i + 999, #parts)))
  end
end
for _, name in ipairs({ ':state', ':cancel', ':messages' }) do
  drop('HDEL', prefix .. name, dropped)
end
for _, name in ipairs({ ':running', ':delayed', ':carried' }) do
  drop('ZREM', prefix .. name, dropped)
end
drop('SREM', prefix .. ':logged', dropped)
drop('ZREM', prefix .. ':parked', parked)
for _, type in ipairs(types) do
  drop('ZREM', prefix .. ':parked:' .. type, parked)
end
if retrying > 0 then
  redis.call('HINCRBY', queue, 'retrying', -retrying)
end
for key, state in pairs({ [running] = 'running', [delayed] = 'scheduled' }) do -- those whose entry was deleted
  for _, part in ipairs(redis.call('ZRANGE', key, 0, -1)) do
    if look(part, state) == 'gone' then
      redis.call('ZREM', key, part)
    end
  end
end
for _, lane in ipairs(lanes) do
  local parts, stay = redis.call('LRANGE', lane[1], 0, -1), {}
  for _, part in ipairs(parts) do
    if look(part, 'queued') == 'here' then
      stay[#stay + 1] = part
    end
  end
  if #stay < #parts then
    redis.call('DEL', lane[1])
    for i = 1, #stay, 1000 do
      redis.call('RPUSH', lane[1], unpack(stay, i, math.min(i + 999, #stay)))
    end
    if #stay == 0 and lane[3] == '' then
      redis.call('LREM', prefix .. ':ring:' .. lane[2], 0, '')
    end
  end
end
redis.call('DEL', left) -- no such place is left
for _, flow in ipairs(freed) do
  leave_flow(flow)
end

-- Neither broken statistics nor a silent channel may keep the others from being counted.
for type, of in pairs(counts) do
  redis.pcall('HSET', prefix .. ':stats:' .. type, 'scheduled', of.scheduled, 'queued', of.queued,
    'running', of.running, 'retrying', of.retrying)
end
redis.call('HDEL', queue, 'uncounted', 'uncounted_queued')
if gone > 0 then
  redis.pcall('HINCRBY', queue, 'gone', gone)
end
return gone
