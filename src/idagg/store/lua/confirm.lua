-- Makes a proposal the plan, once all other shards have heard of it. On the home shard, which goes by it from then on.
--
-- ARGV[2]  the plan
--
-- Returns 1; 0 where another was proposed since, or it is too late: windows that it names may have taken ids.

local state = read_state()
local plan = read_plan(ARGV[2])
if state.plan == ARGV[2] then
  write_something()
  return 1
elseif state.proposal ~= ARGV[2] or latest(state) >= plan.begins then
  return 0
end
local span = math.max(tonumber(state.span or 1), tonumber(plan.shards))
write_first()
redis.call('HSET', key('state'), 'plan', ARGV[2], 'span', span)
redis.call('HDEL', key('state'), 'proposal')
return 1
