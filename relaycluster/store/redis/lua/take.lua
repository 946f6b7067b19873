-- take: slots of a rate, by GCRA on Redis TIME; `policy/throttle.py` is the same as a pure function.
-- KEYS: 1 limit's tag
-- ARGV: 1 interval in ns  2 burst  3 wanted  4 horizon_us
-- Result: {retry_after_us, delay_us of the first slot, ...}: slots that may be used within the horizon, else when to ask again
-- First write: DEL.
-- Times are microseconds since 2020, in nanoseconds of resolution: exact in a double.
if redis.replicate_commands then redis.replicate_commands() end
local K = KEYS[1] .. RATE
local t = redis.call('TIME')
local now = (t[1] - 1577836800) * 1000000 + t[2]
local interval, burst = ARGV[1] / 1000, tonumber(ARGV[2])
local tolerance = interval * (burst - 1)
local tat = tonumber(redis.call('GET', K) or 0)
if tat > now + tolerance + 2 * interval + ARGV[4] then tat = now + tolerance + interval end
local result = {0}
for _ = 1, ARGV[3] do
  local base = math.max(tat, now)
  local delay = math.max(0, base - tolerance - now)
  if delay > tonumber(ARGV[4]) then
    if #result == 1 then result[1] = math.ceil(delay) end
    break
  end
  tat = base + interval
  result[#result + 1] = math.ceil(delay)
end
if #result > 1 then
  redis.call('DEL', K)
  redis.call('SET', K, string.format('%.3f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
end
return result
