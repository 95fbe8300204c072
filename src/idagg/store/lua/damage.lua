-- What is not as prelude.lua says: a sentence that names the key, or nil.

local function wrong_type(name, wanted)
  local found = redis.call('TYPE', name).ok
  if found ~= 'none' and found ~= wanted then
    return name .. ' is a ' .. found .. ', a ' .. wanted .. ' belongs there'
  end
end

local function wrong_number(name, fields)
  for _, field in ipairs(fields) do
    local value = redis.call('HGET', name, field)
    if value and not tonumber(value) then
      return name .. ' has no number as ' .. field .. ', but ' .. value
    end
  end
end

-- Of a window that is not sealed yet.
local function wrong_window(start)
  local window = key('w', start)
  local ids, hll = window .. ':ids', window .. ':hll'
  local wrong = wrong_type(window, 'hash') or wrong_number(window, {'length', 'hits', 'dropped'})
    or wrong_type(ids, 'set') or wrong_type(hll, 'string') or wrong_type(window .. ':endpoints', 'set')
    or wrong_type(key('record', start), 'hash')
  if wrong then
    return wrong
  elseif type(redis.pcall('PFCOUNT', hll)) == 'table' then
    return hll .. ' is no HyperLogLog'
  elseif redis.call('ZSCORE', key('open'), start) then
    for _, name in ipairs({window, ids, hll}) do
      if redis.call('EXISTS', name) == 0 then
        return name .. ' is not there, ' .. key('open') .. ' says that it should be'
      end
    end
  end
end

local function wrong_token()
  local tokens = redis.call('HGETALL', key('workers'))
  for i = 1, #tokens, 2 do
    if not read_token(tokens[i + 1]) then
      return key('workers') .. ' has no token as ' .. tokens[i] .. ', but ' .. tokens[i + 1]
    end
  end
end
