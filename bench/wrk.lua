-- Arguments: first id, ids per thread, header lines, kind of ids, kind of endpoints (see traffic.py), and how
-- many ms a connection waits before each request.
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

function init(args)
  local next_id = ids[args[4]](args[1] + number * args[2])
  local head, tail = "GET /api/verve/accept?id=", " HTTP/1.1\r\n" .. args[3] .. "\r\n"
  local tails = {}
  for endpoint = 1, tonumber(args[5]) or 0 do
    tails[endpoint] = ENDPOINT .. endpoint .. tail
  end
  function request()
    return head .. next_id() .. tail
  end
  if #tails > 0 then
    local turn = 0
    function request()
      turn = turn % #tails + 1
      return head .. next_id() .. tails[turn]
    end
  elseif args[5] == "some" then
    function request()
      local id = next_id()
      if id % 100 == 0 then
        return head .. id .. ENDPOINT .. id .. tail
      end
      return head .. id .. tail
    end
  end
  local pause = tonumber(args[6])
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
