-- Prints one line of JSON at the end, with figures that wrk's own summary lacks. The other scripts here load it.

local counts = {}
local threads = {}

function setup(thread)
   table.insert(threads, thread)
end

function response(status, _, body)
   if status ~= 200 then
      refused = (refused or 0) + 1
   elseif body:find("Error registering", 1, true) then
      sorry = (sorry or 0) + 1
   end
end

function done(summary, latency, _)
   for _, name in ipairs({"refused", "sorry"}) do
      counts[name] = 0
      for _, thread in ipairs(threads) do
         counts[name] = counts[name] + (thread:get(name) or 0)
      end
   end
   local errors = summary.errors
   io.write(string.format(
      '{"visits":%d,"sorry":%d,"refused":%d,"failed":%d,"seconds":%.3f,"p50_us":%d,"p99_us":%d,"p999_us":%d,"max_us":%d}\n',
      summary.requests, counts.sorry, counts.refused,
      errors.connect + errors.read + errors.write + errors.timeout, summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9), latency.max))
end
