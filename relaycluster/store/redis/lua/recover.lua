-- recover: items leased by the dead -> waiting, as they were, marked as possible duplicates; or held, when their holders keep dying.
-- KEYS: 1 partition tag
-- ARGV: 1 offset_ms  2 owner text  3 next incarnation  4 living incarnations ',1,5,'  5 deaths that hold an item
-- Result: {'lost'}; or {'ok', id, '1' if held else '0', ...}
-- First write: HDEL.
-- needs: now dead item waiting back
local K = KEYS[1]
if redis.call('GET', K .. OWNER) ~= ARGV[2] then return {'lost'} end
local result = {'ok'}
if redis.call('HLEN', K .. LEASED) == 0 then return result end
local leased = redis.call('HGETALL', K .. LEASED)
for n = 1, #leased, 2 do
  local id, token = leased[n], leased[n + 1]
  if is_dead(string.match(token, '^%d+'), ARGV[3], ARGV[4]) then
    redis.call('HDEL', K .. LEASED, id)
    local packed = redis.call('GET', K .. ITEM .. id)
    if packed then
      local flags, deaths = string.byte(packed, 2), string.byte(packed, 3)
      if flags % 2 < POSSIBLE_DUPLICATE then flags = flags + POSSIBLE_DUPLICATE end
      if deaths < 255 then deaths = deaths + 1 end
      redis.call('SETRANGE', K .. ITEM .. id, 1, string.char(flags, deaths))
      local held = deaths >= tonumber(ARGV[5])
      if held then
        redis.call('ZADD', K .. HELD, now(ARGV[1]), id)
        redis.call('HDEL', K .. NOTES, '!' .. id)
      else
        give_back(K, id, packed, tonumber(string.match(token, ':(%d+)$')))
      end
      result[#result + 1] = id
      result[#result + 1] = held and '1' or '0'
    end
  end
end
return result
