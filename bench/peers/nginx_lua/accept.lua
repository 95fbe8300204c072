-- One SADD for each request, over connections that are kept.

local redis = require "nginx.redis"

local SOCKET = "unix:" .. os.getenv "REDIS_SOCKET"
local TIMEOUT_MS = 2000
local IDLE_MS = 60000
local POOL = 512

local function failed(status)
  ngx.status = status
  ngx.print "failed"
end

local function stored(store, minute, id, endpoint)
  if not endpoint then
    return store:sadd("ids:" .. minute, id)
  end
  store:init_pipeline(2)
  store:sadd("ids:" .. minute, id)
  store:sadd("endpoints:" .. minute, ngx.unescape_uri(endpoint))
  local replies = store:commit_pipeline()
  return replies and type(replies[1]) == "number" and type(replies[2]) == "number"
end

return function()
  local id, endpoint = ngx.var.arg_id, ngx.var.arg_endpoint
  if not id or not ngx.re.find(id, [[^-?\d{1,19}$]], "jo") then
    return failed(400)
  end
  local store = redis:new()
  store:set_timeout(TIMEOUT_MS)
  if not store:connect(SOCKET) or not stored(store, math.floor(ngx.time() / 60), id, endpoint) then
    return failed(503)
  end
  store:set_keepalive(IDLE_MS, POOL)
  ngx.print "ok"
end
