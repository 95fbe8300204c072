-- Gives the oldest windows that are not in an hour's sketch yet.
--
-- ARGV[1]  at most so many
--
-- Returns {now, through, windows}
--   now      the store's clock, s
--   through  before this second all hours are whole; s
--   windows  member, end, member, end, …, see TAG:rolling

local through = tonumber(redis.call('HGET', key('state'), 'hours_through') or 0)
local windows = redis.call('ZRANGE', key('rolling'), 0, ARGV[1] - 1, 'WITHSCORES')
return {math.floor(now_us() / 1000000), through, windows}
