-- Tells a shard that is not the home shard who leads, and what the home shard says of windows and shards.
--
-- ARGV[1]  the leader's epoch
-- ARGV[2]  a number that rises within the epoch: what comes late is not heard
-- ARGV[3]  window length, s, which all processes agree on
-- ARGV[4]  ids per window kept exactly, over all shards
-- ARGV[5]  the regime, "NUMBER SHARDS LENGTH"
-- ARGV[6]  a second: no window before it takes ids here, since the regime begins with it, or the home shard has merged
--          what came before
-- ARGV[7]  the plan; '' for none
-- ARGV[8]  1: the plan is only proposed
--
-- Returns 1; 0 where it is too late for what is only proposed, and the shard goes on without it: it may have taken ids
-- for windows that the plan names.
--
-- Errors: FENCED  another epoch has begun; nothing was done
--         SCHEMA  the shard was written by another version; nothing was done

local state = read_state()
local epoch, serial = tonumber(state.epoch or 0), tonumber(state.serial or 0)
if state.schema and state.schema ~= SCHEMA then
  return redis.error_reply('SCHEMA ' .. state.schema)
elseif epoch > tonumber(ARGV[1]) or epoch == tonumber(ARGV[1]) and serial >= tonumber(ARGV[2]) then
  return redis.error_reply('FENCED ' .. epoch)
end
write_first()
redis.call('HSET', key('state'), 'schema', SCHEMA, 'epoch', ARGV[1], 'serial', ARGV[2], 'length', ARGV[3],
  'exact_limit', ARGV[4], 'regime', ARGV[5], 'sealed_through', digits(math.max(state.sealed_through, ARGV[6])))
local is_late = ARGV[8] == '1' and latest(state) >= read_plan(ARGV[7]).begins
if ARGV[7] == '' or is_late then
  redis.call('HDEL', key('state'), 'plan')
else
  redis.call('HSET', key('state'), 'plan', ARGV[7])
end
return is_late and 0 or 1
