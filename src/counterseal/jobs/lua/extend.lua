-- extend: prolongs the leases that a worker still holds
-- keys: queue
-- args: prefix now_ms lease_ms leases...
-- returns: for each lease, a part and a token in turn: '' when it is prolonged, `lost`, or `cancel` and a reason
-- ttl: none
local prefix, now, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local cancels = prefix .. ':cancel'

local stored = redis.call('HGET', KEYS[1], 'time')
if stored and tonumber(stored) > now then
  now = tonumber(stored)
end
local until_text = string.format('%.0f', now + lease_ms)
local asked = redis.call('EXISTS', cancels) == 1

local answers = {}
for i = 4, #ARGV, 2 do
  local part, token = ARGV[i], ARGV[i + 1]
  local state, current = string.match(redis.call('HGET', prefix .. ':state', part) or '', '^(%a+) (%d+)')
  local answer = 'lost'
  if state == 'running' and current == token then
    redis.call('ZADD', prefix .. ':running', until_text, part)
    local reason = asked and redis.call('HGET', cancels, part)
    answer = reason and 'cancel ' .. reason or ''
  end
  answers[#answers + 1] = answer
end
return answers
