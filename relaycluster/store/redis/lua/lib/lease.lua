-- An item is in its owner's hands under a token; what a holder must know of it joins the result.
local function lease(K, result, id, token, packed, largest_body)
  redis.call('HSET', K .. LEASED, id, token)
  local body = false
  if redis.call('STRLEN', K .. BODY .. id) <= tonumber(largest_body) then body = redis.call('GET', K .. BODY .. id) end
  local at = #result
  result[at + 1], result[at + 2], result[at + 3], result[at + 4] = id, token, packed, body
  result[at + 5] = redis.call('HGET', K .. NOTES, id)
end
