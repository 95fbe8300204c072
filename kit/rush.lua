-- Arguments: first id, lines before each block of headers. Standard input: blocks of headers (kit/traffic.py).

function init(args)
  local id, lines = tonumber(args[1]), " HTTP/1.1\r\n" .. (args[2] or "")
  local before, after = {}, {}
  for head, tail in io.read("*a"):gmatch("(.-){}(.-\r\n\r\n)") do
    before[#before + 1], after[#after + 1] = lines .. head, tail
  end
  local block = 0
  function request()
    id = id + 1
    block = block % #before + 1
    return "GET /api/verve/accept?id=" .. id .. before[block] .. id .. after[block]
  end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "refused": %d, "broken": %d, "seconds": %f, "slowest_s": %f}',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency.max / 1e6))
end
