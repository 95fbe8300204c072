-- Notes how far a window's delivery has come.
--
-- ARGV[2]  the window's start, s
-- ARGV[3]  'logged': its line is in the log file, its message is still pending;
--          'delivered': nothing but its callbacks is pending any more
--
-- Returns 1 where that was news, else 0.

local news = redis.call('ZREM', key('deliveries'), ARGV[2])
if ARGV[3] == 'delivered' then
  news = news + redis.call('ZREM', key('messages'), ARGV[2])
  drop_if_done(ARGV[2])
elseif news == 1 then
  redis.call('ZADD', key('messages'), ARGV[2], ARGV[2])
end
return news
