-- schedule_advance: notes that the ticks of schedules have been dealt with, of those that nobody has changed meanwhile
-- keys: schedules next
-- args: items...
-- returns: for each item 1, or 0 when the schedule is another by now, or gone
-- ttl: none, both keys are configuration
-- Each item is four arguments: the id, the head of the entry as it was read, its new head, and the next due time,
-- '' when nobody is to look for it.
local answers = {}
for i = 1, #ARGV, 4 do
  local id, expected, head = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local entry = redis.call('HGET', KEYS[1], id)
  local same = entry and entry:sub(1, #expected + 1) == expected .. '\n'
  if same then
    redis.call('HSET', KEYS[1], id, head .. entry:sub(#expected + 1))
    if ARGV[i + 3] ~= '' then
      redis.call('ZADD', KEYS[2], ARGV[i + 3], id)
    end
  end
  answers[#answers + 1] = same and 1 or 0
end
return answers
