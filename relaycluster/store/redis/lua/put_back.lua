-- put_back: leased -> waiting, due as it was; the holder did not try.
-- KEYS: 1 partition tag
-- ARGV: 1 id  2 token
-- Result: 'done' or 'stale'
-- First write: HDEL.
-- needs: item waiting back wake
local K, id = KEYS[1], ARGV[1]
if redis.call('HGET', K .. LEASED, id) ~= ARGV[2] then return 'stale' end
redis.call('HDEL', K .. LEASED, id)
local packed = redis.call('GET', K .. ITEM .. id)
if not packed then return 'stale' end
local due = tonumber(string.match(ARGV[2], ':(%d+)$'))
if give_back(K, id, packed, due) then wake(K, item_domain(packed)) end
return 'done'
