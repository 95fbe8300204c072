-- Merges sketches of a shard, and others that are given, into one. Nothing of it stays.
--
-- ARGV[1]  how many sketches are given
-- ARGV[2…] these; then the names of the shard's: w:START:hll, hour:START, day:START; at most some hundred
--
-- Returns {count, sketch, missing}: its count, itself, and the names that are not there, or are no sketches.

local merged, given = key('scratch'), key('scratch', 'given')
write_first()
for i = 2, 1 + ARGV[1] do
  redis.call('SET', given, ARGV[i])
  local answer = redis.pcall('PFMERGE', merged, given)
  if type(answer) == 'table' and answer.err then
    redis.call('DEL', merged, given)
    return redis.error_reply('ERR a sketch that was given is none')
  end
end
local names, missing = {}, {}
for i = 2 + ARGV[1], #ARGV do
  local name = KEYS[1] .. ':' .. ARGV[i]
  local answer = redis.call('EXISTS', name) == 1 and redis.pcall('PFMERGE', merged, name)
  if not answer or answer.err then
    missing[#missing + 1] = ARGV[i]
  end
end
local count, sketch = redis.call('PFCOUNT', merged), redis.call('GET', merged)
redis.call('DEL', merged, given)
return {count, sketch, missing}
