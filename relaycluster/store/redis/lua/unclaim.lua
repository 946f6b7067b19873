-- unclaim: leased -> waiting, as they were, for the items of a claim whose answer never came: nobody has them in hand.
-- KEYS: 1 partition tag
-- ARGV: 1 owner text of the claim  2 its first number  3 how many it asked for
-- Result: how many waited for this
-- First write: HDEL.
-- needs: item waiting back wake
local K, count = KEYS[1], 0
local first, last = tonumber(ARGV[2]), ARGV[2] + ARGV[3] - 1
local leased = redis.call('HGETALL', K .. LEASED)
for n = 1, #leased, 2 do
  local owner, number, due = string.match(leased[n + 1], '^(%d+:%d+):(%d+):(%d+)$')
  if owner == ARGV[1] and tonumber(number) >= first and tonumber(number) <= last then
    redis.call('HDEL', K .. LEASED, leased[n])
    local packed = redis.call('GET', K .. ITEM .. leased[n])
    if packed then
      if give_back(K, leased[n], packed, tonumber(due)) then wake(K, item_domain(packed)) end
      count = count + 1
    end
  end
end
return count
