-- finish: leased -> settled, with a notice owed where recipients failed.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 token  4 done slot  5 done field  6 retention_ms  7 chunks to drop here
--       8 '1' when every recipient was delivered (a fact, even from a stale holder)  9 notice id or ''  10 notice  11 grace_ms
--       12 trace name  13 attempts for the history ('' for none)  14 notes known to the holder ('' for none)
-- Result: 'done', now or at an earlier try; 'stale'; or, where not every recipient was delivered, {'noted', note} when a stale holder
-- reported deliveries that the holder does not know of
-- First write: HDEL (ZREM for a stale holder's fact).
-- needs: now item waiting take settle trace
local K, id, to_all = KEYS[1], ARGV[2], ARGV[8] == '1'
local token = redis.call('HGET', K .. LEASED, id)
if token == ARGV[3] then
  if not to_all then
    local note = redis.call('HGET', K .. NOTES, id)
    if note and note ~= ARGV[14] then return {'noted', note} end
  end
  redis.call('HDEL', K .. LEASED, id)
else
  local packed = redis.call('GET', K .. ITEM .. id)
  if not packed then
    local by = redis.call('HGET', K .. DONE .. ARGV[4], ARGV[5])
    if by and (to_all or by == ARGV[3]) then return 'done' end
    return 'stale'
  end
  if not to_all then return 'stale' end
  if token then
    redis.call('DEL', K .. ':scratch')
    redis.call('HSET', K .. NOTES, id, '*')
    return 'stale'
  end
  if redis.call('ZREM', K .. HELD, id) + redis.call('ZREM', K .. BOUNCING, id) == 0 then
    take_waiting(K, id, packed, now(ARGV[1]))
  end
end
forget(K, id, tonumber(ARGV[7]))
remember(K, ARGV[4], ARGV[5], ARGV[6], to_all and '' or ARGV[3])
if ARGV[9] ~= '' then owe(K, ARGV[9], ARGV[10], now(ARGV[1]) + ARGV[11]) end
if ARGV[13] ~= '' then add_trace(K, ARGV[12], ARGV[13], ARGV[1]) end
return 'done'
