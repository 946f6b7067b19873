-- claim: waiting -> leased, for up to `limit` due items of a domain; urgent before normal before bulk, oldest first, after so many of
-- normal and of bulk as they have a share in (policy/priority.py).
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 owner text  3 domain  4 limit  5 first claim number  6 largest body that comes along
--       7 items of normal first  8 items of bulk first
-- Result: {'lost'} when the partition has another owner; else {'ok', id, token, item, body or false, note or false, ...}
-- First write: ZREM.
-- needs: now item waiting lease
local K, domain = KEYS[1], ARGV[3]
if redis.call('GET', K .. OWNER) ~= ARGV[2] then return {'lost'} end
local now_ms, left, number, size = now(ARGV[1]), tonumber(ARGV[4]), tonumber(ARGV[5]), 0
local result, taken = {'ok'}, {}
local function take(class, most)
  if most == 0 then return end
  local due_key = K .. DUE .. class .. ':' .. domain
  local found = redis.call('ZRANGEBYSCORE', due_key, '-inf', now_ms, 'WITHSCORES', 'LIMIT', 0, most)
  for n = 1, #found, 2 do
    local id = found[n]
    redis.call('ZREM', due_key, id)
    taken[#taken + 1] = id
    local packed = redis.call('GET', K .. ITEM .. id)
    if packed then
      lease(K, result, id, string.format('%s:%.0f:%s', ARGV[2], number, found[n + 1]), packed, ARGV[6])
      number, left, size = number + 1, left - 1, size + item_size(packed)
    end
  end
end
take(2, math.min(left, tonumber(ARGV[8])))
take(1, math.min(left, tonumber(ARGV[7])))
for class = 0, 2 do take(class, left) end
if #taken > 0 then remove_waiting(K, taken, domain, size) end
reindex(K, domain, now_ms)
return result
