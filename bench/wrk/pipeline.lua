-- Sends the requests of a batch at once; wrk counts each answer.

dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "report.lua")

local batch

function init()
   local requests = {}
   for place = 1, tonumber(os.getenv("AT_ONCE") or "16") do
      requests[place] = wrk.format()
   end
   batch = table.concat(requests)
end

function request()
   return batch
end
