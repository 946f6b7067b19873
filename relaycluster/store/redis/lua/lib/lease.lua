-- An item is in its owner's hands under a token; what a holder must know of it joins the result.
local function lease(K, result, id, token, packed, largest_body)
  redis.call('HSET', K .. LEASED, id, token)
  local body = false
  if redis.call('STRLEN', K .. BODY .. id) <= tonumber(largest_body) then body = redis.call('GET', K .. BODY .. id) end
  for _, each in ipairs({id, token, packed, body, redis.call('HGET', K .. NOTES, id)}) do result[#result + 1] = each end
end
