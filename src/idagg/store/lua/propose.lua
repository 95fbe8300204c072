-- Proposes a regime to come, before the other shards are told of it. On the home shard.
--
-- ARGV[2]  shards
-- ARGV[3]  window length, s
-- ARGV[4]  s from now within which it does not begin: time to tell all shards. Windows that have ids are before it, too.
--
-- Returns the plan, which takes the place of an earlier proposal.

local state = read_state()
if state.plan then
  write_something()
  return state.plan
end
local _, begins = window_of(state, math.floor(latest(state)) + ARGV[4])
local number = string.match(state.regime, '^%d+') + 1
local plan = string.format('%d %d %s %s', begins, number, ARGV[2], ARGV[3])
write_first()
redis.call('HSET', key('state'), 'proposal', plan)
return plan
