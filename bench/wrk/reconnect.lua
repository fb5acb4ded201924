-- After some visits, the last request of a connection asks for its close, and wrk opens another.

dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "report.lua")

local most = tonumber(os.getenv("VISITS_PER_CONNECTION") or "1")
local made = 0

function request()
   made = made + 1
   if made % most == 0 then
      return wrk.format(nil, nil, {["Connection"] = "close", ["Host"] = wrk.headers["Host"]})
   end
   return wrk.format()
end
