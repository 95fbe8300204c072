-- Takes out of an index what cannot be read.
--
-- The keys that it names stay where they are, for a person to mend, who puts it back with ZADD.
--
-- ARGV[2]  open, parts, deliveries, messages or callbacks
-- ARGV[3]  the member
-- ARGV[4]  what is wrong with it
--
-- Returns 1 where it was there, else 0. A quarantined window takes no more ids.

local there = redis.call('ZREM', key(ARGV[2]), ARGV[3])
redis.call('HSET', key('quarantine'), ARGV[2] .. ' ' .. ARGV[3], ARGV[4])
if ARGV[2] == 'open' and tonumber(ARGV[3]) then
  local state = read_state()
  local start = tonumber(ARGV[3])
  if start >= state.sealed_through then
    local _, finish = window_of(state, start)
    pass(state, finish)
  end
end
return there
