-- defer: leased -> waiting, due later, with the item's new value; and a notice owed for recipients that failed meanwhile.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 token  4 new item  5 class  6 domain  7 size  8 delay_ms  9 notice id or ''  10 notice
--       11 grace_ms  12 notes known to the holder ('' for none)  13 the body, compressed now that it waits ('' to leave it)
--       14 trace name  15 attempts for the history ('' for none)  16 the reply, short
-- Result: 'done'; 'stale'; or {'noted', note} when a stale holder reported deliveries that the holder does not know of
-- First write: HDEL.
-- needs: now waiting settle trace wake
local K, id = KEYS[1], ARGV[2]
if redis.call('HGET', K .. LEASED, id) ~= ARGV[3] then return 'stale' end
local note = redis.call('HGET', K .. NOTES, id)
if note and note ~= ARGV[12] then return {'noted', note} end
redis.call('HDEL', K .. LEASED, id)
redis.call('HDEL', K .. NOTES, id, '!' .. id)
redis.call('SET', K .. ITEM .. id, ARGV[4])
if ARGV[13] ~= '' then redis.call('SET', K .. BODY .. id, ARGV[13]) end
local now_ms = now(ARGV[1])
if add_waiting(K, id, ARGV[5], ARGV[6], now_ms + ARGV[8], ARGV[7]) then wake(K, ARGV[6]) end
redis.call('HSET', K .. REPLIES, ARGV[6], string.format('%.0f:', now_ms) .. ARGV[16])
owe(K, ARGV[9], ARGV[10], now_ms + ARGV[11])
if ARGV[15] ~= '' then add_trace(K, ARGV[14], ARGV[15], ARGV[1]) end
return 'done'
