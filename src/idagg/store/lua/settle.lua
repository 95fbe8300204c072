-- Notes that the shards of an earlier regime are empty. On the home shard.
--
-- ARGV[2]  how many shards may hold anything that is not merged; those of the regime and the plan may in any case
--
-- Returns 1.

local state = read_state()
local planned = state.plan and read_plan(state.plan).shards or 0
write_first()
redis.call('HSET', key('state'), 'span', math.max(ARGV[2], planned, string.match(state.regime, '^%d+ (%d+)')))
return 1
