-- Arguments: first id, ids per thread, lines before each block of headers, kind of ids, kind of endpoints, ids in a body
-- (see traffic.py), and how many ms a connection waits before each request. Standard input: blocks of headers.
-- Requests are put together here, since wrk.format() would cost more than some servers' answers.

-- Nobody listens there, and idagg's guard lets no callback go there.
local ENDPOINT = "&endpoint=http%3A%2F%2F127.0.0.1%3A9%2Fhook%2F"

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

local ids = {}

function ids.new(id)
  return function()
    id = id + 1
    return id
  end
end

-- Goes round a table of draws, with other ids each time: an id of rank k comes 10,000 / k times in a round of
-- 97,876, and never after it.
function ids.zipf(id)
  local RANKS = 10000
  local draws = {}
  for rank = 1, RANKS do
    for _ = 1, math.floor(RANKS / rank + 0.5) do
      draws[#draws + 1] = rank
    end
  end
  math.randomseed(1)
  for place = #draws, 2, -1 do
    local other = math.random(place)
    draws[place], draws[other] = draws[other], draws[place]
  end
  local place = 0
  return function()
    place = place + 1
    if place > #draws then
      place, id = 1, id + RANKS
    end
    return id + draws[place]
  end
end

-- The blocks that are read, before and after the place of a request's number. A block without one stands alone.
-- They begin with what stands before each.
local function read(first)
  local before, after = {}, {}
  for block in io.read("*a"):gmatch("(.-\r\n\r\n)") do
    local head, tail = block:match("(.*){}(.*)")
    before[#before + 1] = first .. (head or block)
    after[#after + 1] = tail
  end
  return before, after
end

-- Returns a function of what follows the id in the query, or nil, by id.
local function endpoints(kind)
  if kind == "some" then
    return function(id)
      return id % 100 == 0 and ENDPOINT .. id or ""
    end
  end
  local turn = 0
  return function()
    turn = turn % kind + 1
    return ENDPOINT .. turn
  end
end

local function bulk(next_id, before, after, count)
  local body, block = {}, 0
  return function()
    block = block % #before + 1
    for line = 1, count do
      body[line] = next_id()
    end
    local text = table.concat(body, "\n")
    return "POST /api/verve/accept HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: " .. #text .. "\r\n"
      .. before[block] .. body[1] .. after[block] .. text
  end
end

function init(args)
  local next_id = ids[args[4]](args[1] + number * args[2])
  local lines = tonumber(args[6])
  local before, after = read(lines > 0 and "" or " HTTP/1.1\r\n" .. args[3])
  local count, block = #before, 0
  local endpoint = args[5] ~= "0" and endpoints(tonumber(args[5]) or args[5])
  if lines > 0 then
    request = bulk(next_id, before, after, lines)
  elseif #after == 0 then
    function request()
      return "GET /api/verve/accept?id=" .. next_id() .. before[1]
    end
  elseif endpoint then
    function request()
      local id = next_id()
      block = block % count + 1
      return "GET /api/verve/accept?id=" .. id .. endpoint(id) .. before[block] .. id .. after[block]
    end
  else
    function request()
      local id = next_id()
      block = block % count + 1
      return "GET /api/verve/accept?id=" .. id .. before[block] .. id .. after[block]
    end
  end
  local pause = tonumber(args[7])
  if pause > 0 then
    function delay()
      return pause
    end
  end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "refused": %d, "broken": %d, "seconds": %f, '
      .. '"p50_ms": %f, "p99_ms": %f, "p999_ms": %f, "max_ms": %f}',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, latency.max / 1e3))
end
