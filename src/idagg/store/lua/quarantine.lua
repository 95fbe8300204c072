-- Takes out of an index what cannot be read.
--
-- The keys that it names stay where they are, for a person to mend, who puts it back with ZADD.
--
-- ARGV[2]  open, deliveries, messages or callbacks
-- ARGV[3]  the member
-- ARGV[4]  what is wrong with it
--
-- Returns 1 where it was there, else 0. A quarantined window takes no more ids.

local there = redis.call('ZREM', key(ARGV[2]), ARGV[3])
redis.call('HSET', key('quarantine'), ARGV[2] .. ' ' .. ARGV[3], ARGV[4])
if ARGV[2] == 'open' and tonumber(ARGV[3]) then
  local state = redis.call('HMGET', key('state'), 'length', 'sealed_through', 'bridge')
  local start, sealed_through = tonumber(ARGV[3]), tonumber(state[2])
  if start >= sealed_through then
    local _, finish = window_at(start, tonumber(state[1]), sealed_through, state[3])
    redis.call('HSET', key('state'), 'sealed_through', digits(finish))
  end
end
return there
