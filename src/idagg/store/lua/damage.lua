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

local function wrong_state()
  local state = key('state')
  local wrong = wrong_number(state, {'length', 'exact_limit', 'shards', 'sealed_through', 'epoch', 'since', 'begins',
    'span', 'merged_through', 'serial'})
  if wrong then
    return wrong
  end
  local bridge, regime, plan = unpack(redis.call('HMGET', state, 'bridge', 'regime', 'plan'))
  if bridge and not string.find(bridge, '^%d+ %d+$') then
    return state .. ' has no window as bridge, but ' .. bridge
  elseif regime and not string.find(regime, '^%d+ %d+ %d+$') then
    return state .. ' has no regime as regime, but ' .. regime
  elseif plan and not string.find(plan, '^%d+ %d+ %d+ %d+$') then
    return state .. ' has no plan as plan, but ' .. plan
  end
end

-- Of a window that is not sealed yet.
local function wrong_window(start)
  local window = key('w', start)
  local ids, hll = window .. ':ids', window .. ':hll'
  local wrong = wrong_type(window, 'hash') or wrong_number(window, {'length', 'hits', 'dropped'})
    or wrong_type(ids, 'set') or wrong_type(hll, 'string') or wrong_type(window .. ':endpoints', 'set')
    or wrong_type(key('part', start), 'hash') or wrong_type(key('record', start), 'hash')
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

-- What a part says, as does the record that it becomes.
local PART = {'length', 'unique', 'estimate', 'hits', 'exact', 'suspect', 'dropped'}

local function wrong_part(start)
  local part = key('part', start)
  if not string.find(start, '^[1-9]%d*$') then
    return key('parts') .. ' names a window that is no number: ' .. start
  end
  local wrong = wrong_type(part, 'hash') or wrong_type(part .. ':endpoints', 'set')
  if wrong then
    return wrong
  end
  for i, value in ipairs(redis.call('HMGET', part, unpack(PART))) do
    if not string.find(value or '', '^%d+$') then
      return part .. ', which ' .. key('parts') .. ' names, is no part: it has no number as ' .. PART[i]
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
