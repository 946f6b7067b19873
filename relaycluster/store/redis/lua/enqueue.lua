-- enqueue: unknown -> waiting, or -> leased (direct lease). Idempotent by id; the message exists once this has run.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 id  3 packed item  4 body ('' when it lies at home)  5 class  6 domain  7 size  8 done slot
--       9 done field  10 chunks  11 owner text ('' for no direct lease)  12 claim number
-- Result: the token when leased to the caller; 'waiting'; 'known' (queued before, or settled); 'chunks' (some are missing)
-- First write: SET, so that a full Redis refuses it.
-- needs: now waiting wake
local K, id = KEYS[1], ARGV[2]
if redis.call('HEXISTS', K .. DONE .. ARGV[8], ARGV[9]) == 1 then return 'known' end
if not redis.call('SET', K .. ITEM .. id, ARGV[3], 'NX') then
  local token = redis.call('HGET', K .. LEASED, id)
  local mine = ARGV[11] .. ':' .. ARGV[12] .. ':'
  if token and ARGV[11] ~= '' and string.sub(token, 1, #mine) == mine then return token end
  return 'known'
end
local chunks = tonumber(ARGV[10])
for n = 1, chunks do
  if redis.call('EXISTS', K .. BODY .. id .. ':' .. n) == 0 then
    redis.call('DEL', K .. ITEM .. id)
    return 'chunks'
  end
end
for n = 1, chunks do redis.call('PERSIST', K .. BODY .. id .. ':' .. n) end
if ARGV[4] ~= '' then redis.call('SET', K .. BODY .. id, ARGV[4]) end
local now_ms = now(ARGV[1])
if ARGV[11] ~= '' and redis.call('GET', K .. OWNER) == ARGV[11] then
  local token = string.format('%s:%s:%.0f', ARGV[11], ARGV[12], now_ms)
  redis.call('HSET', K .. LEASED, id, token)
  return token
end
if add_waiting(K, id, ARGV[5], ARGV[6], now_ms, ARGV[7]) then wake(K, ARGV[6]) end
return 'waiting'
