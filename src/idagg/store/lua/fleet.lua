-- Gives the states of all machines that have published one lately. Changes nothing.
--
-- ARGV[1]  how long a state stays, ms
-- ARGV[2]  at most so many machines
--
-- Returns a list of {id, age, state}; the age in ms.

local now_ms, found = math.floor(now_us() / 1000), {}
local fleet = redis.call('ZRANGE', key('fleet'), 0, ARGV[2] - 1, 'WITHSCORES')
for i = 1, #fleet, 2 do
  local age_ms = now_ms - fleet[i + 1]
  local state = redis.call('GET', key('machine', fleet[i]))
  -- After the clock was stepped back, a state comes from the future until its machine publishes the next one. A dead
  -- machine never does: as old as it is far away, it is not taken for one that has just spoken.
  age_ms = math.abs(age_ms)
  if state and age_ms <= tonumber(ARGV[1]) then
    found[#found + 1] = {fleet[i], age_ms, state}
  end
end
return found
