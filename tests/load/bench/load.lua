-- Requests out of a file of templates (its path is the argument), each with fresh ids; at the end one line of JSON.
-- An id is made as the script makes them: the time in milliseconds, a count, random digits.

local ffi = require("ffi")
ffi.cdef [[
typedef struct { long seconds; long microseconds; } scq_time;
int gettimeofday(scq_time *now, void *zone);
int getpid(void);
]]

local now = ffi.new("scq_time")
local count, turn = 0, 0
local templates, tails = nil, {}
local TAILS = 4096

function init(args)
  templates = dofile(args[1])
  ffi.C.gettimeofday(now, nil)
  math.randomseed(tonumber(now.seconds) * 1000003 % 2147483647 + tonumber(now.microseconds) + ffi.C.getpid())
  for number = 1, TAILS do
    tails[number] = string.format("%09d%010d", math.random(0, 999999999), math.random(0, 2147483647))
  end
  turn = math.random(0, #templates - 1)
end

local function new_id()
  ffi.C.gettimeofday(now, nil)
  local milliseconds = tonumber(now.seconds) * 1000 + math.floor(tonumber(now.microseconds) / 1000)
  count = (count + 1) % 9000
  return string.format("scq-%013.0f%04d", milliseconds, count + 1000) .. tails[math.random(TAILS)] .. tails[math.random(TAILS)]
end

local parts = {}

function request()
  turn = turn % #templates + 1
  local template = templates[turn]
  parts[1] = template[1]
  for number = 2, #template do
    parts[2 * number - 2] = new_id()
    parts[2 * number - 1] = template[number]
  end
  return table.concat(parts, "", 1, 2 * #template - 1)
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "longest_us": %d, ' ..
      '"failed": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    errors.connect, errors.read, errors.write, errors.status, errors.timeout
  ))
end
