-- Notes that the shards of an earlier regime are empty. On the home shard.
--
-- ARGV[2]  how many shards may hold anything that is not merged
--
-- Returns 1.

write_first()
redis.call('HSET', key('state'), 'span', ARGV[2])
return 1
