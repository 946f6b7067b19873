-- claim_bounces: bouncing -> leased, for the owner, who settles them as failed.
-- KEYS: 1 partition tag
-- ARGV: 1 owner text  2 limit  3 first claim number  4 largest body that comes along
-- Result: {'lost'} when the partition has another owner; else {'ok', id, token, item, body or false, note or false, reason, ...}
-- First write: ZREM.
-- needs: now trace operator lease
local K, number = KEYS[1], tonumber(ARGV[3])
if redis.call('GET', K .. OWNER) ~= ARGV[1] then return {'lost'} end
local result = {'ok'}
local found = redis.call('ZRANGE', K .. BOUNCING, 0, ARGV[2] - 1, 'WITHSCORES')
for n = 1, #found, 2 do
  local id = found[n]
  redis.call('ZREM', K .. BOUNCING, id)
  local packed = redis.call('GET', K .. ITEM .. id)
  if packed then
    lease(K, result, id, string.format('%s:%.0f:%s', ARGV[1], number, found[n + 1]), packed, ARGV[4])
    result[#result + 1] = redis.call('HGET', K .. NOTES, '!' .. id)
    number = number + 1
  end
end
operator_idle(K)
return result
