-- Notes how far a window's delivery has come.
--
-- ARGV[2]  the window's start, s
-- ARGV[3]  'logged': its line is in the log file, its message is still pending;
--          'delivered': nothing but its callbacks is pending any more
-- ARGV[4]  broker or log: which of them has it
--
-- Returns 1 where that was news, else 0.

-- Notes in the kept record when its line was in the log file, or its message in the queue: the first time stays.
local function note(start, sink)
  local text = redis.pcall('HGET', kept_in(start), start)
  local numbers, logged, published = string.match(type(text) == 'string' and text or '', '^(.*),([^,]+),([^,]+)%]$')
  if not numbers then
    return
  end
  local end_s = start + string.match(numbers, '%d+')
  local now = digits(math.floor(now_us() / 1000) - end_s * 1000)
  if sink == 'log' and logged == 'null' then
    logged = now
  elseif sink == 'broker' and published == 'null' then
    published = now
  end
  redis.call('HSET', kept_in(start), start, string.format('%s,%s,%s]', numbers, logged, published))
end

local news = redis.call('ZREM', key('deliveries'), ARGV[2])
if ARGV[3] == 'delivered' then
  news = news + redis.call('ZREM', key('messages'), ARGV[2])
  drop_if_done(ARGV[2])
elseif news == 1 then
  redis.call('ZADD', key('messages'), ARGV[2], ARGV[2])
end
note(ARGV[2], ARGV[4])
return news
