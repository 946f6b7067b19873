-- One item leaves those that wait, and is in nobody's hands for a moment.
local function take_waiting(K, id, packed, now_ms)
  local domain = item_domain(packed)
  redis.call('ZREM', K .. DUE .. item_class(packed) .. ':' .. domain, id)
  remove_waiting(K, {id}, domain, item_size(packed))
  reindex(K, domain, now_ms)
end
