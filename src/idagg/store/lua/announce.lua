-- Lets workers be told of the plan, once replicas have it. On the home shard.
--
-- Told before, they would spread ids by it over other shards; and a replica that has never heard of it, in this one's
-- place, would have nobody look there.
--
-- ARGV[2]  the plan
--
-- Returns 1; 0 where it is not the plan any more, or was announced before.

local state = read_state()
if state.plan ~= ARGV[2] or state.announced == ARGV[2] then
  write_something()
  return 0
end
state.announced = ARGV[2]
write_first()
redis.call('HSET', key('state'), 'announced', ARGV[2])
pass(state, 0)
return 1
