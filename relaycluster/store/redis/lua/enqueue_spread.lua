-- enqueue_spread: unknown -> spread at home. A message for several domains exists once this has run.
-- KEYS: 1 home partition's tag
-- ARGV: 1 offset_ms  2 message id  3 record (its items)  4 body  5 done slot  6 done field  7 chunks  8 grace_ms
--       9 trace name  10 where the items go, for the history ('' for none)
--       11... parts: item number ':' item's partition
-- Result: 'spread', 'known', or 'chunks' (some are missing)
-- First write: HSETNX, so that a full Redis refuses it.
-- needs: now trace
local K, id = KEYS[1], ARGV[2]
if redis.call('HEXISTS', K .. DONE .. ARGV[5], ARGV[6]) == 1 then return 'known' end
if redis.call('EXISTS', K .. PARTS .. id) == 1 then return 'known' end
local chunks = tonumber(ARGV[7])
for n = 1, chunks do
  if redis.call('EXISTS', K .. BODY .. id .. ':' .. n) == 0 then return 'chunks' end
end
local now_ms = now(ARGV[1])
redis.call('HSETNX', K .. SPREAD, id, ARGV[3])
redis.call('SET', K .. BODY .. id, ARGV[4])
for n = 1, chunks do redis.call('PERSIST', K .. BODY .. id .. ':' .. n) end
for n = 11, #ARGV do redis.call('SADD', K .. PARTS .. id, ARGV[n]) end
redis.call('ZADD', K .. HOMES, now_ms, id)
redis.call('ZADD', K .. INDEX, 'LT', now_ms + ARGV[8], SPREAD_WORK)
if ARGV[10] ~= '' then add_trace(K, ARGV[9], ARGV[10], ARGV[1]) end
return 'spread'
