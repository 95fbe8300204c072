-- Gives the leader's lock back at once.
--
-- ARGV[1]  the caller's name
--
-- Returns 1 where the caller held it, else 0.

if redis.call('GET', key('lock')) == ARGV[1] then
  return redis.call('DEL', key('lock'))
end
return 0
