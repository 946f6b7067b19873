-- An item that leaves its holder's hands without an outcome goes back to where it was claimed from. Returns whether its domain became due
-- earlier than the index said.
local function give_back(K, id, packed, due)
  if redis.call('HEXISTS', K .. NOTES, '!' .. id) == 1 then
    redis.call('ZADD', K .. BOUNCING, due, id)
    redis.call('ZADD', K .. INDEX, 'LT', due, OPERATOR_WORK)
    return false
  end
  return add_waiting(K, id, item_class(packed), item_domain(packed), due, item_size(packed))
end
