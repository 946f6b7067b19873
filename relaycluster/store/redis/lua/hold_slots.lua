-- hold_slots: a node says how many connections of a limit it holds; those of the dead are free. Never a counter that is moved by one.
-- KEYS: 1 limit's tag
-- ARGV: 1 incarnation  2 wanted  3 maximum  4 next incarnation  5 living incarnations ',1,5,'
-- Result: how many it now holds. Who got fewer than it wanted is remembered as wishing for more: share.lua
-- First write: HDEL.
-- needs: dead now
local K, others, mine = KEYS[1], 0, 0
local held = redis.call('HGETALL', K .. SLOTS)
for n = 1, #held, 2 do
  if held[n] == ARGV[1] then
    mine = tonumber(held[n + 1])
  elseif is_dead(held[n], ARGV[4], ARGV[5]) then
    redis.call('HDEL', K .. SLOTS, held[n])
  else
    others = others + held[n + 1]
  end
end
local wanted = tonumber(ARGV[2])
local granted = wanted
if wanted > mine then granted = math.max(mine, math.min(wanted, ARGV[3] - others)) end
redis.call('HDEL', K .. SLOTS, ARGV[1])
if granted > 0 then redis.call('HSET', K .. SLOTS, ARGV[1], granted) end
if granted < wanted then
  redis.call('HSET', K .. WISHES, ARGV[1], string.format('%.0f', now(0)))
  redis.call('PEXPIRE', K .. WISHES, 3000)
elseif wanted > 0 then
  redis.call('HDEL', K .. WISHES, ARGV[1])
end
return granted
