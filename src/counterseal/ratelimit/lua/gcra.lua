-- gcra: charges the theoretical arrival times (TAT) of calls that come evenly, of which some may come early
-- keys: times...
-- args: now_ms cost charge limits...
-- returns: the milliseconds from now_ms until it is allowed (0: it is), the number of the limit that decides, what remains of
--   that one, and when it is whole again; limits are a length in milliseconds, a count and a capacity in turn; charge is 1 or 0
-- ttl: each time by how far the TAT is ahead, and a minute
--
-- The virtual scheduling of ITU-T I.371. What is kept is how far the TAT is ahead of the last call, in milliseconds
-- times `count`: a call moves it by exactly `per`, a millisecond takes exactly `count` off, and nothing is rounded.
local now, cost, charge = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
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
  local per, count, capacity = tonumber(ARGV[3 * i + 1]), tonumber(ARGV[3 * i + 2]), tonumber(ARGV[3 * i + 3])
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
  for i = 1, #KEYS do
    if redis.call('PTTL', KEYS[i]) == -1 then
      redis.call('PEXPIRE', KEYS[i], math.ceil(ahead[i] / ARGV[3 * i + 2]) + 60000)
    end
  end
elseif charge then
  least = least - cost
  for i = 1, #KEYS do
    ahead[i] = ahead[i] + cost * ARGV[3 * i + 1]
    redis.call('SET', KEYS[i], string.format('%.0f %.0f', ahead[i], now),
      'PX', math.ceil(ahead[i] / ARGV[3 * i + 2]) + 60000)
  end
end
return { wait > 0 and wait + now - ARGV[1] or 0, which, math.floor(math.max(least, 0)), now + math.ceil(ahead[which] / ARGV[3 * which + 2]) }
