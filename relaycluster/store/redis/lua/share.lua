-- share: how many connections of a limit a node should keep, so that others who wish for some get their part. Writes nothing.
-- KEYS: 1 limit's tag
-- ARGV: 1 incarnation  2 maximum  3 next incarnation  4 living incarnations ',1,5,'
-- Result: the maximum when nobody else wishes for more; else an equal part of it, rounded down
-- First write: none.
-- needs: dead now
local K = KEYS[1]
local wishes, parties, count, wished = redis.call('HGETALL', K .. WISHES), {[ARGV[1]] = true}, 1, false
if #wishes == 0 then return tonumber(ARGV[2]) end
local function add(incarnation)
  if not parties[incarnation] and not is_dead(incarnation, ARGV[3], ARGV[4]) then
    parties[incarnation] = true
    count = count + 1
  end
end
local now_ms = now(0)
for n = 1, #wishes, 2 do
  if wishes[n] ~= ARGV[1] and now_ms - wishes[n + 1] < 3000 and not is_dead(wishes[n], ARGV[3], ARGV[4]) then
    wished = true
    add(wishes[n])
  end
end
if not wished then return tonumber(ARGV[2]) end
local held = redis.call('HGETALL', K .. SLOTS)
for n = 1, #held, 2 do add(held[n]) end
return math.floor(ARGV[2] / count)
