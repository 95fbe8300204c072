-- Gives the windows whose sketches may still be there, by their end, oldest first.
--
-- ARGV[1]  windows that end after this second; ARGV[2] and not after this one
-- ARGV[3]  at most so many
--
-- Returns a list of member, end, member, end, …, see TAG:sketches.

return redis.call('ZRANGE', key('sketches'), '(' .. ARGV[1], ARGV[2], 'BYSCORE', 'LIMIT', 0, ARGV[3], 'WITHSCORES')
