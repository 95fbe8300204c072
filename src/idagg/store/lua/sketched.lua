-- Counts the ids that are in any of a shard's sketches. Writes nothing.
--
-- ARGV[1…] the sketches' names: w:START:hll, hour:START, day:START; at most some hundred
--
-- Returns {count, missing}: the names that are not there, or are no sketches, are not counted.

local names, missing = {}, {}
for _, short in ipairs(ARGV) do
  local name = KEYS[1] .. ':' .. short
  if redis.call('EXISTS', name) == 1 then
    names[#names + 1] = name
  else
    missing[#missing + 1] = short
  end
end
if #names == 0 then
  return {0, missing}
end
local count = redis.pcall('PFCOUNT', unpack(names))
if type(count) == 'table' then -- another program's value: which it is, only each by itself says
  for _, name in ipairs(names) do
    if type(redis.pcall('PFCOUNT', name)) == 'table' then
      missing[#missing + 1] = string.sub(name, #KEYS[1] + 2)
    end
  end
  return {0, missing}
end
return {count, missing}
