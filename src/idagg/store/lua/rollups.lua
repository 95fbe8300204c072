-- Gives the oldest roll-ups that are to be delivered.
--
-- ARGV[1]  rollups: no sink has them; or rollups:late: the log file has them, the queue has not
-- ARGV[2]  at most so many
--
-- Returns a list of members, see TAG:rollups.

return redis.call('ZRANGE', key(ARGV[1]), 0, ARGV[2] - 1)
