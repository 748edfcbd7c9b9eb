-- gcra: charges the theoretical arrival times (TAT) of calls that come evenly, of which some may come early
-- keys: times...
-- args: now_ms cost limits...
-- returns: what remains of it, times its length, when there is one limit and it allows; else the
--   milliseconds from now_ms until they allow it (0: they do), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds, a count and a capacity in turn; of a
--   cost below 0 it only tells what it would be
-- ttl: each time by how far the TAT is ahead, and a minute
--
-- The virtual scheduling of ITU-T I.371. What is kept is how far the TAT is ahead of the last call, in milliseconds
-- times `count`: a call moves it by exactly `per`, a millisecond takes exactly `count` off, and nothing is rounded.
local now, cost = tonumber(ARGV[1]), tonumber(ARGV[2])

-- The common case by itself, because it is half as long: one limit, and it allows.
if #KEYS == 1 and cost > 0 then
  local per, count, capacity = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local a, l = string.match(redis.call('GET', KEYS[1]) or '0 0', '^(%d+) (%d+)$')
  local ahead, last = tonumber(a), tonumber(l)
  if last and last <= now then
    ahead = math.max(0, ahead - (now - last) * count) + cost * per
    local room = capacity * per - ahead
    if room >= 0 then
      redis.call('SET', KEYS[1], string.format('%d %d', ahead, now), 'PX', math.ceil(ahead / count) + 60000)
      return room
    end
  end
end

local charge = cost > 0
cost = math.abs(cost)
local ahead, last = {}, {}

for i = 1, #KEYS do
  local state = redis.call('GET', KEYS[i])
  local a, l = string.match(state or '', '^(%d+) (%d+)$')
  ahead[i], last[i] = tonumber(a or 0), tonumber(l or 0)
  if last[i] > now then
    now = last[i]
  end
end

local wait, which, least = 0, 1, math.huge
for i = 1, #KEYS do
  local per, count, capacity = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2])
  ahead[i] = math.max(0, ahead[i] - (now - last[i]) * count)
  local room = (capacity * per - ahead[i]) / per
  if room < cost then
    local later = math.ceil((ahead[i] + (cost - capacity) * per) / count)
    if later > wait then
      wait, which, least = later, i, room
    end
  elseif wait == 0 and room < least then
    which, least = i, room
  end
end

if wait > 0 then
  -- A key may have been written under a higher count, by which what is used would be gone sooner.
  for i = 1, #KEYS do
    local need, left = math.ceil(ahead[i] / ARGV[3 * i + 1]), redis.call('PTTL', KEYS[i])
    if left ~= -2 and left < need then
      redis.call('PEXPIRE', KEYS[i], need + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    ahead[i] = ahead[i] + cost * ARGV[3 * i]
    redis.call('SET', KEYS[i], string.format('%d %d', ahead[i], now),
      'PX', math.ceil(ahead[i] / ARGV[3 * i + 1]) + 60000)
  end
end
wait = wait > 0 and wait + now - ARGV[1] or 0
return { wait, which, math.floor(math.max(least, 0)), now + math.ceil(ahead[which] / ARGV[3 * which + 1]) }
