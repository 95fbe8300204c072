-- Drops a part that has been merged.
--
-- ARGV[2]  the window's start, s
--
-- Returns 1 where it was there, else 0.

redis.call('UNLINK', key('part', ARGV[2]), key('part', ARGV[2]) .. ':endpoints')
return redis.call('ZREM', key('parts'), ARGV[2])
