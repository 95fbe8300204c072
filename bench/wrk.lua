-- Arguments: first id, ids per thread, header lines. Each request has an id of its own, over all threads.
-- Requests are put together here, since wrk.format() would cost more than some servers' answers.

local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  local id = args[1] + number * args[2]
  local tail = " HTTP/1.1\r\n" .. args[3] .. "\r\n"
  function request()
    id = id + 1
    return "GET /api/verve/accept?id=" .. id .. tail
  end
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "refused": %d, "broken": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "max_ms": %f}',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
