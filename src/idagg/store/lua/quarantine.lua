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
  local state = redis.call('HMGET', key('state'), 'length', 'sealed_through')
  redis.call('HSET', key('state'), 'sealed_through', math.max(state[2], ARGV[3] + state[1]))
end
return there
