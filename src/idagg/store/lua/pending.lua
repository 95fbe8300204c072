-- Gives the oldest windows of which something is pending.
--
-- ARGV[1]  deliveries, messages or callbacks
-- ARGV[2]  at most so many
-- ARGV[3]  1: write something first, so that replicas that have this have what is shown
--
-- Returns a list of {start, wrong, length, unique, estimate, hits, exact, suspect, dropped, epoch}, oldest first. Where
-- wrong is not empty, it says why the record cannot be read, and nothing follows.

local fields = {'length', 'unique', 'estimate', 'hits', 'exact', 'suspect', 'dropped', 'epoch'}

if ARGV[3] == '1' then
  write_something()
end

local function read(start)
  local name = key('record', start)
  local values = redis.pcall('HMGET', name, unpack(fields))
  if values.err then
    return {start, name .. ' is no hash'}
  end
  for i, field in ipairs(fields) do
    if not string.find(values[i] or '', '^%d+$') then
      return {start, name .. ', which ' .. key(ARGV[1]) .. ' names, is no record: it has no number as ' .. field}
    end
  end
  return {start, '', unpack(values)}
end

local found = redis.call('ZRANGE', key(ARGV[1]), 0, ARGV[2] - 1)
for i, start in ipairs(found) do
  found[i] = read(start)
end
return found
