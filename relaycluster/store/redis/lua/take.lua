-- take: slots of a rate, by GCRA on Redis TIME; `policy/throttle.py` is the same as a pure function.
-- KEYS: 1 limit's tag
-- ARGV: 1 interval in ns  2 burst  3 wanted  4 horizon_us
-- Result: {retry_after_us, delay_us of the first slot, ...}: slots that may be used within the horizon; retry_after_us is how long
--         asking again is useless
-- First write: DEL.
-- Times are microseconds since 2020, the state in eighths of them: exact in a double, and rounded up, so that the limit holds.
if redis.replicate_commands then redis.replicate_commands() end
local K = KEYS[1] .. RATE
local t = redis.call('TIME')
local now = (t[1] - 1577836800) * 1000000 + t[2]
local interval, burst = math.ceil(ARGV[1] / 125) / 8, tonumber(ARGV[2])
local tolerance, last = interval * (burst - 1), now + ARGV[4]
local stored = tonumber(redis.call('GET', K) or 0)
-- No grant leaves more than this. What is beyond was made by a clock that has since gone back, or under another rate.
local tat = math.min(stored, last + burst * interval)
local result = {0}
local due = math.max(now, tat - tolerance)
while due <= last and #result <= tonumber(ARGV[3]) do
  result[#result + 1] = math.ceil(due) - now
  tat = math.max(tat, due) + interval
  due = math.max(now, tat - tolerance)
end
if due > last then result[1] = math.ceil(due) - now - math.floor(ARGV[4] / 2) end
if tat ~= stored then
  redis.call('DEL', K)
  redis.call('SET', K, string.format('%.3f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
end
return result
