-- Says how far a shard has sealed, and gives its parts, oldest first.
--
-- ARGV[2]  at most so many parts
-- ARGV[3]  1: write something first, so that replicas that have this have what is shown
--
-- Returns {through, quarantined, parts, state}
--   through      no window that begins before this second, and no part of one, is to come; s
--   quarantined  the starts of the windows of which that is not so, since something of them is quarantined
--   parts        of {start, length, unique, estimate, hits, exact, suspect, dropped, endpoints}; the last is a number
--   state        {length, exact_limit, shards, regime, begins, plan, span, merged_through, announced}; '' where there is
--                none
-- or {-1, member, what}: a part cannot be read, for what reason.
--
-- Errors: DAMAGED  what: the state is not as it should be

if ARGV[3] == '1' then
  write_something()
end

local wrong = wrong_state()
if wrong then
  return redis.error_reply('DAMAGED ' .. wrong)
end
local state = redis.call('HMGET', key('state'), 'length', 'exact_limit', 'shards', 'regime', 'begins', 'plan', 'span',
  'merged_through', 'announced', 'sealed_through')
local through = tonumber(table.remove(state, 10) or 0)
for i = 1, 9 do
  state[i] = state[i] or ''
end

local oldest = redis.call('ZRANGE', key('open'), 0, 0)[1]
through = math.min(through, tonumber(oldest) or math.huge)

local quarantined = {}
local entries = redis.call('HGETALL', key('quarantine'))
for i = 1, #entries, 2 do
  local start = string.match(entries[i], '^open (%d+)$') or string.match(entries[i], '^parts (%d+)$')
  if start then
    quarantined[#quarantined + 1] = start
  end
end

local parts = {}
local most = tonumber(ARGV[2])
for i, start in ipairs(redis.call('ZRANGE', key('parts'), 0, most)) do
  local wrong = wrong_part(start)
  if wrong then
    return {-1, start, wrong}
  elseif i > most then
    through = math.min(through, tonumber(start))
  else
    local name = key('part', start)
    parts[i] = {start, unpack(redis.call('HMGET', name, unpack(PART)))}
    parts[i][#PART + 2] = redis.call('SCARD', name .. ':endpoints')
  end
end
return {through, quarantined, parts, state}
