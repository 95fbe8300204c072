-- Notes how far a roll-up's delivery has come.
--
-- ARGV[2]  the roll-up, a member of TAG:rollups
-- ARGV[3]  'logged': its line is in the log file, its message is still pending; 'delivered': nothing is pending any more
--
-- Returns 1 where that was news, else 0.

local finish = redis.call('ZSCORE', key('rollups'), ARGV[2])
local news = redis.call('ZREM', key('rollups'), ARGV[2])
if ARGV[3] == 'delivered' then
  return news + redis.call('ZREM', key('rollups:late'), ARGV[2])
elseif finish then
  redis.call('ZADD', key('rollups:late'), finish, ARGV[2])
end
return news
