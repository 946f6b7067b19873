-- operator_hold: waiting or leased -> held, for as long as the operator wants. Out of a holder's hands it is marked: what that one may
-- still deliver is a fact that its `finish` records, but an attempt after the release could come before that.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 act  4 trace name ('' for none)
-- Result: 'done' (also when it was held), 'unknown', or 'bouncing'
-- First write: HDEL.
-- needs: now item waiting take trace operator
local K, id = KEYS[1], ARGV[2]
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'unknown' end
if redis.call('HEXISTS', K .. NOTES, '!' .. id) == 1 then return 'bouncing' end
if redis.call('ZSCORE', K .. HELD, id) then return 'done' end
local now_ms = now(ARGV[1])
if redis.call('HDEL', K .. LEASED, id) == 1 then
  local flags = string.byte(packed, 2)
  if flags % 2 < POSSIBLE_DUPLICATE then redis.call('SETRANGE', K .. ITEM .. id, 1, string.char(flags + POSSIBLE_DUPLICATE)) end
else
  take_waiting(K, id, packed, now_ms)
end
redis.call('ZADD', K .. HELD, now_ms, id)
tell(K, ARGV[3], ARGV[4], ARGV[1])
return 'done'
