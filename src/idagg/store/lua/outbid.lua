-- Begins an epoch above one that another shard has heard of, for the same leader. On the home shard.
--
-- It has forgotten that epoch, since it was emptied, or another server with older data took its place.
--
-- ARGV[2]  the epoch of the other shard
--
-- Returns the new epoch.

epoch = math.max(epoch, ARGV[2]) + 1
write_first()
redis.call('HSET', key('state'), 'epoch', epoch)
return epoch
