-- spend: units of a rate, now and all of them or none; `policy/throttle.py` is the same as a pure function.
-- KEYS: 1 limit's tag
-- ARGV: 1 interval in ns  2 burst  3 wanted
-- Result: 0 when they were taken, else for how many microseconds asking again is useless
-- First write: DEL.
-- State and clock as in take.
if redis.replicate_commands then redis.replicate_commands() end
local K = KEYS[1] .. RATE
local t = redis.call('TIME')
local now = (t[1] - 1577836800) * 1000000 + t[2]
local interval, burst = math.ceil(ARGV[1] / 125) / 8, tonumber(ARGV[2])
local full = burst * interval
local stored = tonumber(redis.call('GET', K) or 0)
-- What is beyond any grant was made by a clock that has since gone back, or under another rate.
local tat = math.min(stored, now + full)
local result = 0
local spent = math.max(tat, now) + math.min(tonumber(ARGV[3]), burst) * interval
if spent - now <= full then
  tat = spent
else
  result = math.ceil(spent - now - full)
end
if tat ~= stored then
  redis.call('DEL', K)
  redis.call('SET', K, string.format('%.3f', tat), 'PX', math.max(0, math.ceil((tat - now) / 1000)) + 1000)
end
return result
