-- Launches for wrk. Names are of the thread and a number; CAIRN_LOAD_PREFIX keeps those of different runs apart.
local threads = 0
local statuses = {}

function setup(thread)
  threads = threads + 1
  thread:set("id", threads)
  table.insert(statuses, thread)
end

function init(args)
  sent, refused = 0, 0
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["X-API-Key"] = os.getenv("CAIRN_API_KEY")
  wrk.headers["Prefer"] = os.getenv("CAIRN_LOAD_PREFER")
  form = '{"name":"' .. os.getenv("CAIRN_LOAD_PREFIX") .. '-%d-%d","image":"cairn/base:latest","backend":"simulated"}'
end

function request()
  sent = sent + 1
  return wrk.format(nil, nil, nil, form:format(id, sent))
end

function response(status)
  if status ~= 201 and status ~= 202 then
    refused = refused + 1
  end
end

function done(summary, latency, requests)
  local others = 0
  for _, thread in ipairs(statuses) do
    others = others + thread:get("refused")
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.3f, "refused": %d, "broken": %d, "p50": %.2f, "p95": %.2f, "p99": %.2f}\n',
    summary.requests, summary.duration / 1e6, others,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
